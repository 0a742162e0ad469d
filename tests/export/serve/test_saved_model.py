"""SavedModel exports: graph, warm-up requests, proof and versions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_models
import tensorflow as tf
from crash import damaged
from served_models import LIMITS, ExportedModel
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from common.errors import StageError
from export import checksums
from export.serve import saved_model
from export.serve.labels import read
from export.serve.package import FACTS, read_facts, relabel
from export.serve.saved_model import export_saved_model
from export.serve.session import decode_output, encode_output
from export.serve.signatures import DTYPES, INPUTS, Served
from trainers import checkpoint
from trainers.config import ModelConfig
from trainers.run import read_run
from trainers.sampling.rows import Limits
from trainers.sampling.sampler import Sampler


@pytest.fixture(scope="module")
def tiny(run: Path) -> ExportedModel:
    return served_models.exported(run)


def read_graph(version: Path) -> saved_model_pb2.SavedModel:
    return saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())


def check(model: ExportedModel, signature: str, inputs: dict[str, list[Any]]) -> dict[str, Any]:
    """Run a signature from the files, and compare the outputs with the checkpoint's as the export does."""
    columns = {name: np.array(values, DTYPES[name].as_numpy_dtype) for name, values in inputs.items()}
    outputs, expected = model.run(signature, columns), model.served.answer(signature, inputs)
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        saved_model.compare(f"{signature}.{name}", outputs[name], value)
    return outputs


def test_files_match_the_checkpoint(tiny: ExportedModel) -> None:
    for rows in (1, 5):  # different requests from those of the export's proof
        inputs = {
            "prompt": [b"def ", b"", "é".encode(), b"x" * 50, b"return"][:rows],
            "length": [30, 3, 0, 9, 100][:rows],
            "temperature": [1.0, 0.5, 1.0, 0.0, 2.0][:rows],
            "seed": [1, -1, 0, 5, 2**50][:rows],
        }
        outputs = check(tiny, "serving_default", inputs)
        assert [len(text) for text in outputs["text_bytes"]] == inputs["length"]
        drawn = [text.decode("utf-8", "replace") for text in outputs["text_bytes"]]
        assert [text.decode("utf-8") for text in outputs["text"]] == drawn
    assert check(tiny, "score", {"text": [b"def spam(", b"eggs"]})["n_chars"].tolist() == [9, 4]


def save(run: Path, folder: Path, use_cudnn: bool = False) -> Sampler:
    """Save a run's signatures without the rest of an export. Returns the checkpoint's own sampler."""
    loaded_run = read_run(run)
    model = checkpoint.load_model(loaded_run)
    model.use_cudnn = use_cudnn
    served = Served(Sampler(model, loaded_run.vocab, LIMITS, frozen=True), "")
    served.save(folder)
    return Sampler(model, loaded_run.vocab, LIMITS)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gru", "rnn", "plain gru")]


@pytest.mark.parametrize("other_run", SLOW, indirect=True)
def test_all_cells_are_served(other_run: Path, tmp_path: Path) -> None:
    sampler = save(other_run, tmp_path / "1")
    saved_model.check_ops(tmp_path / "1")
    model = ExportedModel(sampler, tmp_path)
    largest = dict(saved_model.requests(model.served))
    assert largest.keys() == INPUTS.keys()
    for signature, inputs in largest.items():
        check(model, signature, inputs)


def test_characters_and_documents_are_served(documents_run: Path) -> None:
    prompts = [b"", b"Zo", "Анна\nĐ".encode(), b"q?"]  # two documents, and unknown characters
    inputs = {"prompt": prompts, "length": [30] * 4, "temperature": [1.0, 0.0, 2.0, 0.5], "seed": [1, 2, 3, 4]}
    outputs = check(served_models.exported(documents_run), "serving_default", inputs)
    assert all(b"\n" not in text and len(text.decode()) <= 30 for text in outputs["text_bytes"])


