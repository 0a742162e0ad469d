"""The checkpoints of a run, and the model restored from one.

runs/NAME/checkpoints/step-00000500/              a checkpoint, renamed into place once complete
    checkpoint.json                               step, losses, and a copy of run.json
    state.index, state.data-00000-of-00001        weights, optimizer and carry, written by tf.train.Checkpoint
runs/NAME/checkpoints/damaged-step-00000500/      an unreadable checkpoint, moved aside on resume; nothing reads it

The carry is saved as one carry_BxLxSxH over all lanes, so a run can resume on any number of replicas.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from common import console
from common.errors import StageError
from common.files import sha256_file, whole_folder, write_json
from pipeline.vocab import Vocab
from trainers.config import ModelConfig
from trainers.model.char_rnn import CharRNN
from trainers.run import FORMAT_VERSION, Run, read_run


class DamageError(StageError):
    """A checkpoint cannot be read."""


@dataclasses.dataclass(frozen=True)
class Since:
    """What training has seen since its last report: the losses' sum, their number, and the time."""

    nats: float = 0.0
    targets: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What checkpoint.json says. `val_nats` is the mean loss on the validation split, in nats a character; None where
    the checkpoint was not made at an evaluation."""

    folder: Path
    step: int
    val_nats: float | None
    since: Since = Since()
    learning_rate: float | None = None  # where it is a variable, which callbacks may have changed: as it stood


def checkpoints(run: Run) -> list[Checkpoint]:
    """The run's checkpoints by step, the last one last. One that is damaged is named, and passed over."""
    found = []
    for folder in _folders(run):
        try:
            found.append(_read(folder, run))
        except DamageError as error:
            console.note(f"{error}")
    return found


def _folders(run: Run) -> list[Path]:
    """Where the run's checkpoints lie, by step."""
    return sorted(path.parent for path in (run.folder / "checkpoints").glob("step-*/checkpoint.json"))


def _folder(run: Run, step: int) -> Path:
    return run.folder / "checkpoints" / f"step-{step:08d}"


def last_step(run: Run) -> int:
    """The step of the last checkpoint; 0 where there is none."""
    return max((int(folder.name.removeprefix("step-")) for folder in _folders(run)), default=0)


def _read(folder: Path, run: Run) -> Checkpoint:
    try:
        value = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        if value["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {value['format_version']}, this program reads {FORMAT_VERSION}")
        before, rate = value["run"]["config"]["train"]["learning_rate"], value["learning_rate"]
        rate = rate if before == run.config.train.learning_rate else None  # another one is asked for now
        one = Checkpoint(folder, value["step"], value["val_nats"], Since(**value["since"]), rate)
        vocab_sha256 = value["vocab_sha256"]
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from None
    if vocab_sha256 != run.vocab.sha256:
        raise StageError(f"{folder} is a checkpoint of another vocabulary than its run's; remove it")
    return one


def best(run: Run) -> Checkpoint:
    """The checkpoint with the lowest validation loss: the one to evaluate, sample and export."""
    found = [one for one in checkpoints(run) if one.val_nats is not None]
    if not found:
        raise StageError(f"{run.folder} has no checkpoint yet: train it with python -m trainers train CONFIG")
    return min(found, key=_val_nats)


def _val_nats(one: Checkpoint) -> float:
    return math.inf if one.val_nats is None else one.val_nats


def weights_sha256(checkpoint: Checkpoint) -> str:
    """The hash of a checkpoint's tensors: what an export was made from."""
    try:
        return sha256_file(checkpoint.folder / "state.data-00000-of-00001")
    except OSError as error:
        raise _damaged(checkpoint.folder, error) from None


