"""Latency and throughput through the front, beside the same server without it and without batching; an overload.

The server is that of `python -m export serve`: TensorFlow Serving if there is one, else the Python stand-in. The front
runs in its own process. Ways take turns within a round; figures are medians over rounds.
"""

import concurrent.futures
import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
from rich.table import Table

from bench.load import CALLERS, TIMEOUT, Call, Load, http_caller, measure
from bench.machine import provenance
from bench.peers import Size
from common import console
from common.errors import StageError
from common.files import write_json
from export.client.client import Client
from export.serve.start import LocalServer

DIRECT, FRONT, UNBATCHED = "gRPC, no front", "HTTP, front", "gRPC, no front, no batching"
EMPTY, LONG, CHARACTERS = 128, 300, 1500  # calls without rows; callers, and what each reads and writes

Ways = dict[str, Callable[[], Call]]


def compare(size: Size, length: int, rounds: int, seconds: float, out: Path) -> None:
    """Print a table and write out/bench-serve-front-LxH.json. Raises StageError for uncommitted code or a failure."""
    origin = provenance()
    with console.quiet():
        from bench.served import export
        from export.serve import package, start
    with tempfile.TemporaryDirectory() as scratch, console.err.status("exporting"):
        base = export(size, Path(scratch) / "bench").base
        package.write_package(base, 1, {})
        with start.started(base) as server, ready(server) as client, fronted(server) as target:
            stand_in = "export.serve.stand_in" in str(server.process.args)
            ways: Ways = {
                DIRECT: lambda: grpc_caller(client, length),
                FRONT: lambda: http_caller(target, server.model, length),
            }
            turns = take_turns(ways, rounds, seconds)
            overloaded = overload(f"http://{target}", server.model)
        (base / "1" / package.BATCHING).unlink()  # without its own parameters, a version is not batched
        with start.started(base) as server, ready(server) as client:
            turns |= take_turns({UNBATCHED: lambda: grpc_caller(client, length)}, rounds, seconds)
    result = {
        "format_version": 1,
        "work": {"layers": size.layers, "units": size.units, "length": length},
        "stand_in": stand_in,
        "loads": {way: [summary(loads) for loads in each] for way, each in turns.items()},
        "overload": overloaded,
        "rounds": {way: [[load._asdict() for load in loads] for loads in each] for way, each in turns.items()},
        **origin,
    }
    write_json(out / f"bench-serve-front-{size.name}.json", result)
    console.out.print(table(result))


def table(result: dict[str, Any]) -> Table:
    """Render the results for the terminal and docs/benchmarks.md."""
    work, over = result["work"], result["overload"]
    server = "the Python stand-in" if result["stand_in"] else "TensorFlow Serving"
    title = f"{work['layers']} x {work['units']}, {work['length']} characters per call, on {server}"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("", "callers", "median, ms", "95 %, ms", "characters/s"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for index in range(len(CALLERS)):
        for way, loads in result["loads"].items():
            load = loads[index]
            times = (f"{1000 * load[name]:,.1f}" for name in ("median", "p95"))
            shown.add_row(way, str(load["callers"]), *times, f"{load['rate']:,.0f}")
    empty, long = over["empty"], over["long"]
    shown.caption = "\n".join(
        (
            *["the stand-in is not TensorFlow Serving: only what the front adds carries over"] * result["stand_in"],
            f"{EMPTY} calls without rows, at once: {codes(empty)} in {empty['seconds']:.1f} s",
            f"{LONG} callers of {CHARACTERS:,} + {CHARACTERS:,} characters, at once: {codes(long)} in "
            f"{long['seconds']:.0f} s; longest wait for /healthz {1000 * over['health_seconds']:.0f} ms",
        )
    )
    return shown


def codes(calls: dict[str, Any]) -> str:
    """Describe how many calls were answered with which status."""
    return ", ".join(f"{count:,} answered {code}" for code, count in sorted(calls["codes"].items()))


def take_turns(ways: Ways, rounds: int, seconds: float) -> dict[str, list[list[Load]]]:
    """Return the loads of each way, per number of callers, one per round."""
    turns: dict[str, list[list[Load]]] = {way: [[] for _ in CALLERS] for way in ways}
    for index in range(rounds):
        for place, callers in enumerate(CALLERS):
            for way in list(ways)[:: 1 if index % 2 == 0 else -1]:
                turns[way][place].append(measure([ways[way]() for _ in range(callers)], seconds))
    return turns


def summary(loads: list[Load]) -> dict[str, Any]:
    """Return the medians over rounds."""
    figures = {name: statistics.median(getattr(load, name) for load in loads) for name in ("median", "p95", "rate")}
    return {"callers": loads[0].callers, **figures}


def overload(url: str, model: str) -> dict[str, Any]:
    """Make EMPTY calls without rows and LONG long ones, all at once, and time the health check meanwhile.

    A refused call is repeated after the seconds of its Retry-After.
    """
    waits, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            start = time.perf_counter()
            requests.get(f"{url}/healthz", timeout=TIMEOUT).raise_for_status()
            waits.append(time.perf_counter() - start)
            time.sleep(0.1)

    def call(body: dict[str, Any]) -> tuple[int, float]:
        while True:
            answer = requests.post(f"{url}/v1/models/{model}:predict", json=body, timeout=TIMEOUT)
            if answer.status_code != 429:
                return answer.status_code, time.perf_counter()
            time.sleep(float(answer.headers["Retry-After"]))

    row = {"prompt": "x" * CHARACTERS, "length": CHARACTERS, "temperature": 1.0, "seed": 1}
    bodies: dict[str, list[Any]] = {
        "empty": [{"inputs": {"prompt": [], "length": [], "temperature": [], "seed": []}}] * EMPTY,
        "long": [{"instances": [row]}] * LONG,
    }
    with concurrent.futures.ThreadPoolExecutor(EMPTY + LONG + 1) as pool:
        health, start = pool.submit(watch), time.perf_counter()
        running = {kind: [pool.submit(call, body) for body in each] for kind, each in bodies.items()}
        done = {kind: [each.result() for each in calls] for kind, calls in running.items()}
        over.set()
        health.result()
    figures = {
        kind: {"codes": Counter(str(code) for code, _ in each), "seconds": max(end for _, end in each) - start}
        for kind, each in done.items()
    }
    return {**figures, "health_seconds": max(waits)}


@contextlib.contextmanager
def ready(server: LocalServer) -> Iterator[Client]:
    """Connect to a local server, once it answers."""
    with Client(server.target, server.model, label="stable", timeout=TIMEOUT) as client:

        def answers() -> bool:
            try:
                return bool(client.info())
            except StageError:
                return False

        server.wait(answers)
        yield client


@contextlib.contextmanager
def fronted(server: LocalServer) -> Iterator[str]:
    """Run a front before a server. Yields its address."""
    command = [sys.executable, "-m", "export", "front", "--target", server.target, "--model", server.model]
    command += ["--label", "stable", "--port", "0", "--per-minute", "1000000", "--calls", "64"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            yield process.stderr.readline().split()[3].removeprefix("http://")
        finally:
            process.terminate()


def grpc_caller(client: Client, length: int) -> Call:
    """Return a caller of the signature that `http_caller` calls."""

    def call(seed: int) -> int:
        inputs = {"prompt": np.array([b""], object), "length": np.array([length], np.int32)}
        inputs |= {"temperature": np.ones(1, np.float32), "seed": np.array([seed], np.int64)}
        return int(client.predict("serving_default", inputs)[0]["n_chars"][0])

    return call
