import json
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from crash import killed_at_each, tree

from common import console
from common.errors import UsageError
from common.files import write_json
from common.types import Array
from pipeline.manifest import Manifest
from trainers.config import ModelConfig
from trainers.judging import evaluate as module
from trainers.judging import ngram
from trainers.judging.evaluate import evaluate_run, figures_of
from trainers.model.char_rnn import CharRNN
from trainers.training.devices import Devices
from trainers.training.score import Passes, losses
from trainers.training.step import Steps

TEXT = b"a bird in the hand is worth two in the bush; " * 4


@pytest.mark.parametrize("known", ["uniform", "unigram"])
def test_figures_match_known_loss(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices], known: str
) -> None:
    text = TEXT * 30
    manifest = make_data(tmp_path / "data", 5000, train=text, val=text[:4000], test=text[:4000])
    model, counts_V = CharRNN(ModelConfig(units=6, layers=2), 256), np.bincount(np.frombuffer(text, np.uint8))
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    p_V = np.full(256, 1 / 256)
    if known == "unigram":
        p_V = (np.pad(counts_V, (0, 256 - len(counts_V))) + 1) / (len(text) + 256)
        model.dense.bias.assign(np.log(p_V))
    with console.progress() as bar:
        passes = Passes(Steps(on(), model), tmp_path / "data", manifest, "test", 5, 20)
        nats_N = losses(passes, bar)
    report = figures_of(nats_N, passes.lanes, tmp_path / "data", manifest, "test", [range(len(text))])
    mean = -float(np.log(p_V[np.frombuffer(text[1:4000], np.uint8)]).mean())
    assert report["nats"] == pytest.approx(mean, rel=1e-6) == report["baselines"][known]["nats"]
    assert report["bits_per_byte"] == pytest.approx(mean / math.log(2), rel=1e-6)
    assert report["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    low, high = report["nats_interval"]
    assert low - 1e-6 < mean < high + 1e-6
    assert [sum(row["targets"] for row in rows) for rows in report["by"].values()] == [3999] * 3
    if known == "uniform":
        assert {round(row["nats"], 5) for rows in report["by"].values() for row in rows} == {round(math.log(256), 5)}
    ngram = report["baselines"]["ngram"]
    assert ngram["nats"] < 0.1, "the text repeats itself"
    assert ngram["ahead"] == pytest.approx(ngram["nats"] - mean, rel=1e-5)
    assert report["errors"]["model"] == 0 < report["errors"]["ngram"]
    assert report["errors"]["ngram_ahead"][0]["ngram_p"] > 0.9


@pytest.fixture
def run(
    tmp_path: Path, saved_run: Callable[..., Path], on: Callable[..., Devices], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Run on a data set whose train, val and test are the same text."""
    monkeypatch.setattr(module.devices, "prepare", lambda replicas: on())
    return saved_run(tmp_path, train=tiny_run.TEXT, val=tiny_run.TEXT, test=tiny_run.TEXT)


def score(nats_N: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace scoring, which is slow and not under test, by these losses of one lane."""
    monkeypatch.setattr(module, "Passes", lambda *_: types.SimpleNamespace(lanes=1))
    monkeypatch.setattr(module, "losses", lambda *_: nats_N)


def test_n_gram_is_counted_by_default_only_for_small_data(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "evaluation-test.json"
    nats_N = np.linspace(1, 2, len(tiny_run.TEXT) - 1, dtype=np.float32)
    score(nats_N, monkeypatch)

    def evaluate_again(count: bool | None) -> bool | None:
        """Evaluate, and return whether an n-gram was counted; None if the evaluation was up to date."""
        before = path.read_text()
        evaluate_run(run, "test", None, count, force=False)
        after = json.loads(path.read_text())
        assert ("ngram" in after["baselines"]) == after["inputs"]["ngram"]
        return None if path.read_text() == before else after["inputs"]["ngram"]

    write_json(path, {})
    assert [evaluate_again(count) for count in (None, None, True, False, False)] == [True, None, None, False, None]
    (run / "report.html").write_text("of an earlier evaluation, or missing, if a kill came before the page")
    assert evaluate_again(False) is None
    assert "<html" in (run / "report.html").read_text()
    write_json(path, json.loads(path.read_text()) | {"format_version": 1})
    assert evaluate_again(False) is False, "the file has an older format"
    monkeypatch.setattr(module, "COUNTED", 539)  # the three splits have 540 tokens
    capsys.readouterr()
    assert evaluate_again(None) is None, "the evaluation is up to date"
    write_json(path, {})
    assert evaluate_again(None) is False
    assert "takes about 0 s and 0.0 GB; pass --ngram to count them" in capsys.readouterr().err
    assert [evaluate_again(count) for count in (True, None)] == [True, None]
    with pytest.raises(UsageError, match="--ngram cannot be judged on train"):
        evaluate_run(run, "train", None, True, force=False)
    monkeypatch.setattr(module, "COUNTED", 8_000_000)
    evaluate_run(run, "train", None, None, force=False)
    assert "ngram" not in json.loads((run / "evaluation-train.json").read_text())["baselines"]


def test_n_gram_counts_only_text_that_the_checkpoint_has_read(
    tmp_path: Path, saved_run: Callable[..., Path], on: Callable[..., Devices], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.devices, "prepare", lambda replicas: on())
    train, val = np.random.default_rng(1).integers(97, 105, 2000, np.uint8), tiny_run.TEXT
    run = saved_run(tmp_path, train=train.tobytes(), val=val)
    score(np.ones(len(val) - 1, np.float32), monkeypatch)
    counted: list[np.ndarray] = []

    def best(ids: np.ndarray, *arguments: Any) -> Any:
        counted.append(ids)
        return ngram.best(ids, *arguments)

    monkeypatch.setattr(module, "ngram", types.SimpleNamespace(best=best))
    evaluate_run(run, None, None, None, force=False)
    # 40 steps of windows of 3, in each of 4 lanes of 499 or 500 targets, after the token before its first target.
    starts = [0, 499, 999, 1499]
    np.testing.assert_array_equal(counted[0], np.concatenate([train[start : start + 121] for start in starts]))


def test_killed_evaluation_is_completed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nats_N = np.linspace(1, 2, len(tiny_run.TEXT) - 1, dtype=np.float32)
    score(nats_N, monkeypatch)
    monkeypatch.setattr(module.checkpoint, "load_model", lambda *_: None)

    def prepare() -> None:
        for name in ("evaluation-test.json", "report.html"):
            (run / name).unlink(missing_ok=True)

    def evaluate_test() -> None:
        evaluate_run(run, "test", None, False, force=False)

    prepare()
    evaluate_test()
    whole = tree(run)
    for _ in killed_at_each(prepare, evaluate_test):
        evaluate_test()
        assert tree(run) == whole


@pytest.mark.parametrize(("tokens", "expected"), [(80, 1), (111, 2), (1000, 3)])
def test_short_splits_have_fewer_lanes(
    tmp_path: Path,
    saved_run: Callable[..., Path],
    on: Callable[..., Devices],
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    expected: int,
) -> None:
    run = saved_run(tmp_path, train=tiny_run.TEXT, val=tiny_run.TEXT, test=(TEXT * 6)[:tokens])
    monkeypatch.setattr(module.devices, "prepare", lambda replicas: on())
    monkeypatch.setattr(module, "LANES", 3)
    monkeypatch.setattr(module, "MIN_LANE", 55)
    evaluate_run(run, "test", None, False, force=False)
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    # Each lane has one target at position 1.
    assert evaluation["inputs"]["lanes"] == expected == evaluation["by"]["position"][0]["targets"]


def test_terminal_shows_loss_and_n_gram(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_run(run, "test", None, True, force=False)
    out, err = capsys.readouterr()
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    ngram = evaluation["baselines"]["ngram"]
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][-8:] == f"= {evaluation['bits']:.4f} bits per byte over 179 bytes".split()
    assert lines[1][:2] == ["perplexity", f"{evaluation['perplexity']:.3f},"]
    assert lines[3] == ["model", f"{evaluation['nats']:.4f}", f"{evaluation['bits']:.4f}"], "too short for intervals"
    assert lines[4][:5] == ["n-gram", "of", "order", str(ngram["order"]), f"{ngram['nats']:.4f}"]
    assert lines[5][:4] == ["n-gram", "ahead", "by", f"{-ngram['ahead']:.4f}"]
    assert (len(lines), err) == (6, f"report: {run}/report.html\n")
