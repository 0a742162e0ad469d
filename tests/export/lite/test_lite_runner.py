import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import console
from common.errors import StageError, UsageError
from common.files import bytes_from_json
from export.__main__ import cli
from export.bundle import pack, unpack
from export.lite.runner import LiteModel, Sampling, choose, uniforms
from pipeline.vocab import char_vocab
from trainers import checkpoint
from trainers.run import read_run
from trainers.sampling import draw
from trainers.sampling.rows import REQUEST_TYPES, Request
from trainers.sampling.sampler import Sampler

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def path(devices: Path) -> Path:
    return devices / "float32.tflite"


@pytest.fixture(scope="module")
def names(documents_run: Path, lite_file: Callable[..., Path]) -> Path:
    return lite_file(documents_run)


@pytest.mark.parametrize("seed", [0, 1, -1, 123456789012345, -(1 << 63), (1 << 63) - 1])
def test_uniforms_match_draw(seed: int) -> None:
    columns = tf.constant([seed], tf.int64), tf.constant([0], tf.int64), tf.constant([1.0])
    expected_Nx1 = draw.uniforms(*columns, tf.constant(2500))
    np.testing.assert_array_equal(list(itertools.islice(uniforms(seed), 2500)), expected_Nx1[:, 0])


OPTIONS = [
    Sampling(1.0, 3),
    Sampling(0.7, -5),
    Sampling(0, 3),
    Sampling(1.5, 3, top_k=5),
    Sampling(1.0, 4, top_p=0.6),
    Sampling(0.9, 5, top_k=9, top_p=0.8, repetition_penalty=1.3),
    Sampling(1.0, 6, repetition_penalty=0.5),
]


def test_texts_match_the_checkpoint(run: Path, path: Path) -> None:
    prompts = [b"", b"def ", b"import spam\n\ndef eggs(x):\n"]
    rows = [
        (prompt, 200, s.temperature, s.seed, s.top_k, s.top_p, s.repetition_penalty, s.stop)
        for prompt in prompts
        for s in OPTIONS
    ]
    columns = (tf.constant(column, kind) for column, kind in zip(zip(*rows, strict=True), REQUEST_TYPES, strict=True))
    loaded_run, file = read_run(run), LiteModel(path)
    expected = (
        Sampler(checkpoint.load_model(loaded_run), loaded_run.vocab)
        .generate(Request(*columns))
        .text_bytes.numpy()
        .tolist()
    )
    assert [file.generate(prompt, 200, sampling) for prompt in prompts for sampling in OPTIONS] == expected
    assert len(set(expected[: len(OPTIONS)])) == len(OPTIONS)


def test_text_ends_at_stop_or_document_end(path: Path, names: Path) -> None:
    file = LiteModel(path)
    text = file.generate(b"a", 200, Sampling(1.0, 1))
    for stop in (text[60:61], text[60:63], text[60:80]):
        assert file.generate(b"a", 200, Sampling(1.0, 1, stop=stop)) == text[: text.index(stop)]
    assert file.generate(b"a", 200, Sampling(1.0, 1, stop=b"no such text")) == text
    assert b"".join(file.stream(b"a", 50, Sampling(1.0, 1, stop=b"xyz"))) == text[:50]
    assert file.generate(b"a", 0, Sampling(1.0, 1)) == b""
    with pytest.raises(StageError, match=r"^stop: at most 64 characters are read, got 65$"):
        file.generate(b"a", 1, Sampling(1.0, 1, stop=b"x" * 65))
    file = LiteModel(names)
    texts = [file.generate(b"", 300, Sampling(1.0, seed)) for seed in range(10)]
    assert not any(b"\n" in text for text in texts)


def test_stream_yields_one_character_at_a_time(path: Path, names: Path) -> None:
    assert [len(piece) for piece in LiteModel(path).stream(b"a", 30, Sampling(1.0, 7))] == [1] * 30 + [0]
    file = LiteModel(names)
    pieces = [piece for seed in range(20) for piece in file.stream(b"", 30, Sampling(1.5, seed))]
    assert {len(piece.decode()) for piece in pieces} == {0, 1}
    assert {len(piece) for piece in pieces} >= {0, 1, 2}


def test_seeds_are_deterministic_and_empty_prompt_equals_newline(path: Path) -> None:
    file = LiteModel(path)
    first, same, other = (file.generate(b"a", 30, Sampling(1.0, seed)) for seed in (1, 1, 2))
    assert first == same != other
    assert file.generate(b"", 30, Sampling(1.0, 1)) == file.generate(b"\n", 30, Sampling(1.0, 1))


def test_choose_applies_top_k_top_p_and_penalty() -> None:
    logits_V, last = np.array([0, 5, 0, -2], np.float32), 1 - 2.0**-23
    assert [choose(logits_V, Sampling(1.0, top_k=1), [], u) for u in (0.0, 0.5, last)] == [1, 1, 1]
    assert [choose(logits_V, Sampling(1.0, top_p=0.5), [], u) for u in (0.0, last)] == [1, 1]
    assert [choose(logits_V, Sampling(1.0), [], u) for u in (0.0, last)] == [0, 3]
    assert choose(-logits_V, Sampling(0, repetition_penalty=3.0), [3, 1], 0.0) == 3  # 2 / 3, above 0
    assert choose(-logits_V, Sampling(0, repetition_penalty=0.5), [3, 1], 0.0) == 3  # 4
    assert choose(logits_V, Sampling(0, repetition_penalty=1e30), [1, 0], 0.0) == 1  # 5e-30, above 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": float("nan")}, "temperature: a finite number, 0"),
        ({"temperature": float("inf")}, "temperature: a finite number, 0"),
        ({"temperature": -1.0}, "got -1.0"),
        ({"seed": 1 << 63}, "seed: an integer of 64 bits"),
        ({"top_k": -1}, "top_k: 0"),
        ({"top_p": 0.0}, "top_p: more than 0, at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: a finite number above 0"),
    ],
)
def test_invalid_sampling_settings_raise(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**values)


