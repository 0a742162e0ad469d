import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from common.errors import StageError
from export.serve import saved_model
from export.serve.labels import read
from export.serve.saved_model import export_saved_model
from export.serve.session import answer, decode_output, encode_output
from export.serve.signatures import DTYPES, INPUTS, Served
from trainers import checkpoint
from trainers.run import read_run
from trainers.sampling.rows import Limits
from trainers.sampling.sampler import Sampler

LIMITS = Limits(rows=5)


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base path of a model, exported as the command does it, its proof in a fresh process included."""
    out = tmp_path_factory.mktemp("served") / "tiny"
    export_saved_model(run, out, version=1, force=False, limits=LIMITS)
    return out


class Files:
    """A version's files in a Session, and what the checkpoint itself answers."""

    def __init__(self, version: Path, run: Path):
        opened = read_run(run)
        self.reference = Served(Sampler(checkpoint.load_model(opened), opened.vocab, LIMITS), "")
        with tf.Graph().as_default() as graph:
            self.session = tf.compat.v1.Session(graph=graph)
            loaded = tf.compat.v1.saved_model.load(self.session, ["serve"], str(version))
        self.signatures = loaded.signature_def

    def ask(self, signature: str, inputs: dict[str, list[Any]]) -> dict[str, Any]:
        return answer(self.session, self.signatures[signature], inputs)

    def check(self, signature: str, inputs: dict[str, list[Any]]) -> dict[str, Any]:
        """Asks the files, and compares with the checkpoint as the export does."""
        got, expected = self.ask(signature, inputs), self.reference.answer(signature, inputs)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            saved_model.compare(f"{signature}.{name}", got[name], value)
        return got


@pytest.fixture(scope="module")
def files(served: Path, run: Path) -> Files:
    return Files(served / "1", run)


def test_the_files_answer_as_the_checkpoint_does(files: Files) -> None:
    for rows in (1, 5):  # other requests, and other sizes, than the export's own proof
        inputs = {
            "prompt": [b"def ", b"", "é".encode(), b"x" * 50, b"return"][:rows],
            "length": [30, 3, 0, 9, 100][:rows],
            "temperature": [1.0, 0.5, 1.0, 0.0, 2.0][:rows],
            "seed": [1, -1, 0, 5, 2**50][:rows],
        }
        got = files.check("serving_default", inputs)
        assert [len(text) for text in got["text_bytes"]] == inputs["length"]
        drawn = [text.decode("utf-8", "replace") for text in got["text_bytes"]]
        assert [text.decode("utf-8") for text in got["text"]] == drawn
    assert files.check("score", {"text": [b"def spam(", b"eggs"]})["n_chars"].tolist() == [9, 4]


def save(run: Path, folder: Path) -> Served:
    """The files alone, without the export's proof."""
    opened = read_run(run)
    served = Served(Sampler(checkpoint.load_model(opened), opened.vocab, LIMITS, frozen=True), "")
    tf.saved_model.save(served, str(folder), signatures=served.functions)
    return served


def test_every_cell_is_served(other_run: Path, tmp_path: Path) -> None:
    served = save(other_run, tmp_path)
    saved_model.check_ops(tmp_path)
    asked = dict(saved_model.requests(served))  # of each signature the largest
    assert asked.keys() == INPUTS.keys()
    files = Files(tmp_path, other_run)
    for signature, inputs in asked.items():
        files.check(signature, inputs)


def test_characters_and_documents_are_served(documents_run: Path, tmp_path: Path) -> None:
    save(documents_run, tmp_path)
    prompts = [b"", b"Zo", "Анна\nĐ".encode(), b"q?"]  # two documents, and what is not known
    inputs = {"prompt": prompts, "length": [30] * 4, "temperature": [1.0, 0.0, 2.0, 0.5], "seed": [1, 2, 3, 4]}
    got = Files(tmp_path, documents_run).check("serving_default", inputs)
    assert all(b"\n" not in text and len(text.decode()) <= 30 for text in got["text_bytes"])


def test_every_input_and_output_has_a_row_a_request(served: Path) -> None:
    loaded = tf.saved_model.load(str(served / "1"))
    assert {name: set(f.structured_input_signature[1]) for name, f in loaded.signatures.items()} == {
        name: set(inputs) for name, inputs in INPUTS.items()
    }
    for function in loaded.signatures.values():
        for name, spec in function.structured_input_signature[1].items():
            assert (spec.shape.as_list(), spec.dtype) == ([None], DTYPES[name])
        assert {value.shape.as_list()[0] for value in function.structured_outputs.values()} == {None}


@pytest.mark.parametrize("foreign", ["XlaLaunch", "CudnnRNNV3", "PyFunc", "TRTEngineOp", "SomebodysOwn"])
def test_a_graph_that_a_stock_server_does_not_run_is_refused(served: Path, tmp_path: Path, foreign: str) -> None:
    written = saved_model_pb2.SavedModel.FromString((served / "1" / "saved_model.pb").read_bytes())
    assert sum(len(function.node_def) for function in written.meta_graphs[0].graph_def.library.function) > 1000
    written.meta_graphs[0].graph_def.library.function[0].node_def.add(name="foreign", op=foreign)
    (tmp_path / "saved_model.pb").write_bytes(written.SerializeToString())
    with pytest.raises(StageError, match=rf"ops that a stock server is not known to run: {foreign}$"):
        saved_model.check_ops(tmp_path)
    written.meta_graphs[0].graph_def.library.function[0].node_def.pop()
    written.meta_graphs[0].graph_def.library.function[0].attr["_XlaMustCompile"].b = True
    (tmp_path / "saved_model.pb").write_bytes(written.SerializeToString())
    with pytest.raises(StageError, match=r"ops that a stock server is not known to run: a function for XLA$"):
        saved_model.check_ops(tmp_path)


