import functools
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """make_model(units, layers, vocab, seed, **settings of ModelConfig): build a small model."""
    from trainers.config import ModelConfig
    from trainers.model.char_rnn import CharRNN

    def make(units: int = 7, layers: int = 2, vocab: int = 11, seed: int = 1, **settings: Any) -> CharRNN:
        return CharRNN(ModelConfig(units=units, layers=layers, **settings), vocab, seed)

    return make


@pytest.fixture(scope="session")
def on() -> Callable[..., Any]:
    """on(replicas, towers): devices without the per-process set-up of trainers.training.devices.prepare."""
    import tensorflow as tf

    from trainers.training.devices import Devices

    @functools.cache  # strategies over the same devices share collective keys, so build each once
    def strategy(replicas: int) -> tf.distribute.Strategy:
        return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])

    def make(replicas: int = 1, towers: int = 1) -> Devices:
        return Devices(strategy(replicas), replicas, cores=towers, fewest=1)

    return make
