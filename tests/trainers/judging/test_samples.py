import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny_run

from common import console
from common.errors import StageError, UsageError
from common.files import write_record
from common.settings import make
from pipeline.vocab import Vocab, byte_vocab
from trainers import checkpoint
from trainers.judging import samples
from trainers.judging.ngram_writer import NGramWriter
from trainers.judging.samples import Sweep, Texts, share_interval, sweep_run, variety
from trainers.model.char_rnn import CharRNN
from trainers.run import read_run
from trainers.sampling.rows import REQUEST_TYPES, Limits, Request
from trainers.sampling.sampler import Sampler, sample_run
from trainers.training.step import total_nats


def test_variety_matches_hand_counts() -> None:
    result = variety(["a b a b a b", "a b c"], {"a", "c"})
    # Word trigrams: aba bab aba bab, abc. Neither text has 20 characters.
    assert {key: result[key] for key in ("distinct_runs", "repeated", "words_known")} == {
        "distinct_runs": 3 / 5,
        "repeated": 0.0,
        "words_known": 5 / 9,
    }
    assert variety(["x" * 30, "x" * 20], set())["repeated"] == 10 / 12
    assert variety(["a" * 5000], set())["compressed"] < 0.01 < 1 < variety(["qz"], set())["compressed"]


def test_certain_text_has_zero_bits() -> None:
    (row,) = samples._measure([Texts([b"aa"], 2, log_prob=0.0)], "text", b"aaa")
    assert str(row["bits"]) == "0.0"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperatures": ()}, r"judge: temperatures must be one or more numbers from 0 to 10, got \(\)"),
        ({"temperatures": (0.5, 11.0)}, "from 0 to 10"),
        ({"kind": "prose"}, "kind must be auto, c, latex, wiki, python, play, names or text, got prose"),
        ({"length": 0}, "'length': input should be greater than 0, got 0"),
    ],
)
def test_invalid_sweeps_are_rejected(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(Sweep, values, "judge")


def total_loss(folder: Path, texts: list[bytes]) -> float:
    """Compute the total loss of byte texts, each after a newline, with the model directly."""
    model, nats = checkpoint.load_model(read_run(folder)), 0.0
    for text in texts:
        ids = np.frombuffer(b"\n" + text, np.uint8)[None]
        logits, _ = model(ids[:, :-1], model.initial_carry(1))
        nats += float(total_nats(logits, ids[:, 1:], np.array([len(text)])))
    return nats


def sample_texts(folder: Path, length: int, temperature: float, seeds: Iterable[int]) -> list[str]:
    """Sample texts from a run, one per call."""
    run = read_run(folder)
    generate = tf.function(Sampler(checkpoint.load_model(run), run.vocab).generate, autograph=False)
    texts = []
    for seed in seeds:
        columns = zip((b"", length, temperature, seed), REQUEST_TYPES[:4], strict=True)
        generated = generate(Request(*(tf.constant([value], dtype) for value, dtype in columns)))
        texts.append(generated.text_bytes.numpy()[0].decode(errors="replace"))
    return texts


def test_sweep_samples_and_scores_texts(
    tmp_path: Path, saved_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prose = saved_run(tmp_path, train=tiny_run.TEXT, val=tiny_run.TEXT, test=tiny_run.TEXT[:100])
    sweep = Sweep(temperatures=(0.5, 1.5), texts=3, length=30, seed=7)
    sweep_run(prose, None, sweep, force=False)
    assert json.loads((prose / "samples.json").read_text())["ngram"] == []
    capsys.readouterr()
    evaluation = {"inputs": {"weights_sha256": checkpoint.weights_sha256(checkpoint.best(read_run(prose)))}}
    write_record(prose / "evaluation-test.json", evaluation | {"baselines": {"ngram": {"order": 3}}})
    sweep_run(prose, None, sweep, force=False)
    result = json.loads((prose / "samples.json").read_text())
    assert [(row["temperature"], row["texts"], row["targets"]) for row in result["rows"]] == [
        (0.5, 3, 90),
        (1.5, 3, 90),
    ]
    texts = sample_texts(prose, 30, 0.5, (7, 8, 9))
    assert result["rows"][0]["text"] == "\n".join(texts)
    assert b"".join(sample_run(prose, b"", 30, 0.5, 8)).decode(errors="replace") == texts[1]
    # Held-out text is scored like samples, from the state after a newline.
    real, nats = result["held_out"], total_loss(prose, [tiny_run.TEXT[k : k + 30] for k in range(0, 90, 30)])
    assert (real["split"], real["texts"], real["targets"]) == ("test", 3, 90)
    assert real["bits"] == pytest.approx(nats / 90 / math.log(2), rel=1e-5)
    assert (real["words_known"], real["copied"]) == (1.0, {"longest": 30, "copied_20": 1.0})
    assert (result["kind"], result["searched"]) == ("text", len(tiny_run.TEXT))
    before = (prose / "samples.json").stat().st_mtime_ns
    (prose / "report.html").unlink()  # as after a kill between the two files
    sweep_run(prose, None, sweep, force=False)
    assert (prose / "samples.json").stat().st_mtime_ns == before
    assert (prose / "report.html").exists()
    out, err = capsys.readouterr()
    assert "samples.json is up to date with checkpoint" in err
    assert out.splitlines()[0] == f"{prose} at step 40, 3 texts per temperature"
    assert [line.split()[0] for line in out.splitlines()[-4:]] == ["0.5", "1.5", "n-gram", "test"]
    (counted,) = result["ngram"]
    assert (counted["order"], counted["texts"], counted["targets"]) == (3, 3, 90)
    ids = np.frombuffer(tiny_run.TEXT, np.uint8)
    written = [NGramWriter(ids, 256, 3).write([10], 30, seed) for seed in (7, 8, 9)]
    assert counted["text"] == "\n".join(bytes(text).decode(errors="replace") for text in written)


def test_names_are_judged_as_names(
    tmp_path: Path, saved_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text = b"Ann\nBob\nCy\nDee\n" * 12
    run = saved_run(tmp_path, byte_vocab(end="newline"), train=text, val=b"Ann\nEve\nAl\n" * 4)
    sweep_run(run, None, Sweep(temperatures=(1.0,), texts=5, length=12), force=False)
    result = json.loads((run / "samples.json").read_text())
    assert result["kind"] == "names"
    real = result["held_out"]
    assert (real["split"], real["text"]) == ("val", "Ann\nEve\nAl\nAnn\nEve")
    assert real["coherence"] == {name: {"share": 3 / 5, "good": 3, "of": 5} for name in ("new", "distinct")}
    # The newlines that end names count as targets, in held-out text and samples, as in evaluate.
    assert real["targets"] == 19
    nats = total_loss(run, [b"Ann\n", b"Eve\n", b"Al\n", b"Ann\n", b"Eve\n"])
    assert real["bits"] == pytest.approx(nats / 19 / math.log(2), rel=1e-5)
    (row,) = result["rows"]
    texts = sample_texts(run, 12, 1.0, range(1, 6))
    assert row["text"] == "\n".join(texts)
    assert row["targets"] == sum(min(len(name) + 1, 12) for name in texts)
    new = [name not in ("Ann", "Bob", "Cy", "Dee") for name in texts if name]
    assert row["coherence"]["new"] == {"share": sum(new) / len(new), "good": sum(new), "of": len(new)}
    low, high = share_interval(sum(new) / len(new), len(new))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"temperature 1: {sum(new) / len(new):.1%} new ({low:.1%} to {high:.1%})"
    assert lines[-2].split() == ["val", "0.600", "(3", "of", "5)", "0.600", "(3", "of", "5)"]


@pytest.mark.slow
def test_new_names_are_counted_by_line(
    tmp_path: Path, saved_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved_run(tmp_path, train=b"Ann\nBob\nCy\nDee\n" * 12, val=b"Ann\nEve\nAl\n" * 4)
    sweep_run(run, None, Sweep(temperatures=(1.0,), texts=2, length=200, kind="names"), force=False)
    new = json.loads((run / "samples.json").read_text())["rows"][0]["coherence"]["new"]
    assert new["of"] > 4
    low, high = share_interval(new["share"], new["of"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(f" new ({low:.1%} to {high:.1%})")


@pytest.mark.slow
def test_empty_names_have_no_coherence(
    tmp_path: Path, saved_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved_run(tmp_path, byte_vocab(end="newline"), train=b"\n" * 200, val=b"\n" * 60)
    sweep_run(run, None, Sweep(temperatures=(0.0,), texts=3, length=12), force=False)
    (row,) = json.loads((run / "samples.json").read_text())["rows"]
    assert (row["text"], row["coherence"], row["targets"]) == ("\n\n", {}, 3)
    assert row["bits"] == pytest.approx(total_loss(run, [b"\n"]) / math.log(2), rel=1e-5)
    assert (run / "report.html").is_file()
    assert "new" not in capsys.readouterr().out


@pytest.mark.slow
def test_invalid_utf_8_is_judged_as_bytes(tmp_path: Path, saved_run: Callable[..., Path]) -> None:
    text = b"caf\xe9 and \xc3\xa9t\xc3\xa9: \xff\xfe\n" * 12
    run = saved_run(tmp_path, train=text, val=text)
    sweep_run(run, None, Sweep(temperatures=(1.0,), texts=4, length=30), force=False)
    real = json.loads((run / "samples.json").read_text())["held_out"]
    pieces = [text[k : k + 30] for k in range(0, 120, 30)]
    assert (real["texts"], real["targets"]) == (4, 4 * 30), "as many bytes as the samples"
    assert real["bits"] == pytest.approx(total_loss(run, pieces) / 120 / math.log(2), rel=1e-5)
    assert real["copied"] == {"longest": 30, "copied_20": 1.0}
    assert real["text"] == "\n".join(piece.decode(errors="replace") for piece in pieces)


def test_held_out_texts_end_like_samples() -> None:
    sweep = Sweep(texts=5, length=4)
    token, ids_N = byte_vocab(end="token"), np.array([256, *b"abcdef", 256, *b"gh", 256, *b"ijklm"])
    assert samples._held_out(ids_N, token, sweep, lines=False) == [b"abcd", b"ef", b"gh", b"ijkl", b"m"]
    lines = byte_vocab(end="newline")
    assert samples._held_out(lines.encode(b"abcdef\n\ngh\nijklm"), lines, sweep, lines=True) == [
        b"abcd",
        b"\n",
        b"gh\n",
        b"ijkl",
    ]
    assert samples._held_out(lines.encode(b"ab\n" * 9), lines, sweep, lines=True) == [b"ab\n"] * 5
    assert samples._held_out(np.frombuffer(b"ab\ncde", np.uint8), byte_vocab(), sweep, lines=False) == [b"ab\nc", b"de"]


def test_sampling_and_scoring_errors_are_raised(make_model: Callable[..., CharRNN]) -> None:
    sampler = Sampler(make_model(vocab=3), Vocab("char", (b"\n", b"a", b"b")), Limits(length=5))
    with console.progress() as bar:
        with pytest.raises(StageError, match=r"^length: 0 to 5, got 6$"):
            samples._sample(sampler, Sweep(texts=2, length=6), b"", bar)
        with pytest.raises(StageError, match=r"^the character 'é' \(U\+00E9\) at offset 0 is not in the vocabulary"):
            samples._score(sampler, [[b"ab", "é".encode()]], b"", bar)
