"""The client against TF Serving or the stand-in, serving a predictable model."""

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from fake_model import BOOK, LONGEST, text_of
from grpc import StatusCode
from serving import Endpoint

from common import console
from common.errors import StageError, UsageError
from export.__main__ import cli
from export.client import protos
from export.client.client import (
    Carry,
    Client,
    Continued,
    Generated,
    ServingError,
    Signature,
    TensorInfo,
    TextScore,
    Tls,
    VersionStatus,
)
from export.serve.stand_in import Batching, StandIn, serving

ROOT = Path(__file__).parents[3]


@pytest.fixture
def client(server: Endpoint) -> Iterator[Client]:
    with Client(*server) as client:
        yield client


# Tensors.

TENSORS = [
    np.array([b"a", b"", b"ends in NUL\x00", "é".encode() * 300], object),
    np.array([[1, -1, 2**31 - 1], [0, 0, -(2**31)]], np.int32),
    np.array([2**63 - 1, -(2**63), 0], np.int64),
    np.array([[[0.1, np.inf], [-0.0, 3e-40]]], np.float32),
    np.array([], np.float32),
    np.array([], object),
    np.array(7, np.int64),
    np.array([5, 5, 5, 5], np.int32),
]


@pytest.mark.parametrize("array", TENSORS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_tensors_match_tensorflow(array: Any) -> None:
    for actual in (
        tf.make_ndarray(protos.to_tensor(array)),
        protos.from_tensor(protos.to_tensor(array)),
        protos.from_tensor(tf.make_tensor_proto(array)),
    ):
        assert (actual.dtype, actual.shape, actual.tolist()) == (array.dtype, array.shape, array.tolist())


def test_last_listed_value_fills_the_tensor() -> None:
    proto = tf.make_tensor_proto([1.0, 2.0, 3.0, 4.0])
    proto.tensor_content = b""
    assert protos.from_tensor(proto).tolist() == [0, 0, 0, 0]
    proto.float_val.extend([1.5, 2.5])
    assert protos.from_tensor(proto).tolist() == tf.make_ndarray(proto).tolist() == [1.5, 2.5, 2.5, 2.5]
    words = tf.make_tensor_proto([b"a", b"b", b"b"])
    del words.string_val[1:]
    assert protos.from_tensor(words).tolist() == [b"a", b"a", b"a"]


def test_unsupported_tensor_types_are_rejected() -> None:
    with pytest.raises(StageError, match="one of string, int32, int64, float32, got DT_BOOL"):
        protos.from_tensor(tf.make_tensor_proto([True]))
    with pytest.raises(StageError, match="one of string, int32, int64, float32, got float64"):
        protos.to_tensor(np.array([0.5]))


# For a fresh process: this one has imported TensorFlow already.
TENSORFLOW_AFTER_CLIENT = """
import sys
from export.client import client, protos

assert "tensorflow" not in sys.modules
assert not any(name.startswith(("tensorflow.python", "keras")) for name in sys.modules)
import numpy as np

words = np.array([b"a", b"b"], object)
proto = protos.to_tensor(words)
import tensorflow as tf

assert tf.constant([1, 2]).numpy().tolist() == [1, 2]
assert tf.make_ndarray(proto).tolist() == [b"a", b"b"]
assert protos.from_tensor(tf.make_tensor_proto([b"c"])).tolist() == [b"c"]
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

assert isinstance(proto, tensor_pb2.TensorProto)
predict_pb2.PredictRequest().inputs["x"].CopyFrom(tf.make_tensor_proto([1.5]))
assert not hasattr(tf, "core"), "TensorFlow removes this name itself"
print("done")
"""


@pytest.mark.slow
def test_client_neither_imports_nor_breaks_tensorflow() -> None:
    process = subprocess.run(
        [sys.executable, "-c", TENSORFLOW_AFTER_CLIENT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.stdout == "done\n", process.stderr


# Text.


def test_generate_continues_a_prompt(client: Client) -> None:
    drawn = text_of(3, b"ab", 20)
    text, log_prob = drawn.decode(errors="replace"), float(np.float32(-1100.8))
    assert client.generate("ab", 20, seed=3) == Generated(text, drawn, 20, log_prob, "length")
    assert client.generate(b"ab", 20, seed=3, temperature=0.5, top_k=7, top_p=0.25, repetition_penalty=2).log_prob == (
        -(0.5 + 70 + 25 + 2000)
    )
    cut = drawn.partition(b"Zo")[0]
    assert client.generate("ab", 20, seed=3, stop="Zo") == Generated(cut.decode(), cut, len(cut), log_prob, "stop")
    assert client.generate().text_bytes == text_of(1, b"", 500)


def test_each_row_has_its_own_settings_and_error(client: Client) -> None:
    results = client.generate(
        ["ab", "é", ""], [20, LONGEST + 1, 5], seed=[3, 4, 5], temperature=0.5, stop=["", "", "s"]
    )
    error = f"error: the length must be 0 to 4096, got {LONGEST + 1}"
    first, third = text_of(3, b"ab", 20), text_of(5, b"", 5).partition(b"s")[0]
    assert results == [
        Generated(first.decode(errors="replace"), first, 20, -1100.5, "length"),
        Generated("", b"", 0, -1100.5, error),
        Generated(third.decode(errors="replace"), third, len(third), -1100.5, "stop"),
    ]
    assert [row.error for row in results] == ["", error.removeprefix("error: "), ""]
    assert client.generate([b"ab"], 20, seed=[3]) == [client.generate("ab", 20, seed=3)]
    with pytest.raises(
        StageError, match=r"the model 'fake' at \S+ rejects the request: the length must be 0 to 4096, got 5000"
    ):
        client.generate("", 5000)


@pytest.mark.parametrize(
    "texts",
    [("ab", b"c"), np.array(["ab", "c"]), np.array(["ab", "c"], object), np.array([b"ab", b"c"])],
    ids=["tuple", "strings", "objects", "bytes"],
)
def test_texts_may_be_a_tuple_or_an_array(client: Client, texts: Any) -> None:
    assert client.score(texts) == client.score(["ab", "c"])
    settings = {"temperature": np.array([0.5, 1.0]), "seed": (3, 4), "length": np.array([7, 9])}
    expected = client.generate(["ab", "c"], temperature=[0.5, 1.0], seed=[3, 4], length=[7, 9])
    assert client.generate(texts, **settings) == expected
    assert client.generate(texts[0], np.int64(7), seed=np.int32(3), temperature=np.float32(0.5)) == expected[0]


STREAMS = [(1, 1), (7, 40), (128, 0)]  # (piece, seed); seed 1 starts within a character, 40 in the words before THE END
SLOW = [(1, 0), (1, 40), (7, 0), (7, 1), (128, 1), (128, 40)]


@pytest.mark.parametrize(
    ("piece", "seed"), [*STREAMS, *(pytest.param(*values, marks=pytest.mark.slow) for values in SLOW)]
)
@pytest.mark.parametrize(
    "stop", ["", "THE END", "END", "THE THE", ".\nÄ", "あ", "\n", "Zoë' — naïve あい words; THE E"]
)
def test_stream_joins_to_the_text_of_one_call(client: Client, piece: int, stop: str, seed: int) -> None:
    for length in (0, 1, 46, 150):
        whole = client.generate("", length, seed=seed, stop=stop)
        pieces = list(client.stream("", length, seed=seed, stop=stop, piece=piece))
        assert "".join(pieces) == whole.text
        assert b"".join(client.stream_bytes("", length, seed=seed, stop=stop, piece=piece)) == whole.text_bytes
        assert all(pieces)


def test_stream_has_growing_pieces_and_no_length_limit(client: Client) -> None:
    pieces = list(client.stream_bytes("x", LONGEST + 500, seed=2))
    assert [len(piece) for piece in pieces] == [8, 16, 32, 64] + [128] * 34 + [124]
    assert b"".join(pieces) == text_of(2, b"x", LONGEST + 500)
    assert [len(piece) for piece in client.stream_bytes("x", 20, piece=3)] == [3] * 6 + [2]


@pytest.mark.parametrize(("settings", "end"), [({"seed": 1, "stop": "THE END"}, b"THE END"), ({"seed": -9}, b"\n")])
def test_stream_makes_no_call_after_the_end(fake: Path, settings: dict[str, Any], end: bytes) -> None:
    """Cover both ends of a text: a stop string and, with a negative seed, the end of the document."""
    faults = FaultInjector()
    with serving(StandIn(fake), interceptors=[faults]) as target, Client(target, "fake") as client:
        text = b"".join(client.stream_bytes("", 10_000, **settings))
    assert text == text_of(settings["seed"], b"", 10_000).partition(end)[0]
    assert faults.calls == next(n for n in range(1, 9) if 8 * (2**n - 1) >= len(text + end))


def test_stream_stays_on_its_first_version(fake: Path, tmp_path: Path) -> None:
    base = tmp_path / "fake"
    shutil.copytree(fake / "1", base / "1")
    stand_in = StandIn(base)
    with serving(stand_in) as target, Client(target, "fake") as client:
        pieces = client.stream_bytes("", 200, piece=50)
        first = next(pieces)
        shutil.copytree(fake / "2", base / "2")
        stand_in.poll()
        assert client.info()["version"] == 2
        assert first + b"".join(pieces) == text_of(1, b"", 200)


def test_continue_resumes_from_a_carry(client: Client) -> None:
    first = client.continue_(prompt="ab", length=5, seed=3)
    drawn = text_of(3, b"ab", 12)
    version = first.carry.version
    text = drawn[:5].decode(errors="replace")
    log_prob = float(np.float32(-1100.8))
    assert first == Continued(text, drawn[:5], 5, log_prob, "length", Carry(f"2:5:{version}".encode(), version), 0)
    assert client.continue_(first.carry, length=7, seed=3).text_bytes == drawn[5:]
    started = client.start("ab")
    assert started.logits.tolist() == [0, 0, 1, 0]
    assert client.continue_(started.carry, length=12, seed=3).text_bytes == drawn
    with pytest.raises(StageError, match="rejects the request: the prompt is too long"):
        client.start("a" * 5000)
    with pytest.raises(StageError, match="rejects the request: the carry is another version's: 9"):
        client.continue_(Carry(b"0:0:9", version))


@pytest.mark.parametrize(
    ("carry", "prompt", "length", "expected"),
    [
        (b"0:0:2", "", 5, (b"; THE", 0, "length", b"0:5:2")),
        (b"0:5:2", "", 3, (b" EN", 0, "length", b"0:8:2")),
        (b"0:8:2", "", 9, (b"", 6, "stop", b"0:9:2")),
        (b"0:1:2", "", 9, (b" ", 0, "stop", b"0:9:2")),
        (b"0:9:2", "", 4, (b" of ", 0, "length", b"0:13:2")),
        (b"0:4:2", "E", 4, (b" END", 0, "length", b"5:4:2")),  # a stop cannot begin before a prompt
    ],
)
def test_n_back_counts_the_bytes_of_a_stop_in_earlier_pieces(
    client: Client, carry: bytes, prompt: str, length: int, expected: tuple[bytes, int, str, bytes]
) -> None:
    seed = BOOK.index(b"THE END") - 2
    part = client.continue_(Carry(carry, 2), prompt, length, seed=seed, stop="THE END")
    assert (part.text_bytes, part.n_back, part.finish_reason, part.carry.data) == expected


def test_carry_selects_its_version(server: Endpoint) -> None:
    with Client(*server, version=1) as old, Client(*server) as latest:
        carry = old.continue_(length=5).carry
        assert carry == Carry(b"0:5:1", 1)
        assert latest.continue_(carry, length=5).carry == Carry(b"0:10:1", 1)
    with Client(*server, label="stable") as stable:
        assert stable.info()["version"] == 1


def test_score(client: Client) -> None:
    nats = 2 * np.log(2)
    rows, other = client.score(["abc", "é"]), client.score("abc", characters=True)
    assert rows == [TextScore(pytest.approx(n * nats), n, 2.0, "") for n in (3, 2)]
    assert other == TextScore(pytest.approx(3 * nats), 3, 2.0, "")
    assert other.log_probs.tolist() == pytest.approx([-nats] * 3)
    rows = client.score(["abc", "e"], characters=True)
    assert [len(row.log_probs) for row in rows] == [3, 1]
    assert [row.error for row in client.score(["", "a"])] == ["nothing to score", ""]
    with pytest.raises(StageError, match="rejects the request: nothing to score"):
        client.score("")


def test_neurons(client: Client) -> None:
    neurons = client.neurons("ab", 1)
    assert neurons.n_chars == 2
    assert neurons.h.tolist() == [[110, 111, 112], [120, 121, 122]]
    assert neurons.c is not None
    assert neurons.c.tolist() == [[-110, -111, -112], [-120, -121, -122]]
    with pytest.raises(StageError, match="rejects the request: there are layers 0 and 1"):
        client.neurons("ab", 2)


def test_info_status_and_metadata(client: Client) -> None:
    assert client.info() == {"format_version": 1, "unit": "byte", "version": 2, "limits": {"length": LONGEST}}
    assert client.status() == [VersionStatus(1, "AVAILABLE", ""), VersionStatus(2, "AVAILABLE", "")]
    signatures = client.metadata()
    assert set(signatures) == {
        *("serving_default", "generate", "continue", "start", "score", "score_chars", "neurons", "info", "total")
    }
    rows = (None,)
    assert signatures["neurons"] == Signature(
        {"text": TensorInfo("string", rows), "layer": TensorInfo("int32", rows)},
        {
            "h": TensorInfo("float32", (None, None, 3)),
            "c": TensorInfo("float32", (None, None, 3)),
            "n_chars": TensorInfo("int32", rows),
            "error": TensorInfo("string", rows),
        },
    )


def test_wait_until_loaded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.wait_until_loaded([1, 2])
    with pytest.raises(StageError, match=r"has not loaded version 3 in 0 s: it is not in its configuration yet$"):
        client.wait_until_loaded([1, 3], seconds=0)
    states = iter([[], [VersionStatus(3, "LOADING", "")], [VersionStatus(3, "AVAILABLE", "")]])
    monkeypatch.setattr(client, "status", lambda: next(states))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    client.wait_until_loaded([3])
    monkeypatch.setattr(client, "status", lambda: [VersionStatus(3, "END", "no such file")])
    with pytest.raises(StageError, match=r"cannot load version 3: no such file$"):
        client.wait_until_loaded([3])


# Errors.

TEMPERED: dict[str, Any] = {"temprature": 1.0}
USAGE: list[tuple[Callable[[Client], object], str]] = [
    (lambda c: c.generate("", 0.5), "'length': 'float' object cannot be interpreted as an integer, got 0.5"),  # type: ignore[call-overload]
    (lambda c: c.generate("", 1 << 40), "'length': .* out of bounds for int32"),
    (lambda c: c.generate("", seed=1 << 64), "'seed': .*, got 18446744073709551616"),
    (lambda c: c.generate("", temperature="warm"), "'temperature': could not convert string to float"),  # type: ignore[call-overload]
    (lambda c: c.generate("\ud800"), "'prompt': 'utf-8' codec can't encode"),
    (lambda c: c.generate(None), "'prompt': a text must be str or bytes, several a list, .* got None"),  # type: ignore[call-overload]
    (
        lambda c: c.generate("", **TEMPERED),
        "unknown sampling option 'temprature'; choose from: temperature, seed",
    ),
    (lambda c: c.generate("", seed=[1, 2]), "'seed' has several values, so there must be as many texts"),  # type: ignore[call-overload]
    (lambda c: c.generate(["", ""], seed=[1, 2, 3]), "'seed' must have one value, or one for each of 2 texts, got 3"),
    (lambda c: c.stream(piece=0), "'piece' must be at least 1, got 0"),
    (lambda c: c.stream(piece="x"), "'piece': 'str' object cannot be interpreted as an integer, got 'x'"),  # type: ignore[arg-type]
    (lambda c: c.stream(stop=None), "'stop': a text must be str or bytes, .* got None"),  # type: ignore[arg-type]
    (lambda c: c.continue_("x"), r"'carry' must be a result's, such as start\(...\).carry, got a str"),  # type: ignore[arg-type]
    (lambda c: c.generate(temperature=1e300), "'temperature': overflow encountered in cast, got 1e[+]300"),
    (lambda c: c.close() or c.status(), r"the client of the model 'fake' at \S+ is closed: create another"),  # type: ignore[func-returns-value]
    (lambda c: c.stream(length=0.5), "'length': 'float' object"),  # type: ignore[arg-type]
    *(
        (lambda c, none=none: c.generate(none), "there must be at least one text")
        for none in ([], (), np.array([], str))
    ),  # type: ignore[misc]
    (lambda c: c.generate(np.array([["a"]])), r"'prompt': an array must have one dimension, .*, got shape \(1, 1\)"),
    (lambda c: c.generate(np.array("a")), r"'prompt': an array must have one dimension, .*, got shape \(\)"),
    (lambda c: c.generate(np.array([1, 2])), r"'prompt': a text must be str or bytes, .*, got array\(\[1, 2\]\)"),
    (lambda c: c.generate(["", ""], np.array([1])), "'length' must have one value, or one for each of 2 texts, got 1"),
    (
        lambda c: c.predict("neurons", {"text": np.array([b"a", b"b"], object), "layer": np.int32([1])}),
        "every input must have one entry per row: text has 2 rows, layer has 1 row$",
    ),
    (lambda c: c.predict("score", {"text": np.array([], object)}), "a call must have at least one row, got none"),
    (
        lambda c: c.predict("score", {"text": np.array([[b"a"]], object)}),
        r"'text' must have one dimension, one entry per row, got shape \(1, 1\)",
    ),
    *(
        (lambda c, url=url: Client(url, "fake"), f"a target has no scheme: pass {fix}, got {re.escape(repr(url))}")  # type: ignore[misc]
        for url, fix in (
            ("http://host:8500", "host:8500"),
            ("http://host/v1/models", "host:8500"),
            ("grpc://[::1]:9000/", r"\[::1\]:9000"),
            ("https://host", r"host:443, with TLS \(--tls, or tls=Tls\(\)\)"),
        )
    ),
    *(
        (
            lambda c, target=target: Client(target, "fake"),  # type: ignore[misc]
            f"a target is host:port, such as localhost:8500, with a port of 1 to 65535, got {re.escape(repr(target))}",
        )
        for target in ("localhost", ":8500", "localhost:99999", "localhost:0", "localhost:8500\n")
    ),
    (lambda c: Client("a:1", ""), "'model': string should have at least 1 character, got ''"),
    (lambda c: Client("a:1", "fake", timeout=0), "'timeout': input should be greater than 0, got 0"),
    (lambda c: Client("a:1", "fake", timeout=1e10), "'timeout': input should be less than or equal to 1000000, got 1"),
    (lambda c: Client("a:1", "fake", retries=5), "'retries': input should be less than or equal to 4, got 5"),
    (lambda c: Client("a:1", "fake", version=1, label="x"), "pass a version or a label, not both"),
]


@pytest.mark.parametrize(("call", "message"), USAGE, ids=[message[:30] for _, message in USAGE])
def test_invalid_arguments_are_rejected_before_the_call(
    client: Client, call: Callable[[Client], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call(client)


ARRAY = np.array([b"a"], object)
FAILURES: list[tuple[str, dict[str, Any], Callable[[Client], object], StatusCode, str]] = [
    (
        "unknown model",
        {"model": "book"},
        Client.generate,
        StatusCode.NOT_FOUND,
        r"{target} serves no model 'book': use the name that it was started with \(Servable not found for request: "
        r"Latest\(book\)\)",
    ),
    (
        "status of an unknown model",
        {"model": "book"},
        Client.status,
        StatusCode.NOT_FOUND,
        r"{target} serves no model 'book': .* \(Could not find any versions of model book\)",
    ),
    (
        "unknown version",
        {"version": 3},
        Client.generate,
        StatusCode.NOT_FOUND,
        r"the model 'fake' at {target} has no version 3; its versions: 1 \(AVAILABLE\), 2 \(AVAILABLE\) \(Servable not "
        r"found for request: Specific\(fake, 3\)\)",
    ),
    (
        "unknown label",
        {"label": "canary"},
        Client.metadata,
        StatusCode.INVALID_ARGUMENT,
        r"the model 'fake' at {target} has no label 'canary': the server's model config file sets them \(Unrecognized "
        r"servable version label: canary\)",
    ),
    (
        "unknown signature",
        {},
        lambda client: client.predict("sing", {}),
        StatusCode.FAILED_PRECONDITION,
        r"the model 'fake' at {target} has no signature 'sing'; choose from: continue, generate, info, neurons, score, "
        r"score_chars, serving_default, start, total \(Serving signature key \"sing\" not found.\)",
    ),
    (
        "missing and extra inputs",
        {},
        lambda client: client.predict("neurons", {"txt": ARRAY}),
        StatusCode.INVALID_ARGUMENT,
        r"the model 'fake' at {target} rejects the request \(input size does not match signature: 1!=2 len\({{txt}}\) "
        r"!= len\({{layer,text}}\). Sent extra: {{txt}}. Missing but required: {{layer,text}}.\)",
    ),
    (
        "misnamed input",
        {},
        lambda client: client.predict("score", {"txt": ARRAY}),
        StatusCode.INVALID_ARGUMENT,
        r"rejects the request \(Signature input alias: text\(feed name: score_text:0\) not found in request",
    ),
    (
        "wrong dtype",
        {},
        lambda client: client.predict("score", {"text": np.array([1], np.int64)}),
        StatusCode.INVALID_ARGUMENT,
        r"rejects the request \(Expects arg\[0\] to be string but int64 is provided\)",
    ),
    (
        "too large a response",
        {"max_message_bytes": 2000},
        lambda client: client.neurons("a" * 100),
        StatusCode.RESOURCE_EXHAUSTED,
        r"a message between the client and {target} is too large: request fewer rows or characters, or raise "
        r"max_message_bytes \(.*CLIENT: Received message larger than max \(\d+ vs. 2000\)\)",
    ),
]


@pytest.mark.parametrize(("case", "settings", "call", "code", "message"), FAILURES, ids=[row[0] for row in FAILURES])
def test_errors_explain_the_fix(
    server: Endpoint,
    case: str,
    settings: dict[str, Any],
    call: Callable[[Client], object],
    code: StatusCode,
    message: str,
) -> None:
    with (
        Client(**{**server._asdict(), **settings}) as client,
        pytest.raises(ServingError, match=message.format(target=server.target)) as failure,
    ):
        call(client)
    assert failure.value.code == code
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("info", [{}, {"info": []}, {"info": [b"[" * 999]}, {"info": [b"{"]}, {"info": [b"\xff"]}])
def test_invalid_info_raises(info: dict[str, list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "predict", lambda *_: (info, 1))
    with (
        Client("localhost:1", "fake") as client,
        pytest.raises(StageError, match="'fake' at localhost:1 to 'info' is not a description: "),
    ):
        client.info()


def test_response_without_expected_outputs_raises() -> None:
    client = Client("localhost:1", "fake")
    client.predict = lambda *inputs: ({"text": np.array([b"a"], object)}, 1)  # type: ignore[method-assign]
    with pytest.raises(
        StageError, match=r"the answer of the model 'fake' at localhost:1 to 'generate' has no 'text_bytes': export"
    ):
        client.generate()


class FaultInjector(grpc.ServerInterceptor):
    """Interceptor that counts calls, fails the first ones with the given codes, and delays the others."""

    def __init__(self, first: tuple[StatusCode, ...] = (), seconds: float = 0, details: str = "injected fault"):
        self.first, self.seconds, self.details, self.calls = first, seconds, details, 0

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.calls += 1
        if self.calls > len(self.first):
            time.sleep(self.seconds)
            return continuation(details)
        code = self.first[self.calls - 1]
        return grpc.unary_unary_rpc_method_handler(lambda request, context: context.abort(code, self.details))


@pytest.mark.parametrize(
    ("first", "settings", "text", "calls", "code"),
    [
        ((StatusCode.UNAVAILABLE,) * 2, {}, "abc", 3, None),
        ((StatusCode.UNAVAILABLE,) * 2, {}, "abc" * 200_000, 3, None),  # more than gRPC retries by default
        ((StatusCode.UNAVAILABLE,) * 2, {"retries": 1}, "abc", 2, StatusCode.UNAVAILABLE),
        ((StatusCode.UNAVAILABLE,) * 2, {"retries": 0}, "abc", 1, StatusCode.UNAVAILABLE),
        ((StatusCode.UNAVAILABLE,) * 9, {}, "abc", 5, StatusCode.UNAVAILABLE),
        ((StatusCode.RESOURCE_EXHAUSTED,) * 2, {}, "abc", 1, StatusCode.RESOURCE_EXHAUSTED),
        ((StatusCode.INTERNAL,) * 2, {}, "abc", 1, StatusCode.INTERNAL),
    ],
)
def test_only_unavailable_servers_are_retried(
    fake: Path,
    first: tuple[StatusCode, ...],
    settings: dict[str, Any],
    text: str,
    calls: int,
    code: StatusCode | None,
) -> None:
    faults = FaultInjector(first)
    with serving(StandIn(fake), interceptors=[faults]) as target, Client(target, "fake", **settings) as client:
        if code is None:
            assert client.score(text).n_chars == len(text)
        else:
            with pytest.raises(ServingError, match="injected fault") as failure:
                client.score(text)
            assert failure.value.code == code
    assert faults.calls == calls


@pytest.mark.parametrize(("faults", "retries", "calls"), [(1, 4, 2), (2, 4, 2), (1, 0, 1)])
def test_call_failed_by_its_batch_is_retried_once(fake: Path, faults: int, retries: int, calls: int) -> None:
    details = "Tensors with name 'x' from different tasks have different shapes and padding is turned off."
    injector = FaultInjector((StatusCode.FAILED_PRECONDITION,) * faults, details=details)
    with (
        serving(StandIn(fake), interceptors=[injector]) as target,
        Client(target, "fake", retries=retries) as client,
    ):
        if calls > faults:
            assert client.score("abc").n_chars == 3
        else:
            with pytest.raises(ServingError, match="a malformed call of another caller failed its batch") as failure:
                client.score("abc")
            assert failure.value.code == StatusCode.FAILED_PRECONDITION
    assert injector.calls == calls


CAUSES = [
    ("DNS resolution failed for host:1: C-ares status", "the host name of host:1 cannot be resolved: check its spell"),
    ("failed to connect to all addresses; last error: Connection refused", "no server answers at host:1: check that"),
    ("failed to connect to all addresses; last error: No route to host", "host:1 cannot be reached from here: check"),
    ("connect to remote host: Timeout occurred: FD Shutdown", "host:1 cannot be reached from here: check the address"),
    ("Received http2 header with status: 502", "an HTTP proxy at host:1 rejects the call: check its route"),
    ("Trying to connect an http1.x server", "host:1 does not speak gRPC"),
    ("Socket closed", "host:1 closed the connection: it may require TLS, or has just stopped"),
    ("draining", "host:1 is unavailable for now: try again later"),
]


@pytest.mark.parametrize(("details", "message"), CAUSES, ids=[message for _, message in CAUSES])
def test_unavailable_server_error_names_the_cause(details: str, message: str) -> None:
    with Client("host:1", "fake") as client:
        assert client._explain(StatusCode.UNAVAILABLE, details, None).startswith(message)


def test_no_call_exceeds_its_deadline(fake: Path) -> None:
    faults = FaultInjector(seconds=1.0)
    with serving(StandIn(fake), interceptors=[faults]) as target, Client(target, "fake", timeout=0.2) as client:
        started = time.monotonic()
        with pytest.raises(ServingError, match=rf"no answer from {target} within 0\.2 s: request fewer characters"):
            client.generate()
        assert time.monotonic() - started < 0.9
    with Client(target, "fake", timeout=0.5) as client:  # the server has stopped; backoff alone exceeds the deadline
        started = time.monotonic()
        with pytest.raises(ServingError):
            client.generate()
        assert time.monotonic() - started < 0.9


def test_calls_rotate_over_addresses(fake: Path) -> None:
    injectors, stand_in = (FaultInjector(), FaultInjector()), StandIn(fake)
    with (
        serving(stand_in, interceptors=[injectors[0]]) as first,
        serving(stand_in, interceptors=[injectors[1]]) as second,
    ):
        ports = [target.rpartition(":")[2] for target in (first, second)]
        with Client(f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}", "fake") as client:
            deadline = time.monotonic() + 20
            while not all(faults.calls for faults in injectors) and time.monotonic() < deadline:
                client.status()  # the second connection may take some calls
            before = [faults.calls for faults in injectors]
            for _ in range(6):
                client.status()
    assert [faults.calls - count for faults, count in zip(injectors, before, strict=True)] == [3, 3]


def test_unreachable_server_raises() -> None:
    with (
        Client("localhost:1", "fake", retries=0) as client,
        pytest.raises(
            ServingError, match="no server answers at localhost:1: check that it is up and has loaded its models, and"
        ) as error,
    ):
        client.status()
    assert error.value.code == StatusCode.UNAVAILABLE


def test_errors_of_a_batching_server(fake: Path) -> None:
    rules = Batching(2, batch_timeout_micros=10_000_000, max_enqueued_batches=1, num_batch_threads=1)
    with serving(StandIn(fake, batching=rules)) as target, Client(target, "fake", retries=0) as client:
        with pytest.raises(ServingError, match=r"takes fewer rows per call: send several \(Task size 3 is larger"):
            client.score(["a", "b", "c"])
        waiting = threading.Thread(target=client.score, args=("a",))
        waiting.start()
        time.sleep(0.3)
        with pytest.raises(ServingError, match=f"{target} is busy, its batch queue is full: try again later, or"):
            client.score(["b", "c"])
        client.score("d")  # fills the waiting batch
        waiting.join(5)
        assert not waiting.is_alive()


# TLS.


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(fake: Path, pem: Path, tmp_path: Path, mutual: bool) -> None:
    key, cert = pem / "key.pem", pem / "cert.pem"
    pair = [(key.read_bytes(), cert.read_bytes())]
    credentials = grpc.ssl_server_credentials(pair, cert.read_bytes() if mutual else None, mutual)
    own = {"key": key, "certificate": cert} if mutual else {}
    with serving(StandIn(fake), credentials=credentials) as target:

        def generate(tls: Tls | None) -> int:
            with Client(target, "fake", tls=tls, retries=0) as client:
                return client.generate("", 5).n_chars

        assert generate(Tls(root_certificates=cert, server_name="serving.test", **own)) == 5
        untrusted: list[dict[str, Any]] = [{"server_name": "serving.test"}, {"root_certificates": cert}]
        if mutual:
            untrusted.append({"root_certificates": cert, "server_name": "serving.test"})
        for settings in untrusted:
            with pytest.raises(ServingError, match=f"TLS with {target} failed: check the root certificates"):
                generate(Tls(**settings))
        with pytest.raises(ServingError, match=f"{target} closed the connection: it may require TLS"):
            generate(None)
    with pytest.raises(StageError, match=r"the TLS file \S+none.pem cannot be read: No such file"):
        generate(Tls(root_certificates=tmp_path / "none.pem"))
    for swapped, kind in (
        (Tls(root_certificates=key), "CERTIFICATE"),
        (Tls(key=cert, certificate=cert), "PRIVATE KEY"),
        (Tls(key=key, certificate=key), "CERTIFICATE"),
    ):
        with pytest.raises(StageError, match=rf"TLS file \S+.pem is not PEM: it must have a line -----BEGIN {kind}"):
            generate(swapped)


# The command.


@pytest.fixture
def query(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., tuple[int, bytes, str]]:
    """Run `python -m export query`. Returns the exit code, standard output and standard error."""

    def run(command: str, *arguments: str) -> tuple[int, bytes, str]:
        address = ["--target", server.target, "--model", server.model]
        monkeypatch.setattr(sys, "argv", ["export", "query", command, *address, *arguments])
        with pytest.raises(SystemExit) as exit:
            console.run(cli)
        captured = capfdbinary.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err.decode()

    return run


def test_query_text_writes_the_text(query: Callable[..., tuple[int, bytes, str]]) -> None:
    text = b"ab" + text_of(3, b"ab", 100) + b"\n"
    arguments = ("text", "--prompt", "ab", "--length", "100", "--seed", "3")
    assert query(*arguments) == query(*arguments, "--no-stream") == (0, text, "")
    stopped = text.partition(b"THE")[0] + b"\n"
    assert query(*arguments, "--stop", "THE") == query(*arguments, "--stop", "THE", "--no-stream") == (0, stopped, "")
    code, out, err = query("text", "--length", "5")
    seed = int(err.removeprefix("seed "))
    assert (code, out) == (0, text_of(seed, b"", 5) + b"\n")
    code, out, err = query(*arguments, "--json", "--top-k", "7")
    drawn = text_of(3, b"ab", 100)
    assert json.loads(out) == {
        "text": drawn.decode(errors="replace"),
        "text_bytes": {"b64": base64.b64encode(drawn).decode()},
        "n_chars": 100,
        "log_prob": pytest.approx(-1170.8),
        "finish_reason": "length",
        "seed": 3,
    }
    assert (code, err, out.count(b"\n")) == (0, "", 1)


def test_query_count_writes_the_text_of_each_seed_in_few_calls(
    query: Callable[..., tuple[int, bytes, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, calls = Client.generate, list[int]()

    def counting(client: Client, prompt: list[bytes], *arguments: Any, **sampling: Any) -> list[Generated]:
        calls.append(len(prompt))
        return generate(client, prompt, *arguments, **sampling)

    monkeypatch.setattr(Client, "generate", counting)
    monkeypatch.setattr(Client, "info", lambda _: {"limits": {"rows": 3}})
    last = (1 << 63) - 1
    arguments = ("text", "--prompt", "ab", "--length", "60", "--stop", "THE", "--top-k", "7")
    code, out, err = query(*arguments, "--seed", str(last - 2), "--count", "7")
    assert (code, err, calls) == (0, "", [3, 3, 1])
    seeds = [last - 2, last - 1, last, *range(-last - 1, -last + 3)]
    single = [query(*arguments, "--seed", str(seed), "--json") for seed in seeds]
    assert out.splitlines(keepends=True) == [line for _, line, _ in single]
    assert [json.loads(line)["seed"] for line in out.splitlines()] == seeds
    code, out, err = query("text", "--length", "5000", "--count", "2")
    assert (code, out) == (1, b"")
    assert "rejects the request: the length must be 0 to 4096, got 5000" in err


def test_terminal_output_has_whole_characters(
    query: Callable[..., tuple[int, bytes, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.Terminal, "is_terminal", True)
    start = BOOK.index("あ".encode()) - 7  # so that the first piece of 8 bytes ends within the character
    code, out, err = query("text", "--prompt", "\x1b[2J", "--length", "13", "--seed", str(start - 4))
    assert (code, out.decode(), err) == (0, "\ufffd[2Jnaïve あい\n", "")


def test_query_score_info_and_status(query: Callable[..., tuple[int, bytes, str]]) -> None:
    assert query("score", "--text", "abc") == (0, b"2.000 bits per byte: 4.16 nats over 3\n", "")
    score = json.loads(query("score", "--text", "abc", "--json")[1])
    assert score == {"nats": pytest.approx(4.158883), "n_chars": 3, "bits_per_char": 2.0, "error": ""}
    about = {"format_version": 1, "unit": "byte", "version": 1, "limits": {"length": LONGEST}}
    code, out, err = query("info", "--label", "stable")
    assert (code, json.loads(out), err) == (0, about, "")
    code, out, err = query("status")
    assert (code, err) == (0, "")
    assert out.startswith(b"version 1: AVAILABLE\nversion 2: AVAILABLE\ncontinue: carry_bytes, length, prompt")
    assert b"\ninfo: ignored -> info\n" in out
    assert json.loads(query("status", "--json")[1])[1] == {"version": 2, "state": "AVAILABLE", "error": ""}


def test_query_defaults_to_the_stable_label(query: Callable[..., tuple[int, bytes, str]], fake: Path) -> None:
    assert json.loads(query("info")[1])["version"] == 1
    assert json.loads(query("info", "--version", "2")[1])["version"] == 2
    with serving(StandIn(fake)) as target:  # has no labels
        assert json.loads(query("info", "--target", target)[1])["version"] == 2


def test_query_status_omits_signatures_until_a_version_is_ready(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch, query: Callable[..., tuple[int, bytes, str]]
) -> None:
    monkeypatch.setattr(
        Client, "status", lambda _: [VersionStatus(1, "LOADING", ""), VersionStatus(2, "END", "no such file")]
    )
    expected = b"version 1: LOADING\nversion 2: END no such file\n"
    assert query("status", "--label", "none") == (0, expected, "")


MISTAKES = [
    (["text", "--length", "5000", "--no-stream"], 1, "rejects the request: the length must be 0 to 4096, got 5000"),
    (["text", "--model", "book"], 1, "serves no model 'book'"),
    (["text", "--target", "localhost:1"], 1, "no server answers at localhost:1"),
    (["text", "--version", "7"], 1, "has no version 7; its versions: 1 (AVAILABLE), 2 (AVAILABLE)"),
    (["text", "--version", "1", "--label", "x"], 2, "pass a version or a label, not both"),
    (["text", "--tls-key", "key.pem"], 2, "a client's key and certificate go together: pass both or neither"),
    (["text", "--tls-root", "none.pem"], 1, "the TLS file none.pem cannot be read: No such file or directory"),
    (["text", "--timeout", "nan"], 2, "'timeout': input should be a finite number, got nan"),
    (["status", "--version", "7"], 1, "has no version 7; its versions: 1 (AVAILABLE), 2 (AVAILABLE)"),
    (["status", "--label", "none", "--json"], 1, "has no label 'none'"),
    (["text", "--temperature", "nan"], 2, "--temperature must be a finite number, got nan"),
    (["text", "--temperature", "inf"], 2, "'--temperature': inf is not in the range 0<=x<=1e+30"),
    (["text", "--temperature", "1e300"], 2, "'--temperature': 1e+300 is not in the range 0<=x<=1e+30"),
    (["text", "--top-p", "0"], 2, "0.0 is not in the range 0<x<=1"),
    (["text", "--top-p", "1.5"], 2, "1.5 is not in the range 0<x<=1"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES, ids=[" ".join(row[0]) for row in MISTAKES])
def test_query_errors_print_one_line(
    query: Callable[..., tuple[int, bytes, str]], arguments: list[str], code: int, message: str
) -> None:
    exit_code, out, err = query(*arguments)
    assert (exit_code, out, err.count("\n")) == (code, b"", 1), err
    assert err.startswith("error: ")
    assert message in err


def test_ctrl_c_ends_the_output_with_a_newline(fake: Path) -> None:
    with serving(StandIn(fake), interceptors=[FaultInjector(seconds=0.3)]) as target:
        command = [sys.executable, "-m", "export", "query", "text", "--target", target]
        command += ["--model", "fake", "--seed", "1"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        first = process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    text, end = (first + out)[:-1], (first + out)[-1:]
    assert (text, end) == (text_of(1, b"", len(text)), b"\n")
    assert len(text) < 500
    assert err.decode().strip() == "error: stopped"
