"""A run on disk: its settings, vocabulary and data, and the rules for resuming it.

runs/NAME/run.json            config, vocabulary, data, and the run whose weights it started from
runs/NAME/metrics.jsonl       reports, one per line (trainers.metrics)
runs/NAME/checkpoints/        see trainers.checkpoint
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from common.errors import StageError, UsageError
from common.files import check_replaceable, exclusive, load_json, recover, write_record
from common.machine import multiplies_bfloat16_faster
from common.settings import record
from pipeline.manifest import Manifest, check_hashes, read_manifest
from pipeline.vocab import Vocab
from trainers.config import Precision, RunConfig
from trainers.model.char_rnn import CharRNN

FORMAT_VERSION = 4  # of run.json and checkpoint.json

# Settings that may change on resume: they extend or observe a run without changing what it computes.
FREE = (
    *("evaluate_every", "report_every", "checkpoint_minutes", "keep", "snapshots"),
    *("patience", "sample", "histograms", "callbacks"),
)
# Settings that determine the shapes of weights, optimizer slots and carry. Not even --allow may change them.
FIXED = ("train.lanes", "train.optimizer", "model.")
CHANGEABLE = ("model.dropout", "model.output_dropout")  # exceptions to FIXED


@record
class Run:
    """Content of run.json: everything needed to rebuild the model, and its training data."""

    folder: Path
    config: RunConfig
    vocab: Vocab
    data: Path
    data_sha256: str
    init_from: str = ""  # the run whose weights it started from, and their hash
    machine: str = ""  # the processor and the GPUs that trained it last

    def build(self, precision: str | None = None) -> CharRNN:
        """Build the model with its initial weights. precision: of its products; by default the training precision."""
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
            "machine": self.machine,
        }


def open_run(run: Run, allow: tuple[str, ...] = ()) -> Run:
    """Check the run to start or resume, and resolve its precision. Writes nothing.

    allow: differences to accept on resume: "data", or a setting such as "train.clip".
    Raises UsageError for names that are not UTF-8; StageError if the folder contains something else, or a run with
    another vocabulary, data or config; the message lists the differences.
    """
    for path in (run.data, run.folder):
        if (name := os.fsencode(path).decode(errors="replace")) != str(path):
            raise UsageError(f"TensorFlow needs file names in UTF-8, got {name}: rename it")
    if not (run.folder / "run.json").exists():
        check_replaceable(run.folder, "run.json", "a run")
        return _precise(run, default_precision())
    before = read_run(run.folder)
    run = dataclasses.replace(_precise(run, before.config.train.precision), init_from=run.init_from or before.init_from)
    _check_same(before, run, allow)
    return run


def _precise(run: Run, precision: Precision) -> Run:
    """Replace the precision "auto" by `precision`."""
    train = run.config.train
    if train.precision != "auto":
        return run
    train = dataclasses.replace(train, precision=precision)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, train=train))


def _check_same(before: Run, run: Run, allow: tuple[str, ...]) -> None:
    """Raise StageError if `run` differs from the run `before` that it would resume."""
    folder, fix = run.folder, "pass another --out"
    if before.vocab.sha256 != run.vocab.sha256:
        raise StageError(
            f"the checkpoints in {folder} have another vocabulary ({before.vocab.size} {before.vocab.unit}s) than "
            f"{run.data} ({run.vocab.size} {run.vocab.unit}s): pass its training data, or another --out"
        )
    if before.init_from != run.init_from:
        source = before.init_from or "new weights"
        raise StageError(
            f"{folder} was started from {source}, not from {run.init_from}: omit --init-from to resume it, or {fix}"
        )
    changes = {"data": (before.data_sha256[:12], run.data_sha256[:12])}
    # Unless the learning rate depends on the total number of steps, more epochs only extend the run.
    free = {f"train.{name}" for name in FREE}
    free |= {"train.epochs"} if run.config.train.schedule in ("constant", "char-rnn") else set()
    for section in ("model", "train"):
        old, new = (dataclasses.asdict(getattr(config, section)) for config in (before.config, run.config))
        changes |= {f"{section}.{name}": (old[name], new[name]) for name in old if f"{section}.{name}" not in free}
    known = {*changes, *free}
    changes = {name: pair for name, pair in changes.items() if pair[0] != pair[1]}
    unknown = sorted(set(allow) - known)
    if unknown:
        raise UsageError(f"--allow {unknown[0]}: unknown setting; {', '.join(changes) or 'nothing'} differs here")
    texts = {name: f"{name} {old} -> {new}" for name, (old, new) in changes.items()}
    fixed = [name for name in changes if name.startswith(FIXED) and name not in CHANGEABLE]
    if fixed:
        raise StageError(f"{folder} cannot resume with another {fixed[0]} ({texts[fixed[0]]}): {fix}")
    rejected = [text for name, text in texts.items() if name not in allow]
    if rejected:
        flags = " ".join(f"--allow {name}" for name in changes)
        raise StageError(f"{folder} has other settings ({'; '.join(rejected)}): {fix}, or {flags}")


def read_run(folder: Path) -> Run:
    """Read run.json. Raises StageError if it is missing or invalid."""
    path = folder / "run.json"
    if not path.is_file():
        raise StageError(f"no run in {folder} (run.json is missing): train one with python -m trainers train CONFIG")
    try:
        value = load_json(path)
        if value["format_version"] != FORMAT_VERSION:
            raise StageError(
                f"{path} has format_version {value['format_version']}, this program reads {FORMAT_VERSION}"
            )
        config = RunConfig.from_tables(value["config"]["model"], value["config"]["train"], str(path))
        vocab, data = Vocab.from_json(value["vocab"]), Path(value["data"])
        return Run(folder, config, vocab, data, value["data_sha256"], value["init_from"], value["machine"])
    except (AttributeError, KeyError, TypeError, UsageError, ValueError) as error:
        raise StageError(f"{path} is corrupted ({type(error).__name__}: {error})") from None


def data_of(run: Run, data: Path | None, verify: bool = False) -> tuple[Path, Manifest]:
    """Find the folder of a run's training data, and read its manifest. data: its new folder, if it has moved.

    Reads the shards that changed since they were last verified, and with `verify` all of them.
    Raises StageError if the folder is missing or corrupted, or contains other data.
    """
    data = data or run.data
    if not data.is_dir():
        raise StageError(f"the training data of {run.folder} is not in {data}: pass its folder with --data")
    manifest = read_manifest(data)
    if manifest.data_sha256 != run.data_sha256:
        raise StageError(f"{data} is not the training data of {run.folder}: the run may have seen its held-out text")
    check_hashes(data, manifest, trust=not verify)
    return data, manifest


def default_precision() -> Precision:
    """tf32 on a GPU, bfloat16 on a CPU that multiplies it faster, else float32."""
    if tf.config.list_physical_devices("GPU"):
        return "tf32"
    return "bfloat16" if multiplies_bfloat16_faster() else "float32"


@contextlib.contextmanager
def hold(run: Run, chief: bool) -> Iterator[None]:
    """Lock the run for training, write run.json, and clean up after killed processes. With several workers, the chief
    locks it for all.

    Raises StageError if another process holds the lock.
    """
    if not chief:
        yield
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    with exclusive(run.folder):
        write_record(run.folder / "run.json", run.to_json())
        for folder in (run.folder, run.folder / "checkpoints"):
            recover(folder)
        yield
