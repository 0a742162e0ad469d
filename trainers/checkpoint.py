"""The checkpoints of a run, and the model restored from one.

runs/NAME/checkpoints/step-00000500/              a checkpoint, renamed into place once complete
    checkpoint.json                               step, losses, and a copy of run.json
    state.index, state.data-00000-of-00001        weights, optimizer and carry, written by tf.train.Checkpoint
runs/NAME/checkpoints/damaged-step-00000500/      an unreadable checkpoint, moved aside on resume

The carry is saved as one carry_BxLxSxH over all lanes, so a run can resume on any number of replicas.
"""

import contextlib
import dataclasses
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from common import console
from common.errors import StageError
from common.files import load_json, recover, remove_folder, sha256_file, whole_folder, write_record
from common.printable import brief
from common.settings import record
from pipeline.vocab import Vocab
from trainers.config import ModelConfig
from trainers.model.char_rnn import CharRNN
from trainers.run import FORMAT_VERSION, Run, read_run


class DamageError(StageError):
    """Error of an unreadable checkpoint."""


@record
class ReportSums:
    """Sums since the last report: losses, targets and time."""

    nats: float = 0.0
    targets: int = 0
    seconds: float = 0.0


NOTHING = ReportSums()


@record
class Checkpoint:
    """Content of checkpoint.json. `val_nats` is the mean validation loss in nats per target; None if the checkpoint
    was not written at an evaluation."""

    folder: Path
    step: int
    val_nats: float | None
    since: ReportSums = NOTHING
    learning_rate: float | None = None  # its value, if it is a variable that callbacks may set
    files: dict[str, str] = dataclasses.field(default_factory=dict)  # SHA-256 by name


def checkpoints(run: Run) -> list[Checkpoint]:
    """List a run's checkpoints by step, latest last. Corrupted ones are reported and skipped."""
    readable = []
    for folder in _folders(run):
        try:
            readable.append(_read(folder, run))
        except DamageError as error:
            console.note(f"{error}")
    return readable


def _folders(run: Run) -> list[Path]:
    """Folders of the run's checkpoints, by step."""
    paths = (path for path in (run.folder / "checkpoints").glob("step-*") if path.is_dir())
    return sorted((path for path in paths if _step(path) >= 0), key=_step)


def _step(folder: Path) -> int:
    """Step in a checkpoint's name; -1 for a folder of the user's."""
    digits = folder.name.removeprefix("step-")
    return int(digits) if re.fullmatch("[0-9]{8,18}", digits) else -1


def _folder(run: Run, step: int) -> Path:
    return run.folder / "checkpoints" / f"step-{step:08d}"


def last_step(run: Run) -> int:
    """Step of the last checkpoint; 0 if there is none."""
    return max(map(_step, _folders(run)), default=0)


def _read(folder: Path, run: Run) -> Checkpoint:
    try:
        value = load_json(folder / "checkpoint.json")
        if value["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {value['format_version']}, this program reads {FORMAT_VERSION}")
        previous, rate = value["run"]["config"]["train"]["learning_rate"], value["learning_rate"]
        rate = rate if previous == run.config.train.learning_rate else None  # a changed setting overrides it
        since, files = ReportSums(**value["since"]), value["files"]
        saved = Checkpoint(folder, value["step"], value["val_nats"], since, rate, files)
        vocab_sha256 = value["vocab_sha256"]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from None
    if vocab_sha256 != run.vocab.sha256:
        raise StageError(f"{folder} was saved with a different vocabulary than its run's: remove it")
    return saved


def prune(run: Run) -> None:
    """Remove all checkpoints but the last `keep`, the snapshots and the best, and the leftovers of killed processes."""
    recover(run.folder / "checkpoints")
    saved = checkpoints(run)
    kept = min(saved, key=_val_nats)
    for old in saved[: -run.config.train.keep]:
        if old != kept and old.step not in run.config.train.snapshots:
            remove_folder(old.folder)