def test_a_model_that_was_made_beside_a_gpu_is_the_same_graph(run: Path, tmp_path: Path) -> None:
    """Where a GPU is visible the model runs through cuDNN; what is exported must not. There is none here: the model is
    told that there were."""
    graphs = []
    for gpu in (False, True):
        opened = read_run(run)
        model = checkpoint.load_model(opened)
        model.use_stock_layers = gpu
        served = Served(Sampler(model, opened.vocab, LIMITS, frozen=True), "")
        tf.saved_model.save(served, str(tmp_path / str(gpu)), signatures=served.functions)
        read = saved_model_pb2.SavedModel.FromString((tmp_path / str(gpu) / "saved_model.pb").read_bytes())
        functions = read.meta_graphs[0].graph_def.library.function
        graphs.append(sorted(sorted(node.op for node in function.node_def) for function in functions))
    assert graphs[0] == graphs[1]


def test_warm_up_requests_are_what_a_server_replays(served: Path, files: Files) -> None:
    records = tf.data.TFRecordDataset(str(served / "1" / saved_model.WARM_UP))
    replayed = [prediction_log_pb2.PredictionLog.FromString(r.numpy()).predict_log.request for r in records]
    sizes = [1, 2, 4, 5]  # of batches, up to the limit
    rows = [len(tf.make_ndarray(next(iter(r.inputs.values())))) for r in replayed]
    assert [(r.model_spec.name, r.model_spec.signature_name) for r in replayed] == [("tiny", n) for n in INPUTS] * 4
    assert rows == [size for size in sizes for _ in INPUTS]
    for request, count in zip(replayed[-2 * len(INPUTS) :], rows[-2 * len(INPUTS) :], strict=True):
        inputs = {name: tf.make_ndarray(value).tolist() for name, value in request.inputs.items()}
        got = files.ask(request.model_spec.signature_name, inputs)
        assert {len(value) for value in got.values()} == {count}
        for name in {"error", "finish_reason"} & got.keys():
            assert not [row for row in got[name] if row.startswith(b"error")]


def test_the_same_model_is_not_made_again_and_another_one_is_the_next_version(
    run: Path,
    served: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saved_model, "prove", lambda served, folder: None)  # it takes a process and seconds
    out = tmp_path / "tiny"
    shutil.copytree(served, out)
    before = (out / "1" / "saved_model.pb").stat().st_mtime_ns
    for version in (None, 1):
        export_saved_model(run, out, version, force=False, limits=LIMITS)
        assert "is already made from" in capsys.readouterr().err
    with pytest.raises(StageError, match=r"1 is full: another model lies there; give --version 2 or --force$"):
        export_saved_model(run, out, version=1, force=False)  # with other limits
    assert (out / "1" / "saved_model.pb").stat().st_mtime_ns == before
    export_saved_model(run, out, version=None, force=False, limits=Limits(rows=1))
    assert sorted(path.name for path in out.iterdir() if path.name.isdigit()) == ["1", "2"]
    assert read(out).labels == {"stable": 1, "canary": 2}


def test_a_model_that_answers_otherwise_is_not_put_in_place(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tampered(Served):
        def __init__(self, sampler: Sampler, info: str):
            super().__init__(sampler, info)
            if sampler.weights:
                sampler.weights.dense_bias_V.assign_add(0.001 * tf.one_hot(7, 256))

    monkeypatch.setattr(saved_model, "Served", Tampered)
    with pytest.raises(StageError, match=r"start\.logits differs by 0\.000.*; at most 1e-05 is allowed$"):
        export_saved_model(run, tmp_path / "served", version=1, force=False, limits=Limits(rows=1))
    assert list((tmp_path / "served").iterdir()) == []


def test_answers_are_compared_to_the_last_text_and_the_fifth_digit() -> None:
    text, carry = np.array([b"ab", b""], object), np.array([np.float32([0.5, -1.5]).tobytes()], object)
    five, six = (np.array([np.int32([number]).tobytes()], object) for number in (5, 6))
    compare = saved_model.compare
    compare("generate.text", text, np.array([b"ab", b""], object))
    compare("score.nats", np.float32([1, 1000]), np.float32([1.000009, 1000.009]))
    compare("start.carry_bytes", carry, np.array([np.float32([0.500004, -1.5]).tobytes()], object))
    for what, got, expected, message in (
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
            compare(what, got, expected)


def test_outputs_survive_json() -> None:
    for value in (np.array([b"", b"\xff\0"], object), np.float32([[1, np.nan]]), np.zeros((0, 3), np.int32)):
        back = decode_output(json.loads(json.dumps(encode_output(value))))
        assert (back.dtype, back.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(back, value)
