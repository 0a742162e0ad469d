import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from common import console
from common.errors import UsageError
from common.files import write_json
from pipeline.manifest import Manifest
from pipeline.vocab import byte_vocab
from trainers.config import ModelConfig
from trainers.judging import evaluate as module
from trainers.judging.evaluate import evaluate_run, figures_of
from trainers.model.char_rnn import CharRNN
from trainers.training.devices import Devices
from trainers.training.score import Score, evaluate, lanes_and_window, losses
from trainers.training.step import Steps, total_nats

TEXT = b"a bird in the hand is worth two in the bush; " * 4


def score(on: Callable[..., Devices], folder: Path, manifest: Manifest, lanes: int, window: int, **shape: int) -> Score:
    devices = on(**shape)
    with devices.strategy.scope():
        model = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2)
    with console.progress() as bar:
        return evaluate(Steps(devices, model), folder, manifest, "val", lanes, window, bar)


def test_a_split_is_scored_as_one_text(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices]
) -> None:
    manifest = make_data(tmp_path / "data", 50, train=TEXT, val=TEXT[:101])
    ids = np.frombuffer(TEXT[:101], np.uint8)[None]
    model = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2)
    logits, _ = model(ids[:, :-1], model.initial_carry(1))
    expected = float(total_nats(logits, ids[:, 1:], np.array([100]))) / 100
    for window in (7, 100):
        one = score(on, tmp_path / "data", manifest, lanes=1, window=window)
        assert one.targets == 100
        assert one.nats == pytest.approx(expected, abs=1e-5)
    assert one.bits == pytest.approx(expected / math.log(2), abs=1e-5)


def test_every_document_is_scored_alone(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices]
) -> None:
    lines = [b"a bird in the hand", b"", b"is worth two in the bush", b"x"]
    text = b"".join(line + b"\n" for line in lines)
    manifest = make_data(tmp_path / "data", 50, byte_vocab(end="newline"), train=text, val=text)
    model = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2)
    nats = 0.0
    for index, line in enumerate(lines):  # each from its start, but for the first, which has none
        ids = np.frombuffer((b"\n" if index else b"") + line + b"\n", np.uint8)[None]
        logits, _ = model(ids[:, :-1], model.initial_carry(1))
        nats += float(total_nats(logits, ids[:, 1:], np.array([ids.shape[1] - 1])))
    one = score(on, tmp_path / "data", manifest, lanes=1, window=7)
    assert one.targets == len(text) - 1
    assert one.nats == pytest.approx(nats / one.targets, abs=1e-5)


def test_devices_do_not_change_the_score(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices]
) -> None:
    manifest = make_data(tmp_path / "data", 1000, train=TEXT, val=TEXT[:130])
    scores = [score(on, tmp_path / "data", manifest, 4, 9, **shape) for shape in ({}, {"towers": 2}, {"replicas": 2})]
    assert [one.targets for one in scores] == [129] * 3
    assert [one.nats for one in scores] == pytest.approx([scores[0].nats] * 3, abs=1e-5)


