"""A .tflite for devices in every precision, measured before it is put in place.

devices/NAME/float32.tflite, float16.tflite, int8-dynamic.tflite, int8-full.tflite
                               signature `step`: token (int32 [1]), carry (float32 [1, L, S, H]) -> logits (float32
                               [1, V]), carry; `prefill`: tokens (int32 [1, 16]), carry -> the same after the last of
                               them; a token that ends a document is read from an empty carry, whatever comes in;
                               vocab.json inside (export.bundle)
devices/NAME/model.json        what they were made from, and of each its size, SHA-256 and quality
devices/NAME/report.json       the figures of the table that the export prints
devices/NAME/neurons.json      what the page says of neurons: a person's own, which is kept, or what `trainers neurons`
                               found in the run
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
from common.files import check_replaceable, read_json, sha256_file, whole_file, whole_folder, write_json
from common.machine import processor
from export.bundle import NEURONS, pack
from export.lite.graph import PRECISIONS, convert
from export.lite.quality import LANES, LENGTH, Quality, Text, lanes, measure, reader, samples
from export.lite.runner import LiteModel
from export.made import LOGITS_TOLERANCE, already_made, check_logits, known, made_from
from trainers import checkpoint
from trainers.model.char_rnn import CharRNN
from trainers.run import data_of, read_run

PROBE = b"def read(self, size=-1):\n    return self._buffer[:size]\n"
CALIBRATION = (8, 250)  # lanes and characters of the validation split
LIMITS = {"float32": 0.0001, "float16": 0.001, "int8-dynamic": 0.02, "int8-full": 0.05}  # bits a character


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be made. allowed: the bits a character that a precision may lose, where it is not LIMITS'.

    Raises UsageError for a precision that there is not.
    """

    precisions: tuple[str, ...] = PRECISIONS
    allowed: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.precisions, *self.allowed):
            if name not in PRECISIONS:
                raise UsageError(f"no precision is called '{name}'; there are: {', '.join(PRECISIONS)}")
        if not self.precisions:
            raise UsageError(f"at least one precision is wanted, of {', '.join(PRECISIONS)}")
        for name in self.allowed:
            if name not in self.precisions:
                raise UsageError(f"--allow {name}: it is not among the precisions that are made")


def export_lite(folder: Path, out: Path, wanted: Wanted, data: Path | None, force: bool) -> None:
    """Writes a run's best checkpoint in the precisions wanted, measures each, and only then puts them in place.

    data: the run's data set, where it has moved.
    Raises StageError where `out` is there already and was made from something else (unless `force`), where the data is
    not what the run was trained on, or where a file needs more than builtin ops, gives what is no number, or loses more
    than it may.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    origin = made_from(run, chosen)
    check_replaceable(out, "model.json", "a device model")
    if not force:
        _check_there(out, wanted)
        if already_made(out, "model.json", origin, "another --out"):
            _check_files(out)
            if neurons := _neurons(folder, out, origin):
                with whole_file(out / NEURONS) as partial:
                    shutil.copyfile(neurons, partial)
            return
    data, manifest = data_of(run, data)
    held_out = lanes(data, manifest, "test" if "test" in manifest.splits else "val", LANES, LENGTH)
    calibration = lanes(data, manifest, "val", *CALIBRATION)
    model = checkpoint.load_model(run, chosen)
    with whole_folder(out, replace=force) as partial:
        with console.err.status(f"writing {out}"):
            inputs = samples(model, run.vocab.end_id, calibration.ids_BxT) if "int8-full" in wanted.precisions else []
            for name in wanted.precisions:
                flatbuffer = convert(model, run.vocab.end_id, name, inputs)
                (partial / f"{name}.tflite").write_bytes(pack(flatbuffer, {**origin, "precision": name}))
                prove(partial / f"{name}.tflite", model)
        report = judge(partial, model, wanted, held_out)
        if "int8-full" in wanted.precisions:
            report["calibration"] = {"split": calibration.split, "characters": calibration.ids_BxT.size}
        write_json(partial / "report.json", report)
        write_json(partial / "model.json", {**origin, "files": _files(partial, report)})
        if neurons := _neurons(folder, out, origin):
            shutil.copyfile(neurons, partial / NEURONS)
    console.out.print(table(out, report, run.vocab.unit))
    console.out.print(f"{out}: step {chosen.step} of {folder}, {', '.join(wanted.precisions)}; builtin ops only")


def prove(path: Path, model: CharRNN) -> None:
    """Raises StageError unless a file gives numbers, the same by `prefill` as by `step`, and in float32 the model's."""
    lite = LiteModel(path)
    probe = lite.vocab.prompt_ids(known(PROBE, lite.vocab)).astype(np.int32)
    ids_T = np.resize(probe, max(len(probe), 2 * lite.window + 1))  # again and again: `prefill`, twice, and a step
    logits_1xTxV, _ = reader(model, lite.vocab.end_id, len(ids_T))(tf.constant(ids_T[None]), model.initial_carry(1))
    carry, differences = lite.initial_carry(), []
    for token, expected_V in zip(ids_T.tolist(), logits_1xTxV[0].numpy(), strict=True):
        logits_V, carry = lite.step(token, carry)
        differences.append(np.abs(logits_V - expected_V))
    most = float(np.max(differences))  # of which one that is no number makes none
    if path.stem == "float32" or not np.isfinite(most):
        check_logits(most, f"the written {path.name}")
    at_once_V, after = lite.read(ids_T, lite.initial_carry())
    check_logits(float(np.max(np.abs(at_once_V - logits_V))), f"the prefill of the written {path.name}")
    if not np.allclose(after, carry, rtol=0, atol=LOGITS_TOLERANCE):
        raise StageError(f"the prefill of the written {path.name} leaves another carry than its steps do")


