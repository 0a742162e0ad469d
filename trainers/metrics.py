"""A run's reports in metrics.jsonl, one JSON object per line. Imports no TensorFlow, which takes seconds."""

import json
from pathlib import Path
from typing import Any

from common import console
from common.files import naming, parse_json, whole_file

METRICS = "metrics.jsonl"


def read(folder: Path) -> list[dict[str, Any]]:
    """Read the reports of a run, oldest first. Corrupted lines are left out, and noted, except for the last line, which
    a kill may truncate."""
    path = folder / METRICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and _is_report(row):
            rows.append(row)
        elif number < len(lines):
            console.note(f"{path}:{number} is corrupted: that report is left out")
    return rows


def _is_report(row: dict[str, Any]) -> bool:
    loss = row.get("train_nats", row.get("val_nats"))
    return isinstance(row.get("step"), int) and isinstance(loss, int | float)


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Validation reports, oldest first."""
    return [row for row in read(folder) if "val_nats" in row]


def read_until(folder: Path, step: int, evaluated: bool) -> list[dict[str, Any]]:
    """Reports up to and including `step`, oldest first; the validation of `step` itself only if `evaluated`."""
    rows = [row for row in read(folder) if row["step"] <= step]
    return [row for row in rows if evaluated or row["step"] < step or "val_nats" not in row]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replace all reports atomically."""
    with whole_file(folder / METRICS) as partial:
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def append(folder: Path, row: dict[str, Any]) -> None:
    """Append a report."""
    with naming(folder / METRICS), (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(row)}\n")
