"""Validation loss after equal training time: a config's run, and PyTorch's nn.LSTM for the same number of seconds."""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.data import measure
from bench.machine import provenance
from bench.train import has
from common import console
from common.errors import StageError
from common.files import write_json
from pipeline.manifest import read_manifest
from trainers.config import RunConfig

# Optimizer and peak learning rate. 0.01 is the rate of our Adam runs on the same data (LOG.md); None: the config's.
PEERS: dict[str, tuple[str, float | None]] = {
    "torch nn.LSTM, adam": ("adam", 0.01),
    "torch nn.LSTM, muon": ("muon", None),
}


def compare(config: Path, data: Path, out: Path) -> None:
    """Print a table and write out/bench-clock-NAME.json: validation loss, characters read and seconds of training.

    Runs follow one another. Ours runs `python -m trainers train` in a temporary folder and reports its last step's
    loss. Raises StageError for uncommitted code, without torch, or if a run fails.
    """
    if not has("torch"):
        raise StageError("this benchmark compares with PyTorch: pip install torch")
    settings = RunConfig.read(config)
    model = settings.model
    if model.cell != "lstm" or model.layer_norm or settings.train.schedule != "cosine":
        raise StageError(f"the PyTorch peer needs an LSTM, a cosine schedule and no layer_norm: change {config}")
    origin = provenance()
    with tempfile.TemporaryDirectory() as scratch, console.progress("runs") as bar:
        task = bar.add_task("equal time", total=1 + len(PEERS))
        entries = {"ours": _ours(config, data, Path(scratch) / "run")}
        bar.advance(task)
        for name, (optimizer, rate) in PEERS.items():
            seconds, rate = entries["ours"]["training_seconds"], rate or settings.train.learning_rate
            precision = entries["ours"]["precision"]
            arguments = [str(config), str(data), repr(seconds), optimizer, repr(rate), precision]
            output = measure([sys.executable, "-m", "bench.torch_clock", *arguments])[1]
            entries[name] = json.loads(output) | {"rate": rate}
            bar.advance(task)
    result: dict[str, Any] = {
        "format_version": 1,
        "config": settings.to_json(),
        "data": data.name,
        "found": entries,
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "torch")},
        **origin,
    }
    write_json(out / f"bench-clock-{config.stem}.json", result)
    console.out.print(table(result))


def table(result: dict[str, Any]) -> Table:
    """Render the results for the terminal and docs/benchmarks.md."""
    model = result["config"]["model"]
    shown = Table(title=f"{result['data']}, {model['layers']} x {model['units']}, equal training time", box=None)
    for column in ("", "val, nats", "read, millions", "seconds", "parameters"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, entry in result["found"].items():
        cells = (f"{entry['val_nats']:.3f}", f"{entry['seen'] / 1e6:.1f}", f"{entry['training_seconds']:.0f}")
        shown.add_row(name, *cells, f"{entry['parameters']:,}")
    return shown


def _ours(config: Path, data: Path, run: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "trainers", "train", str(config), "--data", str(data), "--out", str(run)]
    measure([*command, "--unvalidated"])  # the text's quality does not matter here
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
        "precision": kept.config.train.precision,
    }
