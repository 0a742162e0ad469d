"""Commands of the project, run by the notebooks of docs/learn in the project's folder."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.machine import provenance

ROOT = Path(__file__).parents[2]
RUNS = Path(__file__).parent / "runs.json"
TRAIN = "trainers train docs/learn/learn.toml"
COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE")  # set by Jupyter, and taken for a terminal


def run(command: str, lines: int = 6) -> None:
    """Run `python -m command`, and print the last lines of its output. Raises RuntimeError if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in COLOURS}
    python = [sys.executable, "-m", *command.split()]
    done = subprocess.run(python, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
    output = (done.stdout + done.stderr).rstrip().split("\n")
    for line in output[max(len(output) - lines, 0) :]:
        print(line)
    if done.returncode:
        raise RuntimeError(f"python -m {command} failed: {output[-1]}")


def kept(settings: str = "", data: str = "data/learn") -> list[dict[str, Any]]:
    """Return the reports of a small run (train_nats or val_nats). settings: SECTION.KEY=VALUE, separated by spaces.

    Trains it with the command that it prints, unless runs.json has its reports, with their machine, commit and date.
    """
    name = re.sub(r"(model|train)\.", "", settings).replace(" ", "-") or "base"
    out = f"runs/learn/{name}{data.removeprefix('data/learn')}"
    command = f"{TRAIN} --data {data} --out {out}" + "".join(f" --set {setting}" for setting in settings.split())
    print(f"python -m {command}")
    runs = json.loads(RUNS.read_text()) if RUNS.exists() else {}
    if command not in runs:
        runs[command] = provenance()
        # A run that diverges fails, and has its reports all the same.
        subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True)
        rows = [json.loads(line) for line in (ROOT / out / "metrics.jsonl").read_text().splitlines()]
        fields = ("step", "epoch", "train_nats", "val_nats", "seconds")
        reports = [{name: round(row[name], 4) for name in fields if name in row} for row in rows if row["step"]]
        if not reports:
            raise RuntimeError(f"python -m {command} reported no step")
        runs[command]["reports"] = reports
        lines = (f"{json.dumps(command)}: {json.dumps(record)}" for command, record in runs.items())
        RUNS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return list(runs[command]["reports"])


def plot(runs: Mapping[str, str], axis: Any, bottom: float = 1.45, top: float = 2.5, **data: str) -> None:
    """Draw the loss on val of runs by the characters that they have read. runs: settings by label."""
    for label, settings in runs.items():
        rows = [row for row in kept(settings, **data) if "val_nats" in row]
        axis.plot([row["epoch"] for row in rows], [row["val_nats"] for row in rows], ".-", label=label)
    axis.set(xlabel="passes over the text", ylabel="nats on val", ylim=(bottom, top))
    axis.legend(fontsize=8)
