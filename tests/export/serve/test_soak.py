"""A server under mixed load for a minute: every call answered, every answer right, memory steady."""

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
GROWTH = 0.05  # of memory, at most
GOOD, HOSTILE = 8, 4  # callers
REFUSALS = {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION}
BATCH_MATE = "from different tasks have different shapes"  # TF Serving refuses such calls together: try again

Request = tuple[str, Columns, Columns | None]  # signature, inputs, the checkpoint's answer; None: must be refused


def valid(model: ExportedModel) -> list[Request]:
    """Requests of every signature, some with invalid rows, and the checkpoint's answers."""
    rng = np.random.default_rng(0)
    carry = model.query_row("start", prompt=b"def ")["carry_bytes"]
    invalid: list[Row] = [{}] * 8 + [{"length": -1, "carry_bytes": b"short", "layer": 99}, {"temperature": np.nan}]

    def row() -> Row:
        more = {"text": model.text(rng, 40), "carry_bytes": [b"", carry][rng.integers(2)], "layer": rng.integers(2)}
        return model.row(rng, 60) | more | invalid[rng.integers(len(invalid))]

    inputs = [(name, columns(name, [row() for _ in range(rng.integers(1, 9))])) for name in [*INPUTS] * 10]
    answers = {"info": model.run}  # from the files: the checkpoint has none
    return [(name, each, answers.get(name, model.served.answer)(name, each)) for name, each in inputs]


def hostile() -> list[Request]:
    """Requests that no server may answer, or only those of another rank."""
    mega, plain = b"x" * (1 << 20), columns("generate", [{}] * 2)
    rows: list[Row] = [{"prompt": mega}, {"stop": mega}, {"length": 2**31 - 1}, {"top_p": 2.0}, {"temperature": np.inf}]
    calls = [("generate", columns("generate", [row] * 2)) for row in rows]
    calls += [("continue", columns("continue", [{"carry_bytes": carry}])) for carry in (b"\0", mega)]
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


def check(client: Client, request: Request) -> str:
    """Make a call and return what it counts as. Raises for a wrong answer, or for none."""
    signature, inputs, expected = request
    try:
        answer, _ = client.predict(signature, inputs)
    except ServingError as error:
        if BATCH_MATE in str(error) or (expected is None and error.code in REFUSALS):
            return "refused"
        raise
    if expected is None and any(column.ndim > 1 for column in inputs.values()):
        return "refused"  # the server does not check ranks: alone, such a call is answered
    if expected is None:
        errors = answer.get("finish_reason", answer.get("error", np.array([b""]))).tolist()
        assert all(error.startswith(b"error: ") for error in errors), errors
        return "refused"
    assert answer.keys() == expected.keys()
    for name, right in expected.items():
        got = answer[name]
        assert len(got) == len(right), name
        if got.ndim > 1:  # as wide as the longest text in its batch, padded with zeros
            assert not np.any(got[:, right.shape[1] :]), name
            got = got[:, : right.shape[1]]
        for index in range(len(right)):  # row by row: a refused carry is shorter than others
            compare(f"{signature}.{name}", got[index : index + 1], right[index : index + 1])
    return signature


@pytest.mark.slow
@pytest.mark.parametrize("batching", [True, False])
def test_a_minute_of_mixed_calls(run: Path, batching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "check_rows", lambda inputs: None)  # or the client would refuse some calls itself
    model = served_models.exported(run)
    command = [sys.executable, "-m", "export.serve.stand_in", str(model.base)]
    command += ["--batching", str(model.base / "batching_params.pbtxt")] if batching else []
    calls, failures, over, held = Counter[str](), list[str](), threading.Event(), list[int]()
    mixes = [valid(model)] * GOOD + [hostile()] * HOSTILE

    def caller(target: str, number: int, mix: list[Request]) -> None:
        with Client(target, model.base.name, timeout=TIMEOUT, retries=0) as client:
            for request in itertools.cycle(random.Random(number).sample(mix, len(mix))):
                if over.is_set():
                    return
                try:
                    calls[check(client, request)] += 1
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
            held.append(memory(server.pid))
            time.sleep(1)
        over.set()
        for thread in threads:
            thread.join()
        alive = server.poll() is None
        server.kill()
    assert not failures, (len(failures), failures[:3])
    assert alive
    assert calls.keys() == {*INPUTS, "refused"}
    tenths = np.median(np.reshape(held, (10, -1)), axis=1)
    assert tenths[-1] <= (1 + GROWTH) * tenths.min(), tenths
