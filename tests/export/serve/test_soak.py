"""Mixed load on a server and its front for a minute: all calls are answered correctly, and memory stays constant."""

import base64
import functools
import itertools
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import served_models
import serving
from grpc import StatusCode
from served_models import Columns, ExportedModel, Row, columns

from common.errors import StageError
from common.machine import memory
from export.client import connection
from export.client.client import Client, ServingError
from export.serve.saved_model import compare
from export.serve.signatures import INPUTS

SECONDS, TIMEOUT = 60, 300
WARM_UP = 1000  # calls, after which most sizes of batches and answers have occurred
GROWTH, SLACK = 0.05, 30e6  # maximum memory growth, relative and in bytes; the slack is for short-lived large bodies
MORE_THREADS = 8  # at most this many more in the second half than in the first
GOOD, HOSTILE = 8, 4  # callers
REFUSALS = {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION}
BATCH_MATE = "from different tasks have different shapes"  # TF Serving rejects the whole batch of such a call: retry

Request = tuple[str, Columns, Columns | None]  # (signature, inputs, the checkpoint's outputs; None: must be rejected)


def valid_requests(model: ExportedModel) -> list[Request]:
    """Return requests of all signatures, some with invalid rows, with the checkpoint's outputs."""
    rng = np.random.default_rng(0)
    carry = model.query_row("start", prompt=b"def ")["carry_bytes"]
    invalid: list[Row] = [{}] * 8 + [{"length": -1, "carry_bytes": b"short", "layer": 99}, {"temperature": np.nan}]

    def row() -> Row:
        more = {"text": model.text(rng, 40), "carry_bytes": [b"", carry][rng.integers(2)], "layer": rng.integers(2)}
        return model.row(rng, 60) | more | invalid[rng.integers(len(invalid))]

    inputs = [(name, columns(name, [row() for _ in range(rng.integers(1, 9))])) for name in [*INPUTS] * 10]
    answers = {"info": model.run}  # info comes from the files: the checkpoint has none
    return [(name, each, answers.get(name, model.served.answer)(name, each)) for name, each in inputs]


def invalid_requests() -> list[Request]:
    """Return requests that a server must reject, except that it may run those of wrong rank alone."""
    megabyte, plain = b"x" * (1 << 20), columns("generate", [{}] * 2)
    rows: list[Row] = [
        {"prompt": megabyte},
        {"stop": megabyte},
        {"length": 2**31 - 1},
        {"top_p": 2.0},
        {"temperature": np.inf},
    ]
    calls = [("generate", columns("generate", [row] * 2)) for row in rows]
    calls += [("continue", columns("continue", [{"carry_bytes": carry}])) for carry in (b"\0", megabyte)]
    calls += [
        ("generate", {name: value[:, None] for name, value in plain.items()}),
        ("generate", {**plain, "length": plain["length"][:, None]}),
        ("generate", {**plain, "seed": plain["seed"][:1]}),
        ("generate", {**plain, "length": plain["length"].astype(np.int64)}),
        ("generate", {name: value for name, value in plain.items() if name != "seed"}),
        ("generate", {name: np.repeat(value, 500) for name, value in plain.items()}),
        ("unknown", plain),
    ]
    return [(name, inputs, None) for name, inputs in calls]


def check_call(client: Any, request: Request) -> str:
    """Make a call, and return its signature or "refused". Raises on a wrong or missing answer."""
    signature, inputs, expected = request
    try:
        answer, _ = client.predict(signature, inputs)
    except ServingError as error:
        if BATCH_MATE in str(error) or (expected is None and error.code in REFUSALS):
            return "refused"
        raise
    if expected is None and any(column.ndim > 1 for column in inputs.values()):
        return "refused"  # the server does not check ranks: it answers such a call if it is alone in its batch
    if expected is None:
        errors = answer.get("finish_reason", answer.get("error", np.array([b""]))).tolist()
        assert all(error.startswith(b"error: ") for error in errors), errors
        return "refused"
    assert answer.keys() == expected.keys()
    for name, desired in expected.items():
        actual = answer[name]
        assert len(actual) == len(desired), name
        if actual.ndim > 1:  # padded with zeros to the longest text of its batch
            assert not np.any(actual[:, desired.shape[1] :]), name
            actual = actual[:, : desired.shape[1]]
        for index in range(len(desired)):  # row by row, as rejected carries are shorter
            compare(f"{signature}.{name}", actual[index : index + 1], desired[index : index + 1])
    return signature


