"""Answers of a broken or foreign server: `export query` prints them, or fails with a one-line error."""

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from faults.conftest import Trials
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from common import console
from common.printable import visible
from export.__main__ import cli
from export.client.protos import to_tensor

ESCAPE = "\x1b]0;title\x07"
Answer = Callable[[grpc.ServicerContext], bytes]


class Server(grpc.GenericRpcHandler):
    """Server that answers every call of a method with the same bytes."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        answer = self.answers[details.method.rpartition("/")[2]]
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer(context))


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Server, str]]:
    handler = Server()
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(0)


def strings(*values: bytes) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return to_tensor(array)


GENERATED = {
    "text": strings(b"abc"),
    "text_bytes": strings(b"abc"),
    "n_chars": to_tensor(np.array([3], np.int32)),
    "log_prob": to_tensor(np.array([-1], np.float32)),
    "finish_reason": strings(b"length"),
}
SCORED = {
    "nats": to_tensor(np.array([1], np.float32)),
    "n_chars": to_tensor(np.array([3], np.int32)),
    "bits_per_char": to_tensor(np.array([1], np.float32)),
    "error": strings(b""),
}
DIMENSIONS: dict[str, list[int]] = {
    "no dimension": [],
    "no row": [0],
    "-1 rows": [-1],
    "2 ** 50 rows": [1 << 50],
    "many dimensions": [1] * 300,
}


def predicted(outputs: dict[str, Any]) -> Answer:
    answer = predict_pb2.PredictResponse()
    for name, tensor in outputs.items():
        answer.outputs[name].CopyFrom(tensor)
    return lambda context: answer.SerializeToString()


def changed(outputs: dict[str, Any], name: str) -> Iterator[tuple[str, Answer]]:
    """Yield the answer with each fault in one of its outputs."""
    yield f"{name} is missing", predicted({key: tensor for key, tensor in outputs.items() if key != name})
    for fault, shape in DIMENSIONS.items():
        tensor = type(outputs[name])()
        tensor.CopyFrom(outputs[name])
        del tensor.tensor_shape.dim[:]
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        yield f"{name} has {fault}", predicted({**outputs, name: tensor})
    tensor = type(outputs[name])(dtype=99)
    yield f"{name} has an unknown type", predicted({**outputs, name: tensor})
    number = outputs[name].string_val
    other = to_tensor(np.array([7], np.int64)) if number else strings(b"\xff")
    yield f"{name} has another type", predicted({**outputs, name: other})


def answers() -> Iterator[tuple[list[str], str, str, Answer]]:
    """Yield commands with a faulty answer: command, description, method and answer."""
    for name in GENERATED:
        for fault, answer in changed(GENERATED, name):
            yield ["text", "--no-stream"], fault, "Predict", answer
    refused = predicted({**GENERATED, "finish_reason": strings(f"error: {ESCAPE * 1000}".encode())})
    yield ["text", "--no-stream"], "an error with control characters", "Predict", refused
    for name in ("carry_bytes", "n_back", "text_bytes"):
        outputs = {**GENERATED, "carry_bytes": strings(b"c"), "n_back": to_tensor(np.array([0], np.int32))}
        yield ["text"], f"{name} is missing", "Predict", predicted({k: v for k, v in outputs.items() if k != name})
    for name in SCORED:
        for fault, answer in list(changed(SCORED, name))[-3:]:
            yield ["score", "--text", "abc"], fault, "Predict", answer
    for text in (b"", b"\xff", b"{", b"[" * 10_000, b"[]", b"{}", b'{"unit": 1}', b"1" * 5000, b"null"):
        yield ["info"], f"info is {text[:20]!r}", "Predict", predicted({"info": strings(text)})
    yield ["info"], "info is a number", "Predict", predicted({"info": to_tensor(np.array([1], np.int32))})
    status = get_model_status_pb2.GetModelStatusResponse()
    version = status.model_version_status.add(version=1)
    version.status.error_code, version.status.error_message = 3, ESCAPE
    unknown = status.SerializeToString().replace(b"\x08\x01", b"\x08\x01\x10\xe7\x07", 1)
    yield ["status"], "a message with control characters", "GetModelStatus", lambda _: status.SerializeToString()
    yield ["status"], "a version in an unknown state", "GetModelStatus", lambda _: unknown
    yield ["status"], "an invalid status", "GetModelStatus", lambda _: b"\xff" * 100
    signatures = get_model_metadata_pb2.GetModelMetadataResponse()
    signatures.metadata["signature_def"].type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signatures.metadata["signature_def"].value = b"\xff" * 100
    yield ["status"], "invalid signatures", "GetModelMetadata", lambda _: signatures.SerializeToString()
    yield ["text"], "an invalid answer", "Predict", lambda _: b"\xff" * 100

    def fail(code: grpc.StatusCode, details: str) -> Answer:
        return lambda context: context.abort(code, details)  # type: ignore[return-value]

    for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
        yield ["score", "--text", "a"], f"{code.name} with control characters", "Predict", fail(code, ESCAPE * 1000)
    yield (
        ["text"],
        "FAILED_PRECONDITION, twice",
        "Predict",
        fail(grpc.StatusCode.FAILED_PRECONDITION, "different shapes"),
    )


@pytest.mark.faults("Hostile input", "answers of a server")
def test_answers_are_printed_or_refused(
    trials: Trials,
    server: tuple[Server, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    handler, target = server
    available = get_model_status_pb2.GetModelStatusResponse()
    available.model_version_status.add(version=1, state=30)
    metadata = get_model_metadata_pb2.GetModelMetadataResponse().SerializeToString()
    for command, fault, method, answer in answers():
        handler.answers = {
            "Predict": predicted({**GENERATED, "info": strings(json.dumps({"unit": "byte"}).encode())}),
            "GetModelStatus": lambda _: available.SerializeToString(),
            "GetModelMetadata": lambda _: metadata,
            method: answer,
        }
        name, *options = command
        arguments = [name, "--target", target, "--model", "m", "--timeout", "5", "--version", "1", *options]
        if name == "text":
            arguments += ["--seed", "1", "--length", "3"]
        monkeypatch.setattr(sys, "argv", ["export", "query", *arguments])
        with trials.trial(f"{name}: {fault}"):
            with pytest.raises(SystemExit) as exit, contextlib.ExitStack() as ending:
                ending.callback(logging.getLogger("grpc").setLevel, logging.NOTSET)
                console.run(cli)
            output, error = capfd.readouterr()
            assert exit.value.code in (0, 1), error
            assert "bug" not in error, error
            assert (error.count("\n"), error.startswith("error: ")) == (1, True) if exit.value.code else not error
            assert visible(error, keep="\n") == error
            assert visible(output, keep="\n") == output
            assert len(error) < 1000
    assert trials.tried == 75
