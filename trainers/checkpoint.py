"""A run on disk, and the checkpoints in it.

runs/NAME/run.json                                what the run is: config, vocabulary, data, what it was begun from
runs/NAME/metrics.jsonl                           a line a report: step, losses, speed, or val_nats; samples
runs/NAME/checkpoints/step-00000500/              one checkpoint, whole: written beside and renamed
    checkpoint.json                               step, losses, and what run.json says
    state.index, state.data-00000-of-00001        weights, optimizer and carry, as tf.train.Checkpoint writes them
runs/NAME/checkpoints/damaged-step-00000500/      one that could not be read when the run went on; nothing reads it

The carry is kept as one carry_BxLxSxH over all lanes, so a run goes on with any number of replicas.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import keras
import tensorflow as tf

from common import console
from common.errors import StageError, UsageError
from common.files import check_replaceable, only_one, sha256_file, whole_file, whole_folder, write_json
from pipeline.manifest import Manifest, read_manifest
from pipeline.vocab import Vocab
from trainers import metrics
from trainers.config import ModelConfig, RunConfig
from trainers.model.char_rnn import CharRNN
from trainers.training.devices import default_precision

FORMAT_VERSION = 2


# What lengthens or observes the same run. Everything else makes it another one.
FREE = (
    *("evaluate_every", "report_every", "checkpoint_minutes", "keep", "patience", "diverged"),
    *("sample", "histograms", "callbacks"),
)
# What the shapes of weights, slots and carry follow from: it cannot be changed under way, whatever is asked for.
FIXED = ("train.lanes", "train.optimizer", "train.momentum", "model.")
CHANGEABLE = ("model.dropout", "model.output_dropout", "model.variational_dropout")  # of the latter


class DamageError(StageError):
    """A checkpoint cannot be read."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What run.json says: all that is needed to build the model again, and the data that it learned from."""

    folder: Path
    config: RunConfig
    vocab: Vocab
    data: Path
    data_sha256: str
    init_from: str = ""  # the run whose weights it began with, and their hash

    def build(self, precision: str | None = None) -> CharRNN:
        """The model with its first weights. precision: of its products, by default as it is trained."""
        train = self.config.train
        return CharRNN(self.config.model, self.vocab.size, train.seed, precision or train.precision)

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "config": self.config.to_json(),
            "vocab": self.vocab.to_json(),
            "data": str(self.data),
            "data_sha256": self.data_sha256,
            "init_from": self.init_from,
        }


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


def open_run(run: Run, allow: tuple[str, ...] = ()) -> Run:
    """The run as it is to go on: with its precision settled, and with what it began from.

    allow: what may be another than it was begun with: "data", or a setting as "train.clip".
    Raises StageError where the folder holds something else, or a run that was begun with another vocabulary, data or
    config, showing what differs. Writes nothing.
    """
    if not (run.folder / "run.json").exists():
        check_replaceable(run.folder, "run.json", "a run")
        return _precise(run, default_precision())
    before = read_run(run.folder)
    run = dataclasses.replace(_precise(run, before.config.train.precision), init_from=run.init_from or before.init_from)
    _check_same(before, run, allow)
    return run


def _precise(run: Run, precision: Literal["auto", "float32", "bfloat16"]) -> Run:
    """The run with the precision that "auto" stands for."""
    train = run.config.train
    if train.precision != "auto":
        return run
    train = dataclasses.replace(train, precision=precision)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, train=train))