def best(run: Run) -> Checkpoint:
    """Checkpoint with the lowest validation loss, which evaluate, sample and export use.

    Raises StageError if there is none, or if one is corrupted, since that may be the best.
    """
    validated = [saved for folder in _folders(run) if (saved := _read(folder, run)).val_nats is not None]
    if not validated:
        raise StageError(f"{run.folder} has no checkpoint yet: train it with python -m trainers train CONFIG")
    return min(validated, key=_val_nats)


def choose(run: Run, name: str) -> Checkpoint:
    """Look up a checkpoint: "best", "last" or a step. Raises StageError, with the steps on disk, for any other."""
    if name == "best":
        return best(run)
    saved = {str(checkpoint.step): checkpoint for checkpoint in checkpoints(run)}
    if name == "last" and saved:
        return list(saved.values())[-1]
    if name not in saved:
        raise StageError(f"{run.folder} has no checkpoint {name}: use best, last or a step ({', '.join(saved)})")
    return saved[name]


def _val_nats(saved: Checkpoint) -> float:
    return math.inf if saved.val_nats is None else saved.val_nats


def weights_sha256(checkpoint: Checkpoint) -> str:
    """Hash of a checkpoint's tensors, which identifies the source of an export."""
    try:
        return sha256_file(checkpoint.folder / "state.data-00000-of-00001")
    except OSError as error:
        raise _damaged(checkpoint.folder, error) from None


