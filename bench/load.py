"""Latency and throughput of a running server or front, over TF Serving's REST API."""

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import requests
from rich.table import Table

from common import console
from common.errors import StageError

CALLERS = (1, 8, 32)
TIMEOUT = 60  # seconds


class Load(NamedTuple):
    """Figures of concurrent callers: seconds per answer, characters per second, calls refused (429, 503)."""

    callers: int
    answers: int
    median: float
    p95: float
    rate: float
    refused: int


Call = Callable[[int], int | None]  # requests a text with a seed; returns its characters, None if refused (429, 503)


def measure(callers: Sequence[Call], seconds: float) -> Load:
    """Let each caller make calls one after another for `seconds`, all callers at once."""
    end = time.monotonic() + seconds

    def work(index: int) -> tuple[list[float], int, int]:
        times, characters, refused, seed = list[float](), 0, 0, index << 32
        while time.monotonic() < end:
            start, seed = time.perf_counter(), seed + 1
            written = callers[index](seed)
            if written is None:
                refused += 1
                time.sleep(0.1)
            else:
                times.append(time.perf_counter() - start)
                characters += written
        return times, characters, refused

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(callers)) as pool:
        each = list(pool.map(work, range(len(callers))))
    passed, times = time.perf_counter() - start, [value for own, _, _ in each for value in own]
    characters, refused = sum(own for _, own, _ in each), sum(own for _, _, own in each)
    median, p95 = np.percentile(times or [np.nan], (50, 95))
    return Load(len(callers), len(times), float(median), float(p95), characters / passed, refused)


def http_caller(target: str, model: str, length: int) -> Call:
    """Return a caller of the stable version, with its own connection. It raises StageError for any failure."""
    session, url = requests.Session(), f"http://{target}/v1/models/{model}/labels/stable:predict"

    def call(seed: int) -> int | None:
        inputs: dict[str, Any] = {"prompt": [""], "length": [length], "temperature": [1.0], "seed": [seed]}
        try:
            answer = session.post(url, json={"inputs": inputs}, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise StageError(f"{target} does not answer over HTTP ({type(error).__name__}): check the port") from None
        if answer.status_code in (429, 503):
            return None
        if answer.status_code != 200:
            raise StageError(f"the server answered {answer.status_code}: {answer.text[:200]}")
        return int(answer.json()["outputs"]["n_chars"][0])

    return call


def load(target: str, model: str, length: int, seconds: float) -> None:
    """Print a table with one row per number of callers, each requesting texts of `length` characters."""
    table = Table(
        "callers", "answers", "median, ms", "95 %, ms", "characters/s", "refused", title=f"{model} at {target}"
    )
    for callers in CALLERS:
        row = measure([http_caller(target, model, length) for _ in range(callers)], seconds)
        times = (f"{1000 * value:,.1f}" for value in (row.median, row.p95))
        table.add_row(str(callers), f"{row.answers:,}", *times, f"{row.rate:,.0f}", f"{row.refused:,}")
    console.out.print(table)
