"""Generation speed of the exported SavedModel, next to PyTorch, XLA and the time to read its weights.

Peers take turns within a round, and a ratio is the median over rounds, for the reasons given in bench.train.

A step of B rows reads each float32 weight at least once, for any B: recurrent kernels, kernels between layers and the
dense kernel (single rows of the first kernel and the biases are not counted). The lower bound of a step is therefore
these bytes divided by the bandwidth at which all cores together read a buffer of that size. Shares are relative to it.
"""

import importlib.metadata
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.loops import LENGTHS, PEERS, ROWS, TEMPERATURE, VOCAB, check_logits
from bench.machine import provenance
from bench.peers import Size
from bench.served import export
from bench.train import Worker, has, over_torch, ratios
from common import console
from common.files import write_json

TARGETS = {1: 4.0, 16: 2.0}  # by rows: speed relative to torch's fastest loop
OWN = "ours"

Turns = dict[int, dict[str, list[float]]]  # microseconds per step, by rows and peer, one entry per round


def compare(size: Size, rounds: int, seconds: float, out: Path) -> None:
    """Print a table and write out/bench-serve-sampling-LxH.json: medians, ratios, and every round.

    Peers that are not installed are skipped with a note. Raises StageError for uncommitted code, a failing peer, or
    a peer with different logits.
    """
    origin = provenance()
    names = [name for name, peer in PEERS.items() if _usable(name, peer.package)]
    cores, weights = len(os.sched_getaffinity(0)), weight_bytes(size)
    workers: dict[str, Worker] = {}
    readers = [Worker("reader", "cpu", "bench.reading", str(weights // cores)) for _ in range(cores)]
    try:
        with tempfile.TemporaryDirectory() as scratch, console.err.status("exporting, warming up"):
            exported, started = export(size, Path(scratch) / "bench"), {}
            for name in names:  # one after another, since their start is timed
                arguments = (name, str(exported.base), str(size.layers), str(size.units))
                workers[name] = Worker(name, "cpu", "bench.loops", *arguments)
                started[name] = workers[name].read()
            for reader in readers:
                reader.read()
        off = check_logits({name: np.array(each.pop("logits")) for name, each in started.items()}, OWN)
        turns, bounds = _turns(workers, readers, rounds, seconds, size.name)
    finally:
        for worker in (*workers.values(), *readers):
            worker.process.kill()
    medians = {rows: {name: statistics.median(each) for name, each in turns[rows].items()} for rows in ROWS}
    best = {kind: max(bound[kind] for bound in bounds) for kind in bounds[0]}
    least = {kind: weights / rate * 1e6 for kind, rate in best.items()}  # microseconds per step
    result: dict[str, Any] = {
        "format_version": 1,
        "work": {
            "layers": size.layers,
            "units": size.units,
            "vocabulary": VOCAB.size,
            "lengths": LENGTHS,
            "temperature": TEMPERATURE,
        },
        "export": {"seconds": exported.seconds, "bytes": exported.bytes},
        "peers": {
            name: {
                **started[name],
                "logits_off": off[name],
                "rows": {rows: _figures(rows, medians[rows][name], least) for rows in ROWS},
            }
            for name in names
        },
        "bound": {"weight_bytes": weights, "cores": cores, "bytes_per_second": best, "us_a_step": least},
        "ratios": {rows: ratios(_rates(turns[rows]), OWN) for rows in ROWS},
        "targets": TARGETS,
        "rounds": {"us_a_step": turns, "bounds": bounds},
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "torch") if has(name)},
        **origin,
    }
    result = json.loads(json.dumps(result))  # like the file: keys are strings
    write_json(out / f"bench-serve-sampling-{size.name}.json", result)
    console.out.print(table(result))


def weight_bytes(size: Size) -> int:
    """Return the bytes of the weights that every step reads."""
    kernels = (2 * size.layers - 1) * size.units * 4 * size.units
    return 4 * (kernels + size.units * VOCAB.size)


def table(result: dict[str, Any]) -> Table:
    """Render the results for the terminal and docs/benchmarks.md."""
    work, bound = result["work"], result["bound"]
    lengths = ", ".join(map(str, work["lengths"]))
    title = f"{work['layers']} x {work['units']}, {work['vocabulary']} characters, texts of {lengths}"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("", "rows", "us/step", "chars/s", "speedup", "of read", "of copy", "first"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for rows in ROWS:
        for name, peer in result["peers"].items():
            figures, ratio = peer["rows"][str(rows)], result["ratios"][str(rows)].get(name)
            shown.add_row(
                name,
                str(rows),
                f"{figures['us_a_step']:,.1f}",
                f"{figures['characters_per_second']:,.0f}",
                f"{ratio['median_of_ratios']:.2f} x" if ratio else "",
                f"{figures['share_of_read']:.0%}",
                f"{figures['share_of_copy']:.0%}",
                f"{peer['first_seconds']:.1f} s",
            )
    rates, least = bound["bytes_per_second"], bound["us_a_step"]
    lines = [
        f"speedup: of {OWN} over the row; medians of per-round ratios; first: from imports to the first text",
        f"of read, of copy: lower bound as a share of us/step, for {bound['weight_bytes'] / 1e6:.2f} MB of weights per "
        "step:",
        f"{least['read']:.1f} us at {rates['read'] / 1e9:,.0f} GB/s (np.max on {bound['cores']} cores), "
        f"{least['copy']:.1f} us at {rates['copy'] / 1e9:,.0f} GB/s (np.copyto, reads and writes)",
        f"exported in {result['export']['seconds']:.1f} s, {result['export']['bytes'] / 1e6:.1f} MB; loaded in a fresh "
        f"process in {result['peers'][OWN]['load_seconds']:.1f} s with imports",
        *(
            f"{rows} row{'s' * (rows > 1)}: ours is {speed:.2f} x as fast as torch's fastest loop "
            f"(target: {TARGETS[rows]:g} x)"
            for rows in ROWS
            if (speed := over_torch(result["ratios"][str(rows)])) is not None
        ),
    ]
    shown.caption = "\n".join(lines)
    return shown


def _turns(
    workers: dict[str, Worker], readers: list[Worker], rounds: int, seconds: float, description: str
) -> tuple[Turns, list[dict[str, float]]]:
    """Return every round's microseconds per step, and the bytes per second of all cores."""
    turns: Turns = {rows: {name: [] for name in workers} for rows in ROWS}
    bounds = []
    with console.progress("rounds") as bar:
        for index in bar.track(range(rounds), description=description):
            for rows in ROWS:
                for name in list(workers)[:: 1 if index % 2 == 0 else -1]:
                    workers[name].send(json.dumps({"rows": rows, "seconds": seconds}))
                    turns[rows][name].append(workers[name].read()["us_a_step"])
            for reader in readers:  # all at once
                reader.send(str(seconds))
            rates = [reader.read() for reader in readers]
            bounds.append({kind: sum(each[kind] for each in rates) for kind in rates[0]})
    return turns, bounds


def _figures(rows: int, us: float, least: dict[str, float]) -> dict[str, float]:
    """Speed of a step of `us` microseconds, and the lower bounds `least` as shares of it."""
    shares = {f"share_of_{kind}": bound / us for kind, bound in least.items()}
    return {"us_a_step": us, "characters_per_second": rows / us * 1e6, **shares}


def _rates(turns: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [1 / us for us in each] for name, each in turns.items()}


def _usable(name: str, package: str) -> bool:
    if not has(package):
        console.note(f"{name}: {package} is not installed (pip install {package}), skipped")
    return has(package)
