"""TF Serving's rules. Tests that use the fixture `server` also run against a real server."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from fake_model import text_of
from grpc import StatusCode
from serving import CONFIG, Endpoint
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from common.errors import StageError
from export.client.client import Client, TextScore
from export.serve.stand_in import LoadedVersion, StandIn, follow, read_config, serving
from export.serve.stand_in_batching import Batcher, Batching, CallError

ROOT = Path(__file__).parents[3]


# Requests built from TensorFlow's tensors, without the client.


@pytest.fixture
def stub(server: Endpoint) -> Iterator[Any]:
    with grpc.insecure_channel(server.target) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(signature: str = "", *, outputs: tuple[str, ...] = (), **inputs: Any) -> Any:
    message = predict_pb2.PredictRequest(output_filter=outputs)
    message.model_spec.name, message.model_spec.signature_name = "fake", signature
    for name, value in inputs.items():
        proto = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
        message.inputs[name].CopyFrom(proto)
    return message


def rpc_error(call: Callable[[], Any]) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code(), error.value.details()


def test_default_signature_is_serving_default(stub: Any) -> None:
    inputs = {"length": np.int32([9]), "temperature": np.float32([1]), "seed": np.int64([3])}
    answer = stub.Predict(request(prompt=[b"ab"], **inputs))
    assert tf.make_ndarray(answer.outputs["text_bytes"]).tolist() == [text_of(3, b"ab", 9)]
    assert set(answer.outputs) == {"text", "text_bytes", "n_chars", "log_prob", "finish_reason"}
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("fake", 2, "serving_default")


def test_output_filter_selects_outputs(stub: Any) -> None:
    answer = stub.Predict(request("score", outputs=("n_chars",), text=[b"abc"]))
    assert {name: tf.make_ndarray(value).tolist() for name, value in answer.outputs.items()} == {"n_chars": [3]}
    code, message = rpc_error(lambda: stub.Predict(request("score", outputs=("bits",), text=[b"abc"])))
    assert code == StatusCode.INVALID_ARGUMENT
    assert message == (
        "output tensor alias not found in signature: bits Outputs expected to be in the set "
        "{bits_per_char,error,n_chars,nats}."
    )


def test_graph_error_is_an_invalid_argument(stub: Any) -> None:
    inputs = {"length": np.int32([9, 9]), "temperature": np.float32([1]), "seed": np.int64([3])}
    code, message = rpc_error(lambda: stub.Predict(request(prompt=[b"ab"], **inputs)))
    assert code == StatusCode.INVALID_ARGUMENT
    assert message.startswith("pos and len should have the same shape, got: [1] vs. [2]\n")


def test_read_config_returns_labels_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    assert read_config(path) == ({}, [])
    path.write_text(CONFIG.format(name="fake", base=tmp_path))
    assert read_config(path) == ({"stable": 1}, [])
    path.write_text(CONFIG.format(name="fake", base=tmp_path).replace("all {}", "specific { versions: 1 versions: 3 }"))
    assert read_config(path) == ({"stable": 1}, [1, 3])


def test_input_of_wrong_rank_is_answered_without_batching(stub: Any) -> None:
    answer = stub.Predict(request("score", text=[[b"ab"], [b"c"]]))
    assert tf.make_ndarray(answer.outputs["n_chars"]).tolist() == [[2], [1]]


def tensor(dtype: int, *sizes: int, **values: Any) -> Any:
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


STRING, INT32 = 7, 3
INVALID_TENSORS = {
    "negative size": {"text": tensor(STRING, -1, string_val=[b"a"]), "layer": tensor(INT32, 1, int_val=[0])},
    "no type": {"text": tensor(0, 1, string_val=[b"a"]), "layer": tensor(INT32, 1, int_val=[0])},
    "unknown type": {"text": tensor(99, 1, string_val=[b"a"]), "layer": tensor(INT32, 1, int_val=[0])},
    "too few bytes": {"layer": tensor(INT32, 2, tensor_content=b"1234"), "text": tensor(STRING, 2, string_val=[b"a"])},
}


@pytest.mark.parametrize("name", INVALID_TENSORS)
def test_invalid_tensor_is_rejected(stub: Any, name: str) -> None:
    inputs = INVALID_TENSORS[name]
    expected = (StatusCode.INVALID_ARGUMENT, f"tensor parsing error: {next(iter(inputs))}")
    assert rpc_error(lambda: stub.Predict(request("neurons", **inputs))) == expected


def test_surplus_values_are_dropped_and_missing_values_filled(stub: Any) -> None:
    surplus = stub.Predict(request("score", text=tensor(STRING, 1, string_val=[b"ab", b"c"])))
    assert tf.make_ndarray(surplus.outputs["n_chars"]).tolist() == [2]
    missing = stub.Predict(request("score", text=tensor(STRING, 3, string_val=[b"ab", b"c"])))
    assert tf.make_ndarray(missing.outputs["n_chars"]).tolist() == [2, 1, 1]


def test_model_name_is_required_and_labels_are_per_model(stub: Any) -> None:
    message = request("score", text=[b"a"])
    message.model_spec.name = ""
    expected = (StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
    assert rpc_error(lambda: stub.Predict(message)) == expected
    message.model_spec.name, message.model_spec.version_label = "book", "stable"
    expected = (StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: stable")
    assert rpc_error(lambda: stub.Predict(message)) == expected


def test_duplicate_output_filter_is_rejected(stub: Any) -> None:
    message = request("score", outputs=("nats", "nats"), text=[b"a"])
    expected = (StatusCode.INVALID_ARGUMENT, "duplicate output tensor alias: nats")
    assert rpc_error(lambda: stub.Predict(message)) == expected


def test_status_has_an_empty_error(server: Endpoint) -> None:
    with grpc.insecure_channel(server.target) as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        message = get_model_status_pb2.GetModelStatusRequest()
        assert rpc_error(lambda: models.GetModelStatus(message)) == (StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        message.model_spec.name = "fake"
        for version in models.GetModelStatus(message).model_version_status:
            assert version.HasField("status")
            assert (version.status.error_code, version.status.error_message) == (0, "")


def test_label_moves_only_to_a_loaded_version(fake: Path, tmp_path: Path) -> None:
    base = tmp_path / "fake"
    for version in (1, 2):
        shutil.copytree(fake / "1", base / str(version))
    file = base / "models.config"
    text = CONFIG.format(name="fake", base=base).replace("all {}", "specific { versions: 1 }")
    file.write_text(text)
    stand_in = StandIn(base)
    file.write_text(text.replace("versions: 1", "versions: 1 versions: 2").replace("value: 1", "value: 2"))
    for _ in range(2):  # repeated at each poll
        with pytest.raises(
            CallError, match="Request to assign label to version 2 of model fake, which is not currently"
        ):
            stand_in.poll()
        assert (stand_in.labels, list(stand_in.versions)) == ({"stable": 1}, [1])
    moved = file.read_text()
    file.write_text(text.replace("versions: 1", "versions: 1 versions: 2"))
    stand_in.poll()
    file.write_text(moved)
    stand_in.poll()
    assert (stand_in.labels, list(stand_in.versions)) == ({"stable": 2}, [1, 2])


def test_an_invalid_config_changes_nothing(fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(fake / "1", tmp_path / "fake" / "1")
    stand_in = StandIn(tmp_path / "fake")
    (tmp_path / "fake" / "models.config").write_text("garbage {")
    follow(stand_in)
    assert capsys.readouterr().err.startswith("models.config is not followed: 1:")
    assert list(stand_in.versions) == [1]


def test_damaged_canary_leaves_the_stable_version_answering(fake: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        shutil.copytree(fake / str(version), tmp_path / "fake" / str(version))
    graph = tmp_path / "fake" / "2" / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:1000])
    with (
        serving(StandIn(tmp_path / "fake", labels={"stable": 1})) as target,
        Client(target, "fake", label="stable") as client,
    ):
        assert client.score("ab").n_chars == 2
        assert [(status.version, status.state) for status in client.status()] == [(1, "AVAILABLE"), (2, "END")]
        with pytest.raises(StageError, match=r"cannot load version 2: .*saved_model"):
            client.wait_until_loaded([2])
    shutil.rmtree(tmp_path / "fake" / "1")
    with pytest.raises(OSError, match="saved_model"):
        StandIn(tmp_path / "fake")


def test_failed_load_is_retried(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def load(folder: Path) -> LoadedVersion:
        tried.append((folder.name, time.monotonic()))
        if len(tried) < 3:
            raise OSError("not readable yet")
        return LoadedVersion(folder)

    monkeypatch.setattr("export.serve.stand_in.LoadedVersion", load)
    assert not StandIn(fake, load_retries=2, retry_seconds=0.2).failed
    assert [version for version, _ in tried] == ["1", "1", "1", "2"]
    assert tried[2][1] - tried[0][1] >= 0.4


def test_metadata_field_is_required(stub: Any) -> None:
    metadata_request = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata_request.model_spec.name = "fake"
    code, message = rpc_error(lambda: stub.GetModelMetadata(metadata_request))
    expected = "GetModelMetadataRequest must specify at least one metadata_field"
    assert (code, message) == (StatusCode.INVALID_ARGUMENT, expected)


# Batching, on the stand-in only.


def call_concurrently(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls concurrently, and return their results."""
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


