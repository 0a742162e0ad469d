"""What training reaches by the clock: a config's own run, and PyTorch's nn.LSTM for as many seconds."""

import datetime
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.data import measure
from bench.machine import commit, machine
from bench.train import has
from common import console
from common.errors import StageError
from common.files import write_json
from pipeline.manifest import read_manifest
from trainers.config import RunConfig

# What torch is trained with: its optimizer, and the rate at its highest. adam's is what ours had on the same data,
# before muon (LOG.md); muon's is the config's.
PEERS: dict[str, tuple[str, float | None]] = {
    "torch nn.LSTM, adam": ("adam", 0.01),
    "torch nn.LSTM, muon": ("muon", None),
}


def compare(config: Path, data: Path, out: Path) -> None:
    """Print a table and write out/bench-clock-NAME.json: each one's loss on val, what it read, how long it trained.

    One after the other, each alone. Ours goes through the command line, as a user's does, in a folder that is taken
    away afterwards; its loss is that of its last step. Raises StageError where the code is not committed, where torch
    is not installed, or where a run fails.
    """
    if not has("torch"):
        raise StageError("there is nothing to compare with: install torch beside the project (pip install torch)")
    settings = RunConfig.read(config)
    same = settings.model.cell == "lstm" and not settings.model.output_dropout and settings.train.schedule == "cosine"
    if not same:
        raise StageError(
            f"torch is trained here as an LSTM with a cosine and without output_dropout, not as {config} says"
        )
    made_at = {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}
    with tempfile.TemporaryDirectory() as scratch, console.progress("runs") as bar:
        task = bar.add_task("by the clock", total=1 + len(PEERS))
        found = {"ours": _ours(config, data, Path(scratch) / "run")}
        bar.advance(task)
        for name, (optimizer, rate) in PEERS.items():
            seconds, rate = found["ours"]["training_seconds"], rate or settings.train.learning_rate
            asked = [str(config), str(data), repr(seconds), optimizer, repr(rate)]
            found[name] = json.loads(measure([sys.executable, "-m", "bench.torch_clock", *asked])[1]) | {"rate": rate}
            bar.advance(task)
    result: dict[str, Any] = {
        "format_version": 1,
        "config": settings.to_json(),
        "data": data.name,
        "found": found,
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "torch")},
        **made_at,
    }
    write_json(out / f"bench-clock-{config.stem}.json", result)
    console.out.print(table(result))


def table(result: dict[str, Any]) -> Table:
    """The figures, for the terminal and docs/benchmarks.md."""
    model = result["config"]["model"]
    shown = Table(title=f"{result['data']}, {model['layers']} x {model['units']}, by the clock", box=None)
    for column in ("", "nats on val", "read, millions", "seconds", "parameters"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, one in result["found"].items():
        cells = (f"{one['val_nats']:.3f}", f"{one['seen'] / 1e6:.1f}", f"{one['training_seconds']:.0f}")
        shown.add_row(name, *cells, f"{one['parameters']:,}")
    return shown


def _ours(config: Path, data: Path, run: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "trainers", "train", str(config), "--data", str(data), "--out", str(run)]
    measure([*command, "--unvalidated"])  # whether the text is a good one is not the question here
    with console.quiet():
        from trainers import metrics
        from trainers.run import read_run
    kept = read_run(run)
    rows = metrics.read(kept.folder)
    trained = [row for row in rows if "seconds" in row]
    return {
        "val_nats": metrics.evaluations(kept.folder)[-1]["val_nats"],
        "seen": round(rows[-1]["epoch"] * read_manifest(data).split("train").tokens),
        "training_seconds": sum(row["seconds"] for row in trained),
        "parameters": kept.build().count_params(),
        "rate": kept.config.train.learning_rate,
    }
