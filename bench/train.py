"""Training speed next to peers and to the machine's ceiling, taking turns in one run on one machine.

On a shared host, speed drifts by a third within minutes. The turns of a round are adjacent, so a drift affects all
peers alike and cancels in the ratio within a round; every other round runs in reverse, so that no peer always follows
the same one. The ratio reported is therefore the median over rounds. A ratio of medians takes its two numbers from
different rounds and includes the drift. The results contain it too: if the two differ much, the machine was too noisy
to trust either.

A share of the ceiling is a median over rounds, too: the rate of a turn over the fastest product in the same round.
"""

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.machine import provenance
from bench.peers import PEERS, Peer, Size, flops_per_character
from common import console
from common.errors import StageError, UsageError
from common.files import write_json
from common.machine import memory, multiplies_bfloat16_faster

SIZES = {
    "cpu": (Size(2, 128), Size(2, 256), Size(2, 512), Size(3, 512, lanes=100, window=100)),
    "gpu": (Size(2, 128), Size(2, 512, lanes=128, window=128), Size(3, 512, lanes=256, window=128)),
}
Rounds = dict[str, list[float]]


def size_named(text: str, device: str = "cpu") -> Size:
    """Parse LAYERSxUNITS: an entry of SIZES, or else a size with the default lanes and window."""
    if known := [size for size in SIZES[device] if size.name == text]:
        return known[0]
    if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        names = ", ".join(size.name for size in SIZES[device])
        raise UsageError(f"a size must be LAYERSxUNITS, got '{text}': try {names}")
    return Size(int(match[1]), int(match[2]))


def compare(size: Size, device: str, rounds: int, seconds: float, out: Path, commit: str = "") -> None:
    """Print a table and write out/bench-train-LxH-PRECISION.json (with gpu-): medians, ratios, and every round.

    The name has the default precision, so that processors with and without bfloat16 each keep their results.

    The peers' processes stay alive and idle between turns. A peer that is not installed, or whose precision the
    processor does not support, is skipped with a note; one that fails gets a row with the error.

    commit: of the code, where there is no repository.
    Raises StageError for uncommitted code, or if every peer fails.
    """
    origin = provenance(commit, gpu=device == "gpu")
    peers = {name: peer for name, peer in PEERS.items() if _usable(name, peer, device)}
    workers: dict[str, Worker] = {}
    try:
        with console.err.status("warming up"):
            started, failed = _warm_up(workers, size, device, peers)
        peers = {name: peers[name] for name in started}
        turns = _turns(workers, rounds, seconds, size.name)
        peaks = {name: workers[name].peak() for name in peers}
    finally:
        for worker in workers.values():
            worker.process.kill()
    rates: Rounds = {name: [turn["characters_per_second"] for turn in turns[name]] for name in peers}
    result: dict[str, Any] = {
        "format_version": 2,
        "work": {**size._asdict(), "vocabulary": 256, "device": device},
        "default_precision": default_precision(device),
        "peers": {
            name: {
                "characters_per_second": statistics.median(rates[name]),
                "flops_a_character": flops_per_character(size, peer.gathers),
                **started[name],
                "peak_bytes": peaks[name],
            }
            for name, peer in peers.items()
        },
        "failed": failed,
        "ratios": {own: ratios(rates, own) for own in peers if own.startswith("ours")},
        "rounds": turns,
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "torch") if has(name)},
        **origin,
    }
    name = f"{'gpu-' if device == 'gpu' else ''}{size.name}-{result['default_precision']}"
    write_json(out / f"bench-train-{name}.json", result)
    console.out.print(table(result))


def default_precision(device: str) -> str:
    """Return the default precision on this machine."""
    if device == "gpu":
        return "tf32"
    return "bfloat16" if multiplies_bfloat16_faster() else "float32"


