"""Generation speed of a .tflite by precision, next to the SavedModel and PyTorch, eager and dynamically quantized.

Peers take turns within a round, and a ratio is the median over rounds, for the reasons given in bench.train.
The table includes the browser's speed if bench.browser has written bench-lite-browser-LxH.json to the same folder.
"""

import importlib.metadata
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.lite_loops import LENGTH, PEERS, PRECISIONS
from bench.loops import TEMPERATURE, VOCAB, check_logits
from bench.machine import provenance
from bench.peers import Size
from bench.served import export, model_of
from bench.train import Rounds, Worker, has, over_torch, ratios
from common import console
from common.files import write_json
from export.bundle import pack
from export.lite.graph import convert
from export.lite.lite import probe

INT8 = "int8"
TARGET = 5.0  # speed of int8-dynamic relative to torch's fastest eager loop at TARGET_SIZE
OWN, TARGET_SIZE = "int8-dynamic", "2x512"


def compare(size: Size, rounds: int, seconds: float, out: Path) -> None:
    """Print a table and write out/bench-lite-LxH.json with medians, ratios and all rounds.

    Peers that are not installed are skipped with a note. Raises StageError for uncommitted code, a failing peer, or
    a float32 peer with different logits.
    """
    origin = provenance()
    names = [name for name, peer in PEERS.items() if has(peer.package)]
    if not has("torch"):
        console.note("torch is not installed (pip install torch): its rows are skipped")
    workers: dict[str, Worker] = {}
    try:
        with tempfile.TemporaryDirectory() as scratch, console.err.status("exporting, warming up"):
            base = export(size, Path(scratch) / "bench").base
            costs = write_files(size, base.parent)
            for name in names:
                arguments = (name, str(base), str(size.layers), str(size.units))
                workers[name] = Worker(name, "cpu", "bench.lite_loops", *arguments)
            logits = {name: np.array(worker.read()["logits"]) for name, worker in workers.items()}
            rounded = [name for name in names if INT8 in name or name == "float16"]
            off = check_logits(logits, "float32", rounded)
        turns: Rounds = {name: [] for name in names}
        with console.progress("rounds") as bar:
            for index in bar.track(range(rounds), description=size.name):
                for name in names[:: 1 if index % 2 == 0 else -1]:
                    turns[name].append(workers[name].turn(seconds)["us_a_step"])
    finally:
        for worker in workers.values():
            worker.process.kill()
    rates = {name: [1 / us for us in each] for name, each in turns.items()}
    result = {
        "format_version": 1,
        "work": {
            "layers": size.layers,
            "units": size.units,
            "vocabulary": VOCAB.size,
            "length": LENGTH,
            "temperature": TEMPERATURE,
        },
        "files": costs,
        "peers": {name: {"us_a_step": statistics.median(turns[name]), "logits_off": off[name]} for name in names},
        "ratios": {own: ratios(rates, own) for own in PRECISIONS},
        "rounds": {"us_a_step": turns},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("ai-edge-litert", "tensorflow", "torch")
            if name != "torch" or has(name)
        },
        **origin,
    }
    write_json(out / f"bench-lite-{size.name}.json", result)
    console.out.print(table(result, browser(out, size)))


def write_files(size: Size, folder: Path) -> dict[str, dict[str, float]]:
    """Write the model in each precision. Returns the size of each file and the figures of export.lite.probe."""
    model, costs = model_of(size), {}
    for name in PRECISIONS:
        path = folder / f"{name}.tflite"
        about = {"format_version": 1, "vocab": VOCAB.to_json()}
        path.write_bytes(pack(convert(model, None, name), about))
        costs[name] = {"bytes": path.stat().st_size, **probe(path)}
    return costs


def browser(out: Path, size: Size) -> dict[str, Any] | None:
    """Return the results of bench.browser, if any."""
    path = out / f"bench-lite-browser-{size.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(result: dict[str, Any], in_browser: dict[str, Any] | None) -> Table:
    """Render the results for the terminal and docs/benchmarks.md."""
    work = result["work"]
    title = f"{work['layers']} x {work['units']}, {work['vocabulary']} characters, texts of {work['length']}"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("", "us/char", "chars/s", "speedup", "step us", "MB", "peak MB"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, peer in result["peers"].items():
        if name not in PEERS:  # a precision of an earlier version
            continue
        ratio, cost = result["ratios"][OWN].get(name), result["files"].get(name)
        shown.add_row(
            name,
            f"{peer['us_a_step']:,.1f}",
            f"{1e6 / peer['us_a_step']:,.0f}",
            f"{ratio['median_of_ratios']:.2f} x" if ratio else "",
            *(
                (f"{cost['us_a_step']:.1f}", f"{cost['bytes'] / 1e6:.2f}", f"{cost['peak_bytes'] / 1e6:.0f}")
                if cost
                else ()
            ),
        )
    if in_browser:
        us = in_browser["us_a_step"]
        shown.add_row(f"browser, {in_browser['precision']}", f"{us:,.1f}", f"{1e6 / us:,.0f}")
    peers = result["ratios"][OWN].items()
    eager, int8 = (over_torch({name: each for name, each in peers if (INT8 in name) == kind}) for kind in (False, True))
    if eager is not None and int8 is not None:
        target = f" (target: {TARGET:g} x)" if f"{work['layers']}x{work['units']}" == TARGET_SIZE else ""
        shown.caption = (
            f"{OWN} is {eager:.2f} x as fast as torch's fastest eager loop{target} and\n"
            f"{int8:.2f} x as fast as its fastest int8 loop\n"
            f"speedup: of {OWN} over the row, one text at a time; medians of per-round ratios\n"
            "us/char: with drawing, in Python; step us: the model alone"
        )
    return shown
