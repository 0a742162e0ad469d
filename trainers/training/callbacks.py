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

# They set the optimizer's learning rate, which has to be a plain number for that.
RATE_CHANGERS = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)


def make_callbacks(config: TrainConfig) -> list[keras.callbacks.Callback]:
    """The callbacks that a config names. Raises UsageError for one that there is not, that refuses its settings, or
    that would change a learning rate that the config has laid out already."""
    made = [_make(table) for table in config.callbacks]
    for callback in made:
        if isinstance(callback, RATE_CHANGERS) and (config.schedule != "constant" or config.warmup):
            raise UsageError(
                f"[train] callbacks: {type(callback).__name__} changes the learning rate, so it wants a constant one, "
                f"got schedule={config.schedule}, warmup={config.warmup}"
            )
    return made


def _make(table: dict[str, Any]) -> keras.callbacks.Callback:
    name, settings = table["name"], {key: value for key, value in table.items() if key != "name"}
    module, _, kind = name.rpartition(":")
    try:
        found = getattr(importlib.import_module(module) if module else keras.callbacks, kind, None)
        if found is None:
            known = "" if module else f", which has {', '.join(n for n in dir(keras.callbacks) if n[0].isupper())}"
            raise UsageError(f"[train] callbacks: there is no '{kind}' in {module or 'keras.callbacks'}{known}")
        made = found(**settings)
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
        first = step - len(nats)
        self._open(first)
        for index, loss in enumerate(nats if self.any else (), start=first % self.every):
            self.list.on_train_batch_begin(index)
            self.list.on_train_batch_end(index, {"loss": loss})

    def evaluating(self, step: int) -> None:
        """A validation after `step` steps begins."""
        self._open(step - 1)  # a run may go on just there
        self.list.on_test_begin()

    def evaluated(self, step: int, train: dict[str, Any], val: dict[str, Any]) -> None:
        """It has ended, and the stretch with it: its last report on training, and its validation."""
        loss = {"loss": val["val_nats"], "bits": val["val_bits"]}
        self.list.on_test_end(loss)
        logs = {"loss": train["train_nats"], "bits": train["train_bits"]}
        logs |= {name: train[name] for name in ("gradient_norm", "learning_rate", "per_second")}
        self.list.on_epoch_end((step - 1) // self.every, logs | {f"val_{name}": value for name, value in loss.items()})

    def _open(self, step: int) -> None:
        """Begins the stretch that step `step`, counted from 0, is in, unless it is begun."""
        stretch = step // self.every
        if self._begun != stretch:
            self._begun = stretch
            self.list.on_epoch_begin(stretch)

    def end(self) -> None:
        self.list.on_train_end()

    @property
    def stop(self) -> bool:
        """Whether a callback asked for an end."""
        return bool(self.model.stop_training)