def ratios(rates: Rounds, own: str) -> dict[str, dict[str, float]]:
    """Return the speed of `own` relative to every other peer, as median of per-round ratios and ratio of medians."""
    return {
        name: {
            "median_of_ratios": statistics.median(a / b for a, b in zip(rates[own], theirs, strict=True)),
            "ratio_of_medians": statistics.median(rates[own]) / statistics.median(theirs),
        }
        for name, theirs in rates.items()
        if name != own
    }


def over_torch(peers: dict[str, dict[str, float]]) -> float | None:
    """Return the least of `ratios` over torch's peers; None without torch."""
    return min((each["median_of_ratios"] for name, each in peers.items() if name.startswith("torch")), default=None)


def ceilings(result: dict[str, Any]) -> list[dict[str, float]]:
    """Return the GFLOP/s of each round's fastest product in any library, by precision."""
    libraries = [turns for name, turns in result["rounds"].items() if name not in result["peers"]]
    return [
        {precision: max(turn[precision] for turn in turns) for precision in turns[0]}
        for turns in zip(*libraries, strict=True)
    ]


def table(result: dict[str, Any]) -> Table:
    """Render the results for the terminal and docs/benchmarks.md."""
    work, default = result["work"], result["default_precision"]
    title = f"{work['layers']} x {work['units']}, {work['lanes']} lanes x {work['window']} characters, {work['device']}"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))
    columns = ("", "chars/s", "* gain", "= gain", "GFLOP/s", "share", "first", "warm", "MB")  # 80 characters wide
    for column in columns:
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, peer in result["peers"].items():
        precision, gflops_a_character = PEERS[name].precision, peer["flops_a_character"] / 1e9
        share = statistics.median(
            turn["characters_per_second"] * gflops_a_character / top[precision]
            for turn, top in zip(result["rounds"][name], ceilings(result), strict=True)
        )
        shown.add_row(
            f"{name} *" if name == f"ours, {default}" else name,
            f"{peer['characters_per_second']:,.0f}",
            _speedup(result, f"ours, {default}", name),
            _speedup(result, f"ours, {precision}", name),
            f"{peer['characters_per_second'] * gflops_a_character:,.1f}",
            f"{share:.1%}",
            f"{peer['first_step_seconds']:.1f} s",
            f"{peer['warm_seconds']:.1f} s",
            f"{peer['peak_bytes'] / 1e6:,.0f}",
        )
    for name in result.get("failed", {}):
        shown.add_row(name, "failed")
    shown.caption = _caption(result)
    return shown


def _speedup(result: dict[str, Any], own: str, name: str) -> str:
    ratio = result["ratios"].get(own, {}).get(name)
    return f"{ratio['median_of_ratios']:.2f} x" if ratio else ""


def _caption(result: dict[str, Any]) -> str:
    tops = ceilings(result)
    ranges = ", ".join(
        f"{precision} at {min(top[precision] for top in tops):,.0f} to {max(top[precision] for top in tops):,.0f}"
        for precision in tops[0]
    )
    steps = "; ".join(
        f"{name} to step {peer['warm_steps']}" for name, peer in result["peers"].items() if peer["warm_steps"] < 20
    )
    lines = [
        "* gain, = gain: speedup over the row, of our default precision (*) and of ours in the row's precision (=); "
        "medians of per-round ratios",
        "GFLOP/s: 6 FLOPs per character and multiplied weight; gathered rows do not count",
        f"share: median share of the fastest large matrix product in the same round: {ranges} GFLOP/s",
        "first, warm: from process start to the end of step 1 and of step 20"
        + (f" ({steps})" if steps else "")
        + ("; all processes start at once" if result["work"]["device"] == "gpu" else ""),
        "MB: peak memory of the process",
    ]
    lines += [f"{name} failed: {reason}" for name, reason in result.get("failed", {}).items()]
    peers = result["ratios"].get(f"ours, {result['default_precision']}", {})  # none if that peer failed
    if (ratio := over_torch(peers)) is not None:
        lines.append(f"ours by default is {ratio:.2f} x as fast as torch in its faster precision")
    return "\n".join(lines)