def test_inputs_and_outputs_have_one_row_per_request(tiny: ExportedModel) -> None:
    signatures = {name: tiny.files.signatures[name] for name in INPUTS}
    assert {name: set(signature.inputs) for name, signature in signatures.items()} == {
        name: set(inputs) for name, inputs in INPUTS.items()
    }
    for signature in signatures.values():
        for name, tensor in signature.inputs.items():
            assert [dim.size for dim in tensor.tensor_shape.dim] == [-1]
            assert tensor.dtype == DTYPES[name].as_datatype_enum
        assert {tensor.tensor_shape.dim[0].size for tensor in signature.outputs.values()} == {-1}


@pytest.mark.parametrize("rows", [1, 8, 64, 1024])
@pytest.mark.parametrize("model", [{"units": 128}, {"units": 512}, {"units": 2048, "cell": "gru"}])
def test_neurons_response_size_is_bounded(rows: int, model: dict[str, Any]) -> None:
    config = ModelConfig(**model)
    pictured = saved_model.bounded(Limits(rows=rows), config).pictured
    values = rows * config.units * (1 if config.cell == "gru" else 2)
    assert pictured * values <= saved_model.NEURON_VALUES < (pictured + 1) * values or pictured == 1024


def test_text_beyond_the_bound_is_reported_per_row(tiny: ExportedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_model, "NEURON_VALUES", 3 * 9 * 2 * 5)  # rows, units, states of an LSTM, characters
    limits = saved_model.bounded(Limits(rows=3), tiny.net.config)
    answer = Served(Sampler(tiny.net, tiny.vocab, limits), "").answer(
        "neurons", {"text": [b"12345", b"123456", b"1"], "layer": [0, 0, 0]}
    )
    assert answer["error"].tolist() == [b"", b"error: text: at most 5 bytes are read, got 6 bytes", b""]
    assert answer["h"].shape == (3, 5, 9)
    assert answer["n_chars"].tolist() == [5, 0, 1]


@pytest.mark.parametrize("foreign", ["XlaLaunch", "CudnnRNNV3", "PyFunc", "TRTEngineOp", "SomebodysOwn"])
def test_graph_with_unsupported_ops_is_rejected(tiny: ExportedModel, tmp_path: Path, foreign: str) -> None:
    graph = read_graph(tiny.base / "1")
    assert sum(len(function.node_def) for function in graph.meta_graphs[0].graph_def.library.function) > 1000
    graph.meta_graphs[0].graph_def.library.function[0].node_def.add(name="foreign", op=foreign)
    (tmp_path / "saved_model.pb").write_bytes(graph.SerializeToString())
    with pytest.raises(StageError, match=rf"ops that a stock server is not known to run: {foreign}$"):
        saved_model.check_ops(tmp_path)
    graph.meta_graphs[0].graph_def.library.function[0].node_def.pop()
    graph.meta_graphs[0].graph_def.library.function[0].attr["_XlaMustCompile"].b = True
    (tmp_path / "saved_model.pb").write_bytes(graph.SerializeToString())
    with pytest.raises(StageError, match=r"ops that a stock server is not known to run: a function for XLA$"):
        saved_model.check_ops(tmp_path)


@pytest.mark.slow
def test_model_with_cudnn_layers_exports_the_same_graph(run: Path, tiny: ExportedModel, tmp_path: Path) -> None:
    """Simulate a GPU with use_cudnn: there the model uses cuDNN, which servers without a GPU lack."""
    save(run, tmp_path, use_cudnn=True)
    plain, with_gpu = (
        sorted(
            sorted(node.op for node in function.node_def)
            for function in graph.meta_graphs[0].graph_def.library.function
        )
        for graph in (read_graph(tiny.base / "1"), read_graph(tmp_path))
    )
    assert plain == with_gpu


def warm_up_requests(model: ExportedModel) -> list[Any]:
    records = tf.data.TFRecordDataset(str(model.base / "1" / saved_model.WARM_UP))
    return [prediction_log_pb2.PredictionLog.FromString(r.numpy()).predict_log.request for r in records]


def respond(model: ExportedModel, request: Any) -> dict[str, Any]:
    inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
    return model.run(request.model_spec.signature_name, inputs)


