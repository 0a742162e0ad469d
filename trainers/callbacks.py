"""Keras callbacks, from a config or a caller, driven from our own loop.

What Keras calls an epoch is here the stretch from one evaluation to the next: a real epoch of a large text may last for
days. The logs hold loss, val_loss (nats a character), bits, val_bits, gradient_norm, learning_rate and per_second.
A run that goes on begins with new callbacks: what they remembered is not kept. Each worker has its own, as with `fit`.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import keras

from common.errors import UsageError
from trainers.config import TrainConfig


def make_callbacks(config: TrainConfig) -> list[keras.callbacks.Callback]:
    """The callbacks that a config names. Raises UsageError for one that there is not, or that refuses its settings."""
    return [_make(table) for table in config.callbacks]


def _make(table: dict[str, Any]) -> keras.callbacks.Callback:
    name, settings = table["name"], {key: value for key, value in table.items() if key != "name"}
    module, _, kind = name.rpartition(":")
    try:
        made = getattr(importlib.import_module(module) if module else keras.callbacks, kind)(**settings)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise UsageError(f"[train] callbacks: '{name}' cannot be made ({type(error).__name__}: {error})") from None
    if not isinstance(made, keras.callbacks.Callback):
        raise UsageError(f"[train] callbacks: '{name}' is no keras.callbacks.Callback, it made {made!r}")
    return made


class Driver:
    """Calls callbacks at the moments at which `fit` would. Its epoch is a stretch of `every` steps, the last may be
    shorter."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], model: keras.Model, total: int, every: int):
        model.stop_training = False
        self.model, self.every, self.any = model, every, bool(callbacks)
        params = {"epochs": -(-total // every), "steps": every, "verbose": 0}
        self.list = keras.callbacks.CallbackList(list(callbacks), model=model, **params)
        self._begun = -1  # the stretch that is open

    def begin(self) -> None:
        self.list.on_train_begin()

    def steps(self, step: int, nats: list[float]) -> None:
        """Steps that were made, `step` with the last of them: the loss of each."""
        stretch, batch = divmod(step - len(nats), self.every)
        if self._begun != stretch:
            self.list.on_epoch_begin(stretch)
            self._begun = stretch
        for index, loss in enumerate(nats if self.any else (), start=batch):
            self.list.on_train_batch_begin(index)
            self.list.on_train_batch_end(index, {"loss": loss})

    def evaluated(self, step: int, train: dict[str, Any], val: dict[str, Any]) -> None:
        """The end of a stretch, after `step` steps: its last report on training, and its validation."""
        loss = {"loss": val["val_nats"], "bits": val["val_bits"]}
        self.list.on_test_begin()
        self.list.on_test_end(loss)
        logs = {"loss": train["train_nats"], "bits": train["train_bits"]}
        logs |= {name: train[name] for name in ("gradient_norm", "learning_rate", "per_second")}
        self.list.on_epoch_end((step - 1) // self.every, logs | {f"val_{name}": value for name, value in loss.items()})

    def end(self) -> None:
        self.list.on_train_end()

    @property
    def stop(self) -> bool:
        """Whether a callback asked for an end."""
        return bool(self.model.stop_training)
