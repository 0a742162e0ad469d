"""Keras callbacks, from a config or a caller, driven by this project's own loop.

A callback's epoch is the interval between two evaluations, as an epoch of a large text may take days. The logs contain
loss, val_loss (nats per target), bits, val_bits, gradient_norm, learning_rate and per_second. A resumed run starts with
new callbacks; their state is not saved. Each worker has its own, as with `fit`.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import keras

from common.errors import StageError, Stopped, UsageError
from trainers.config import TrainConfig

# They set the optimizer's learning rate, which must then be a variable.
RATE_CHANGERS = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)


def make_callbacks(config: TrainConfig, allow_code: bool = False) -> list[keras.callbacks.Callback]:
    """Create the config's callbacks.

    allow_code: import those outside keras.callbacks, which runs their modules' code.
    Raises UsageError for an unknown callback, invalid arguments, or a callback that sets a scheduled learning rate.
    """
    callbacks = [_make(table, allow_code) for table in config.callbacks]
    for callback in callbacks:
        if isinstance(callback, RATE_CHANGERS) and (config.schedule != "constant" or config.warmup):
            raise UsageError(
                f"[train] callbacks: {type(callback).__name__} sets the learning rate, so it needs a constant "
                f"one, got schedule={config.schedule}, warmup={config.warmup}"
            )
    return callbacks


def _make(table: dict[str, Any], allow_code: bool) -> keras.callbacks.Callback:
    name, settings = table["name"], {key: value for key, value in table.items() if key != "name"}
    module, _, kind = name.rpartition(":")
    if module and not allow_code:
        raise UsageError(
            f"[train] callbacks: '{name}' is not from keras.callbacks: pass --allow-code to import and run it"
        )
    try:
        factory = getattr(importlib.import_module(module) if module else keras.callbacks, kind, None)
        if factory is None:
            known = "" if module else f", which has {', '.join(n for n in dir(keras.callbacks) if n[0].isupper())}"
            raise UsageError(f"[train] callbacks: no '{kind}' in {module or 'keras.callbacks'}{known}")
        if not (isinstance(factory, type) and issubclass(factory, keras.callbacks.Callback)):
            raise UsageError(f"[train] callbacks: '{name}' must be a keras.callbacks.Callback class, got {factory!r}")
        return factory(**settings)
    except UsageError:
        raise
    except Exception as error:  # the module and the class are the user's
        raise UsageError(f"[train] callbacks: '{name}' cannot be created ({type(error).__name__}: {error})") from None


class Driver:
    """Driver that calls callbacks as `fit` would. An epoch is an interval of `every` steps; the last may be shorter."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], model: keras.Model, total: int, every: int):
        model.stop_training = False
        self.model, self.every, self.any = model, every, bool(callbacks)
        params = {"epochs": -(-total // every), "steps": every, "verbose": 0}
        self.list = keras.callbacks.CallbackList(list(callbacks), model=model, **params)
        self._begun = -1  # the interval that has begun

    def _call(self, event: str, *arguments: Any) -> None:
        try:
            getattr(self.list, event)(*arguments)
        except (StageError, Stopped, UsageError):
            raise
        except Exception as error:
            names = ", ".join(type(callback).__name__ for callback in self.list.callbacks)
            raise StageError(f"train.callbacks ({names}) failed ({type(error).__name__}: {error})") from error

    def begin(self) -> None:
        self._call("on_train_begin")

    def steps(self, step: int, nats: list[float]) -> None:
        """Report finished steps up to `step`: the loss of each."""
        first = step - len(nats)
        self._open(first)
        for index, loss in enumerate(nats if self.any else (), start=first % self.every):
            self._call("on_train_batch_begin", index)
            self._call("on_train_batch_end", index, {"loss": loss})

    def evaluating(self, step: int) -> None:
        """Report the start of the validation after `step` steps."""
        self._open(step - 1)  # in case the run resumed here
        self._call("on_test_begin")

    def evaluated(self, step: int, train: dict[str, Any], val: dict[str, Any]) -> None:
        """Report the end of the validation and of the interval, with the last train report and the validation."""
        loss = {"loss": val["val_nats"], "bits": val["val_bits"]}
        self._call("on_test_end", loss)
        logs = {"loss": train["train_nats"], "bits": train["train_bits"]}
        logs |= {name: train[name] for name in ("gradient_norm", "learning_rate", "per_second")}
        self._call(
            "on_epoch_end", (step - 1) // self.every, logs | {f"val_{name}": value for name, value in loss.items()}
        )

    def _open(self, step: int) -> None:
        """Begin the interval of step `step`, counted from 0, unless it has begun."""
        interval = step // self.every
        if self._begun != interval:
            self._begun = interval
            self._call("on_epoch_begin", interval)

    def end(self) -> None:
        self._call("on_train_end")

    @property
    def stop(self) -> bool:
        """True once a callback has requested a stop."""
        return bool(self.model.stop_training)
