import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainers.config import ModelConfig
from trainers.devices import Devices
from trainers.model import CharRNN

MakeModel = Callable[..., CharRNN]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh inputs at each run; the seed is printed with a failure."""
    seed = int(np.random.default_rng().integers(2**31))
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """make_model(units, layers, vocab, seed, and any setting of ModelConfig)."""

    def make(units: int = 7, layers: int = 2, vocab: int = 11, seed: int = 1, **settings: Any) -> CharRNN:
        return CharRNN(ModelConfig(units=units, layers=layers, **settings), vocab, seed)

    return make


@pytest.fixture(scope="session")
def on() -> Callable[..., Devices]:
    """on(replicas, towers): devices without the once-a-process set-up of trainers.devices.prepare."""

    @functools.cache  # strategies over the same devices share the numbers of their collective ops: one each a process
    def strategy(replicas: int) -> tf.distribute.Strategy:
        return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])

    def make(replicas: int = 1, towers: int = 1) -> Devices:
        return Devices(strategy(replicas), replicas, cores=towers, fewest=1)

    return make
