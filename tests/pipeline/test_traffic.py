"""Recorded requests compared with the data set that a model was trained on."""

import json
from collections import Counter
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from test_validate import ENGLISH, GREEK, divergence
from tiny_data import make_data

from common.console import quiet
from common.errors import StageError, UsageError
from pipeline.config import ValidateSettings
from pipeline.report import counts_of

with quiet(withhold=()):
    from pipeline.traffic import compare_requests, count
    from pipeline.validate import validate

SETTINGS = ValidateSettings()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validated data set of English."""
    folder = tmp_path_factory.mktemp("traffic") / "book"
    make_data(folder, 10_000, train=ENGLISH)
    validate(folder, SETTINGS)
    return folder


def lines(path: Path, *calls: list[bytes]) -> str:
    """Write a log like `export front --record`."""
    rows = [{"texts": [text.decode(errors="surrogateescape") for text in texts]} for texts in calls]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def records(path: Path, **inputs: list[bytes]) -> str:
    """Write a log like TF Serving, of one call with these inputs."""
    log = PredictionLog()
    for name, texts in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(texts, tf.string))
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(log.SerializeToString())
    return str(path)


def test_requests_like_train_fit(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = lines(tmp_path / "prompts.jsonl", [b"It was the best", b""], [b"the worst of times"])
    compare_requests(data, log, SETTINGS)
    distance = divergence(b"It was the bestthe worst of times", ENGLISH)
    out = " ".join(capsys.readouterr().out.split())
    assert out == (
        f"33 characters of requests fit {data}: {distance:.4f} bits (Jensen-Shannon) from train, the limit is 0.1"
    )


def test_other_requests_are_reported_by_character(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = lines(tmp_path / "prompts.jsonl", [GREEK])
    with pytest.raises(StageError, match=r"differ from .*book \(requests\.char\.unknown, requests\.char\.skew\)"):
        compare_requests(data, log, SETTINGS)
    err = " ".join(capsys.readouterr().err.split())
    assert f"{divergence(GREEK, ENGLISH):.4f} bits (Jensen-Shannon) from the train of book, the limit is 0.1" in err
    assert "characters missing from the schema" in err
    compare_requests(data, log, ValidateSettings(waive=["requests.char.skew", "requests.char.unknown"]))


def test_a_schema_with_a_skew_comparator_of_its_own_replaces_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "book"
    make_data(folder, 10_000, train=ENGLISH)
    validate(folder, SETTINGS)
    (tmp_path / "edited").write_text(
        (folder / "validation/schema.pbtxt")
        .read_text()
        .replace('name: "char"', 'name: "char" skew_comparator { infinity_norm { threshold: 1.0 } }', 1)
    )
    validate(folder, SETTINGS, schema=tmp_path / "edited")
    capsys.readouterr()
    compare_requests(folder, lines(tmp_path / "prompts.jsonl", [b"It was the best"]), SETTINGS)
    assert "".join(capsys.readouterr().out.split()) == f"15charactersofrequestsfit{folder}"


def test_both_kinds_of_log_give_the_same_counts(tmp_path: Path) -> None:
    texts = [b"It was", "Ἄνδρα".encode(), b"\xff\x00", b""]
    by_line = count(lines(tmp_path / "a.jsonl", texts[:2], texts[2:]))
    served = records(tmp_path / "a.log", prompt=texts[:2], text=texts[2:], stop=[b"not counted"], length=[b"3"])
    by_record = count(served)
    assert counts_of(by_line) == counts_of(by_record)
    assert counts_of(by_line) == Counter(
        {**Counter("Itwas"), "<space>": 1, **Counter("Ἄνδρα"), "<0xff>": 1, "\\x00": 1}
    )


def test_lines_without_texts_are_skipped_and_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.JSONL"
    log.write_bytes(b'{"texts": ["ab"]}\n{"texts": ["\\ud800"]}\n{"texts": ["wor\n{"texts": ["c"]}\n')
    assert counts_of(count(str(log))) == Counter("abc")
    note = f'{log}: lines without texts are skipped, 2 of them; the first: {{"texts": ["\\ud800"]}}\n'
    assert capsys.readouterr().err == note


@pytest.mark.slow
def test_a_pattern_reads_several_logs(tmp_path: Path) -> None:
    for index in range(3):
        lines(tmp_path / f"{index}.jsonl", [b"ab"])
    assert count(str(tmp_path / "*.jsonl")).datasets[0].num_examples == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"texts": [""]}\n', "contain no text"),
        pytest.param(b"not JSON\n", "contain no text", marks=pytest.mark.slow),
        (b'{"prompts": ["a"]}\n', "contain no text"),
        pytest.param(b"[" * 100_000, "contain no text", marks=pytest.mark.slow),
    ],
)
def test_an_invalid_log_is_a_one_line_error(data: Path, tmp_path: Path, content: bytes, message: str) -> None:
    log = tmp_path / "a.jsonl"
    log.write_bytes(content)
    with pytest.raises(StageError) as error:
        compare_requests(data, str(log), SETTINGS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_records_of_another_kind_are_rejected(tmp_path: Path) -> None:
    with tf.io.TFRecordWriter(str(tmp_path / "a.log")) as writer:
        writer.write(b"\xff" * 20)
    (tmp_path / "text.log").write_text("plain text, longer than the header of a record")
    for name in ("a.log", "text.log"):
        with pytest.raises(StageError, match=f"{name} is corrupted or not TFRecords of PredictionLog"):
            count(str(tmp_path / name))


def test_missing_log_and_unvalidated_data_set_raise(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file matches"):
        compare_requests(data, str(tmp_path / "none"), SETTINGS)
    make_data(tmp_path / "raw", 10_000, train=ENGLISH, val=ENGLISH, test=ENGLISH)
    with pytest.raises(StageError, match="raw has no validated statistics: run python -m pipeline validate"):
        compare_requests(tmp_path / "raw", lines(tmp_path / "a.jsonl", [b"a"]), SETTINGS)
