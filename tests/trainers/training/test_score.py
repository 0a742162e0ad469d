import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common import console
from pipeline.manifest import Manifest
from pipeline.vocab import byte_vocab
from trainers.config import ModelConfig
from trainers.model.char_rnn import CharRNN
from trainers.training.devices import Devices
from trainers.training.score import Passes, Score, evaluate, lanes_and_window, losses
from trainers.training.step import Steps, total_nats

TEXT = b"a bird in the hand is worth two in the bush; " * 4


def score(on: Callable[..., Devices], folder: Path, manifest: Manifest, lanes: int, window: int, **shape: int) -> Score:
    devices = on(**shape)
    with devices.strategy.scope():
        model = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2)
    with console.progress() as bar:
        return evaluate(Passes(Steps(devices, model), folder, manifest, "val", lanes, window), bar)


def test_split_is_scored_as_contiguous_text(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices]
) -> None:
    manifest = make_data(tmp_path / "data", 50, train=TEXT, val=TEXT[:101])
    ids = np.frombuffer(TEXT[:101], np.uint8)[None]
    model = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2)
    logits, _ = model(ids[:, :-1], model.initial_carry(1))
    expected = float(total_nats(logits, ids[:, 1:], np.array([100]))) / 100
    for window in (7, 100):
        result = score(on, tmp_path / "data", manifest, lanes=1, window=window)
        assert result.targets == 100
        assert result.nats == pytest.approx(expected, abs=1e-5)
    assert result.bits == pytest.approx(expected / math.log(2), abs=1e-5)


def test_documents_are_scored_independently(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices]
) -> None:
    lines = [b"a bird in the hand", b"", b"is worth two in the bush", b"x"]
    text = b"".join(line + b"\n" for line in lines)
    manifest = make_data(tmp_path / "data", 50, byte_vocab(end="newline"), train=text, val=text)
    model = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2)
    nats = 0.0
    for index, line in enumerate(lines):  # the newline of the previous line precedes each
        ids = np.frombuffer((b"\n" if index else b"") + line + b"\n", np.uint8)[None]
        logits, _ = model(ids[:, :-1], model.initial_carry(1))
        nats += float(total_nats(logits, ids[:, 1:], np.array([ids.shape[1] - 1])))
    result = score(on, tmp_path / "data", manifest, lanes=1, window=7)
    assert result.targets == len(text) - 1
    assert result.nats == pytest.approx(nats / result.targets, abs=1e-5)


def test_score_is_independent_of_devices(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices]
) -> None:
    manifest = make_data(tmp_path / "data", 1000, train=TEXT, val=TEXT[:130])
    scores = [score(on, tmp_path / "data", manifest, 4, 9, **shape) for shape in ({}, {"towers": 2}, {"replicas": 2})]
    assert [result.targets for result in scores] == [129] * 3
    assert [result.nats for result in scores] == pytest.approx([scores[0].nats] * 3, abs=1e-5)


@pytest.mark.parametrize("shape", [{}, pytest.param({"towers": 2}, marks=pytest.mark.slow), {"replicas": 2}])
def test_losses_are_in_text_order(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices], shape: dict[str, int]
) -> None:
    manifest = make_data(tmp_path / "data", 50, train=TEXT, val=TEXT[:104])
    devices = on(**shape)
    with devices.strategy.scope():
        model = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2)
    with console.progress() as bar:
        passes = Passes(Steps(devices, model), tmp_path / "data", manifest, "val", 4, 7)
        first_N, second_N = losses(passes, bar), losses(passes, bar)
    reference, expected = CharRNN(ModelConfig(units=6, layers=2), 256, seed=2), []
    for lane in range(4):  # 103 targets in lanes of 25 and 26, each from an empty carry
        ids = np.frombuffer(TEXT[lane * 103 // 4 : (lane + 1) * 103 // 4 + 1], np.uint8)
        logits_TxV = reference(ids[None, :-1], reference.initial_carry(1))[0][0].numpy()
        odds_TxV = np.exp(logits_TxV - logits_TxV[np.arange(len(ids) - 1), ids[1:]][:, None])
        expected.append(np.log(odds_TxV.sum(1)))
    assert passes.lanes == 4
    np.testing.assert_allclose(first_N, np.concatenate(expected), atol=1e-5)
    np.testing.assert_array_equal(second_N, first_N)


@pytest.mark.parametrize(
    ("targets", "lanes", "window", "replicas", "expected"),
    [
        (1000, 5, 10, 1, (5, 10)),  # as requested
        (49, 5, 10, 1, (4, 10)),  # fewer lanes
        (49, 5, 10, 3, (3, 10)),  # a multiple of the replicas
        (9, 5, 10, 1, (1, 9)),  # a shorter window
        (9, 5, 10, 2, (2, 4)),
    ],
)
def test_lanes_and_window_fit_the_split(
    targets: int, lanes: int, window: int, replicas: int, expected: tuple[int, int]
) -> None:
    assert lanes_and_window(targets, lanes, window, replicas) == expected
