"""The HTTP front of TF Serving or the stand-in, serving a predictable model."""

import asyncio
import base64
import contextlib
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import grpc
import pydantic
import pytest
import requests
from click.testing import CliRunner
from fake_model import text_of
from serving import Endpoint, front_process, process, served

from bench.front import overload
from common.errors import StageError
from common.files import open_private
from export.__main__ import cli
from export.client.client import Client
from export.front import app as front_app
from export.front import bodies, completions
from export.front.app import Front, FrontSettings, listen
from export.front.app import server as http_server
from export.serve.stand_in import StandIn, serving

ROOT = Path(__file__).parents[3]
MODEL = "/v1/models/fake"
ROW = {"prompt": "ab", "length": 9, "temperature": 0.5, "seed": 3}
OPTIONS = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "stop": ""}
TEXT = text_of(3, b"ab", 9).decode()


class Site:
    """Running front, and methods that send it requests. front: the Front object."""

    def __init__(self, front: Front, port: int, scheme: str):
        self.front, self.url = front, f"{scheme}://localhost:{port}"

    def get(self, path: str, **settings: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **settings)

    def post(self, path: str, body: Any, **settings: Any) -> requests.Response:
        data = body if isinstance(body, bytes) else json.dumps(body)
        return requests.post(self.url + path, data=data, timeout=30, **settings)

    def ended(self) -> bool:
        """Wait until the front counts no running call: a call is counted until shortly after its answer."""
        until = time.monotonic() + 10
        while self.front.guard.running and time.monotonic() < until:
            time.sleep(0.01)
        return not self.front.guard.running

    def predict(self, signature: str, **form: Any) -> requests.Response:
        return self.post(f"{MODEL}:predict", {"signature_name": signature, **form})


@contextlib.contextmanager
def running_front(
    target: str, label: str | None = "stable", tls: Mapping[str, Path] = MappingProxyType({}), **settings: Any
) -> Iterator[Site]:
    """Run a front of the model at `target` in a thread of this process."""
    with Client(target, "fake", label=label, retries=0) as client, listen("localhost", 0) as listener:
        front = Front(client, FrontSettings(**settings))
        runner = http_server(front, **tls)
        thread = threading.Thread(target=runner.run, args=([listener],))
        thread.start()
        try:
            yield Site(front, listener.getsockname()[1], "https" if "ssl_certfile" in tls else "http")
        finally:
            runner.should_exit = True
            thread.join(20)
            front.client.close()


