"""Export of a run as .tflite files for devices, each measured before it is moved into place.

devices/NAME/float32.tflite, float16.tflite, int8-dynamic.tflite
                               signature `step`: token (int32 [1]), carry (float32 [1, L, S, H]) -> logits (float32
                               [1, V]), carry; a token that ends a document ignores the carry passed, and is read from
                               zeros; vocab.json inside (export.bundle)
devices/NAME/model.json        their origin, and the size, SHA-256 and quality of each
devices/NAME/report.json       the figures of the table that the export prints
devices/NAME/SHA256SUMS        the checksums of the files above (export.checksums)
devices/NAME/neurons.json      the neurons that the page lists: your own list, which is kept, or the one that `trainers
                               neurons` wrote for the same weights
devices/NAME/step-100/         a snapshot of the training: the same files, in SNAPSHOT only, of an earlier checkpoint
"""

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.table import Table

from common import console, processes
from common.errors import StageError, UsageError
from common.files import check_replaceable, load_json, read_json, sha256_file, whole_file, whole_folder, write_json
from common.machine import processor
from export import checksums
from export.bundle import CARD, NEURONS, pack
from export.lite.graph import PRECISIONS, RUNTIMES, convert
from export.lite.quality import LANES, LENGTH, HeldOutText, Quality, lanes, measure, reader
from export.lite.runner import LiteModel
from export.origin import check_logits, is_current, known, origin_of
from trainers import checkpoint
from trainers.checkpoint import Checkpoint
from trainers.model.char_rnn import CharRNN
from trainers.run import Run, data_of, read_run

PROBE = b"def read(self, size=-1):\n    return self._buffer[:size]\n"
LIMITS = {"float32": 0.0001, "float16": 0.001, "int8-dynamic": 0.02}  # allowed loss, bits per character
SNAPSHOT = "int8-dynamic"  # the precision of snapshots, of which the page loads several


@dataclasses.dataclass(frozen=True)
class LiteSettings:
    """Precisions to export. allowed: bits per character that a precision may lose, overriding LIMITS.

    Raises UsageError for an unknown precision.
    """

    precisions: tuple[str, ...] = PRECISIONS
    allowed: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.precisions, *self.allowed):
            if name not in PRECISIONS:
                raise UsageError(f"unknown precision '{name}': valid ones are {', '.join(PRECISIONS)}")
        if not self.precisions:
            raise UsageError(f"--precision needs at least one of {', '.join(PRECISIONS)}")
        for name in self.allowed:
            if name not in self.precisions:
                raise UsageError(f"--allow {name}: add {name} to --precision, or drop the option")


def export_lite(folder: Path, out: Path, settings: LiteSettings, data: Path | None, force: bool) -> None:
    """Write a run's best checkpoint in the chosen precisions, measure each, and move all into place. Then write the
    earlier ones of train.snapshots.

    data: the run's data set, if it has moved.
    Raises StageError if `out` holds another model (unless `force`), if the data set is not the run's, or if a file
    needs other than builtin ops, produces NaN or infinity, or loses more than its limit.
    """
    run = read_run(folder)
    best = checkpoint.best(run)
    _export(run, best, out, settings, data, force)
    limits = {name: bits for name, bits in settings.allowed.items() if name == SNAPSHOT}
    for saved in checkpoint.checkpoints(run):
        if saved.step in run.config.train.snapshots and saved.step < best.step:
            _export(run, saved, out / f"step-{saved.step}", LiteSettings((SNAPSHOT,), limits), data, force)


def _export(run: Run, chosen: Checkpoint, out: Path, settings: LiteSettings, data: Path | None, force: bool) -> None:
    """Write one checkpoint. Raises as `export_lite` does."""
    origin = origin_of(run, chosen)
    check_replaceable(out, "report.json", "a device model")
    if not force:
        _check_precisions(out, settings)
        if is_current(out, "model.json", origin, "another --out"):
            if neurons := _neurons(run.folder, out, origin):
                with whole_file(out / NEURONS) as partial:
                    shutil.copyfile(neurons, partial)
            return
    data, manifest = data_of(run, data)
    held_out = lanes(data, manifest, "test" if "test" in manifest.splits else "val", LANES, LENGTH)
    model = checkpoint.load_model(run, chosen)
    with whole_folder(out, replace=force) as partial:
        with console.err.status(f"writing {out}"):
            for name in settings.precisions:
                flatbuffer = convert(model, run.vocab.end_id, name)
                (partial / f"{name}.tflite").write_bytes(pack(flatbuffer, {**origin, "precision": name}))
                prove(partial / f"{name}.tflite", model)
        report = judge(partial, model, settings, held_out)
        write_json(partial / "report.json", report)
        write_json(partial / "model.json", {**origin, "files": _files(partial, report)})
        if neurons := _neurons(run.folder, out, origin):
            shutil.copyfile(neurons, partial / NEURONS)
        card, before = out / CARD, read_json(out / "model.json")
        if card.is_file() and before.get("weights_sha256") == origin["weights_sha256"]:
            shutil.copyfile(card, partial / CARD)
        checksums.write(partial, leave_out=[NEURONS, CARD])  # which you may edit
    console.out.print(table(out, report, run.vocab.unit))
    console.out.print(f"{out}: step {chosen.step} of {run.folder}, {', '.join(settings.precisions)}; builtin ops only")


