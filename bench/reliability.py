"""Trials of faults: results/faults.json, written by `make test-faults`, and the page docs/reliability.md."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.files import write_json
from common.printable import wrapped

FILE = "faults.json"
HEADING = """# Reliability

Generated from [results/faults.json](../results/faults.json) by `python -m bench results`; do not
edit. `make test-faults` runs all trials; `make test` runs some. The tables show one recorded
session of {minutes:.0f} minutes. Commands that are not listed were not part of it.

A trial is survived if

- after a kill or a full disk, the old or the new output is whole, and the same command, run again,
  ends as if it had never been stopped and leaves nothing else behind;
- a damaged file is reported by name in one line, or restored, or changes no result;
- hostile input is read or refused in one line (exit code 1 or 2), within limits of time and
  memory, runs no code and writes no file.

Kills come before each file operation of Python. TensorFlow writes a checkpoint's and a
SavedModel's variables itself: those are damaged here, but no kill comes between their bytes.
"""


def record(rows: Iterable[dict[str, Any]], seconds: float, origin: dict[str, str], path: Path) -> None:
    """Write the trials of a test session. origin: bench.machine.provenance() when it started."""
    ordered = sorted(rows, key=lambda row: (row["kind"], row["subject"]))
    write_json(path, {"format_version": 1, "seconds": round(seconds), "rows": ordered, **origin})


def page(path: Path) -> str:
    """Return the page of a results file."""
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = result["rows"]
    tried, survived = (sum(row[count] for row in rows) for count in ("tried", "survived"))
    lines = [HEADING.format(minutes=result["seconds"] / 60)]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines += [f"## {kind}", "", "| | tried | survived | known limit |", "|---|---:|---:|---:|"]
        for row in (row for row in rows if row["kind"] == kind):
            limits = sum(row["limits"].values())
            lines.append(f"| {row['subject']} | {row['tried']:,} | {row['survived'] - limits:,} | {limits or ''} |")
        lines.append("")
    reasons = sorted({reason for row in rows for reason in row["limits"]})
    lines += ["## Known limits", "", *(wrapped(f"- {reason}") for reason in reasons), ""] if reasons else []
    about = f"{result['machine']}, {result['date']}, commit {result['commit'][:7]}"
    limits = sum(sum(row["limits"].values()) for row in rows)
    outcomes = f"{survived - limits:,} survived, {limits:,} hit a known limit, {tried - survived:,} failed"
    return "\n".join([*lines, wrapped(f"{tried:,} trials: {outcomes}. {about}."), ""])