def test_prompt_outside_the_vocabulary_raises(path: Path) -> None:
    file = LiteModel(path)
    file.vocab = char_vocab(Counter("def "))
    for prompt, sampling in ((b"def Z", Sampling()), (b"def ", Sampling(stop=b"Z"))):
        with pytest.raises(StageError, match=r"the character 'Z' .* is not in the vocabulary"):
            file.generate(prompt, 5, sampling)


# Invalid files


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corrupted_file_is_rejected_before_loading(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    (tmp_path / "corrupted.tflite").write_bytes(content)
    with pytest.raises(StageError, match=r"corrupted\.tflite is corrupted or was not exported by this project"):
        LiteModel(tmp_path / "corrupted.tflite")


def test_mismatched_vocabulary_or_model_is_rejected(path: Path, tmp_path: Path) -> None:
    flatbuffer, about = unpack(path)
    fewer = {"unit": "char", "symbols": "abc"}

    def check_rejected(flatbuffer: bytes, vocab: object, message: str) -> None:
        (tmp_path / "other.tflite").write_bytes(pack(flatbuffer, {**about, "vocab": vocab}))
        with pytest.raises(StageError, match=message):
            LiteModel(tmp_path / "other.tflite")

    check_rejected(flatbuffer, fewer, r"other\.tflite has 256 logits for a vocabulary of 3 symbols: export it again")
    check_rejected(flatbuffer, {"unit": "word"}, r"other\.tflite cannot be run: 'symbols'")
    check_rejected(_doubling(), about["vocab"], r"other\.tflite cannot be run: .*step")
    check_rejected(b"TFL3 and no more", about["vocab"], r"other\.tflite cannot be run")


def test_command_rejects_invalid_files(
    path: Path, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, (flatbuffer, about), (other, others) = path.read_bytes(), unpack(path), unpack(names)
    archive = content[len(flatbuffer) :]
    cases = {
        "cut": (content[:-1000], "is corrupted or was not exported by this project"),
        "flipped": (content[:500] + bytes([content[500] ^ 1]) + content[501:], "(checksum mismatch)"),
        "archive": (flatbuffer + names.read_bytes()[len(other) :], "is corrupted or was not exported by this project"),
        "model": (other + archive, "is corrupted or was not exported by this project"),
        "vocabulary": (pack(flatbuffer, {**about, "vocab": others["vocab"]}), "has 256 logits for a vocabulary of"),
        "packed": (pack(other, about), f"has {len(others['vocab']['symbols'])} logits for a vocabulary of 256"),
    }
    for name, (invalid, message) in cases.items():
        (file := tmp_path / f"{name}.tflite").write_bytes(invalid)
        monkeypatch.setattr(sys, "argv", ["export", "run-lite", str(file), "--prompt", "def "])
        with pytest.raises(SystemExit) as exit:
            console.run(cli)
        output = capsys.readouterr()
        assert (exit.value.code, output.out) == (1, ""), name
        assert f"{name}.tflite" in output.err, name
        assert message in " ".join(output.err.split()), name


def test_command_writes_the_text_of_each_seed(path: Path, names: Path) -> None:
    def written(file: Path, *arguments: str) -> bytes:
        result = CliRunner().invoke(cli, ["run-lite", str(file), *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout_bytes

    arguments = ("--length", "20", "--temperature", "1.5")
    # The first model writes bytes, and most of its texts are not UTF-8; the second writes characters.
    for file, prompt in ((path, "def "), (names, "Zoë")):
        rows = written(file, *arguments, "--prompt", prompt, "--seed", "5", "--count", "3").splitlines()
        assert [json.loads(row)["seed"] for row in rows] == [5, 6, 7]
        for row in map(json.loads, rows):
            single = written(file, *arguments, "--prompt", prompt, "--seed", str(row["seed"]))
            assert bytes_from_json(row["prompt"]) + bytes_from_json(row["text"]) + b"\n" == single


def _doubling() -> bytes:
    """Return a .tflite that is not a language model."""
    double = tf.function(lambda x: 2 * x, autograph=False).get_concrete_function(tf.TensorSpec([4], tf.float32))
    return tf.lite.TFLiteConverter.from_concrete_functions([double]).convert()


def test_runner_does_not_import_tensorflow(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from export.lite.runner import LiteModel, Sampling\n"
        f"text = LiteModel(Path({str(path)!r})).generate(b'def ', 60, Sampling(0.8, 3, top_k=9))\n"
        "print(text.hex(), *(name for name in ('tensorflow', 'keras', 'grpc') if name in sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.split() == [LiteModel(path).generate(b"def ", 60, Sampling(0.8, 3, top_k=9)).hex()]


def test_probe_reports_speed_and_memory(path: Path) -> None:
    command = [sys.executable, "-m", "export.lite.probe", str(path)]
    figures = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert set(figures) == {"us_a_step", "peak_bytes"}
    assert 1 < figures["us_a_step"] < 1e5
    assert path.stat().st_size < figures["peak_bytes"] < 1e9