def test_warm_up_requests_succeed(tiny: ExportedModel) -> None:
    requests = warm_up_requests(tiny)
    sizes = [1, 2, 4, 8, 16, 32, 64]  # of batches, up to the limit
    rows = [len(tf.make_ndarray(next(iter(r.inputs.values())))) for r in requests]
    assert [(r.model_spec.name, r.model_spec.signature_name) for r in requests] == [("tiny", n) for n in INPUTS] * 7
    assert rows == [size for size in sizes for _ in INPUTS]
    for request, count in zip(requests[-2 * len(INPUTS) :], rows[-2 * len(INPUTS) :], strict=True):
        outputs = respond(tiny, request)
        assert {len(value) for value in outputs.values()} == {count}
        for name in {"error", "finish_reason"} & outputs.keys():
            assert not [row for row in outputs[name] if row.startswith(b"error")]


def copy_version(monkeypatch: pytest.MonkeyPatch, model: ExportedModel) -> None:
    """Replace writing the graph by copying an existing version, with a new export.json."""

    def copy(folder: Path, name: str, served: Served) -> None:
        shutil.copytree(model.base / "1", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("facts.json"))
        (folder / saved_model.ORIGIN).write_text(served.info, encoding="utf-8")

    monkeypatch.setattr(saved_model, "write_version", copy)


