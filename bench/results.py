"""A finished run as one JSON file, with all that a figure needs beside it: config, data, machine, commit, date."""

import datetime
import json
import math
from pathlib import Path
from typing import Any

from bench.machine import commit, machine
from common.errors import StageError
from common.files import write_json
from pipeline.manifest import read_manifest
from trainers import checkpoint


def record(folder: Path, out: Path) -> dict[str, Any]:
    """Writes out/NAME.json for a run that has been trained and evaluated on its test split.

    Machine, commit and date are those of the recording, so record on the machine and at the commit that trained.
    Raises StageError where the evaluation is missing or of another checkpoint, and where the code is not committed.
    """
    run = checkpoint.read_run(folder)
    chosen = checkpoint.best(run)
    test = folder / "evaluation-test.json"
    if not test.is_file():
        raise StageError(f"{folder} has not been evaluated: run python -m trainers evaluate {folder}")
    score = json.loads(test.read_text(encoding="utf-8"))
    if score["inputs"]["weights_sha256"] != checkpoint.weights_sha256(chosen):
        raise StageError(
            f"{test} is of another checkpoint than {chosen.folder}: run python -m trainers evaluate {folder}"
        )
    rows = checkpoint.read_metrics(run)
    manifest = read_manifest(run.data)
    trained = [row for row in rows if "seconds" in row]
    result = {
        "format_version": 1,
        "name": folder.name,
        "sources": _sources([source.name for source in manifest.sources]),
        "bytes": {name: split.tokens for name, split in manifest.splits.items()},
        "data_sha256": run.data_sha256,
        "config": run.config.to_json(),
        "parameters": run.build().count_params(),
        "step": chosen.step,
        "steps": rows[-1]["step"],
        "training_seconds": sum(row["seconds"] for row in trained),
        "val_nats_before": checkpoint.evaluations(run)[0]["val_nats"],
        "val_nats": chosen.val_nats,
        "test_nats": score["nats"],
        "machine": machine(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    write_json(out / f"{folder.name}.json", result)
    return result


def row(result: dict[str, Any]) -> str:
    """A result as a row of README.md's table."""
    model = result["config"]["model"]
    cells = [
        result["sources"],
        f"[{result['name']}](configs/{result['name']}.toml): {model['layers']} x {model['units']}",
        f"{result['parameters']:,}",
        *(f"{result[split]:.3f} nats, {result[split] / math.log(2):.3f} bits" for split in ("val_nats", "test_nats")),
        f"{result['training_seconds']:.0f} s",
        f"{result['machine']}, {result['date']}, {result['commit'][:7]}",
    ]
    return f"| {' | '.join(cells)} |"


def _sources(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