class State:
    """What training changes: weights, optimizer, and the carry as one array over all lanes."""

    def __init__(self, model: CharRNN, optimizer: keras.Optimizer, lanes: int):
        self.model, self.optimizer = model, optimizer
        self.carry_BxLxSxH = tf.Variable(model.initial_carry(lanes), trainable=False)
        # The learning rate is kept beside them, as a number: it is a variable under some settings only.
        slots = {path.partition("/")[2]: value for path, value in _by_path(optimizer.variables).items()}
        slots.pop("learning_rate", None)
        self._tracked = _tracked(model, optimizer=slots, carry=self.carry_BxLxSxH)  # whatever the optimizer's own name

    def save(self, run: Run, step: int, val_nats: float | None, since: Since = Since()) -> Checkpoint:
        """Writes checkpoint `step`, then removes those that are neither among the last `keep` nor the best."""
        folder = _folder(run, step)
        with whole_folder(folder) as partial:
            self._tracked.write(str(partial / "state"))
            write_json(
                partial / "checkpoint.json",
                {
                    "format_version": FORMAT_VERSION,
                    "step": step,
                    "val_nats": val_nats,
                    "since": dataclasses.asdict(since),
                    "learning_rate": self._rate(),
                    "vocab_sha256": run.vocab.sha256,
                    "run": run.to_json(),
                },
            )
            for file in partial.iterdir():  # on the disk before it is called whole, should the power fail
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        found = checkpoints(run)
        kept = min(found, key=_val_nats)
        for old in found[: -run.config.train.keep]:
            if old != kept:
                (old.folder / "checkpoint.json").unlink()  # first: half of it removed, it is no checkpoint any more
                shutil.rmtree(old.folder)
        return Checkpoint(folder, step, val_nats, since)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts weights, optimizer and carry back to where they were. Raises StageError where the files are damaged."""
        with _as_damage(checkpoint):
            self._tracked.read(str(checkpoint.folder / "state")).assert_consumed()
        if checkpoint.learning_rate is not None and self._rate() is not None:
            self.optimizer.learning_rate = checkpoint.learning_rate

    def _rate(self) -> float | None:
        """The learning rate, where it is a variable."""
        rate = self.optimizer._learning_rate
        return float(rate.numpy()) if isinstance(rate, keras.Variable) else None

    def restore_last(self, run: Run) -> Checkpoint | None:
        """Restores the last checkpoint that is whole; None where there is none at all. A damaged one is named, and put
        out of the way.

        Raises StageError where all are damaged.
        """
        folders = _folders(run)
        for folder in reversed(folders):
            try:
                one = _read(folder, run)
                self.restore(one)
                return one
            except DamageError as error:
                console.note(f"{error}")
                aside = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        if folders or any((run.folder / "checkpoints").glob("damaged-step-*")):
            raise StageError(f"no checkpoint of {run.folder} is whole: remove the run, or give another --out")
        return None

    def restore_step(self, run: Run, step: int) -> Checkpoint:
        """Restores the checkpoint of a step. Raises StageError where it is not there, or damaged."""
        one = _read(_folder(run, step), run)
        self.restore(one)
        return one


def load_model(run: Run, checkpoint: Checkpoint | None = None) -> CharRNN:
    """The run's model, all float32, with the weights of a checkpoint, by default the best. Raises StageError for a
    damaged one."""
    model, checkpoint = run.build("float32"), checkpoint or best(run)
    with _as_damage(checkpoint):
        status = _tracked(model).read(str(checkpoint.folder / "state"))
        status.expect_partial().assert_existing_objects_matched()
    return model


@dataclasses.dataclass(frozen=True)
class Source:
    """A run whose best weights another one begins with."""

    run: Run
    chosen: Checkpoint
    name: str  # which run, which weights

    @classmethod
    def read(cls, folder: Path) -> "Source":
        """Raises StageError where there is no run, or it has no checkpoint."""
        run = read_run(folder)
        chosen = best(run)
        return cls(run, chosen, f"{folder.name} at step {chosen.step} ({weights_sha256(chosen)[:12]})")

    def check(self, ours: ModelConfig) -> None:
        """Raises StageError where a model is not of the run's shape, vocabularies aside."""
        theirs = self.run.config.model
        for name, value in dataclasses.asdict(theirs).items():
            if "dropout" not in name and getattr(ours, name) != value:
                raise StageError(
                    f"{self.run.folder} has model.{name}={value}, this run {getattr(ours, name)}: they must agree"
                )

    def hand_on(self, model: CharRNN, vocab: Vocab) -> None:
        """Gives a model the weights. Of symbols that both vocabularies have, its own; others begin as they are."""
        rows = {symbol: index for index, symbol in enumerate(self.run.vocab.symbols)}
        shared = [(index, rows[symbol]) for index, symbol in enumerate(vocab.symbols) if symbol in rows]
        to, taken = (list(column) for column in zip(*shared, strict=True)) if shared else ([], [])
        for mine, other in zip(model.weights, load_model(self.run, self.chosen).weights, strict=True):
            value, axis = other.numpy(), model.vocab_axis(mine)
            if axis is not None:
                whole, value = value, mine.numpy()
                index = (slice(None),) * axis
                value[(*index, to)] = whole[(*index, taken)]
            mine.assign(value)


def _tracked(model: CharRNN, **others: Any) -> tf.train.Checkpoint:
    """Names every variable itself: handed the model, TensorFlow passes over the layers that Keras keeps in a list, in
    writing and in reading alike, and says nothing."""
    return tf.train.Checkpoint(weights=_by_path(model.weights), **others)


def _by_path(variables: list[keras.Variable]) -> dict[str, tf.Variable]:
    return {variable.path: variable.value for variable in variables}


@contextlib.contextmanager
def _as_damage(checkpoint: Checkpoint) -> Iterator[None]:
    """What TensorFlow raises for a checkpoint that is cut short, changed, or of another model, as a StageError."""
    try:
        yield
    except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
        raise _damaged(checkpoint.folder, error) from None


def _damaged(folder: Path, error: Exception) -> DamageError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return DamageError(f"{folder} is damaged ({reason}); remove it to use another")