def test_same_model_is_kept_and_different_model_gets_next_version(
    run: Path,
    tiny: ExportedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saved_model, "prove", lambda served, folder: None)
    copy_version(monkeypatch, tiny)
    out = tmp_path / "tiny"
    shutil.copytree(tiny.base, out)
    before = (out / "1" / "saved_model.pb").stat().st_mtime_ns
    for version in (None, 1):
        export_saved_model(run, out, version, force=False, limits=LIMITS)
        assert "is up to date with" in capsys.readouterr().err
    assert (out / "1" / "saved_model.pb").stat().st_mtime_ns == before
    for path in damaged(out / "1", "batching_params.pbtxt", "assets.extra/facts.json"):
        with pytest.raises(
            StageError, match=rf"{path.name} is (corrupted|missing): rebuild all with|has no {path.name}\)"
        ):
            export_saved_model(run, out, version=1, force=False, limits=LIMITS)
        if (out / "1" / checksums.FILE).exists():
            with pytest.raises(StageError, match=rf"{path.name} is (corrupted|missing): export it again, or choose"):
                relabel(out, ["canary=1"])
    own = {path for path in (out / "1").rglob("*") if path.name not in ("batching_params.pbtxt", "facts.json")}
    for path in damaged(out, *(path.relative_to(out).as_posix() for path in own), ".lock"):
        assert checksums.verify(out) == [f"{path} is {'corrupted' if path.exists() else 'missing'}"]
    before = (out / "1" / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(StageError, match=r"1 already holds a different model: pass --version 2 or --force$"):
        export_saved_model(run, out, version=1, force=False)  # with other limits
    assert (out / "1" / "saved_model.pb").stat().st_mtime_ns == before
    export_saved_model(run, out, version=None, force=False, limits=Limits(rows=1))
    assert sorted(path.name for path in out.iterdir() if path.name.isdigit()) == ["1", "2"]
    assert read(out).labels == {"stable": 1}
    assert read(out).versions == {1, 2}


def test_version_whose_packaging_was_killed_is_written_again(
    run: Path, tiny: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_model, "prove", lambda served, folder: None)
    copy_version(monkeypatch, tiny)
    out = shutil.copytree(tiny.base, tmp_path / "tiny")
    facts = read_facts(out, 1)
    assert facts["warm_up_seconds"] >= 0
    (out / "1" / FACTS).unlink()
    assert export_saved_model(run, out, version=None, force=False, limits=LIMITS) == 1
    assert read_facts(out, 1).keys() == facts.keys()


@pytest.mark.slow  # the end-to-end test covers it as well
def test_fresh_process_matches_the_checkpoint(tiny: ExportedModel) -> None:
    """Run the proof in its own process; `served_models.exported` skips it."""
    about = (tiny.base / "1" / saved_model.ORIGIN).read_text(encoding="utf-8")
    served = Served(tiny.sampler, json.dumps(json.loads(about), ensure_ascii=False))  # with the exported info
    saved_model.prove(served, tiny.base / "1")


@pytest.mark.slow
def test_export_with_different_weights_is_not_kept(
    run: Path, tiny: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_version(monkeypatch, tiny)
    load_model = checkpoint.load_model

    def changed(*arguments: Any) -> Any:
        model = load_model(*arguments)
        model.dense.bias.assign_add(0.001 * tf.one_hot(7, 256))
        return model

    monkeypatch.setattr(checkpoint, "load_model", changed)
    # Carries begin with a fingerprint of the weights; as float32, the two may happen to be near each other.
    with pytest.raises(StageError, match=r"start\.(carry_bytes|logits) differs by .*; at most 1e-05 is allowed$"):
        export_saved_model(run, tmp_path / "served", version=1, force=False, limits=LIMITS)
    assert list((tmp_path / "served").iterdir()) == []


def test_export_with_different_answers_is_not_kept(
    run: Path, tiny: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stand in for the fresh process, since this process has already loaded the model.
    replies = [respond(tiny, request) for request in warm_up_requests(tiny)]
    answers = [{name: encode_output(value) for name, value in reply.items()} for reply in replies]
    names = [name for _ in range(7) for name in INPUTS]
    expected = [
        (name, {output: decode_output(value) for output, value in answer.items()})
        for name, answer in zip(names, answers, strict=True)
    ]
    saved_model.check_answers(answers, expected)
    start = expected[names.index("start")][1]
    start["logits"] = start["logits"] + np.float32(0.001)
    copy_version(monkeypatch, tiny)
    monkeypatch.setattr(saved_model, "prove", lambda served, folder: saved_model.check_answers(answers, expected))
    with pytest.raises(StageError, match=r"start\.logits differs by 0\.00.*; at most 1e-05 is allowed$"):
        export_saved_model(run, tmp_path / "served", version=1, force=False, limits=LIMITS)
    assert list((tmp_path / "served").iterdir()) == []
    with pytest.raises(StageError, match=r"has 55 warm-up requests, expected 56$"):
        saved_model.check_answers(answers[1:], expected)
    expected[0][1].pop("text")
    with pytest.raises(StageError, match=r"serving_default returns .*text.*, expected "):
        saved_model.check_answers(answers, expected)


def test_answers_are_compared_exactly_or_within_tolerance() -> None:
    text, carry = np.array([b"ab", b""], object), np.array([np.float32([0.5, -1.5]).tobytes()], object)
    five, six = (np.array([np.int32([number]).tobytes()], object) for number in (5, 6))
    compare = saved_model.compare
    compare("generate.text", text, np.array([b"ab", b""], object))
    compare("score.nats", np.float32([1, 1000]), np.float32([1.000009, 1000.009]))
    compare("start.carry_bytes", carry, np.array([np.float32([0.500004, -1.5]).tobytes()], object))
    for name, outputs, expected, message in (
        ("generate.text", text, np.array([b"ab", b"c"], object), r"generate.text differs: \[b'ab', b''\] instead of"),
        ("generate.n_chars", np.int32([3]), np.int32([4]), r"generate.n_chars differs: \[3\] instead of \[4\]$"),
        (
            "score.nats",
            np.float32([1]),
            np.float32([1.00002]),
            r"differs by 2e-05; at most 1e-05 is allowed$",
        ),
        ("score.nats", np.float32([np.nan]), np.float32([1]), "score.nats differs by nan"),
        ("start.logits", np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32), r"is \(1, 2\), .* \(1, 3\)$"),
        ("start.carry_bytes", five, six, r"start\.carry_bytes differs"),
    ):
        with pytest.raises(StageError, match=message):
            compare(name, outputs, expected)


def test_outputs_round_trip_through_json() -> None:
    for value in (np.array([b"", b"\xff\0"], object), np.float32([[1, np.nan]]), np.zeros((0, 3), np.int32)):
        decoded = decode_output(json.loads(json.dumps(encode_output(value))))
        assert (decoded.dtype, decoded.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(decoded, value)