@pytest.fixture(scope="module")
def site(server: Endpoint) -> Iterator[Site]:
    with running_front(server.target, per_minute=100_000) as site:
        yield site


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of batching parameters."""
    file = tmp_path_factory.mktemp("batching") / "batching_params.pbtxt"
    file.write_text(
        "max_batch_size { value: 64 }\nbatch_timeout_micros { value: 2000 }\nnum_batch_threads { value: 1 }\n"
    )
    return file


@pytest.fixture(scope="module")
def batching(fake: Path, rules: Path) -> Iterator[str]:
    """Address of a server that batches calls."""
    with served(fake, batching=rules) as server:
        yield server.target


# TF Serving's API.

CALLS = {
    "serving_default": ROW,
    "generate": ROW | OPTIONS,
    "score": {"text": "abc"},
    "score_chars": {"text": "abc"},
    "start": {"prompt": "é"},
    "continue": ROW | OPTIONS | {"carry_bytes": {"b64": base64.b64encode(b"3:4:1").decode()}},
    "neurons": {"text": "abc", "layer": 1},
    "info": {"ignored": ""},
}


@pytest.mark.parametrize("signature", CALLS)
def test_row_and_column_form_match_the_server(site: Site, server: Endpoint, signature: str) -> None:
    row = CALLS[signature]
    rows, columns = [row, row], {name: [value, value] for name, value in row.items()}
    with Client(*server, label="stable") as client:
        _, inputs = bodies.read({"signature_name": signature, "inputs": columns}, client.metadata())
        outputs, _ = client.predict(signature, inputs)
    by_rows, by_columns = (
        site.predict(signature, **form).json() for form in ({"instances": rows}, {"inputs": columns})
    )
    (form, returned), *others = by_columns.items()
    assert (form, others) == ("outputs", [])
    returned = returned if isinstance(returned, dict) else {next(iter(outputs)): returned}
    assert returned.keys() == outputs.keys()
    for name, array in outputs.items():
        values = [base64.b64decode(cell["b64"]) if isinstance(cell, dict) else cell for cell in returned[name]]
        expected = [cell.decode(errors="replace") if isinstance(cell, bytes) else cell for cell in array.tolist()]
        assert [cell.decode() if isinstance(cell, bytes) else cell for cell in values] == expected
    expected_rows = [dict(zip(returned, cells, strict=True)) for cells in zip(*returned.values(), strict=True)]
    assert by_rows == {"predictions": expected_rows if len(outputs) > 1 else next(iter(returned.values()))}


def test_path_selects_version_or_label_and_defaults_to_stable(site: Site) -> None:
    def version(path: str) -> int:
        (info,) = site.post(f"{MODEL}{path}:predict", {"signature_name": "info", "instances": [""]}).json()[
            "predictions"
        ]
        return int(json.loads(info)["version"])

    assert [version(path) for path in ("", "/versions/1", "/versions/2", "/labels/stable")] == [1, 1, 2, 1]


def test_latest_version_answers_without_a_stable_label(fake: Path) -> None:
    stand_in = StandIn(fake, labels={})
    with serving(stand_in) as target, running_front(target, label=None) as site:
        body = {"signature_name": "info", "inputs": ["x"]}
        assert json.loads(site.post(f"{MODEL}:predict", body).json()["outputs"][0])["version"] == 2


def test_removed_stable_label_is_not_replaced_by_latest(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_app, "SIGNATURE_SECONDS", 0)
    stand_in = StandIn(fake, labels={"stable": 1})
    with serving(stand_in) as target, running_front(target) as site:
        assert site.predict("score", inputs=["a"]).status_code == 200
        stand_in.labels = {}
        assert site.predict("score", inputs=["a"]).status_code == 400


def test_status_and_metadata(site: Site) -> None:
    ok = {"error_code": "OK", "error_message": ""}
    first, second = ({"version": version, "state": "AVAILABLE", "status": ok} for version in "12")
    assert site.get(MODEL).json() == {"model_version_status": [second, first]}
    assert site.get(f"{MODEL}/versions/2").json() == {"model_version_status": [second]}
    assert site.get(f"{MODEL}/labels/stable").json() == {"model_version_status": [first]}
    about = site.get(f"{MODEL}/versions/2/metadata").json()
    assert about["model_spec"] == {"name": "fake", "signature_name": "", "version": "2"}
    score = about["metadata"]["signature_def"]["signature_def"]["score"]
    assert score["inputs"]["text"]["dtype"] == "DT_STRING"
    assert score["inputs"]["text"]["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}


B64 = {"b64": "_"}
MALFORMED: list[tuple[Any, int, str]] = [
    (b"", 400, "the body must be a JSON object"),
    (b"\xff\xfe{", 400, "the body must be a JSON object"),
    (b"[" * 100_000, 400, "the body must be a JSON object"),
    (b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "'inputs.text.0': "),
    (b'{"inputs": [1' + b"0" * 5000 + b"]}", 400, "the body must be a JSON object"),
    ([], 400, "the body must be a JSON object"),
    ({}, 400, "a body has 'signature_name' and either 'instances'"),
    ({"instances": ["a"], "inputs": ["a"]}, 400, "a body has 'signature_name' and either 'instances'"),
    ({"inputs": ["a"], "output_filter": ["nats"]}, 400, "a body has 'signature_name' and either 'instances'"),
    ({"signature_name": "none", "inputs": ["a"]}, 400, "unknown signature; choose from: continue, generate, info"),
    ({"signature_name": 7, "inputs": ["a"]}, 400, "unknown signature"),
    ({"signature_name": "__saved_model_init_op", "inputs": {}}, 400, "unknown signature"),
    ({"inputs": []}, 400, "a call must have 1 to 64 rows, got 0"),
    ({"instances": []}, 400, "a call must have 1 to 64 rows, got 0"),
    ({"inputs": {"text": []}}, 400, "a call must have 1 to 64 rows, got 0"),
    ({"inputs": "a"}, 400, "'inputs.text': Input should be a valid list"),
    ({"inputs": {"text": "a"}}, 400, "'inputs.text': Input should be a valid list"),
    ({"inputs": [["a"]]}, 400, "'inputs.text.0': Value error, expected a string or"),
    ({"instances": [["a"]]}, 400, "'instances.0.text': Value error, expected a string or"),
    ({"inputs": ["a", 1]}, 400, "'inputs.text.1': Value error, expected a string or"),
    ({"inputs": ["a", None]}, 400, "'inputs.text.1': Value error, expected a string or"),
    ({"inputs": [{"b64": "_"}]}, 400, "'inputs.text.0': Value error"),
    ({"inputs": [{"b64": "YQ", "x": 1}]}, 400, "'inputs.text.0': Value error, expected a string or"),
    ({"inputs": ["\ud800"]}, 400, "'inputs.text.0': "),
    ({"inputs": {}}, 400, "'inputs.text': Field required"),
    ({"inputs": {"text": ["a"], "more": ["a"]}}, 400, "'inputs.more': Extra inputs are not permitted"),
    ({"instances": [{"text": "a", "more": "a"}]}, 400, "'instances.0.more': Extra inputs are not permitted"),
    ({"instances": [{}]}, 400, "'instances.0.text': Field required"),
    ({"instances": {"text": "a"}}, 400, "'instances': Input should be a valid list"),
    ({"inputs": ["a"] * 65}, 400, "a call must have 1 to 64 rows, got 65"),
    ({"inputs": ["é" * 65_537]}, 400, "a call may read and write 65,536 characters in all rows, got 65,537"),
    (b" " * (2 << 20) + b"x", 413, "the body is larger than 2,097,152 bytes"),
]


@pytest.mark.parametrize(("body", "code", "message"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_body_is_rejected(site: Site, body: Any, code: int, message: str) -> None:
    body = {"signature_name": "score", **body} if isinstance(body, dict) else body
    if isinstance(body, bytes):
        body = body.replace(b'{"inputs"', b'{"signature_name": "score", "inputs"')
    response = site.post(f"{MODEL}:predict", body)
    assert response.status_code == code
    error = response.json().get("error", "")
    assert error.startswith(message)
    assert "\n" not in error


def test_a_call_at_the_limits_is_answered(site: Site) -> None:
    assert site.predict("score", inputs=["é" * 1000] * 64).status_code == 200


def test_an_empty_name_is_the_default_signature(site: Site) -> None:
    answers = [site.post(f"{MODEL}:predict", {"inputs": {}} | name).json() for name in ({}, {"signature_name": ""})]
    assert answers[0] == answers[1]
    assert "unknown signature" not in answers[0]["error"]
    assert site.get(f"{MODEL}/versions/\u0661").status_code == 404


VALUES: list[tuple[dict[str, Any], str]] = [
    (
        {"length": [1, 2]},
        "every input must have one entry per row: length has 2 rows, prompt has 1 row, seed has 1 row, t",
    ),
    ({"length": [[1]]}, "'inputs.length.0': Input should be a valid integer"),
    ({"length": [1.0]}, "'inputs.length.0': Input should be a valid integer"),
    ({"length": [True]}, "'inputs.length.0': Input should be a valid integer"),
    ({"length": ["1"]}, "'inputs.length.0': Input should be a valid integer"),
    ({"length": [1 << 31]}, "'inputs.length.0': Input should be less than 2147483648"),
    ({"seed": [-(1 << 63) - 1]}, "'inputs.seed.0': "),
    ({"temperature": ["hot"]}, "'inputs.temperature.0': Input should be a valid number"),
    ({"temperature": [True]}, "'inputs.temperature.0': Input should be a valid number"),
    ({"temperature": [1e39]}, "'inputs.temperature.0': Input should be less than or equal to 34028"),
    ({"temperature": [float("nan")]}, "'inputs.temperature.0': Input should be a finite number"),
    ({"length": [65_535]}, "a call may read and write 65,536 characters in all rows, got 65,537"),
]


@pytest.mark.parametrize(("changed", "message"), VALUES, ids=[str(row[0]) for row in VALUES])
def test_invalid_value_is_rejected(site: Site, changed: dict[str, Any], message: str) -> None:
    answer = site.predict("serving_default", inputs={name: [value] for name, value in ROW.items()} | changed)
    assert (answer.status_code, answer.json()["error"][: len(message)]) == (400, message)


def test_extreme_values_are_accepted(site: Site) -> None:
    row = {"prompt": {"b64": "YWI"}, "length": 9, "temperature": 1, "seed": 3}
    answer = site.predict("serving_default", instances=[row]).json()
    assert answer["predictions"][0]["text"] == TEXT
    answer = site.predict("serving_default", instances=[{**row, "seed": (1 << 63) - 1, "length": -(1 << 31)}])
    assert answer.json()["predictions"][0]["finish_reason"].startswith("error: ")


PATHS = [
    ("/v1/models/other:predict", 404, "the model is fake"),
    (f"{MODEL}:classify", 404, "the model is fake"),
    (f"{MODEL}/versions/x:predict", 404, "the model is fake"),
    (f"{MODEL}/versions/{'9' * 30}:predict", 404, "the model is fake"),
    (f"{MODEL}/versions/7:predict", 404, "the model 'fake' has no version 7; its versions: 1 (AVAILABLE)"),
    (f"{MODEL}/labels/none:predict", 400, "the model 'fake' has no label 'none'"),
    ("/v1/other", 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "code", "message"), PATHS)
def test_unknown_path_version_or_label_is_rejected(site: Site, path: str, code: int, message: str) -> None:
    answer = site.post(path, {"signature_name": "score", "inputs": ["a"]})
    assert (answer.status_code, answer.json()["error"][: len(message)]) == (code, message)
    assert "localhost" not in answer.text  # the server's address is private


def test_errors_shorten_values_and_hide_control_characters(site: Site) -> None:
    name = "\x1b[31m" + "x" * 5000
    errors = [
        site.predict("score", inputs={"text": ["a"], name: ["a"]}).json()["error"],
        site.post(f"{MODEL}/labels/{name}:predict", {"signature_name": "score", "inputs": ["a"]}).json()["error"],
        site.post("/v1/completions", {"model": "fake", "prompt": "a", name: 1}).json()["error"]["message"],
    ]
    for error in errors:
        assert "\ufffd[31mx" in error
        assert "\x1b" not in error
        assert max(map(len, re.findall("x+", error))) <= 200, error


def test_empty_calls_do_not_block_others(batching: str) -> None:
    with running_front(batching) as site, futures.ThreadPoolExecutor(32) as pool:
        body = {"signature_name": "score", "inputs": {"text": []}}
        answers = list(pool.map(lambda _: site.post(f"{MODEL}:predict", body).status_code, range(128)))
        assert set(answers) <= {400, 429}
        assert site.predict("score", inputs=["abc"]).json()["outputs"]["n_chars"] == [3]
        assert site.get("/healthz").status_code == 200


def test_call_of_wrong_rank_does_not_fail_its_batch(batching: str) -> None:
    with running_front(batching, per_minute=1000) as site, futures.ThreadPoolExecutor(16) as pool:
        forms = [["abc"], [["abc"]]] * 32
        answers = list(pool.map(lambda inputs: site.predict("score", inputs=inputs).status_code, forms))
    assert answers == [200, 400] * 32


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with listen("localhost", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "Nagle's algorithm delays bodies"


# Limits.


class Slow(StandIn):
    """Stand-in that counts Predict calls, and blocks them until `release` is set."""

    def __init__(self, base: Path):
        super().__init__(base, "fake")
        self.release, self.waiting = threading.Event(), threading.Semaphore(0)
        self.release.set()

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.waiting.release()
        self.release.wait(20)
        return super().Predict(request, context)


def test_concurrent_calls_are_limited_but_health_is_not(fake: Path) -> None:
    slow = Slow(fake)
    with (
        serving(slow) as target,
        running_front(target, label=None, calls=4) as site,
        futures.ThreadPoolExecutor(2) as pool,
    ):
        assert site.predict("score", inputs=["a"]).status_code == 200
        slow.release.clear()
        running = [pool.submit(site.predict, "score", inputs=["a"]) for _ in range(2)]
        for _ in range(3):
            assert slow.waiting.acquire(timeout=10)
        rejected = site.predict("score", inputs=["a"])
        assert (rejected.status_code, rejected.headers["Retry-After"]) == (429, "1")
        time.sleep(1.1)
        started = time.monotonic()
        assert site.get("/healthz").status_code == 200  # although the server is busy
        assert time.monotonic() - started < 4
        assert "front_calls_running 2" in site.get("/metrics").text
        slow.release.set()
        assert [call.result().status_code for call in running] == [200, 200]
        assert site.predict("score", inputs=["a"]).status_code == 200


def test_a_server_at_its_limits_is_reported_as_busy(fake: Path) -> None:
    class Busy(StandIn):
        def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "a queue is full")

    with serving(Busy(fake, "fake")) as target, running_front(target, label=None) as site:
        answer = site.predict("score", inputs=["a"])
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert answer.json() == {"error": "the server is at its limits: try again later"}


def test_one_client_has_at_most_half_of_the_calls(fake: Path) -> None:
    slow, proxy = Slow(fake), {"forwarded_allow_ips": "*"}
    with (
        serving(slow) as target,
        running_front(target, label=None, tls=proxy, calls=4) as site,
        futures.ThreadPoolExecutor(4) as pool,
    ):

        def call(client: str) -> int:
            body = {"signature_name": "score", "inputs": ["a"]}
            return site.post(f"{MODEL}:predict", body, headers={"X-Forwarded-For": client}).status_code

        assert call("10.0.0.1") == 200
        slow.release.clear()
        running = [pool.submit(call, "10.0.0.1") for _ in range(2)]
        for _ in range(3):
            assert slow.waiting.acquire(timeout=10)
        assert call("10.0.0.1") == 429
        running.append(pool.submit(call, "10.0.0.2"))
        assert slow.waiting.acquire(timeout=10)
        slow.release.set()
        assert [each.result() for each in running] == [200] * 3
        assert site.ended()


def test_answers_are_converted_one_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = [0], [0]

    def answer(*arguments: Any) -> Any:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1
        return {"predictions": []}

    monkeypatch.setattr(bodies, "answer", answer)
    with futures.ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(site.predict, "score", inputs=["a"]) for _ in range(4)]
    assert [each.result().status_code for each in answers] == [200] * 4
    assert most == [1]


@pytest.mark.parametrize("rows", [[{}] * 1000, [{"text": 1}] * 1000, [{"text": "a"}] * 70_000])
def test_rows_are_checked_up_to_the_first_error(rows: list[Any]) -> None:
    """Collecting all errors of a 2 MB body would take half a minute, in which nobody else is served."""
    dtypes = (("text", "string"),)
    for form, content in (("instances", rows), ("inputs", {"text": [row.get("text") for row in rows]})):
        with pytest.raises(pydantic.ValidationError) as error:
            bodies._checker(form, dtypes).validate_python(content)
        assert error.value.error_count() == 1
    with pytest.raises(pydantic.ValidationError) as error:
        pydantic.TypeAdapter(completions.Texts).validate_python([1] * 1000)
    assert error.value.error_count() == 1


def test_calls_per_minute_are_limited(server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: 1_000_000_010.0, monotonic=time.monotonic)
    monkeypatch.setattr(front_app, "time", clock)
    with running_front(server.target, per_minute=3) as site:
        answers = [site.predict("score", inputs=["a"]) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[3].headers["Retry-After"] == "10"
        message = "too many calls: try again in 10 s"
        assert answers[3].json() == {"error": message}
        wrapped = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        assert site.post("/v1/completions", {}).json() == {"error": wrapped}
        assert site.get("/healthz").status_code == site.get("/metrics").status_code == 200
        clock.time = lambda: 1_000_000_020.0
        assert site.predict("score", inputs=["a"]).status_code == 200


def test_slow_body_times_out(server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_app, "BODY_SECONDS", 0.2)
    with running_front(server.target) as site, socket.create_connection(("localhost", int(site.url[-5:]))) as client:
        client.sendall(f"POST {MODEL}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")


def test_too_large_response_is_rejected(server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_app, "ANSWER_BYTES", 10_000)
    with running_front(server.target) as site:
        answer = site.predict("score_chars", inputs=["a" * 5000])
    assert (answer.status_code, "too large" in answer.json()["error"]) == (400, True)


# OpenAI's API.


@pytest.mark.slow
def test_overload_does_not_delay_health(fake: Path, rules: Path) -> None:
    """Make 300 calls of 1,500 characters and 128 calls without rows, to a server and a front in separate processes."""
    with process(fake, batching=rules) as (server, _), front_process(server) as (url, _):
        done = overload(url, "fake")
    assert (done["empty"]["codes"], done["long"]["codes"]) == ({"400": 128}, {"200": 300})
    assert done["health_seconds"] < 5  # the timeout of its probes


@pytest.fixture
def client(site: Site) -> Iterator[Any]:
    import openai  # here, because importing it takes over a second

    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_client_gets_completions(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    completion = client.completions.create(model="fake", prompt="ab", max_tokens=9, temperature=0.5, seed=3)
    assert [(choice.text, choice.finish_reason) for choice in completion.choices] == [(TEXT, "length")]
    assert completion.usage
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (
        2,
        9,
        11,
    )
    completion = client.completions.create(model="fake", prompt=["", "ab"], max_tokens=40, n=2, seed=3, stop=["THE"])
    texts = [
        text_of(seed, prompt, 40).partition(b"THE")[0] for seed, prompt in enumerate((b"", b"", b"ab", b"ab"), start=3)
    ]
    assert [choice.text for choice in completion.choices] == [text.decode(errors="replace") for text in texts]
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert len(client.completions.create(model="fake", prompt="").choices[0].text.encode()) >= 16


@pytest.mark.parametrize(("length", "stop"), [(0, None), (1, None), (100, None), (100, "THE END"), (100, "naïve")])
def test_stream_matches_whole_completion(client: Any, length: int, stop: str | None) -> None:
    settings: dict[str, Any] = {"model": "fake", "prompt": "ab", "max_tokens": length, "seed": 3, "stop": stop}
    whole = client.completions.create(**settings)
    events = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].text for event in events[:-1]) == whole.choices[0].text
    assert [event.choices[0].finish_reason for event in events[:-1]][-1] == whole.choices[0].finish_reason
    assert events[-1].usage == whole.usage
    assert len({event.id for event in events}) == 1


def test_stream_arrives_in_pieces(site: Site) -> None:
    body = {"model": "fake", "prompt": "ab", "max_tokens": 300, "stream": True, "seed": 3}
    answer = site.post("/v1/completions", body, stream=True)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert lines[-1] == b"data: [DONE]"
    assert len(json.loads(lines[0][6:])["choices"][0]["text"]) <= 8
    assert len(lines) > 5


INVALID_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"model": "other"}, "unknown model; choose from: fake"),
    ({"model": 7}, "the request: 'model': "),
    ({"prompt": [1, 2]}, "the request: 'prompt.0': "),
    ({"prompt": []}, "a call must have 1 to 64 rows, got 0"),
    ({"prompt": "\ud800"}, "the prompt and the stop must be valid Unicode"),
    ({"n": 65}, "a call must have 1 to 64 rows, got 65"),
    ({"prompt": [""] * 100_000, "n": 1024}, "a call must have 1 to 64 rows, got 102400000"),  # before building the rows
    ({"max_tokens": -1}, "the request: 'max_tokens': "),
    ({"max_tokens": 65_536}, "a call may read and write 65,536 characters in all rows, got 65,538"),
    ({"max_tokens": 5000}, "the length must be 0 to 4096, got 5000"),
    ({"top_p": 0}, "the request: 'top_p': "),
    ({"temperature": "hot"}, "the request: 'temperature': "),
    ({"stop": ["a", "b"]}, "the request: 'stop': "),
    ({"logprobs": 1}, "the request: unknown setting 'logprobs'"),
    ({"id": "x"}, "the request: unknown setting 'id'; choose from:"),
    ({"echo": True}, "the request: unknown setting 'echo'"),
    ({"stream": True, "n": 2}, "the request: a stream has one prompt, and n is 1"),
]


@pytest.mark.parametrize(
    ("changed", "message"), INVALID_COMPLETIONS, ids=[str(row[0])[:40] for row in INVALID_COMPLETIONS]
)
def test_invalid_completion_is_rejected_in_openai_form(site: Site, changed: dict[str, Any], message: str) -> None:
    answer = site.post("/v1/completions", {"model": "fake", "prompt": "ab", **changed})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith(message)
    assert "\n" not in error["message"]


def test_neutral_fields_are_accepted(site: Site) -> None:
    body = {
        "model": "fake",
        "prompt": "ab",
        "echo": False,
        "logprobs": None,
        "best_of": 1,
        "user": "u",
        "max_tokens": 9,
    }
    assert site.post("/v1/completions", body | {"seed": 3}).json()["choices"][0]["text"] == TEXT


def test_error_in_a_stream_is_its_last_event(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in = StandIn(fake)
    with serving(stand_in) as target, running_front(target, label=None) as site:
        answer = site.post(
            "/v1/completions", {"model": "fake", "prompt": "", "max_tokens": 60_000, "stream": True}, stream=True
        )
        lines = answer.iter_lines()
        next(lines)
        stand_in.versions = {}
        rest = [line for line in lines if line]
        assert "front_failed_streams_total 1" in site.get("/metrics").text.splitlines()
    assert json.loads(rest[-1][6:])["error"]["message"] == "the server failed"
    assert "a stream of /v1/completions: StatusCode.NOT_FOUND\n" in capsys.readouterr().err
    assert site.ended()


def test_only_addresses_of_proxies_are_accepted() -> None:
    result = CliRunner().invoke(
        cli, ["front", "--target", "localhost:1", "--model", "m", "--proxy", "10.0.0.0/8,proxy"]
    )
    assert (
        result.exit_code,
        "--proxy must be addresses or networks, comma-separated: 'proxy' does" in result.output,
    ) == (2, True)


def test_dropped_stream_frees_its_slot(fake: Path) -> None:
    with serving(StandIn(fake)) as target, running_front(target, label=None, calls=1) as site:
        body = {"model": "fake", "prompt": "", "max_tokens": 60_000, "stream": True}
        with site.post("/v1/completions", body, stream=True) as answer:
            next(answer.iter_lines())
        deadline = time.monotonic() + 10
        while site.predict("score", inputs=["a"]).status_code == 429 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert site.predict("score", inputs=["a"]).status_code == 200


# Operation.


def test_health_fails_without_a_server_and_recovers(fake: Path) -> None:
    with listen("localhost", 0) as probe:
        port = probe.getsockname()[1]
    with running_front(f"localhost:{port}", label=None) as site:
        assert site.get("/healthz").status_code == 503
        rejected = site.predict("score", inputs=["a"])
        assert (rejected.status_code, rejected.headers["Retry-After"]) == (503, "1")
        assert rejected.json() == {"error": "the server is busy or not ready: try again later"}
        with serving(StandIn(fake), port):
            deadline = time.monotonic() + 20
            while site.get("/healthz").status_code != 200 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert site.get("/healthz").text == "ok\n"


def test_health_queries_the_model_at_most_once_per_second(fake: Path) -> None:
    rows = []

    class Counting(StandIn):
        def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
            rows.append(request)
            return super().Predict(request, context)

    with serving(Counting(fake)) as target, running_front(target, label=None) as site:
        assert {site.get("/healthz").status_code for _ in range(20)} == {200}
        assert 1 <= len(rows) <= 3
        assert "front_rows_total 0" in site.get("/metrics").text.splitlines()  # no caller's


def test_health_passes_if_the_calls_of_a_long_batch_end_during_the_probe(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_out(*_: Any) -> None:
        site.front.answered = time.monotonic()
        raise StageError("no answer in time")

    monkeypatch.setattr(Client, "generate", time_out)
    site.front.answered = 0.0
    assert site.front.answers()


def test_metrics_count_calls_and_rows(server: Endpoint) -> None:
    with running_front(server.target) as site:
        site.predict("score", inputs=["a", "b"])
        site.predict("score", inputs=[])
        site.get("/nothing/secret")
        lines = site.get("/metrics").text.splitlines()
    assert 'front_requests_total{route=":predict",code="200"} 1' in lines
    assert 'front_requests_total{route=":predict",code="400"} 1' in lines
    assert 'front_requests_total{route="/",code="404"} 1' in lines
    assert "front_rows_total 2" in lines
    assert not any("secret" in line for line in lines)


def test_tls(server: Endpoint, pem: Path, tmp_path: Path) -> None:
    cert, key = pem / "cert.pem", pem / "key.pem"
    with running_front(server.target, tls={"ssl_certfile": cert, "ssl_keyfile": key}) as site:
        trusting = ssl.create_default_context(cafile=cert)
        trusting.check_hostname = False
        with urllib.request.urlopen(f"{site.url}/healthz", context=trusting, timeout=30) as answer:
            assert answer.read() == b"ok\n"
        with pytest.raises(requests.exceptions.SSLError):
            site.get("/healthz")
    for cert_file, key_file in ((key, cert), (tmp_path / "none", key)):
        with Client(server.target, "fake") as client, pytest.raises(StageError, match="not a certificate and its key"):
            http_server(Front(client, FrontSettings()), ssl_certfile=cert_file, ssl_keyfile=key_file)


def test_calls_of_other_pages_are_rejected_unless_allowed(site: Site, server: Endpoint) -> None:
    body, other = {"signature_name": "score", "inputs": ["a"]}, {"Origin": "https://page.example"}
    own = {"Origin": site.url}
    assert [site.post(f"{MODEL}:predict", body, headers=page).status_code for page in (other, own)] == [403, 200]
    message = "pages of this origin may not call: start the front with --allow-origin"
    wrapped = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    assert site.post("/v1/completions", {}, headers=other).json() == {"error": wrapped}
    assert site.get("/healthz", headers=other).status_code == 200
    for invalid in ("null", "http://[x"):
        assert site.post(f"{MODEL}:predict", body, headers={"Origin": invalid}).status_code == 403
    for origins in (("https://page.example",), ("*",)):
        with running_front(server.target, origins=origins) as open_site:
            assert open_site.post(f"{MODEL}:predict", body, headers=other).status_code == 200


def test_a_caller_that_has_gone_is_counted(site: Site) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    front = Front(Client("localhost:1", "fake"), FrontSettings())
    scope = {"type": "http", "method": "GET", "path": "/none", "headers": [], "query_string": b"", "client": None}
    asyncio.run(front.guard(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 404
    assert front.guard.count == {'route="/",code="404"': 1}


def test_an_invalid_answer_of_the_server_is_not_the_callers_fault(fake: Path) -> None:
    class Broken(StandIn):
        def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
            answer = super().Predict(request, context)
            if request.model_spec.signature_name == "info":
                answer.outputs["info"].string_val[:] = [b"{"]
            return answer

    with serving(Broken(fake, "fake")) as target, running_front(target, label=None) as site:
        answer = site.post("/v1/completions", {"model": "fake", "prompt": "a"})
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "server_error"
    assert "to 'info' is not a description" in answer.json()["error"]["message"]


def test_cors_is_off_by_default(site: Site, server: Endpoint) -> None:
    page = {"Origin": "https://page.example"}
    preflight = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    assert "Access-Control-Allow-Origin" not in site.get("/v1/models", headers=page).headers
    assert not requests.options(f"{site.url}/v1/completions", headers=preflight, timeout=30).ok
    with running_front(server.target, origins=("https://page.example",)) as open_site:
        answer = open_site.get("/v1/models", headers=page)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
        assert requests.options(f"{open_site.url}/v1/completions", headers=preflight, timeout=30).ok
        other = open_site.get("/v1/models", headers={"Origin": "https://other.example"})
        assert "Access-Control-Allow-Origin" not in other.headers


def test_page_is_served_with_its_content_security_policy(server: Endpoint, tmp_path: Path) -> None:
    policy = """<meta http-equiv="Content-Security-Policy" content="default-src 'self';\n worker-src 'self'">"""
    (tmp_path / "index.html").write_text(f"<html>{policy}</html>")
    (tmp_path / "main.js").write_text("1")
    with running_front(server.target, page=tmp_path) as site:
        answer = site.get("/")
        assert answer.text.startswith("<html>")
        expected = "default-src 'self'; worker-src 'self'; frame-ancestors 'none'"
        assert answer.headers["Content-Security-Policy"] == expected
        assert "javascript" in site.get("/main.js").headers["Content-Type"]
        assert site.get("/../app.py").status_code == 404
        assert site.get("/v1/models").json()["data"][0]["id"] == "fake"


def test_unexpected_error_is_logged_without_its_message(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a secret prompt")

    with running_front(server.target) as site:
        monkeypatch.setattr(front_app.CheckedClient, "predict", fail)
        answer = site.predict("score", inputs=["a secret prompt"])
        assert answer.status_code == 500
        assert "secret" not in answer.text
    captured = capfd.readouterr()
    assert "secret" not in captured.out + captured.err
    assert ":predict: ValueError" in captured.err


def test_command_serves_until_stopped(server: Endpoint) -> None:
    command = [sys.executable, "-m", "export", "front", "--target", server.target, "--model", "fake", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        line = process.stderr.readline()
        assert line.startswith("serving fake at http://127.0.0.1:")
        url = line.split()[3]
        assert requests.get(f"{url}/healthz", timeout=30).text == "ok\n"
        body = {"signature_name": "info", "inputs": [""]}
        info = requests.post(f"{url}{MODEL}:predict", json=body, timeout=30).json()["outputs"]
        assert json.loads(info[0])["version"] == 1  # stable, not the highest
    finally:
        process.terminate()
    assert process.wait(20) != 0
    assert process.stderr.read().count("\n") <= 1


def test_the_record_contains_the_texts_of_answered_calls(
    server: Endpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    with running_front(server.target, record=path, rows=2) as site:
        site.predict("serving_default", instances=[ROW, ROW | {"prompt": "é"}])
        site.predict("score", inputs={"text": [{"b64": "/w=="}, ""]})
        site.predict("score", inputs={"text": ["rejected"] * 3})
        site.post("/v1/completions", {"model": "fake", "prompt": ["a", "b"], "max_tokens": 2})
        site.post("/v1/completions", {"model": "fake", "prompt": "streamed", "max_tokens": 2, "stream": True})
        site.get("/healthz")
    texts = [json.loads(line) for line in path.read_text().splitlines()]
    expected = [["ab", "é"], ["\udcff"], ["a", "b"], ["streamed"]]
    assert texts == [{"texts": each} for each in expected]
    assert path.stat().st_mode & 0o777 == 0o600
    assert "streamed" not in "".join(capfd.readouterr())


def test_calls_are_answered_while_the_record_cannot_be_written(
    server: Endpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_front(server.target, record=Path("/dev/full")) as site:
        assert site.predict("score", inputs={"text": ["abc"]}).status_code == 200
    assert "/dev/full: No space left on device" in capfd.readouterr().err
    with pytest.raises(StageError, match="nowhere/a: No such file or directory: pass another --record"):
        open_private(Path("nowhere/a"), "--record")
