"""Characters a second in training: ours beside its peers, in turns, on one machine, in one run."""

import datetime
import importlib.metadata
import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.machine import commit, machine
from bench.peers import PEERS
from common import console
from common.errors import StageError
from common.files import write_json


def compare(units: int, layers: int, lanes: int, window: int, rounds: int, seconds: float, out: Path) -> None:
    """Prints a table and writes out/bench-train-LxH.json: medians over the rounds, and every round.

    The peers' processes stay alive and idle while another one runs, and take turns, so that what the machine does
    beside touches all alike. A peer that is not installed is left out, and said to be.
    """
    size = [str(number) for number in (units, layers, lanes, window)]
    there = {name for name in PEERS if "torch" not in name or importlib.util.find_spec("torch")}
    for name in PEERS.keys() - there:
        console.note(f"{name}: torch is not installed (pip install torch), left out")
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        with console.err.status("warming up"):
            for name in (name for name in PEERS if name in there):
                processes[name] = _start(name, size)
                _read(processes[name], name)
        rates: dict[str, list[float]] = {name: [] for name in processes}
        with console.progress("turns") as bar:
            for name in bar.track(list(processes) * rounds, description=f"{layers} x {units}"):
                rates[name].append(_turn(processes[name], name, seconds))
    finally:
        for process in processes.values():
            process.kill()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    console.out.print(_table(f"{layers} x {units}, {lanes} lanes x {window}", medians))
    result: dict[str, Any] = {
        "format_version": 1,
        "work": {"units": units, "layers": layers, "lanes": lanes, "window": window, "vocabulary": 256},
        "characters_per_second": medians,
        "rounds": rates,
        "versions": {
            name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "torch") if _installed(name)
        },
        "machine": machine(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    write_json(out / f"bench-train-{layers}x{units}.json", result)


def _start(name: str, size: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.peers", name, *size]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True)


def _turn(process: subprocess.Popen[str], name: str, seconds: float) -> float:
    assert process.stdin is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return float(_read(process, name))


def _read(process: subprocess.Popen[str], name: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise StageError(f"{name} ended with code {process.wait()}: run python -m bench.peers '{name}' ... to see why")
    return line


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _table(title: str, medians: dict[str, float]) -> Table:
    table = Table(title=f"{title}; ours in each precision is so many times as fast", title_justify="left", box=None)
    for column in ("", "chars/s", "float32", "bfloat16"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    best = [medians["ours, float32"], medians["ours, bfloat16"]]
    for name, rate in medians.items():
        table.add_row(name, f"{rate:,.0f}", *(f"{own / rate:.2f} x" for own in best))
    return table
