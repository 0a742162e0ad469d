"""The stand-in keeps TF Serving's rules. What holds of the server itself is asked of `server`, whichever that is."""

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
from fake_model import written
from grpc import StatusCode
from serving import CONFIG, Endpoint
from serving_batching import Batching
from serving_stand_in import StandIn, labels_of, serving
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from export.client.client import Client, TextScore

ROOT = Path(__file__).parents[3]


# What a request may be, asked with TensorFlow's own tensors and no help of the client's.


@pytest.fixture
def stub(server: Endpoint) -> Iterator[Any]:
    with grpc.insecure_channel(server.target) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(signature: str = "", *, wanted: tuple[str, ...] = (), **inputs: Any) -> Any:
    message = predict_pb2.PredictRequest(output_filter=wanted)
    message.model_spec.name, message.model_spec.signature_name = "fake", signature
    for name, value in inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return message


def refused(call: Callable[[], Any]) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refusal:
        call()
    return refusal.value.code(), refusal.value.details()


def test_serving_default_is_the_signature_that_is_not_named(stub: Any) -> None:
    inputs = {"length": np.int32([9]), "temperature": np.float32([1]), "seed": np.int64([3])}
    answer = stub.Predict(request(prompt=[b"ab"], **inputs))
    assert tf.make_ndarray(answer.outputs["text_bytes"]).tolist() == [written(3, b"ab", 9)]
    assert set(answer.outputs) == {"text", "text_bytes", "n_chars", "log_prob", "finish_reason"}
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("fake", 2, "serving_default")


def test_a_part_of_the_outputs_can_be_asked_for(stub: Any) -> None:
    answer = stub.Predict(request("score", wanted=("n_chars",), text=[b"abc"]))
    assert {name: tf.make_ndarray(value).tolist() for name, value in answer.outputs.items()} == {"n_chars": [3]}
    code, message = refused(lambda: stub.Predict(request("score", wanted=("bits",), text=[b"abc"])))
    assert code == StatusCode.INVALID_ARGUMENT
    assert message == (
        "output tensor alias not found in signature: bits Outputs expected to be in the set "
        "{bits_per_char,error,n_chars,nats}."
    )


def test_what_fails_in_the_graph_is_the_callers_error(stub: Any) -> None:
    inputs = {"length": np.int32([9, 9]), "temperature": np.float32([1]), "seed": np.int64([3])}
    code, message = refused(lambda: stub.Predict(request(prompt=[b"ab"], **inputs)))
    assert code == StatusCode.INVALID_ARGUMENT
    assert message.startswith("pos and len should have the same shape, got: [1] vs. [2]\n")


