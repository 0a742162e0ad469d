"""A run's reports in metrics.jsonl, one JSON object per line. Imports no TensorFlow, which takes seconds."""

import json
from pathlib import Path
from typing import Any

from common.files import whole_file

METRICS = "metrics.jsonl"


def read(folder: Path) -> list[dict[str, Any]]:
    """The reports of the run in `folder`, oldest first, without a last line that a kill truncated."""
    path = folder / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The validation reports, oldest first."""
    return [row for row in read(folder) if "val_nats" in row]


def read_until(folder: Path, step: int, evaluated: bool) -> list[dict[str, Any]]:
    """The reports up to and including `step`, oldest first; the validation of `step` itself only if `evaluated`."""
    rows = [row for row in read(folder) if row["step"] <= step]
    return [row for row in rows if evaluated or row["step"] < step or "val_nats" not in row]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replace all reports atomically."""
    with whole_file(folder / METRICS) as partial:
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def append(folder: Path, row: dict[str, Any]) -> None:
    """Append a report."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(row)}\n")
