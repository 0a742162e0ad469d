import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from common import console
from pipeline.manifest import Manifest
from trainers.judging import dynamic
from trainers.judging.dynamic import Reader, evaluate
from trainers.judging.evaluate import losses
from trainers.model.char_rnn import CharRNN
from trainers.training.step import Steps, total_nats

MakeData, MakeModel = Callable[..., Manifest], Callable[..., CharRNN]
TEXT = b"a bird in the hand is worth two in the bush; " * 10
OTHER = b"no house is that wide; " * 30


@pytest.fixture
def reader(tmp_path: Path, make_data: MakeData, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(dynamic, "LANES", 3)
    monkeypatch.setattr(dynamic, "WINDOW", 7)
    manifest = make_data(tmp_path / "data", 1000, train=TEXT[:421], val=OTHER[:80], test=OTHER)
    return Reader(make_model(vocab=256), tmp_path / "data", manifest)


def nats(model: CharRNN, ids: np.ndarray, carry: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean loss over windows, a row each, as the definition has it."""
    logits, carry = model(ids[:, :-1], carry)
    count = np.full(len(ids), ids.shape[1] - 1)
    return total_nats(logits, ids[:, 1:], count) / count.sum(), carry


def test_a_step_is_the_formula(reader: Reader) -> None:
    model, weights, rate, decay = reader.model, reader.weights, 0.1, 0.3
    trained = [weight.numpy().astype(np.float64) for weight in weights]
    with console.progress() as bar:
        reader.measure(bar)
        found = reader.read("test", rate, decay, 21, bar)
    assert all(np.array_equal(weight.numpy(), before) for weight, before in zip(weights, trained, strict=True))
    # How large gradients are in train: 420 targets, three lanes of 20 windows of 7.
    ids, carry, squares = np.frombuffer(TEXT[:421], np.uint8), model.initial_carry(3), [np.zeros(1)] * len(weights)
    for k in range(20):
        with tf.GradientTape() as tape:
            loss, carry = nats(model, np.stack([ids[140 * lane + 7 * k :][:8] for lane in range(3)]), carry)
        gradients = tape.gradient(loss, weights)
        squares = [s + g.numpy().astype(np.float64) ** 2 for s, g in zip(squares, gradients, strict=True)]
    roots = [np.sqrt(square / 20) for square in squares]
    mean = sum(root.sum() for root in roots) / sum(root.size for root in roots)
    ids, carry, expected = np.frombuffer(OTHER, np.uint8), model.initial_carry(1), []
    for k in range(3):
        with tf.GradientTape() as tape:
            loss, carry = nats(model, ids[None, 7 * k : 7 * k + 8], carry)
        expected.append(float(loss))
        for weight, gradient, root, origin in zip(weights, tape.gradient(loss, weights), roots, trained, strict=True):
            now = weight.numpy().astype(np.float64)
            step = rate * gradient.numpy() / (root + mean)
            weight.assign(now - step + np.minimum(decay * root / mean, 1) * (origin - now))
    assert found.reshape(3, 7).mean(1).tolist() == pytest.approx(expected, rel=1e-4)
    assert found[14:].mean() < found[:7].mean() - 0.1


def test_without_a_rate_it_is_the_loss_of_one_lane(reader: Reader, on: Callable[..., object]) -> None:
    with console.progress() as bar:
        reader.measure(bar)
        found = reader.read("test", 0.0, 0.0, 10_000, bar)
        expected, _ = losses(Steps(on(), reader.model), reader.data, reader.manifest, "test", 1, 50, bar)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_learns_what_comes_again_and_is_left_as_it_was(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "RATES", (0.0, 1e-5, 1e-3))
    before = reader.model.get_weights()
    with console.progress() as bar:
        learned = evaluate(reader.model, reader.data, reader.manifest, "test", bar)
    assert learned.rate == 1e-3
    assert len(learned.nats_N) == len(learned.unlearned_N) == len(OTHER) - 1
    assert learned.unlearned_N.mean() == pytest.approx(math.log(256), rel=0.05)  # it was never trained
    assert learned.nats_N[-100:].mean() < 0.7 * learned.unlearned_N[-100:].mean()
    assert all(map(np.array_equal, before, reader.model.get_weights()))
