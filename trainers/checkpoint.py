"""A run on disk, and the checkpoints in it.

runs/NAME/run.json                                what the run is: config, vocabulary, data
runs/NAME/metrics.jsonl                           a line an evaluation: step, losses, speed
runs/NAME/checkpoints/step-00000500/              one checkpoint, whole: written beside and renamed
    checkpoint.json                               step, losses, hash of the vocabulary
    state.index, state.data-00000-of-00001        weights, optimizer and carry, as tf.train.Checkpoint writes them

The carry is kept as one carry_BxLx2xH over all lanes, so a run goes on with any number of replicas.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from common.errors import StageError, UsageError
from common.files import check_replaceable, sha256_file, whole_file, whole_folder, write_json
from pipeline.manifest import Manifest
from pipeline.vocab import Vocab
from trainers.config import RunConfig
from trainers.model import CharRNN

FORMAT_VERSION = 1
METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class Run:
    """What run.json says: all that is needed to build the model again, and the data that it learned from."""

    folder: Path
    config: RunConfig
    vocab: Vocab
    data: Path
    data_sha256: str

    def build(self) -> CharRNN:
        """The model with its first weights."""
        train = self.config.train
        return CharRNN(self.config.model, self.vocab.size, train.seed, train.precision)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What checkpoint.json says. `val_nats` is the mean loss on the validation split, in nats a character."""

    folder: Path
    step: int
    val_nats: float


def open_run(folder: Path, config: RunConfig, data: Path, manifest: Manifest) -> Run:
    """Makes the run's folder, or opens the one that is there to go on with it.

    Raises StageError where the run was begun with another vocabulary, data or config, naming what differs.
    """
    run = Run(folder, config, manifest.vocab, data, manifest.data_sha256)
    if (folder / "run.json").exists():
        _check_same(read_run(folder), run)
    else:
        check_replaceable(folder, "run.json", "a run")
    write_json(
        folder / "run.json",
        {
            "format_version": FORMAT_VERSION,
            "config": config.to_json(),
            "vocab": manifest.vocab.to_json(),
            "data": str(data),
            "data_sha256": manifest.data_sha256,
        },
    )
    return run


def _check_same(before: Run, run: Run) -> None:
    """Raises StageError where `run` would go on with a run that is another one."""
    folder, config = run.folder, run.config
    if before.vocab.sha256 != run.vocab.sha256:
        raise StageError(
            f"the checkpoints of {folder} are of another vocabulary ({before.vocab.size} {before.vocab.unit}s) than "
            f"{run.data} ({run.vocab.size} {run.vocab.unit}s); give the data that it was trained on, or another --out"
        )
    way_out = "give another --out, or remove the run"
    if before.data_sha256 != run.data_sha256:
        raise StageError(f"{folder} was begun on other data than {run.data} now holds; {way_out}")
    # More epochs, or other times to look, lengthen or observe the same run; everything else makes it another one.
    free = {"epochs", "evaluate_every", "keep"} if config.train.decay == 1 else {"evaluate_every", "keep"}
    for section in ("model", "train"):
        old, new = (dataclasses.asdict(getattr(c, section)) for c in (before.config, config))
        for name in sorted(set(old) - free):
            if old[name] != new[name]:
                raise StageError(f"{folder} was begun with {section}.{name}={old[name]}, not {new[name]}; {way_out}")


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
        return Run(folder, config, Vocab.from_json(value["vocab"]), Path(value["data"]), value["data_sha256"])
    except (KeyError, TypeError, UsageError, ValueError) as error:
        raise StageError(f"{path} is broken ({type(error).__name__}: {error})") from None


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The evaluations so far, first one first. A last line that a kill cut short is left out."""
    path = run.folder / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def write_metrics(run: Run, rows: list[dict[str, Any]]) -> None:
    """Writes the evaluations anew, whole or not at all."""
    with whole_file(run.folder / METRICS) as partial:
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def checkpoints(run: Run) -> list[Checkpoint]:
    """The run's checkpoints by step, the last one last."""
    found = []
    for path in sorted((run.folder / "checkpoints").glob("step-*/checkpoint.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version {value['format_version']}, this program reads {FORMAT_VERSION}")
            one, vocab_sha256 = Checkpoint(path.parent, value["step"], value["val_nats"]), value["vocab_sha256"]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path.parent, error) from None
        if vocab_sha256 != run.vocab.sha256:
            raise StageError(f"{path.parent} is a checkpoint of another vocabulary than its run's; remove it")
        found.append(one)
    return found


def best(run: Run) -> Checkpoint:
    """The checkpoint with the lowest validation loss: the one to evaluate, sample and export."""
    found = checkpoints(run)
    if not found:
        raise StageError(f"{run.folder} has no checkpoint yet: train it with python -m trainers train CONFIG")
    return min(found, key=lambda checkpoint: checkpoint.val_nats)


def sweep(run: Run) -> None:
    """Removes what a process that was killed while it wrote a checkpoint left behind. Call it under the run's lock."""
    for left in (run.folder / "checkpoints").glob(".step-*"):
        shutil.rmtree(left)


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
        self.carry_BxLx2xH = tf.Variable(model.initial_carry(lanes), trainable=False)
        self._tracked = _tracked(model, optimizer=_by_path(optimizer.variables), carry=self.carry_BxLx2xH)

    def save(self, run: Run, step: int, val_nats: float) -> Checkpoint:
        """Writes checkpoint `step`, then removes those that are neither among the last `keep` nor the best."""
        folder = run.folder / "checkpoints" / f"step-{step:08d}"
        with whole_folder(folder) as partial:
            self._tracked.write(str(partial / "state"))
            write_json(
                partial / "checkpoint.json",
                {
                    "format_version": FORMAT_VERSION,
                    "step": step,
                    "val_nats": val_nats,
                    "vocab_sha256": run.vocab.sha256,
                },
            )
        found, kept = checkpoints(run), best(run)
        for old in found[: -run.config.train.keep]:
            if old != kept:
                (old.folder / "checkpoint.json").unlink()  # first: half of it removed, it is no checkpoint any more
                shutil.rmtree(old.folder)
        return Checkpoint(folder, step, val_nats)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts weights, optimizer and carry back to where they were. Raises StageError where the files are damaged."""
        with _as_damage(checkpoint):
            self._tracked.read(str(checkpoint.folder / "state")).assert_consumed()


def load_model(run: Run, checkpoint: Checkpoint | None = None) -> CharRNN:
    """The run's model with the weights of a checkpoint, by default the best. Raises StageError for a damaged one."""
    model, checkpoint = run.build(), checkpoint or best(run)
    with _as_damage(checkpoint):
        status = _tracked(model).read(str(checkpoint.folder / "state"))
        status.expect_partial().assert_existing_objects_matched()
    return model


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


def _damaged(folder: Path, error: Exception) -> StageError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return StageError(f"{folder} is damaged ({reason}); remove it to use the one before")