class TrainState:
    """Training state: weights, optimizer, and the carry as one array over all lanes."""

    def __init__(self, model: CharRNN, optimizer: keras.Optimizer, lanes: int):
        self.model, self.optimizer = model, optimizer
        self.carry_BxLxSxH = tf.Variable(model.initial_carry(lanes), trainable=False)
        # checkpoint.json keeps the learning rate, which is a variable only under some settings.
        slots = {path.partition("/")[2]: value for path, value in _by_path(optimizer.variables).items()}
        slots.pop("learning_rate", None)
        self._tracked = _tracked(model, optimizer=slots, carry=self.carry_BxLxSxH)

    def save(self, run: Run, step: int, val_nats: float | None, since: ReportSums = NOTHING) -> Checkpoint:
        """Write checkpoint `step`, then `prune`."""
        folder = _folder(run, step)
        with whole_folder(folder) as partial:
            self._tracked.write(str(partial / "state"))
            write_record(
                partial / "checkpoint.json",
                {
                    "format_version": FORMAT_VERSION,
                    "step": step,
                    "val_nats": val_nats,
                    "since": dataclasses.asdict(since),
                    "learning_rate": self._rate(),
                    "vocab_sha256": run.vocab.sha256,
                    "run": run.to_json(),
                    "files": {path.name: sha256_file(path) for path in sorted(partial.glob("state.*"))},
                },
            )
        prune(run)
        return Checkpoint(folder, step, val_nats, since)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore weights, optimizer and carry. Raises StageError if the files are corrupted."""
        with _as_damage(checkpoint):
            self._tracked.read(str(checkpoint.folder / "state")).assert_consumed()
        if checkpoint.learning_rate is not None and self._rate() is not None:
            self.optimizer.learning_rate = checkpoint.learning_rate

    def _rate(self) -> float | None:
        """Learning rate, if it is a variable."""
        rate = self.optimizer._learning_rate
        return float(rate.numpy()) if isinstance(rate, keras.Variable) else None

    def restore_last(self, run: Run) -> Checkpoint | None:
        """Restore the last whole checkpoint; None if the run has none yet. Corrupted ones are reported and moved aside.

        Raises StageError if all are corrupted.
        """
        folders = _folders(run)
        for folder in reversed(folders):
            try:
                last = _read(folder, run)
                self.restore(last)
                return last
            except DamageError as error:
                console.note(f"{error}")
                aside = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        if folders or any((run.folder / "checkpoints").glob("damaged-step-*")):
            raise StageError(f"all checkpoints of {run.folder} are corrupted: remove the run, or pass another --out")
        return None

    def restore_step(self, run: Run, step: int) -> Checkpoint:
        """Restore the checkpoint of a step. Raises StageError if it is missing or corrupted."""
        saved = _read(_folder(run, step), run)
        self.restore(saved)
        return saved


def load_model(run: Run, checkpoint: Checkpoint | None = None) -> CharRNN:
    """Load a run's model in float32, with the weights of a checkpoint, by default the best.

    Raises StageError if the checkpoint is corrupted.
    """
    model, checkpoint = run.build("float32"), checkpoint or best(run)
    with _as_damage(checkpoint):
        status = _tracked(model).read(str(checkpoint.folder / "state"))
        status.expect_partial().assert_existing_objects_matched()
    return model


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Source of another run's initial weights: a run's best checkpoint."""

    run: Run
    chosen: Checkpoint
    name: str  # of the run, with the step and the hash of its weights

    @classmethod
    def read(cls, folder: Path) -> "Pretrained":
        """Find a run's best checkpoint. Raises StageError if the run is missing or has no checkpoint."""
        run = read_run(folder)
        chosen = best(run)
        return cls(run, chosen, f"{folder.name} at step {chosen.step} ({weights_sha256(chosen)[:12]})")

    def check(self, ours: ModelConfig) -> None:
        """Raise StageError if a model differs in shape from the run's, apart from the vocabulary."""
        theirs = self.run.config.model
        for name, value in dataclasses.asdict(theirs).items():
            if "dropout" not in name and getattr(ours, name) != value:
                raise StageError(
                    f"{self.run.folder} has model.{name}={value}, this run {getattr(ours, name)}: they must be equal"
                )

    def copy_to(self, model: CharRNN, vocab: Vocab) -> None:
        """Copy the weights into a model. Symbols that the run's vocabulary lacks keep their initial weights."""
        rows = {symbol: index for index, symbol in enumerate(self.run.vocab.symbols)}
        shared = [(index, rows[symbol]) for index, symbol in enumerate(vocab.symbols) if symbol in rows]
        target_rows, source_rows = (list(column) for column in zip(*shared, strict=True)) if shared else ([], [])
        for target, source in zip(model.weights, load_model(self.run, self.chosen).weights, strict=True):
            value, axis = source.numpy(), model.vocab_axis(target)
            if axis is not None:
                value, index = target.numpy(), (slice(None),) * axis
                value[(*index, target_rows)] = source.numpy()[(*index, source_rows)]
            target.assign(value)


def _tracked(model: CharRNN, **others: Any) -> tf.train.Checkpoint:
    """Name each variable explicitly: given the model, TensorFlow silently skips the layers that Keras keeps in a
    list."""
    return tf.train.Checkpoint(weights=_by_path(model.weights), **others)


def _by_path(variables: list[keras.Variable]) -> dict[str, tf.Variable]:
    return {variable.path: variable.value for variable in variables}


@contextlib.contextmanager
def _as_damage(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise DamageError for a checkpoint whose files have changed or do not fit the model."""
    try:
        for name, digest in checkpoint.files.items():
            if sha256_file(checkpoint.folder / name) != digest:
                raise ValueError(f"{name} differs from its checksum")
        yield
    except (tf.errors.OpError, AssertionError, IndexError, OSError, ValueError) as error:
        raise _damaged(checkpoint.folder, error) from None


def _damaged(folder: Path, error: Exception) -> DamageError:
    if not folder.exists():
        return DamageError(f"{folder} is gone, replaced by a later one of a running training: run the command again")
    reason = brief(str(error).splitlines()[0]) if str(error) else type(error).__name__
    return DamageError(f"{folder} is corrupted ({reason}): remove it to use another")