@pytest.mark.parametrize("shape", [{}, {"towers": 2}, {"replicas": 2}])
def test_losses_are_those_of_each_target_in_the_order_of_the_text(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices], shape: dict[str, int]
) -> None:
    manifest = make_data(tmp_path / "data", 50, train=TEXT, val=TEXT[:104])
    devices = on(**shape)
    with devices.strategy.scope():
        model = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2)
    with console.progress() as bar:
        nats_N, lanes = losses(Steps(devices, model), tmp_path / "data", manifest, "val", 4, 7, bar)
    alone, expected = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2), []
    for lane in range(4):  # 103 targets: lanes of 25 and 26, each from an empty carry
        ids = np.frombuffer(TEXT[lane * 103 // 4 : (lane + 1) * 103 // 4 + 1], np.uint8)
        logits_TxV = alone(ids[None, :-1], alone.initial_carry(1))[0][0].numpy()
        odds_TxV = np.exp(logits_TxV - logits_TxV[np.arange(len(ids) - 1), ids[1:]][:, None])
        expected.append(np.log(odds_TxV.sum(1)))
    assert lanes == 4
    np.testing.assert_allclose(nats_N, np.concatenate(expected), atol=1e-5)


@pytest.mark.parametrize("known", ["uniform", "unigram"])
def test_a_model_of_a_known_loss_is_reported_with_it(
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
        nats_N, lanes = losses(Steps(on(), model), tmp_path / "data", manifest, "test", 5, 20, bar)
    report = figures_of(nats_N, lanes, tmp_path / "data", manifest, "test", count=True)
    mean = -float(np.log(p_V[np.frombuffer(text[1:4000], np.uint8)]).mean())
    assert report["nats"] == pytest.approx(mean, rel=1e-6) == report["baselines"][known]["nats"]
    assert report["bits_per_byte"] == pytest.approx(mean / math.log(2), rel=1e-6)
    assert report["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    low, high = report["nats_interval"]
    assert low - 1e-6 < mean < high + 1e-6
    assert [sum(row["targets"] for row in rows) for rows in report["by"].values()] == [3999] * 3
    if known == "uniform":
        assert {round(row["nats"], 5) for rows in report["by"].values() for row in rows} == {round(math.log(256), 5)}
    counted = report["baselines"]["ngram"]
    assert counted["nats"] < 0.1, "the same four hundred characters over and over"
    assert counted["ahead"] == pytest.approx(counted["nats"] - mean, rel=1e-5)
    assert report["errors"]["model"] == 0 < report["errors"]["ngram"]
    assert report["errors"]["ngram_ahead"][0]["ngram_p"] > 0.9


@pytest.fixture
def run(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run of five steps, on a text that is train, val and test."""
    make_data(tmp_path / "data", 1000, train=tiny_run.TEXT, val=tiny_run.TEXT, test=tiny_run.TEXT)
    tiny_run.tiny_training(tmp_path / "run", tmp_path / "data", on(), 5).go()
    monkeypatch.setattr(module.devices, "prepare", lambda replicas: on())
    return tmp_path / "run"


def test_an_n_gram_is_counted_unasked_where_that_is_quick(
    run: Path, on: Callable[..., Devices], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "evaluation-test.json"

    def counted(count: bool | None) -> bool | None:
        """Whether an n-gram was counted; None: nothing was done."""
        before = path.read_text()
        evaluate_run(run, "test", None, count, force=False)
        after = json.loads(path.read_text())
        assert ("ngram" in after["baselines"]) == after["inputs"]["ngram"]
        return None if path.read_text() == before else after["inputs"]["ngram"]

    write_json(path, {})
    assert [counted(count) for count in (None, None, True, False, False)] == [True, None, None, False, None]
    write_json(path, json.loads(path.read_text()) | {"format_version": 1})
    assert counted(False) is False, "it was of an older format"
    monkeypatch.setattr(module, "COUNTED", 539)  # tokens of all three are 540
    capsys.readouterr()
    assert counted(None) is None, "there is one without an n-gram"
    write_json(path, {})
    assert counted(None) is False
    assert "takes some 0 s and 0.0 GB; --ngram does" in capsys.readouterr().err
    assert [counted(count) for count in (True, None)] == [True, None]
    with pytest.raises(UsageError, match="--ngram wants text that it does not count"):
        evaluate_run(run, "train", None, True, force=False)
    monkeypatch.undo()
    monkeypatch.setattr(module.devices, "prepare", lambda replicas: on())
    evaluate_run(run, "train", None, None, force=False)
    assert "ngram" not in json.loads((run / "evaluation-train.json").read_text())["baselines"]


@pytest.mark.parametrize(("tokens", "expected"), [(80, 1), (111, 2), (1000, 3)])
def test_a_short_split_is_not_cut_into_many_lanes(
    tmp_path: Path,
    make_data: Callable[..., Manifest],
    on: Callable[..., Devices],
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    expected: int,
) -> None:
    make_data(tmp_path / "data", 1000, train=tiny_run.TEXT, val=tiny_run.TEXT, test=(TEXT * 6)[:tokens])
    tiny_run.tiny_training(run := tmp_path / "run", tmp_path / "data", on(), 5).go()
    monkeypatch.setattr(module.devices, "prepare", lambda replicas: on())
    monkeypatch.setattr(module, "LANES", 3)
    monkeypatch.setattr(module, "SHORTEST", 55)
    evaluate_run(run, "test", None, False, force=False)
    found = json.loads((run / "evaluation-test.json").read_text())
    # Each lane begins with one target whose carry is empty.
    assert found["inputs"]["lanes"] == expected == found["by"]["position"][0]["targets"]


@pytest.mark.parametrize(
    ("targets", "lanes", "window", "replicas", "expected"),
    [
        (1000, 5, 10, 1, (5, 10)),  # as wanted
        (49, 5, 10, 1, (4, 10)),  # fewer lanes
        (49, 5, 10, 3, (3, 10)),  # that divide
        (9, 5, 10, 1, (1, 9)),  # a shorter window
        (9, 5, 10, 2, (2, 4)),
    ],
)
def test_lanes_and_window_fit_the_split(
    targets: int, lanes: int, window: int, replicas: int, expected: tuple[int, int]
) -> None:
    assert lanes_and_window(targets, lanes, window, replicas) == expected