def prove(path: Path, model: CharRNN) -> None:
    """Raise StageError unless a file's logits are finite and, in float32, equal to the model's."""
    lite = LiteModel(path)
    ids_T = lite.vocab.prompt_ids(known(PROBE, lite.vocab)).astype(np.int32)
    logits_1xTxV, _ = reader(model, lite.vocab.end_id, len(ids_T))(tf.constant(ids_T[None]), model.initial_carry(1))
    carry, differences = lite.initial_carry(), []
    for token, expected_V in zip(ids_T.tolist(), logits_1xTxV[0].numpy(), strict=True):
        logits_V, carry = lite.step(token, carry)
        differences.append(np.abs(logits_V - expected_V))
    largest = float(np.max(differences))  # NaN if any is
    if path.stem == "float32" or not np.isfinite(largest):
        check_logits(largest, f"the written {path.name}")


def judge(folder: Path, model: CharRNN, settings: LiteSettings, text: HeldOutText) -> dict[str, Any]:
    """Measure the files for report.json. Raises StageError for a file that loses more than its limit."""
    files = {name: folder / f"{name}.tflite" for name in settings.precisions}
    own, qualities = measure(model, {name: LiteModel(path) for name, path in files.items()}, text)
    limits = {name: settings.allowed.get(name, LIMITS[name]) for name in files}
    for name, quality in qualities.items():
        if not quality.lost_bits <= limits[name]:
            raise StageError(_loses(name, quality, limits[name], settings))
    return {
        "format_version": 1,
        "checkpoint_bits": own,
        "text": {"split": text.split, "characters": text.characters},
        "machine": processor()[0],
        "files": {
            name: {
                "bytes": path.stat().st_size,
                "oldest_runtime": RUNTIMES[name],
                **probe(path),
                **dataclasses.asdict(qualities[name]),
                "limit_bits": limits[name],
            }
            for name, path in files.items()
        },
    }


def probe(path: Path) -> dict[str, float]:
    """Measure us_a_step and peak_bytes in a fresh process without TensorFlow (export.lite.probe).

    Raises StageError if that process fails.
    """
    command = [sys.executable, "-m", "export.lite.probe", str(path.absolute())]
    home = Path(__file__).parents[2]
    return json.loads(processes.run(command, f"the written {path.name} does not run in a fresh process", cwd=home))


def table(out: Path, report: dict[str, Any], unit: str) -> Table:
    """Render a report for the terminal."""
    text, own = report["text"], report["checkpoint_bits"]
    title = f"{out}: bits per {unit}, on {text['characters']:,} of {text['split']}; the checkpoint has {own:.4f}"
    grid = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("", "MB", "us/step", "peak MB", "bits", "lost", "limit", "KL", "greedy"):
        grid.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, figures in report["files"].items():
        grid.add_row(
            name,
            f"{figures['bytes'] / 1e6:.2f}",
            f"{figures['us_a_step']:.1f}",
            f"{figures['peak_bytes'] / 1e6:.1f}",
            f"{figures['bits']:.4f}",
            f"{figures['lost_bits']:+.5f}",
            f"{figures['limit_bits']:g}",
            f"{figures['kl_bits']:.5f}",
            f"{figures['greedy_agreement']:.1%}",
        )
    return grid


def _neurons(folder: Path, out: Path, origin: Mapping[str, Any]) -> Path | None:
    """Find the list of neurons to export: your own in `out`, recognised by its lack of a weights hash, or else the
    run's, if it belongs to the exported weights. Raises StageError if the list in `out` is not JSON."""
    own, of_run = out / NEURONS, folder / NEURONS
    try:
        if own.is_file() and "weights_sha256" not in load_json(own):
            return own
    except ValueError as error:
        raise StageError(f"{own} is corrupted ({error}): correct or remove it") from None
    return of_run if read_json(of_run).get("weights_sha256") == origin["weights_sha256"] else None


def _check_precisions(out: Path, settings: LiteSettings) -> None:
    """Raise StageError if `out` holds some of the precisions but not all."""
    files = read_json(out / "model.json").get("files")
    existing = files if isinstance(files, dict) else {}
    missing = [name for name in settings.precisions if existing and name not in existing]
    if missing:
        raise StageError(
            f"{out} has {', '.join(existing)}, not {missing[0]}: rebuild all with --force, or pass another --out"
        )


def _files(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of model.json for the files, by precision."""
    measures = [field.name for field in dataclasses.fields(Quality)]
    return {
        name: {
            "file": f"{name}.tflite",
            "size": figures["bytes"],
            "sha256": sha256_file(folder / f"{name}.tflite"),
            **{field: figures[field] for field in measures},
        }
        for name, figures in report["files"].items()
    }


def _loses(name: str, quality: Quality, limit: float, settings: LiteSettings) -> str:
    rest = ",".join(other for other in settings.precisions if other != name)
    leave = f"leave it out with --precision {rest}, or " if rest else ""
    rule = f"{name} loses {quality.lost_bits:.4f} bits per character on held-out text; the limit is {limit:g}"
    return f"{rule}: {leave}raise the limit with --allow {name}={quality.lost_bits * 1.1:.2g}"