def test_labels_are_those_that_lie_beside_the_versions(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    assert labels_of(path) == {}
    path.write_text(CONFIG.format(name="fake", base=tmp_path))
    assert labels_of(path) == {"stable": 1}


def test_metadata_is_of_signatures_alone(stub: Any) -> None:
    asked = get_model_metadata_pb2.GetModelMetadataRequest()
    asked.model_spec.name = "fake"
    code, message = refused(lambda: stub.GetModelMetadata(asked))
    expected = "GetModelMetadataRequest must specify at least one metadata_field"
    assert (code, message) == (StatusCode.INVALID_ARGUMENT, expected)


# Batching: the stand-in's own.


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The answers of calls made at the same time."""
    answers: list[Any] = [None] * len(calls)

    def make(index: int) -> None:
        answers[index] = calls[index]()

    threads = [threading.Thread(target=make, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return answers


def scores(*lengths: int) -> list[TextScore]:
    return [TextScore(float(np.float32(2 * np.log(2) * n)), n, 2.0, "") for n in lengths]


def texts(*lengths: int) -> list[str]:
    return ["a" * n for n in lengths]


def batching(fake: Path, **rules: Any) -> StandIn:
    return StandIn(fake, batching=Batching(**{"batch_timeout_micros": 300_000, "num_batch_threads": 1, **rules}))


def sizes(stand_in: StandIn) -> list[int]:
    assert stand_in.batcher is not None
    return stand_in.batcher.ran


def test_calls_are_run_as_one(fake: Path) -> None:
    stand_in = batching(fake, max_batch_size=6, batch_timeout_micros=20_000_000)
    with serving(stand_in) as target, Client(target, "fake") as client:
        begun = time.monotonic()
        answers = together(
            lambda: client.score(texts(1, 2, 3)), lambda: client.score(texts(4)), lambda: client.score(texts(5, 6))
        )
        assert time.monotonic() - begun < 10  # a full batch does not wait
    assert answers == [scores(1, 2, 3), scores(4), scores(5, 6)]
    assert sizes(stand_in) == [6]


def test_each_signature_has_batches_of_its_own_and_what_waits_long_enough_is_run(fake: Path) -> None:
    stand_in = batching(fake, max_batch_size=4)
    with serving(stand_in) as target, Client(target, "fake") as client:
        answers = together(
            lambda: client.score(texts(1)),
            lambda: client.score(texts(2)),
            lambda: client.generate("", 7).n_chars,
            lambda: client.generate("", 9).n_chars,
        )
    assert answers == [*([score] for score in scores(1, 2)), 7, 9]
    assert sizes(stand_in) == [2, 2]


def test_a_batch_is_filled_up_to_an_allowed_size(fake: Path) -> None:
    stand_in = batching(fake, max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    with serving(stand_in) as target, Client(target, "fake") as client:
        assert together(lambda: client.score(texts(1, 2)), lambda: client.score(texts(3))) == [scores(1, 2), scores(3)]
        assert client.score(texts(1, 2, 3, 4, 5)) == scores(1, 2, 3, 4, 5)
    assert sizes(stand_in) == [4, 8]


def test_a_large_call_is_divided_where_that_is_allowed(fake: Path) -> None:
    rules = {"max_batch_size": 10, "max_execution_batch_size": 4, "enable_large_batch_splitting": True}
    stand_in = batching(fake, **rules, max_enqueued_batches=3)
    with serving(stand_in) as target, Client(target, "fake", retries=0) as client:
        assert client.score(texts(*range(1, 11))) == scores(*range(1, 11))
    assert sizes(stand_in) == [4, 4, 2]


@pytest.mark.parametrize(
    ("signature", "inputs", "code", "message"),
    [
        (
            "score",
            {"text": "a"},
            StatusCode.INVALID_ARGUMENT,
            "Batching Run() input tensors must have at least one dimension",
        ),
        (
            "neurons",
            {"text": ["a", "b"], "layer": np.int32([0])},
            StatusCode.INVALID_ARGUMENT,
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
        (
            "score",
            {"text": ["a"] * 9},
            StatusCode.INVALID_ARGUMENT,
            "Task size 9 is larger than maximum input batch size 8",
        ),
        (
            "total",
            {"text": ["a", "b"]},
            StatusCode.FAILED_PRECONDITION,
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors",
        ),
    ],
)
def test_what_cannot_be_batched_is_refused(
    fake: Path, signature: str, inputs: dict[str, Any], code: StatusCode, message: str
) -> None:
    stand_in = batching(fake, max_batch_size=8, batch_timeout_micros=0)
    with serving(stand_in) as target, grpc.insecure_channel(target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        assert refused(lambda: stub.Predict(request(signature, **inputs))) == (code, message)


def test_a_full_queue_is_unavailable_and_the_client_asks_again(fake: Path) -> None:
    rules = {"max_batch_size": 2, "max_enqueued_batches": 1, "batch_timeout_micros": 250_000}
    stand_in = batching(fake, **rules)
    with serving(stand_in) as target, Client(target, "fake") as client:
        waiting = threading.Thread(target=client.score, args=("a",))
        waiting.start()
        time.sleep(0.1)
        with grpc.insecure_channel(target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            code, message = refused(lambda: stub.Predict(request("score", text=["b", "c"])))
        assert (code, message) == (
            StatusCode.UNAVAILABLE,
            "The batch scheduling queue to which this task was submitted is full; currently 1 batches enqueued and "
            "max_enqueued_batches is 1",
        )
        assert client.score(["b", "cd"]) == scores(1, 2)
        waiting.join(5)
    assert sizes(stand_in) == [1, 2]


def test_the_servers_file_of_parameters_is_read(tmp_path: Path) -> None:
    file = tmp_path / "batching.config"
    file.write_text(
        "# rows\nmax_batch_size { value: 64 }\nbatch_timeout_micros {value:2000}\nallowed_batch_sizes: 8\n"
        "allowed_batch_sizes : 64\nenable_large_batch_splitting { value: true }\n"
    )
    expected = Batching(64, 2000, allowed_batch_sizes=(8, 64), enable_large_batch_splitting=True)
    assert Batching.read(file) == expected
    file.write_text("max_batch_sise { value: 64 }")
    with pytest.raises(TypeError, match="max_batch_sise"):
        Batching.read(file)


@pytest.mark.slow
def test_it_runs_as_a_process(fake: Path, tmp_path: Path) -> None:
    command = [sys.executable, "tests/serving_stand_in.py", str(fake), "--model-name", "book", "--batching"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with Client(f"localhost:{port}", "book") as client:
            assert client.generate("ab", 20, seed=3).text_bytes == written(3, b"ab", 20)
    finally:
        process.terminate()
        process.wait()