class Worker:
    """Subprocess that answers each line of input with a line of JSON."""

    def __init__(self, name: str, device: str, module: str, *arguments: str):
        self.name = name
        shared = {"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
        self.command = [sys.executable, "-m", module, *arguments]
        self.start = time.perf_counter()
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | shared,
        )

    def read(self) -> dict[str, Any]:
        """Return the next line. Raises StageError if the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            command = shlex.join(self.command)
            raise StageError(f"{self.name} exited with code {self.process.wait()}: for its errors, run {command}")
        return json.loads(line)

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def turn(self, seconds: float) -> dict[str, Any]:
        """Measure for `seconds` and return the result."""
        self.send(str(seconds))
        return self.read()

    def age(self) -> float:
        """Return the seconds since the process started."""
        return time.perf_counter() - self.start

    def peak(self) -> int:
        """Return the process's peak memory in bytes."""
        return memory(self.process.pid, peak=True)


def _warm_up(
    workers: dict[str, Worker], size: Size, device: str, peers: dict[str, Peer]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Start the peers, and the matrix products of their libraries, in `workers`.

    Returns the start-up times and the errors, by peer. Raises StageError if every peer fails.
    """
    for package in {peer.package for peer in peers.values()}:
        _import_once(package)
    started, failed = {}, {}

    def launch(name: str) -> Worker:
        return Worker(name, device, "bench.peers", name, device, *map(str, size))

    # With a GPU, launch all at once: a start-up is mostly one core compiling. On a CPU it takes all cores.
    launched = {name: launch(name) for name in peers} if device == "gpu" else {}
    for name in peers:
        worker = launched.get(name) or launch(name)
        try:
            started[name] = _start(worker)
            workers[name] = worker
        except StageError as error:
            failed[name] = str(error)
    if not started:
        raise StageError("; ".join(failed.values()))
    precisions = sorted({peers[name].precision for name in started}, reverse=True)
    for library in sorted({peers[name].package for name in started}):
        workers[library] = Worker(library, device, "bench.gemm", library, device, *precisions)
        workers[library].read()
    return started, failed


def _start(worker: Worker) -> dict[str, float]:
    """Wait until the worker is warm and return its start-up times."""
    worker.read()
    first = worker.age()
    steps = worker.read()["steps"]
    return {"first_step_seconds": first, "warm_seconds": worker.age(), "warm_steps": steps}


def _turns(workers: dict[str, Worker], rounds: int, seconds: float, label: str) -> dict[str, list[dict[str, float]]]:
    order = list(workers)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in order}
    with console.progress("turns") as bar:
        all_turns = [name for index in range(rounds) for name in (order, order[::-1])[index % 2]]
        for name in bar.track(all_turns, description=label):
            turns[name].append(workers[name].turn(seconds))
    return turns


@functools.cache
def _import_once(package: str) -> None:
    """Import a library, so that the first peer does not pay for reading it from disk."""
    subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, check=False)


def _usable(name: str, peer: Peer, device: str) -> bool:
    if device not in peer.devices:
        return False
    if device == "cpu" and peer.precision == "bfloat16" and not multiplies_bfloat16_faster():
        console.note(f"{name}: this processor multiplies float32 faster, skipped")
        return False
    if not has(peer.package):
        console.note(f"{name}: {peer.package} is not installed (pip install {peer.package}), skipped")
        return False
    if device == "gpu" and not gpu_of(peer.package):
        console.note(f"{name}: {peer.package} sees no GPU, skipped")
        return False
    return True


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def gpu_of(package: str) -> bool:
    """Return whether a library sees a GPU, checked in a separate process so that this one does not hold it."""
    check = {
        "tensorflow": "import tensorflow; assert tensorflow.config.list_physical_devices('GPU')",
        "torch": "import torch; assert torch.cuda.is_available()",
    }[package]
    return subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0
