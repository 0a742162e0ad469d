import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tiny_run
from click.testing import CliRunner

from common.errors import StageError
from common.files import bytes_from_json
from pipeline.vocab import byte_vocab
from trainers import checkpoint
from trainers.__main__ import cli
from trainers.run import read_run
from trainers.sampling import batch
from trainers.sampling.rows import REQUEST_TYPES, Request
from trainers.sampling.sampler import Sampler, sample_run
from trainers.training.step import total_nats

STOP = ["--stop", "o", "--top-k", "20"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, saved_run: Callable[..., Path]) -> Path:
    return saved_run(tmp_path_factory.mktemp("batch"), train=tiny_run.TEXT, val=tiny_run.TEXT)


def rows_of(*arguments: object) -> list[dict[str, Any]]:
    """Run the command line, and parse the JSON lines that it prints."""
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def as_bytes(row: dict[str, Any], key: str) -> bytes:
    return bytes_from_json(row[key])


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"stop": b"o", "top_k": 20}, marks=pytest.mark.slow)], ids=["plain", "options"]
)
def test_each_row_matches_a_separate_call(run: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr(batch, "BATCH", 5)
    starts = [batch.Start(prompt, seed, 1.0) for prompt, seed in ((b"", 0), (b"the", 5), (b"dog.\n" * 9, 2**63 - 1))]
    rows = list(batch.sample_lines(run, starts, 2, 40, **options))  # in batches of 5 and 1
    assert [row["seed"] for row in rows] == [0, 1, 5, 6, 2**63 - 1, -(2**63)]
    sampler = Sampler(checkpoint.load_model(read_run(run)), read_run(run).vocab, frozen=True)
    generate = tf.function(sampler.generate, autograph=False)
    for row in rows:
        columns = (as_bytes(row, "prompt"), 40, 1.0, row["seed"], *((20, 1.0, 1.0, b"o") if options else ()))
        alone = generate(Request(*(tf.constant([x], kind) for x, kind in zip(columns, REQUEST_TYPES, strict=False))))
        assert as_bytes(row, "text") == alone.text_bytes.numpy()[0]
        assert row["finish_reason"] == alone.finish_reason.numpy()[0].decode()
        assert row["log_prob"] == pytest.approx(float(alone.log_prob[0]), rel=1e-6)
    assert {row["finish_reason"] for row in rows} == {"stop" if options else "length"}
    command = b"".join(sample_run(run, b"the", 40, 1.0, 6, **options))
    assert as_bytes(rows[3], "text") == command
    if not options:
        log_prob_BxP, _, _ = sampler.score(tf.constant([as_bytes(rows[0], "text")]))
        assert rows[0]["log_prob"] == pytest.approx(float(tf.reduce_sum(log_prob_BxP)), rel=1e-5)


def test_names_end_at_their_newline(tmp_path: Path, saved_run: Callable[..., Path]) -> None:
    text = b"Ann\nBob\nCy\nDee\n" * 12
    run = saved_run(tmp_path, byte_vocab(end="newline"), train=text, val=text)
    rows = rows_of("sample", run, "--count", 20, "--length", 30, "--temperature", 1)
    reasons = {row["finish_reason"] for row in rows}
    assert len(rows) == 20
    assert "stop" in reasons
    assert not any("\n" in str(row["text"]) for row in rows)


def test_output_used_as_prompts_reproduces_itself(run: Path, tmp_path: Path) -> None:
    out, prompts = tmp_path / "samples.jsonl", tmp_path / "prompts.txt"
    prompts.write_bytes(b"the dog\n\n\xff\xfe\n")  # an empty prompt, and one that is not UTF-8
    assert rows_of("sample", run, "--prompts", prompts, "--count", 2, "--length", 9, "--out", out, *STOP) == []
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [as_bytes(row, "prompt") for row in rows[::2]] == [b"the dog", b"", b"\xff\xfe"]
    assert rows_of("sample", run, "--prompts", out, "--length", 9, *STOP) == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "KeyError: 'prompt'"),
        ('{"prompt": 3}', "TypeError"),
        ('["prompt"]', "TypeError"),
        ('{"prompt": "", "seed": 1.5}', "seed 1.5"),
        ("the", "JSONDecodeError"),
    ],
)
def test_invalid_prompts_are_reported_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    (file := tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(StageError, match=r"prompts.jsonl:2: expected an object such as .*" + message):
        list(batch.read_prompts(file, 1))


def test_prompts_from_windows_are_read_as_meant(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (tmp_path / "b.JSONL").write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "two", "seed": 3}\r\n')
    assert list(batch.read_prompts(tmp_path / "a.txt", 1)) == [(b"one", 1), (b"two", 1)]
    assert list(batch.read_prompts(tmp_path / "b.JSONL", 1)) == [(b"one", 1), (b"two", 3)]


def test_a_file_of_any_name_is_scored(run: Path, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"bad\xff.txt")
    file.write_bytes(b"the dog\n")
    (row,) = rows_of("score", run, file)
    assert (row["file"], row["characters"]) == (f"{tmp_path}/bad\ufffd.txt", 8)


def test_a_folder_as_output_is_refused_before_the_texts_are_read(tmp_path: Path) -> None:
    rows = batch.score_lines(tmp_path / "no run", [tmp_path / "no text"], by_line=False)
    with pytest.raises(StageError, match=f"^{tmp_path} is a folder: pass the name of a file$"):
        batch.write_lines(rows, tmp_path)


def test_billions_of_texts_are_drawn_as_they_are_asked_for(run: Path) -> None:
    rows = batch.sample_lines(run, [batch.Start(b"", 1, 1.0)], 10**10, 2)
    assert [next(rows)["seed"] for _ in range(3)] == [1, 2, 3]


def test_a_long_text_is_scored_in_a_batch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "BATCH", 3)
    monkeypatch.setattr(batch, "BATCH_IDS", 20)
    texts = [np.zeros(length, np.uint8) for length in (2, 30, 0, 9, 1, 10, 2, 11)]
    assert list(batch._batches(texts)) == [[2, 4, 0], [6, 3], [5], [7], [1]]
    assert list(batch._batches([])) == []