def _check_same(before: Run, run: Run, allow: tuple[str, ...]) -> None:
    """Raises StageError where `run` would go on with a run that is another one."""
    folder, way_out = run.folder, "give another --out"
    if before.vocab.sha256 != run.vocab.sha256:
        raise StageError(
            f"the checkpoints of {folder} are of another vocabulary ({before.vocab.size} {before.vocab.unit}s) than "
            f"{run.data} ({run.vocab.size} {run.vocab.unit}s); give the data that it was trained on, or another --out"
        )
    if before.init_from != run.init_from:
        begun = before.init_from or "new weights"
        raise StageError(f"{folder} was begun from {begun}, not from {run.init_from}; {way_out}")
    changes = {"data": (before.data_sha256[:12], run.data_sha256[:12])}
    # Without a fall of the learning rate that is laid out over all steps, more epochs only lengthen the run.
    free = {f"train.{name}" for name in FREE}
    free |= {"train.epochs"} if run.config.train.schedule in ("constant", "char-rnn") else set()
    for section in ("model", "train"):
        old, new = (dataclasses.asdict(getattr(one.config, section)) for one in (before, run))
        changes |= {f"{section}.{name}": (old[name], new[name]) for name in old if f"{section}.{name}" not in free}
    known = {*changes, *free}
    changes = {name: pair for name, pair in changes.items() if pair[0] != pair[1]}
    unknown = sorted(set(allow) - known)
    if unknown:
        raise UsageError(
            f"--allow {unknown[0]}: there is no such setting; here {', '.join(changes) or 'nothing'} differs"
        )
    shown = {name: f"{name} {old} -> {new}" for name, (old, new) in changes.items()}
    fixed = [name for name in changes if name.startswith(FIXED) and name not in CHANGEABLE]
    if fixed:
        raise StageError(f"{folder} cannot go on with another {fixed[0]} ({shown[fixed[0]]}): {way_out}")
    refused = [text for name, text in shown.items() if name not in allow]
    if refused:
        asked = " ".join(f"--allow {name}" for name in changes)
        raise StageError(f"{folder} was begun with other settings ({'; '.join(refused)}): {way_out}, or say {asked}")


def read_run(folder: Path) -> Run:
    """Reads run.json. Raises StageError where there is none, or it cannot be read."""
    path = folder / "run.json"
    if not path.is_file():
        raise StageError(f"there is no run in {folder} (no run.json): make one with python -m trainers train CONFIG")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format_version"] != FORMAT_VERSION:
            raise StageError(
                f"{path} has format_version {value['format_version']}, this program reads {FORMAT_VERSION}"
            )
        config = RunConfig.from_tables(value["config"]["model"], value["config"]["train"], str(path))
        vocab, data = Vocab.from_json(value["vocab"]), Path(value["data"])
        return Run(folder, config, vocab, data, value["data_sha256"], value["init_from"])
    except (KeyError, TypeError, UsageError, ValueError) as error:
        raise StageError(f"{path} is broken ({type(error).__name__}: {error})") from None


def data_of(run: Run, data: Path | None) -> tuple[Path, Manifest]:
    """Where the data that a run was trained on lies, and its manifest. data: where, if it has moved.

    Raises StageError where it is not there, or is other data.
    """
    data = data or run.data
    if not data.is_dir():
        raise StageError(
            f"the data that {run.folder} was trained on is not in {data}: say with --data where it lies now"
        )
    manifest = read_manifest(data)
    if manifest.data_sha256 != run.data_sha256:
        raise StageError(
            f"{data} is not the data that {run.folder} was trained on: its held-out text may have been seen"
        )
    return data, manifest


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The reports so far, first one first. A last line that a kill cut short is left out."""
    return metrics.read(run.folder)


def evaluations(run: Run) -> list[dict[str, Any]]:
    """Those of the reports that are of a validation, first one first."""
    return [row for row in read_metrics(run) if "val_nats" in row]


def reports_before(run: Run, last: Checkpoint | None) -> list[dict[str, Any]]:
    """The reports that were made before a checkpoint, first one first."""
    if last is None:
        return []
    rows = [row for row in read_metrics(run) if row["step"] <= last.step]
    if last.val_nats is None:  # it was written before the validation of its step
        rows = [row for row in rows if row["step"] < last.step or "val_nats" not in row]
    return rows


def write_metrics(run: Run, rows: list[dict[str, Any]]) -> None:
    """Writes the reports anew, whole or not at all."""
    with whole_file(run.folder / metrics.METRICS) as partial:
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def add_metrics(run: Run, row: dict[str, Any]) -> None:
    """Adds a report."""
    with (run.folder / metrics.METRICS).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(row)}\n")


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


@contextlib.contextmanager
def hold(run: Run, chief: bool) -> Iterator[None]:
    """For the block, no other process may train the run; what one that was killed left behind is removed. Of several
    workers the chief holds it for all.

    Raises StageError where another process holds it.
    """
    if not chief:
        yield
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    with only_one(run.folder):
        write_json(run.folder / "run.json", run.to_json())
        for left in (run.folder / "checkpoints").glob(".step-*.partial-*"):
            shutil.rmtree(left)
        yield


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
