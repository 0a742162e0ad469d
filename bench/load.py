"""A server under load: 1 to 64 clients that each ask for characters again and again, with batching and without.

Where no server is named, it is the stand-in of the tests, which keeps TF Serving's rules of batching in Python: it says
what batching is worth to the graph, nothing of TF Serving's own speed. It is started twice, and the turns of the two
lie beside each other; the one that has none waits meanwhile.
"""

import contextlib
import datetime
import importlib.metadata
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.clients import MOST
from bench.machine import commit, machine
from bench.peers import Size
from bench.train import Worker
from common import console
from common.files import write_json

CLIENTS = (1, 2, 4, 8, 16, 32, MOST)
LENGTH = 100  # characters a call
BATCHING, PLAIN = "batching", "no batching"
AT, TARGET = 32, 4.0  # clients, and how many times as many requests batching is to answer
STAND_IN = "the stand-in in Python (tests/serving_stand_in.py), which is not TF Serving"

Turn = dict[str, Any]
Turns = dict[str, dict[int, list[Turn]]]  # by server and clients, an entry a round


def compare(size: Size, rounds: int, seconds: float, out: Path) -> None:
    """Prints a table and writes out/bench-serve-load-LxH.json of the stand-in with a model of this size.

    Raises StageError where the code is not committed, or a server or the clients end.
    """
    with console.hushed():
        from bench.served import StandIn, export

    made_at = _made_at()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        with console.err.status("exporting, starting"):
            base = export(size, Path(scratch) / "bench").base
            servers = {name: stack.enter_context(StandIn(base, name == BATCHING)) for name in (BATCHING, PLAIN)}
            workers = {name: _clients(stack, server.target, base.name) for name, server in servers.items()}
            infos = [worker.read()["info"] for worker in workers.values()]
            for worker in workers.values():  # what a server does at its first calls
                _ask(worker, MOST, min(1.0, seconds))
            servers[BATCHING].batches()
        turns: Turns = {name: {count: [] for count in CLIENTS} for name in servers}
        with console.progress("turns") as bar:
            for index, count in bar.track([*enumerate(CLIENTS)] * rounds, description=size.name):
                for name in list(servers)[:: 1 if index % 2 == 0 else -1]:
                    turn = _ask(workers[name], count, seconds)
                    turns[name][count].append({**turn, "batches": servers[name].batches()})
    _tell(infos[0], STAND_IN, turns, made_at, out / f"bench-serve-load-{size.name}.json")


def measure(target: str, model: str, rounds: int, seconds: float, out: Path) -> None:
    """The same of a server that runs already: prints a table and writes out/bench-serve-load-MODEL.json."""
    made_at = _made_at()
    with contextlib.ExitStack() as stack:
        worker = _clients(stack, target, model)
        info = worker.read()["info"]
        _ask(worker, MOST, min(1.0, seconds))
        turns: Turns = {target: {count: [] for count in CLIENTS}}
        with console.progress("turns") as bar:
            for count in bar.track(CLIENTS * rounds, description=model):
                turns[target][count].append(_ask(worker, count, seconds))
    _tell(info, f"the server at {target}", turns, made_at, out / f"bench-serve-load-{model}.json")


def _made_at() -> dict[str, str]:
    return {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}


def _clients(stack: contextlib.ExitStack, target: str, model: str) -> Worker:
    worker = Worker("the clients", "cpu", "bench.clients", target, model, str(LENGTH))
    stack.callback(worker.process.kill)
    return worker


def _ask(worker: Worker, clients: int, seconds: float) -> Turn:
    """A turn's figures; times in seconds."""
    worker.tell(json.dumps({"clients": clients, "seconds": seconds}))
    found = worker.read()
    calls = found["calls"]
    return {
        "requests_per_second": len(calls) / found["seconds"],
        "characters_per_second": found["characters"] / found["seconds"],
        "p50": float(np.percentile(calls, 50)) if calls else None,
        "p99": float(np.percentile(calls, 99)) if calls else None,
        "calls": len(calls),
        "refused": found["refused"],
        "clients_processor": found["processor_seconds"] / found["seconds"],
    }


def medians(turns: list[Turn]) -> Turn:
    """Of the rounds' figures, each by itself; what was counted, together."""
    result: Turn = {}
    for name in ("requests_per_second", "characters_per_second", "p50", "p99", "clients_processor"):
        values = [turn[name] for turn in turns if turn[name] is not None]
        result[name] = statistics.median(values) if values else None
    for name in ("refused", "batches"):
        keys = {key for turn in turns for key in turn.get(name, {})}
        result[name] = {key: sum(turn.get(name, {}).get(key, 0) for turn in turns) for key in sorted(keys)}
    return result


def gains(turns: Turns) -> dict[int, float]:
    """How many times as many requests batching answers, by clients: medians of the rounds' ratios."""
    if BATCHING not in turns:
        return {}
    found = {}
    for count in CLIENTS:
        pairs = zip(turns[BATCHING][count], turns[PLAIN][count], strict=True)
        found[count] = statistics.median(
            with_["requests_per_second"] / without["requests_per_second"] for with_, without in pairs
        )
    return found


def _tell(info: dict[str, Any], server: str, turns: Turns, made_at: dict[str, str], path: Path) -> None:
    result = {
        "format_version": 1,
        "server": server,
        "model": info["config"]["model"],
        "length": LENGTH,
        "servers": {name: {count: medians(each) for count, each in counts.items()} for name, counts in turns.items()},
        "batching_gains": gains(turns),
        "target": {"clients": AT, "gain": TARGET},
        "rounds": turns,
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "grpcio")},
        **made_at,
    }
    result = json.loads(json.dumps(result))  # as it is read from the file: names are strings
    write_json(path, result)
    console.out.print(table(result))


def table(result: dict[str, Any]) -> Table:
    """The figures, for the terminal and README."""
    model = result["model"]
    title = f"{model['layers']} x {model['units']}, {result['length']} characters a call, asked of {result['server']}"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("", "clients", "calls/s", "chars/s", "p50 ms", "p99 ms", "gain", "rows a run", "refused"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, counts in result["servers"].items():
        for count, found in counts.items():
            gain = result["batching_gains"].get(count) if name == BATCHING else None
            shown.add_row(
                name,
                count,
                f"{found['requests_per_second']:,.1f}",
                f"{found['characters_per_second']:,.0f}",
                *("" if found[name] is None else f"{1000 * found[name]:,.0f}" for name in ("p50", "p99")),
                f"{gain:.2f} x" if gain else "",
                _rows(found["batches"]),
                f"{sum(found['refused'].values()):,}" if found["refused"] else "",
            )
    busiest = max(found["clients_processor"] for counts in result["servers"].values() for found in counts.values())
    lines = [
        "medians over the rounds; gain: of the rounds' ratios with batching to without; rows a run: of the graph, mean",
        "and most, what batches are filled up with included",
        f"the clients, a process of their own, took {busiest:.0%} of a core at most",
    ]
    if gain := result["batching_gains"].get(str(AT)):
        lines.append(f"batching at {AT} clients: {gain:.2f} x as many calls; the target is {TARGET:g} x at 2 x 512")
    shown.caption = "\n".join(lines)
    return shown


def _rows(batches: dict[str, int]) -> str:
    if not batches:
        return ""
    mean = sum(int(rows) * count for rows, count in batches.items()) / sum(batches.values())
    return f"{mean:.1f}, {max(map(int, batches))}"
