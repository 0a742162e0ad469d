import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common import console
from pipeline.manifest import Manifest
from pipeline.vocab import byte_vocab
from trainers.config import ModelConfig
from trainers.devices import Devices
from trainers.evaluate import Score, evaluate, lanes_and_window
from trainers.model import CharRNN
from trainers.step import Steps, total_nats

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