class RestClient:
    """Caller of a front, with the client's `predict` method."""

    def __init__(self, url: str, model: str):
        self.url, self.session = f"{url}/v1/models/{model}:predict", requests.Session()

    def predict(self, signature: str, inputs: Columns) -> tuple[Columns, int]:
        content = {name: column.tolist() for name, column in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": content}, default=in_base64)
        answer = self.session.post(self.url, body, timeout=TIMEOUT)
        if not answer.ok:
            refused = answer.status_code in (400, 413)
            raise ServingError(answer.text, StatusCode.INVALID_ARGUMENT if refused else StatusCode.UNKNOWN)
        outputs = answer.json(object_hook=from_base64)["outputs"]
        outputs = outputs if isinstance(outputs, dict) else {"info": outputs}  # the only output has no name
        return {name: to_array(column) for name, column in outputs.items()}, 1


def in_base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def from_base64(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["b64"]) if "b64" in value else value


def to_array(column: list[Any]) -> Any:
    """Convert a column of an answer in JSON to the array that the server returned."""
    if isinstance(column[0], str):
        return np.array([text.encode() for text in column], object)
    array = np.array(column, object if isinstance(column[0], bytes) else None)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def for_front(requests: list[Request]) -> list[Request]:
    """Return the requests whose result through a front is the same, and one without rows.

    JSON has no int32, so an int64 is not an error there; the front rejects a row with NaN together with its call.
    """
    name, inputs, _ = requests[0]
    without_rows = (name, {column: values[:0] for column, values in inputs.items()}, None)
    return [without_rows] + [
        (name, inputs, None if np.any(np.isnan(inputs.get("temperature", 0.0))) else expected)
        for name, inputs, expected in requests
        if inputs.get("length", np.zeros(0)).dtype != np.int64
    ]


def stream(url: str, model: str, dropped: bool) -> str:
    """Read a stream of completions to its end, or only its first line."""
    body = {"model": model, "prompt": "", "max_tokens": 500, "stream": True}
    with requests.post(f"{url}/v1/completions", json=body, timeout=TIMEOUT, stream=True) as answer:
        lines = (line for line in answer.iter_lines() if line)
        last = next(lines) if dropped else [*lines][-1]
    assert last.startswith(b'data: {"id"') if dropped else last == b"data: [DONE]", last
    return "stream"


def usage(pid: int) -> tuple[int, int]:
    """Return the memory of a process in bytes, and the number of its threads."""
    return memory(pid), len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.slow
@pytest.mark.parametrize("batching", [True, False])
def test_mixed_load_for_a_minute(run: Path, batching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a server directly and through its front, each in its own process."""
    monkeypatch.setattr(connection, "check_rows", lambda inputs: None)  # otherwise the client itself rejects some calls
    model = served_models.exported(run)
    calls, failures, stop = Counter[str](), list[str](), threading.Event()
    valid, invalid = valid_requests(model), invalid_requests()

    def repeat(kind: str, call: Callable[[Any], str], mix: list[Any]) -> None:
        for item in itertools.cycle(random.sample(mix, len(mix))):
            if stop.is_set():
                return
            try:
                calls[f"{kind} {call(item)}"] += 1
            except (ServingError, StageError, AssertionError, ValueError, requests.RequestException) as error:
                failures.append(f"{kind}: {error!r}")

    def direct(mix: list[Request]) -> None:
        with Client(server.target, server.model, timeout=TIMEOUT, retries=0) as client:
            repeat("gRPC", functools.partial(check_call, client), mix)

    def through_front(mix: list[Request]) -> None:
        repeat("REST", functools.partial(check_call, RestClient(url, server.model)), mix)

    def streams(_: Any) -> None:
        repeat("REST", functools.partial(stream, url, server.model), [False, True])

    callers = [(direct, valid)] * GOOD + [(direct, invalid)] * HOSTILE + [(streams, None)]
    callers += [(through_front, for_front(valid))] * (GOOD // 2) + [(through_front, for_front(invalid))] * HOSTILE
    rules = model.base / "batching_params.pbtxt" if batching else None
    with (
        serving.process(model.base, model.base.name, rules) as (server, server_pid),
        serving.front_process(server, f"--timeout={TIMEOUT}") as (url, front_pid),
    ):
        threads = [threading.Thread(target=caller, args=(mix,)) for caller, mix in callers]
        for thread in threads:
            thread.start()
        while calls.total() < WARM_UP and not failures:
            time.sleep(1)
        usages = []
        for _ in range(SECONDS):
            usages.append([usage(pid) for pid in (server_pid, front_pid)])
            if not (health := requests.get(f"{url}/healthz", timeout=5)).ok:
                failures.append(f"health: {health.text}")
            time.sleep(1)
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, (len(failures), failures[:3])
    assert calls.keys() == {f"{kind} {name}" for kind in ("gRPC", "REST") for name in (*INPUTS, "refused")} | {
        "REST stream"
    }
    bytes_SxP, threads_SxP = np.moveaxis(np.array(usages), -1, 0)  # seconds, processes
    tenths = np.median(np.reshape(bytes_SxP, (10, -1, 2)), axis=1)
    assert np.all(tenths[-1] <= (1 + GROWTH) * tenths.min(axis=0) + SLACK), tenths
    first, second = (half.max(axis=0) for half in np.split(threads_SxP, 2))
    assert np.all(second <= first + MORE_THREADS), (first, second)