@pytest.mark.parametrize("piece", [8, batch.PIECE])
def test_scores_match_the_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(batch, "PIECE", piece)
    lines = [b"the quick", b"", "caf\u00e9".encode(), tiny_run.TEXT.replace(b"\n", b" ")]
    (first := tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    (second := tmp_path / "b.txt").write_bytes(b"dog.\n")

    model = checkpoint.load_model(read_run(run))

    def nats(text: bytes) -> float:
        ids = np.frombuffer(b"\n" + text, np.uint8)[None]
        logits, _ = model(ids[:, :-1], model.initial_carry(1))
        return float(total_nats(logits, ids[:, 1:], np.array([len(text)])))

    by_line = rows_of("score", run, first, second, "--by", "line")
    assert [(row["line"], row["characters"]) for row in by_line] == [(1, 9), (2, 0), (3, 4), (4, 180), (1, 4)]
    expected = [nats(line) if line else 0 for line in (*lines, b"dog.")]
    assert [row["nats"] for row in by_line] == pytest.approx(expected, rel=1e-5)
    assert by_line[1]["bits_per_character"] is None
    assert by_line[2]["bits_per_character"] == pytest.approx(nats(lines[2]) / 4 / math.log(2), rel=1e-5)
    rows_of("score", run, first, second, "--out", out := tmp_path / "scores.jsonl")
    by_file = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["file"] for row in by_file] == [str(first), str(second)]
    assert by_file[0]["nats"] == pytest.approx(nats(b"\n".join(lines)), rel=1e-5)


def test_checkpoint_is_chosen_by_name(run: Path) -> None:
    opened = read_run(run)
    assert [checkpoint.choose(opened, name).step for name in ("best", "last", "40")] == [40, 40, 40]
    with pytest.raises(StageError, match=r"has no checkpoint 41: use best, last or a step \(40\)"):
        checkpoint.choose(opened, "41")


def test_prompt_and_prompts_exclude_each_other(run: Path) -> None:
    result = CliRunner().invoke(cli, ["sample", str(run), "--prompt", "a", "--prompts", "b"])
    assert result.exit_code == 2
    assert "pass --prompt or --prompts, not both" in result.output
