"""The loop against the equations in NumPy, and against keras.layers.LSTM with the same weights, gradients included."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from trainers import lstm
from trainers.model import CharLSTM

# T, B, H: one of everything, T below, at, above and far off a multiple of the unrolling, odd units.
SIZES = [(1, 1, 1), (3, 2, 5), (10, 1, 4), (13, 3, 7), (29, 2, 9)]


def equations(
    z_TxBxG: np.ndarray, h: np.ndarray, c: np.ndarray, r_HxG: np.ndarray, keep_TxBx1: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """The LSTM's equations in float64; gate columns i, f, o, c."""
    keep_TxBx1 = np.ones((*z_TxBxG.shape[:2], 1)) if keep_TxBx1 is None else keep_TxBx1

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    hs = []
    for z_BxG, keep_Bx1 in zip(z_TxBxG.astype(np.float64), keep_TxBx1, strict=True):
        h, c = h * keep_Bx1, c * keep_Bx1
        i, f, o, g = np.split(z_BxG + h @ r_HxG, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return np.stack(hs), h, c


@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_the_loop_computes_the_equations(rng: np.random.Generator, T: int, B: int, H: int) -> None:
    z, h, c = rng.normal(size=(T, B, 4 * H)), rng.normal(size=(B, H)), rng.normal(size=(B, H))
    r = rng.normal(size=(H, 4 * H)) / np.sqrt(H)
    expected = equations(z, h, c, r)
    inputs = [tf.constant(x, tf.float32) for x in (z, h, c, r)]
    for got, want in zip(tf.function(lstm.recur)(*inputs, tf.float32), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def window(rng: np.random.Generator, T: int, B: int, H: int) -> list[np.ndarray]:
    """z, h, c, recurrent kernel and keep, with a reset at the first step and at the last."""
    keep = (rng.random((T, B, 1)) < 0.7).astype(np.float32)
    keep[0, 0] = keep[-1, -1] = 0
    shapes = ((T, B, 4 * H), (B, H), (B, H), (H, 4 * H))
    return [*(rng.normal(size=shape).astype(np.float32) for shape in shapes), keep]


@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_the_loop_starts_afresh_where_it_is_told(rng: np.random.Generator, T: int, B: int, H: int) -> None:
    z, h, c, r, keep = window(rng, T, B, H)
    for got, want in zip(
        tf.function(lstm.recur)(z, h, c, tf.constant(r), tf.float32, keep), equations(z, h, c, r, keep), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_the_gradient_stops_where_the_loop_starts_afresh(
    rng: np.random.Generator, T: int, B: int, H: int, dtype: tf.DType
) -> None:
    *inputs, keep = (tf.constant(x) for x in window(rng, T, B, H))
    inputs[3] /= np.sqrt(H)
    weigh = [tf.constant(rng.normal(size=shape), tf.float32) for shape in ((T, B, H), (B, H), (B, H))]

    def unrolled(z: tf.Tensor, h: tf.Tensor, c: tf.Tensor, r: tf.Tensor) -> tuple[tf.Tensor, ...]:
        hs = []
        for t in range(T):
            h, c = lstm.step(z[t], h * keep[t], c * keep[t], r)
            hs.append(h)
        return tf.stack(hs), h, c

    def gradients(run: Callable[..., tuple[tf.Tensor, ...]]) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.add_n([tf.reduce_sum(y * w) for y, w in zip(run(*inputs), weigh, strict=True)])
        return tape.gradient(loss, inputs)

    loop = gradients(tf.function(lambda *x: lstm.recur(*x, dtype, keep)))
    for got, want in zip(loop, gradients(unrolled), strict=True):
        scale = 1e-5 if dtype == tf.float32 else 0.05
        np.testing.assert_allclose(got, want, rtol=0, atol=scale * (1 + np.abs(want).max()))
    assert not np.any(loop[1][0]), "nothing flows back over a reset at the first step"


def test_a_step_is_a_window_of_one(rng: np.random.Generator) -> None:
    z, h, c, r = (tf.constant(rng.normal(size=s), tf.float32) for s in ((3, 20), (3, 5), (3, 5), (5, 20)))
    _, window_h, window_c = lstm.recur(z[None], h, c, r, tf.float32)
    step_h, step_c = lstm.step(z, h, c, r)
    np.testing.assert_allclose(step_h, window_h, atol=1e-6)
    np.testing.assert_allclose(step_c, window_c, atol=1e-6)


@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_the_loop_is_keras_lstm_in_value_and_gradient(
    rng: np.random.Generator, make_model: Callable[..., CharLSTM], T: int, B: int, H: int
) -> None:
    model = make_model(units=H, layers=2, vocab=11)
    ids = rng.integers(0, 11, (B, T))
    carry = tf.constant(rng.normal(size=(B, 2, 2, H)), tf.float32)
    weigh_logits = tf.constant(rng.normal(size=(B, T, 11)), tf.float32)
    weigh_carry = tf.constant(rng.normal(size=carry.shape), tf.float32)

    def run(stock: bool) -> list[np.ndarray]:
        model.use_stock_layers = stock

        @tf.function
        def outputs_and_gradients() -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(carry)
                logits, after = model(ids, carry)
                loss = tf.reduce_sum(logits * weigh_logits) + tf.reduce_sum(after * weigh_carry)
            return [logits, after, *tape.gradient(loss, [carry, *model.trainable_variables])]

        return [value.numpy() for value in outputs_and_gradients()]

    for loop, stock in zip(run(stock=False), run(stock=True), strict=True):
        np.testing.assert_allclose(loop, stock, rtol=1e-5, atol=2e-5)


def test_products_are_made_in_the_precision_asked_for() -> None:
    nearly_one = tf.constant([[1 + 2**-10]])  # bfloat16 has 8 bits of it
    assert float(lstm.matmul(nearly_one, tf.constant([[1.0]]), tf.float32)[0, 0]) == 1 + 2**-10
    assert float(lstm.matmul(nearly_one, tf.constant([[1.0]]), tf.bfloat16)[0, 0]) == 1


def test_bfloat16_products_stay_near_float32(rng: np.random.Generator, make_model: Callable[..., CharLSTM]) -> None:
    model = make_model(units=16)
    ids, carry = rng.integers(0, 11, (4, 12)), model.initial_carry(4)
    exact, _ = model(ids, carry)
    model.matmul_dtype = tf.bfloat16
    rough, _ = model(ids, carry)
    assert rough.dtype == tf.float32
    difference = np.abs(exact - rough).max()
    assert 0 < difference < 0.02
