"""Drawing of characters against straightforward NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from export.lite.runner import Sampling
from export.lite.runner import choose as numpy_choose
from trainers.sampling import draw


def choose(logits: np.ndarray, temperature: float, uniform: np.ndarray) -> np.ndarray:
    sharp = float(draw.sharpness(tf.constant(temperature)))
    scaled = tf.constant(logits) * sharp
    scaled = tf.pad(scaled, [[0, 0], [0, -logits.shape[1] % draw.AT_ONCE]], constant_values=draw.NEVER)
    return draw.choose(scaled, tf.constant(uniform)[:, None], draw.cumulation(scaled.shape[1])).numpy()


def test_choose_samples_from_the_softmax(rng: np.random.Generator) -> None:
    logits = rng.normal(size=6).astype(np.float32)
    n = 20_000
    uniform = ((np.arange(n) + 0.5) / n).astype(np.float32)
    for temperature in (0.5, 1.0, 2.0):
        drawn = choose(np.tile(logits[None], [n, 1]), temperature, uniform)
        p = np.exp(logits / temperature)
        np.testing.assert_allclose(np.bincount(drawn, minlength=6) / n, p / p.sum(), atol=2e-3)


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-23])
@pytest.mark.parametrize("temperature", [0.0, 1e-3, 0.7, 100.0, 3e38])
def test_choose_inverts_the_cumulative_distribution(
    rng: np.random.Generator, temperature: float, uniform: float
) -> None:
    logits = (10 * rng.normal(size=(50, 9))).astype(np.float32)
    drawn = choose(logits, temperature, np.full(50, uniform if temperature else 0, np.float32))
    for row, choice in zip(logits, drawn, strict=True):
        for index in (int(choice), numpy_choose(row, Sampling(temperature), (), uniform)):
            scaled = row.astype(np.float64) / max(temperature, 1e-3)
            p = np.exp(scaled - scaled.max())
            above = np.cumsum(p / p.sum())
            if temperature == 0:
                assert index == np.argmax(row)
            else:
                assert above[index] - p[index] / p.sum() - 1e-5 <= uniform <= above[index] + 1e-5


@pytest.mark.parametrize("V", [1, 2, draw.TRIANGLE, draw.TRIANGLE + 1])
def test_choose_never_draws_zero_probability(rng: np.random.Generator, V: int) -> None:
    logits = np.full((40, V), -np.inf, np.float32)
    alive = rng.random((40, V)) < 0.2
    alive[np.arange(40), rng.integers(0, V, 40)] = True
    logits[alive] = rng.normal(size=alive.sum()).astype(np.float32)
    for uniform in (0.0, 0.5, 1 - 2**-23):
        drawn = choose(logits, 1.0, np.full(40, uniform, np.float32))
        assert alive[np.arange(40), drawn].all()
        if uniform != 0.5:
            edge = np.argmax(alive, 1) if uniform == 0 else V - 1 - np.argmax(alive[:, ::-1], 1)
            np.testing.assert_array_equal(drawn, edge)


def test_cumulation_by_product_matches_cumsum(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rng.random((3, 100)).astype(np.float32)
    product = draw.cumulation(100)(x)
    monkeypatch.setattr(draw, "TRIANGLE", 99)
    np.testing.assert_allclose(product, draw.cumulation(100)(x), rtol=1e-5)
    np.testing.assert_allclose(product, np.cumsum(x.astype(np.float64), 1), rtol=1e-5)


def test_uniforms_continue_the_sequence_of_each_row() -> None:
    seeds, sharpness = tf.constant([7, 8, -1, 2**62], tf.int64), tf.constant([1.0, 1.0, 1.0, draw.SHARPEST])
    zeros = tf.zeros([4], tf.int64)
    whole = draw.uniforms(seeds, zeros, sharpness, tf.constant(50)).numpy()
    assert (whole.shape, whole.min() >= 0, whole.max() < 1) == ((50, 4), True, True)
    assert not whole[:, 3].any(), "greedy rows use no random numbers"
    assert len(np.unique(whole[:, :3])) > 140, "each row has its own numbers"
    drawn = tf.constant([1, 4, 23, 5], tf.int64)
    later = draw.uniforms(seeds, drawn, sharpness, tf.constant(20)).numpy()
    for row, start in enumerate(drawn.numpy()):
        np.testing.assert_array_equal(later[:, row], whole[start : start + 20, row])
    far = draw.uniforms(seeds, zeros + 2**61, sharpness, tf.constant(3)).numpy()
    assert 0 < far[:, 0].min() < far[:, 0].max() < 1


def test_uniforms_are_uniform() -> None:
    n = 20_000
    numbers = draw.uniforms(tf.constant([3], tf.int64), tf.constant([0], tf.int64), tf.constant([1.0]), tf.constant(n))
    counts = np.bincount((numbers.numpy()[:, 0] * 10).astype(int), minlength=10)
    assert np.sum((counts - n / 10) ** 2 / (n / 10)) < 33, (
        "chi-squared with 9 degrees of freedom, exceeded by one seed in 7,000"
    )


def test_penalty_lowers_logits_of_recent_ids() -> None:
    logits = np.array([[2.0, -1.0, 0.5, -3.0], [2.0, -1.0, 0.5, -3.0]], np.float32)
    recent = np.array([[-1, -1, 0, 1], [3, 3, -1, -1]], np.int32)
    np.testing.assert_array_equal(
        draw.penalised(logits, recent, tf.constant([2.0, 4.0])), [[1.0, -2.0, 0.5, -3.0], [2.0, -1.0, 0.5, -12.0]]
    )


def slow_narrowed(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Keep the likeliest ids, in order, until top_k or top_p is reached."""
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    p = np.exp(logits[order].astype(np.float64))
    p /= p.sum()
    kept, total = [], 0.0
    for index, probability in zip(order, p, strict=True):
        kept.append(index)
        total += probability
        if total >= top_p and top_p < 1:
            break
    return np.where(np.isin(np.arange(len(logits)), kept), logits, -np.inf)


def test_narrowed_keeps_top_k_and_top_p(rng: np.random.Generator) -> None:
    logits = (2 * rng.normal(size=(60, 11))).astype(np.float32)
    top_k = rng.integers(0, 14, 60).astype(np.int32)
    top_p = np.where(rng.random(60) < 0.3, 1, rng.uniform(0.05, 1, 60)).astype(np.float32)
    narrowed = draw.narrowed(logits, top_k, top_p).numpy()
    for row, k, p, actual in zip(logits, top_k, top_p, narrowed, strict=True):
        np.testing.assert_array_equal(actual, slow_narrowed(row, int(k), float(p)))
    ties = draw.narrowed(tf.zeros([1, 4]), tf.constant([1]), tf.constant([0.1]))
    np.testing.assert_array_equal(ties[0], np.zeros(4))


def test_log_probability_is_log_softmax(rng: np.random.Generator) -> None:
    logits, ids = (5 * rng.normal(size=(7, 9))).astype(np.float32), rng.integers(0, 9, 7).astype(np.int32)
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    np.testing.assert_allclose(draw.log_probability(logits, ids), expected[np.arange(7), ids], atol=1e-5)
