"""Overhead of distributed training: speed of one replica, two replicas and two workers, all on this machine.

Replicas and workers share the cores that one replica has alone, so this shows no gain, only the overhead: copies of the
weights, and one reduction of all gradients per step.
"""

import importlib.metadata
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.machine import provenance
from common import console
from common.errors import StageError
from common.files import write_json
from common.processes import last_line
from pipeline.lanes import windows_per_epoch
from pipeline.manifest import read_manifest
from trainers import metrics
from trainers.config import RunConfig
from trainers.run import read_run

ARMS = {"1 replica": (1, 1), "2 replicas": (1, 2), "2 workers": (2, 1)}  # workers, replicas per worker
REPORTS = 8  # per turn; the first includes tracing and does not count


def compare(config: Path, data: Path, rounds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Print a table and write out/bench-scale.json. Each turn is one `python -m trainers train` of `steps` steps.

    Raises StageError for uncommitted code, or if a run fails.
    """
    origin = provenance()
    train = RunConfig.read(config, overrides).train
    epochs = steps / windows_per_epoch(read_manifest(data).split("train").tokens, train.lanes, train.window)
    fixed = (f"train.epochs={epochs!r}", f"train.evaluate_every={steps}", f"train.report_every={steps // REPORTS}")
    settings = (*overrides, "train.sample=0", *fixed)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    with console.progress("turns") as bar:
        for name in bar.track(list(ARMS) * rounds):
            turns[name].append(_turn(*ARMS[name], config, data, settings))
    rates = {name: statistics.median(turn["per_second"] for turn in each) for name, each in turns.items()}
    result = {
        "format_version": 1,
        "config": RunConfig.read(config, settings).to_json(),
        "characters_per_second": rates,
        "steps_per_second": {name: rate / (train.lanes * train.window) for name, rate in rates.items()},
        "parameters": turns["1 replica"][0]["parameters"],
        # One reduction per step: gradients, loss and number of targets.
        "bytes_a_reduction": 4 * (turns["1 replica"][0]["parameters"] + 2),
        "rounds": turns,
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")},
        **origin,
    }
    write_json(out / "bench-scale.json", result)
    console.out.print(table(result))


def table(result: dict[str, Any]) -> Table:
    """Render the results for the terminal and docs/benchmarks.md."""
    model = result["config"]["model"]
    title = f"{model['layers']} x {model['units']}, {result['bytes_a_reduction'] / 1e6:.2f} MB per reduction"
    shown = Table(title=title, title_justify="left", box=None)
    for column in ("", "chars/s", "steps/s", "vs 1 replica"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    rates = result["characters_per_second"]
    for name, rate in rates.items():
        share = f"{rate / rates['1 replica']:.2f}"
        shown.add_row(name, f"{rate:,.0f}", f"{result['steps_per_second'][name]:.1f}", share)
    return shown


def _turn(workers: int, replicas: int, config: Path, data: Path, settings: tuple[str, ...]) -> dict[str, float]:
    options = [part for setting in settings for part in ("--set", setting)]
    options += ["--replicas", str(replicas)] if workers == 1 else []
    hosts = addresses(workers)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "trainers", "train", str(config), "--data", str(data), "--unvalidated"]
        command += ["--out", f"{scratch}/run", *options]
        processes = []
        for index in range(workers):
            cluster = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, **({"TF_CONFIG": json.dumps(cluster)} if workers > 1 else {})}
            processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        errors = [process.communicate()[1] for process in processes]
        for process, error in zip(processes, errors, strict=True):
            if process.returncode:
                raise StageError(f"training exited with code {process.returncode}: {last_line(error)}")
        run = read_run(Path(scratch) / "run")
        rates = [row["per_second"] for row in metrics.read(run.folder) if "per_second" in row]
    return {"per_second": statistics.median(rates[1:]), "parameters": run.build().count_params()}


def addresses(count: int) -> list[str]:
    """Return `count` free loopback addresses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    names = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
    for server in sockets:
        server.close()
    return names