def test_concurrent_calls_share_a_batch(fake: Path) -> None:
    stand_in = batching(fake, max_batch_size=6, batch_timeout_micros=20_000_000)
    with serving(stand_in) as target, Client(target, "fake") as client:
        started = time.monotonic()
        answers = call_concurrently(
            lambda: client.score(texts(1, 2, 3)), lambda: client.score(texts(4)), lambda: client.score(texts(5, 6))
        )
        assert time.monotonic() - started < 10  # a full batch runs immediately
    assert answers == [scores(1, 2, 3), scores(4), scores(5, 6)]
    assert sizes(stand_in) == [6]


def test_batches_are_per_signature_and_run_after_the_timeout(fake: Path) -> None:
    stand_in = batching(fake, max_batch_size=4)
    with serving(stand_in) as target, Client(target, "fake") as client:
        answers = call_concurrently(
            lambda: client.score(texts(1)),
            lambda: client.score(texts(2)),
            lambda: client.generate("", 7).n_chars,
            lambda: client.generate("", 9).n_chars,
        )
    assert answers == [*([score] for score in scores(1, 2)), 7, 9]
    assert sizes(stand_in) == [2, 2]


def test_batch_is_padded_to_an_allowed_size(fake: Path) -> None:
    stand_in = batching(fake, max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    with serving(stand_in) as target, Client(target, "fake") as client:
        assert call_concurrently(lambda: client.score(texts(1, 2)), lambda: client.score(texts(3))) == [
            scores(1, 2),
            scores(3),
        ]
        assert client.score(texts(1, 2, 3, 4, 5)) == scores(1, 2, 3, 4, 5)
    assert sizes(stand_in) == [4, 8]


def test_large_call_is_split_if_enabled(fake: Path) -> None:
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
            "__saved_model_init_op",
            {},
            StatusCode.INVALID_ARGUMENT,
            "Batching Run() must have at least one input tensor",
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
def test_unbatchable_calls_are_rejected(
    fake: Path, signature: str, inputs: dict[str, Any], code: StatusCode, message: str
) -> None:
    stand_in = batching(fake, max_batch_size=8, batch_timeout_micros=0)
    with serving(stand_in) as target, grpc.insecure_channel(target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        assert rpc_error(lambda: stub.Predict(request(signature, **inputs))) == (code, message)


def test_empty_call_waits_for_a_row_of_its_signature(fake: Path) -> None:
    stand_in = batching(fake, max_batch_size=8, batch_timeout_micros=10_000)
    with serving(stand_in) as target, grpc.insecure_channel(target) as channel, Client(target, "fake") as client:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        empty = stub.Predict.future(request("score", text=tensor(STRING, 0)))
        abandoned = stub.Predict.future(request("start", prompt=tensor(STRING, 0)))
        client.generate("", 5)  # a different signature
        time.sleep(0.3)
        assert not empty.done()
        assert client.score("ab").n_chars == 2
        assert tf.make_ndarray(empty.result(10).outputs["n_chars"]).tolist() == []
        assert not abandoned.done()
    assert sizes(stand_in) == [1, 1]


def test_input_of_wrong_rank_fails_its_batch(fake: Path) -> None:
    stand_in = batching(fake, max_batch_size=8)
    with serving(stand_in) as target, grpc.insecure_channel(target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        calls = [stub.Predict.future(request("score", text=text)) for text in ([[b"a"], [b"b"]], [b"c"])]
        for call in calls:
            assert call.exception(10).code() == StatusCode.FAILED_PRECONDITION
            assert "different shapes and padding is turned off. Set pad_variable" in call.exception().details()
        with Client(target, "fake") as client:  # retries the call alone
            stub.Predict.future(request("score", text=[[b"a"], [b"b"]]))
            assert client.score("ab").n_chars == 2


def test_filtered_calls_share_a_batch(fake: Path) -> None:
    stand_in = batching(fake, max_batch_size=2, batch_timeout_micros=10_000_000)
    with serving(stand_in) as target, grpc.insecure_channel(target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        calls = [stub.Predict.future(request("score", outputs=("nats",), text=[text])) for text in (b"a", b"b")]
        assert [list(call.result(10).outputs) for call in calls] == [["nats"], ["nats"]]
    assert sizes(stand_in) == [2]


def test_batch_past_its_deadlines_is_not_run() -> None:
    batcher, inputs = Batcher(Batching(8, num_batch_threads=1)), {"x": np.zeros(1)}

    def run(arrays: dict[str, Any], timeout: float | None) -> list[Any]:
        time.sleep(0.5)
        return [arrays["x"]]

    busy = threading.Thread(target=batcher, args=("a", run, inputs, None))
    busy.start()
    time.sleep(0.1)
    with pytest.raises(CallError, match=r"^Run\(\) timeout exceeded while waiting in batching queue$") as error:
        batcher("b", run, inputs, 0.1)
    assert error.value.code == StatusCode.RESOURCE_EXHAUSTED
    busy.join(5)
    assert batcher.ran == [1]


def test_versions_have_their_own_batching_parameters(fake: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        shutil.copytree(fake / "1", tmp_path / "fake" / str(version))
    (tmp_path / "fake" / "2" / "batching_params.pbtxt").write_text("max_batch_size { value: 3 }")
    stand_in = StandIn(tmp_path / "fake", batching=Batching(8), per_version=True)
    with serving(stand_in) as target:
        with Client(target, "fake", version=1) as client:
            assert client.score(texts(*range(1, 10))) == scores(*range(1, 10))  # no batching parameters: not batched
        with (
            Client(target, "fake", version=2) as client,
            pytest.raises(StageError, match=r"Task size 4 is larger .* 3"),
        ):
            client.score(texts(1, 2, 3, 4))


def test_full_queue_is_unavailable_and_the_client_retries(fake: Path) -> None:
    rules = {"max_batch_size": 2, "max_enqueued_batches": 1, "batch_timeout_micros": 250_000}
    stand_in = batching(fake, **rules)
    with serving(stand_in) as target, Client(target, "fake") as client:
        waiting = threading.Thread(target=client.score, args=("a",))
        waiting.start()
        time.sleep(0.1)
        with grpc.insecure_channel(target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            code, message = rpc_error(lambda: stub.Predict(request("score", text=["b", "c"])))
        assert (code, message) == (
            StatusCode.UNAVAILABLE,
            "The batch scheduling queue to which this task was submitted is full; currently 1 batches enqueued and "
            "max_enqueued_batches is 1",
        )
        assert client.score(["b", "cd"]) == scores(1, 2)
        waiting.join(5)
    assert sizes(stand_in) == [1, 2]


def test_batching_parameters_file_is_read(tmp_path: Path) -> None:
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
