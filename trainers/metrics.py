"""A run's reports, a line of JSON each. Read without TensorFlow, which takes seconds to import."""

import json
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def read(folder: Path) -> list[dict[str, Any]]:
    """The reports of a run so far, first one first. A last line that a kill cut short is left out."""
    path = folder / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
