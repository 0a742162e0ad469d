"""Mixed load on a server for a minute: all calls are answered correctly, and memory stays constant."""

import itertools
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import served_models
from grpc import StatusCode
from served_models import Columns, ExportedModel, Row, columns

from common.errors import StageError
from common.machine import memory
from export.client import connection
from export.client.client import Client, ServingError
from export.serve.saved_model import compare
from export.serve.signatures import INPUTS

ROOT = Path(__file__).parents[3]
SECONDS, WARM_UP, TIMEOUT = 60, 15, 300
GROWTH = 0.05  # maximum relative memory growth
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


def check_call(client: Client, request: Request) -> str:
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


@pytest.mark.slow
@pytest.mark.parametrize("batching", [True, False])
def test_mixed_load_for_a_minute(run: Path, batching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "check_rows", lambda inputs: None)  # otherwise the client itself rejects some calls
    model = served_models.exported(run)
    command = [sys.executable, "-m", "export.serve.stand_in", str(model.base)]
    command += ["--batching", str(model.base / "batching_params.pbtxt")] if batching else []
    calls, failures, stop, memory_bytes = Counter[str](), list[str](), threading.Event(), list[int]()
    mixes = [valid_requests(model)] * GOOD + [invalid_requests()] * HOSTILE

    def caller(target: str, number: int, mix: list[Request]) -> None:
        with Client(target, model.base.name, timeout=TIMEOUT, retries=0) as client:
            for request in itertools.cycle(random.Random(number).sample(mix, len(mix))):
                if stop.is_set():
                    return
                try:
                    calls[check_call(client, request)] += 1
                except (ServingError, StageError, AssertionError, ValueError) as error:
                    failures.append(f"{request[0]}: {error!r}")

    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        target = f"localhost:{server.stdout.readline().strip()}"
        threads = [threading.Thread(target=caller, args=(target, *each)) for each in enumerate(mixes)]
        for thread in threads:
            thread.start()
        time.sleep(WARM_UP)
        for _ in range(SECONDS):
            memory_bytes.append(memory(server.pid))
            time.sleep(1)
        stop.set()
        for thread in threads:
            thread.join()
        alive = server.poll() is None
        server.kill()
    assert not failures, (len(failures), failures[:3])
    assert alive
    assert calls.keys() == {*INPUTS, "refused"}
    tenths = np.median(np.reshape(memory_bytes, (10, -1)), axis=1)
    assert tenths[-1] <= (1 + GROWTH) * tenths.min(), tenths