def judge(folder: Path, model: CharRNN, wanted: Wanted, text: Text) -> dict[str, Any]:
    """The figures of a folder's files, as report.json has them. Raises StageError for a file that loses too much."""
    files = {name: folder / f"{name}.tflite" for name in wanted.precisions}
    own, qualities = measure(model, {name: LiteModel(path) for name, path in files.items()}, text)
    limits = {name: wanted.allowed.get(name, LIMITS[name]) for name in files}
    for name, quality in qualities.items():
        if not quality.lost_bits <= limits[name]:
            raise StageError(_loses(name, quality, limits[name], wanted))
    return {
        "format_version": 1,
        "checkpoint_bits": own,
        "text": {"split": text.split, "characters": text.characters},
        "machine": processor()[0],
        "files": {
            name: {
                "bytes": path.stat().st_size,
                **probe(path),
                **dataclasses.asdict(qualities[name]),
                "limit_bits": limits[name],
            }
            for name, path in files.items()
        },
    }


def probe(path: Path) -> dict[str, float]:
    """What a file costs in a fresh process without TensorFlow: us_a_step and peak_bytes (export.lite.probe).

    Raises StageError where that process fails.
    """
    command = [sys.executable, "-m", "export.lite.probe", str(path.absolute())]
    home = Path(__file__).parents[2]
    return json.loads(processes.run(command, f"the written {path.name} does not run in a fresh process", cwd=home))


def table(out: Path, report: dict[str, Any], unit: str) -> Table:
    """The figures, for the terminal."""
    text, own = report["text"], report["checkpoint_bits"]
    title = f"{out}: bits a {unit}, on {text['characters']:,} of {text['split']}; the checkpoint has {own:.4f}"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))
    fixed = report.get("calibration")
    if fixed and fixed["split"] == text["split"]:
        told = f"measured on the split of which {fixed['characters']:,} fixed its scales"
        shown.caption = f"there is no test split: int8-full is {told}"
    for column in ("", "MB", "us a step", "peak MB", "bits", "lost", "limit", "KL", "greedy"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, one in report["files"].items():
        shown.add_row(
            name,
            f"{one['bytes'] / 1e6:.2f}",
            f"{one['us_a_step']:.1f}",
            f"{one['peak_bytes'] / 1e6:.1f}",
            f"{one['bits']:.4f}",
            f"{one['lost_bits']:+.5f}",
            f"{one['limit_bits']:g}",
            f"{one['kl_bits']:.5f}",
            f"{one['greedy_agreement']:.1%}",
        )
    return shown


def _neurons(folder: Path, out: Path, origin: Mapping[str, Any]) -> Path | None:
    """The list of neurons that belongs beside the files: a person's own in `out`, which says nothing of weights; else
    what was found in the run, if it was in the weights that are exported."""
    own, found = out / NEURONS, folder / NEURONS
    if own.is_file() and "weights_sha256" not in read_json(own):
        return own
    return found if read_json(found).get("weights_sha256") == origin["weights_sha256"] else None


def _check_there(out: Path, wanted: Wanted) -> None:
    """Raises StageError where some of the precisions wanted lie in `out`, and others do not."""
    held = read_json(out / "model.json").get("files", {})
    missing = [name for name in wanted.precisions if held and name not in held]
    if missing:
        raise StageError(
            f"{out} has {', '.join(held)}, not {missing[0]}: give --force to make all anew, or another --out"
        )


def _check_files(out: Path) -> None:
    """Raises StageError where a file of `out` is gone, or is not as model.json has it."""
    for one in read_json(out / "model.json").get("files", {}).values():
        path = out / one["file"]
        if not path.is_file() or sha256_file(path) != one["sha256"]:
            wrong = "is damaged" if path.is_file() else "is gone"
            raise StageError(f"{path} {wrong}: give --force to make all anew, or another --out")


def _files(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """model.json's list of the files, by precision."""
    kept = [field.name for field in dataclasses.fields(Quality)]
    return {
        name: {
            "file": f"{name}.tflite",
            "size": one["bytes"],
            "sha256": sha256_file(folder / f"{name}.tflite"),
            **{field: one[field] for field in kept},
        }
        for name, one in report["files"].items()
    }


def _loses(name: str, quality: Quality, limit: float, wanted: Wanted) -> str:
    rest = ",".join(other for other in wanted.precisions if other != name)
    leave = f"leave it out (--precision {rest}), or " if rest else ""
    rule = f"{name} loses {quality.lost_bits:.4f} bits a character on held-out text, at most {limit:g} is allowed"
    return f"{rule}: {leave}say --allow {name}={quality.lost_bits * 1.1:.2g}"
