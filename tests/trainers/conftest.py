import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import Manifest
from pipeline.vocab import Vocab

STEP = 40


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """make_model(units, layers, vocab, seed, **settings of ModelConfig): build a small model."""
    from trainers.config import ModelConfig
    from trainers.model.char_rnn import CharRNN

    def make(units: int = 7, layers: int = 2, vocab: int = 11, seed: int = 1, **settings: Any) -> CharRNN:
        return CharRNN(ModelConfig(units=units, layers=layers, **settings), vocab, seed)

    return make


@pytest.fixture(scope="session")
def run_keras() -> Callable[..., Any]:
    """run_keras(model, ids, carry, masks): compute logits and carry with Keras's own layers."""
    import tensorflow as tf

    from trainers.model.char_rnn import CharRNN, join_carry, split_carry

    def run(model: CharRNN, ids: Any, carry: Any, masks: Any = ()) -> tuple[tf.Tensor, tf.Tensor]:
        y = model.embedding(ids) if model.embedding else tf.one_hot(ids, model.vocab_size)
        after = []
        for index, (layer, state) in enumerate(zip(model.rnns, split_carry(carry), strict=True)):
            y, *state_after = layer(y, initial_state=list(state))
            y = model.norms[index](y) if model.norms else y
            y = y if not masks or masks[index] is None else y * masks[index]
            after.append(tuple(state_after))
        return model.dense(y), join_carry(after)

    return run


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


@pytest.fixture(scope="session")
def saved_run(make_data: Callable[..., Manifest]) -> Callable[..., Path]:
    """saved_run(folder, vocab, train=text, ...): write a data set and a run of random weights."""
    import tiny_run

    def make(folder: Path, vocab: Vocab | None = None, **texts: bytes) -> Path:
        manifest = make_data(folder / "data", 1000, vocab, **texts)
        return tiny_run.random_run(folder / "run", manifest, texts["train"], STEP)

    return make
