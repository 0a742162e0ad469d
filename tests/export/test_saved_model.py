import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from common.errors import StageError
from export import saved_model
from export.saved_model import Served, export_saved_model, prove
from export.serving import FACTS, TEMPLATES, read
from export.session import answer
from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.generate import Sampler


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base path of a model, exported as the command does it, its proof in a fresh process included."""
    out = tmp_path_factory.mktemp("served") / "tiny"
    export_saved_model(run, out, version=1, force=False)
    return out


def ask(version: Path, signature: str, inputs: dict[str, list[Any]]) -> dict[str, Any]:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
        return answer(session, loaded.signature_def[signature], inputs)


def test_the_files_answer_with_the_checkpoints_text_and_logits(run: Path, served: Path) -> None:
    opened = checkpoint.read_run(run)
    sampler = Sampler(checkpoint.load_model(opened), opened.vocab)
    for rows in (1, 5):  # other batch sizes than the export's own proof
        inputs = {
            "prompt": [b"def ", b"", "é".encode(), b"x" * 50, b"return"][:rows],
            "length": [30, 3, 0, 9, 100][:rows],
            "temperature": [1.0, 0.5, 1.0, 0.0, 2.0][:rows],
            "seed": [1, -1, 0, 5, 2**50][:rows],
        }
        got = ask(served / "1", "serving_default", inputs)
        expected = sampler.generate(*saved_model.tensors(inputs).values()).numpy().tolist()
        assert got["text_bytes"].tolist() == expected
        assert [text.decode("utf-8") for text in got["text"]] == [t.decode("utf-8", "replace") for t in expected]
    texts = [b"def spam(", b"eggs"]
    got = ask(served / "1", "logits", {"text": texts})
    assert got["length"].tolist() == [9, 4]
    for row, text in zip(got["logits"], texts, strict=True):
        logits, _ = sampler.model(np.frombuffer(text, np.uint8)[None], sampler.model.initial_carry(1))
        np.testing.assert_allclose(row[: len(text)], logits[0], atol=1e-4)


def test_every_cell_is_served(other_run: Path, tmp_path: Path) -> None:
    opened = checkpoint.read_run(other_run)
    sampler = Sampler(checkpoint.load_model(opened), opened.vocab)
    served, asked = Served(sampler), saved_model.requests(opened.vocab)
    tf.saved_model.save(served, str(tmp_path), signatures=served.functions)  # without the proof's process
    for signature, inputs in asked.items():
        got, expected = ask(tmp_path, signature, inputs), served.answer(signature, inputs)
        if signature == "logits":
            np.testing.assert_allclose(got["logits"], expected["logits"], atol=1e-5)
        else:
            assert got["text_bytes"].tolist() == expected["text_bytes"].tolist()


def test_characters_and_documents_are_served(documents_run: Path, tmp_path: Path) -> None:
    export_saved_model(documents_run, tmp_path / "names", version=1, force=False)
    opened = checkpoint.read_run(documents_run)
    sampler = Sampler(checkpoint.load_model(opened), opened.vocab)
    prompts = [b"", b"Zo", "Анна\nĐ".encode(), b"q?"]  # two documents, and what is not known
    inputs = {"prompt": prompts, "length": [30] * 4, "temperature": [1.0, 0.0, 2.0, 0.5], "seed": [1, 2, 3, 4]}
    got = ask(tmp_path / "names" / "1", "serving_default", inputs)
    expected = sampler.generate(*saved_model.tensors(inputs).values()).numpy().tolist()
    assert got["text_bytes"].tolist() == expected
    assert all(b"\n" not in text and len(text.decode()) <= 30 for text in expected)
    got = ask(tmp_path / "names" / "1", "logits", {"text": prompts})
    assert got["length"].tolist() == [1, 3, 7, 3]  # the end of a document, and the characters


def test_every_input_and_output_has_a_row_a_request(served: Path) -> None:
    loaded = tf.saved_model.load(str(served / "1"))
    rank = {}
    for name, function in loaded.signatures.items():
        rank |= {f"{name}.{key}": spec.shape.as_list() for key, spec in function.structured_input_signature[1].items()}
        rank |= {f"{name}.{key}": value.shape.as_list()[:1] for key, value in function.structured_outputs.items()}
    assert rank == {
        **{
            f"serving_default.{key}": [None]
            for key in ("prompt", "length", "temperature", "seed", "text", "text_bytes")
        },
        **{f"logits.{key}": [None] for key in ("text", "logits", "length")},
    }


def test_the_graph_holds_nothing_that_a_stock_server_lacks(served: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    graph = (
        saved_model_pb2.SavedModel.FromString((served / "1" / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    )
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    ops = {node.op for node in nodes}
    assert len(nodes) > 100
    assert not {op for op in ops if op.startswith(("Xla", "Cudnn", "PyFunc", "EagerPyFunc", "Collective"))}
    attributes = [node.attr for node in nodes] + [function.attr for function in graph.library.function]
    assert not any(attribute["_XlaMustCompile"].b for attribute in attributes if "_XlaMustCompile" in attribute)
    assert {node.device for node in nodes} <= {"", "/device:CPU:*", "/device:CPU:0"}


def test_warm_up_requests_are_what_a_server_replays(served: Path) -> None:
    records = tf.data.TFRecordDataset(str(served / "1" / "assets.extra" / "tf_serving_warmup_requests"))
    replayed = [prediction_log_pb2.PredictionLog.FromString(r.numpy()).predict_log.request for r in records]
    assert [(r.model_spec.name, r.model_spec.signature_name) for r in replayed] == [
        ("tiny", n) for n in ("serving_default", "logits")
    ]
    for request in replayed:
        inputs = {name: tf.make_ndarray(value).tolist() for name, value in request.inputs.items()}
        got = ask(served / "1", request.model_spec.signature_name, inputs)
        assert {len(value) for value in got.values()} == {len(next(iter(inputs.values())))}


def test_the_package_lies_beside_the_version(served: Path) -> None:
    files = {path.name for path in served.iterdir() if path.is_file() and path.name != ".lock"}
    assert files == {"models.config", *TEMPLATES}
    assert (served / "1" / FACTS).is_file()
    labels = read(served)
    assert labels is not None
    assert labels.labels == {"stable": 1}


def test_a_full_version_folder_is_refused_and_the_same_model_is_not_made_again(
    run: Path, served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (served / "1" / "saved_model.pb").stat().st_mtime_ns
    export_saved_model(run, served, version=1, force=False)
    assert "is already made from" in capsys.readouterr().err
    about = served / "1" / "assets.extra" / "export.json"
    whole = about.read_text()
    about.write_text(json.dumps({**json.loads(whole), "step": 1}))
    with pytest.raises(StageError, match=r"1 is full: another model lies there; give --version 2 or --force$"):
        export_saved_model(run, served, version=1, force=False)
    about.write_text(whole)
    assert (served / "1" / "saved_model.pb").stat().st_mtime_ns == before


def test_a_model_that_answers_otherwise_is_not_put_in_place(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_requests(path: Path, model: str, vocab: Vocab) -> None:
        path.parent.mkdir()
        variables = path.parent.parent / "variables" / "variables.data-00000-of-00001"
        data = bytearray(variables.read_bytes())
        data[:400] = np.full(100, 0.5, np.float32).tobytes()  # another model than the one in memory
        variables.write_bytes(data)

    monkeypatch.setattr(saved_model, "write_warmup", other_requests)
    with pytest.raises(StageError, match="the written SavedModel"):
        export_saved_model(run, tmp_path / "served", version=1, force=False)
    assert list((tmp_path / "served").iterdir()) == []


def test_the_proof_compares_texts_and_logits(run: Path, served: Path) -> None:
    opened = checkpoint.read_run(run)
    model = checkpoint.load_model(opened)
    prove(Served(Sampler(model, opened.vocab)), served / "1")
    model.dense.bias.assign_add(0.001 * tf.one_hot(7, 256))  # texts stay, logits do not
    with pytest.raises(StageError, match=r"logits differ by 0\.001"):
        prove(Served(Sampler(model, opened.vocab)), served / "1")
    model.dense.bias.assign_add(100 * tf.one_hot(7, 256))
    with pytest.raises(StageError, match=r"the written SavedModel wrote \['"):
        prove(Served(Sampler(model, opened.vocab)), served / "1")
