"""Loops of all cells against equations in NumPy, and against Keras's layers, including gradients."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from combined import combined

from trainers.model import recurrence
from trainers.model.cells import CELLS, Weights
from trainers.model.char_rnn import CharRNN

# T, B, H: all ones; then T below, at and above multiples of the unroll factor; odd units.
SIZES = [(1, 1, 1), (3, 2, 5), (10, 1, 8), (23, 3, 13)]
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


Arrays = list[np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_step(z: np.ndarray, hr: np.ndarray, h: np.ndarray, c: np.ndarray) -> Arrays:
    i, f, g, o = np.split(z + hr, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru_step(z: np.ndarray, hr: np.ndarray, h: np.ndarray) -> Arrays:
    (xz, xr, xh), (rz, rr, rh) = np.split(z, 3, axis=1), np.split(hr, 3, axis=1)
    update = sigmoid(xz + rz)
    return [update * h + (1 - update) * np.tanh(xh + sigmoid(xr + rr) * rh)]


def rnn_step(z: np.ndarray, hr: np.ndarray, h: np.ndarray) -> Arrays:
    return [np.tanh(z + hr)]


def equations(cell: str, z_TxBxG: np.ndarray, state: Arrays, recurrent: Arrays, keep_TxBx1: Any = None) -> Arrays:
    """Compute all h and the final state in float64, with gate columns in the order of cells.py."""
    r_HxG, *bias_G = (weight.astype(np.float64) for weight in recurrent)
    step = {"lstm": lstm_step, "gru": gru_step, "rnn": rnn_step}[cell]
    hs = []
    for t, z_BxG in enumerate(z_TxBxG.astype(np.float64)):
        state = state if keep_TxBx1 is None else [x_BxH * keep_TxBx1[t] for x_BxH in state]
        state = step(z_BxG, sum(bias_G, state[0] @ r_HxG), *state)
        hs.append(state[0])
    return [np.stack(hs), *state]


def window(rng: np.random.Generator, cell: str, T: int, B: int, H: int) -> tuple[np.ndarray, Arrays, Arrays, Any]:
    """Return random z, initial state, recurrent weights and keep, with resets at the first and the last step."""
    G = GATES[cell] * H
    keep = (rng.random((T, B, 1)) < 0.7).astype(np.float32)
    keep[0, 0] = keep[-1, -1] = 0
    state = [rng.normal(size=(B, H)) for _ in range(CELLS[cell].states)]
    recurrent = [rng.normal(size=(H, G)) / np.sqrt(H), *([rng.normal(size=G)] if cell == "gru" else [])]
    single = [[x.astype(np.float32) for x in part] for part in (state, recurrent)]
    return rng.normal(size=(T, B, G)).astype(np.float32), *single, keep


def recur(cell: str, z: Any, state: Any, recurrent: Any, dtype: tf.DType, keep: Any) -> Any:
    keep = None if keep is None else tf.convert_to_tensor(keep)
    h_TxBxH, after = recurrence.loop(CELLS[cell], z, tuple(state), tuple(recurrent), dtype, keep)
    return [h_TxBxH, *after]


@pytest.mark.parametrize(("cell", "size", "resets"), combined(CELLS, SIZES, [False, True]))
def test_loop_matches_equations(rng: np.random.Generator, cell: str, size: tuple[int, int, int], resets: bool) -> None:
    T, B, H = size
    z, state, recurrent, keep = window(rng, cell, T, B, H)
    keep = keep if resets else None
    expected = equations(cell, z, state, recurrent, keep)
    results = tf.function(recur)(cell, z, state, [tf.constant(w) for w in recurrent], tf.float32, keep)
    for actual, desired in zip(results, expected, strict=True):
        np.testing.assert_allclose(actual, desired, atol=1e-5)


@pytest.mark.parametrize(("cell", "size", "dtype"), combined(CELLS, SIZES[1:], [tf.float32, tf.bfloat16]))
def test_gradient_stops_at_resets(
    rng: np.random.Generator, cell: str, size: tuple[int, int, int], dtype: tf.DType
) -> None:
    (T, B, H), (z, state, recurrent, keep) = size, window(rng, cell, *size)
    inputs = tf.nest.map_structure(tf.constant, (z, tuple(state), tuple(recurrent)))
    shapes = [(T, B, H)] + [(B, H)] * len(state)
    loss_weights = [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]

    def unrolled(z: Any, state: Any, recurrent: Any) -> Any:
        hs = []
        for t in range(T):
            state = tuple(x * keep[t] for x in state)
            r_HxG, *bias = recurrent
            state, _ = CELLS[cell].forward(z[t], sum(bias, tf.matmul(state[0], r_HxG)), state)
            hs.append(state[0])
        return tf.stack(hs), *state

    def gradients(run: Callable[..., Any]) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.add_n([tf.reduce_sum(y * w) for y, w in zip(run(*inputs), loss_weights, strict=True)])
        return tape.gradient(loss, inputs)

    loop = gradients(tf.function(lambda *x: recur(cell, *x, dtype, keep)))
    for actual, desired in zip(tf.nest.flatten(loop), tf.nest.flatten(gradients(unrolled)), strict=True):
        scale = 1e-5 if dtype == tf.float32 else 0.05
        np.testing.assert_allclose(actual, desired, rtol=0, atol=scale * (1 + np.abs(desired).max()))
    assert not np.any(loop[1][0][0]), "no gradient passes a reset at the first step"


@pytest.mark.parametrize("cell", CELLS)
def test_inference_with_folded_weights_matches_forward(rng: np.random.Generator, cell: str) -> None:
    x, state, recurrent, _ = window(rng, cell, 1, 3, 5)
    kind, G = CELLS[cell], GATES[cell] * 5
    weights = Weights(rng.normal(size=(G, G)).astype(np.float32), np.ones(G, np.float32), tuple(recurrent))

    def sums(w: Weights) -> tuple[tf.Tensor, tf.Tensor]:
        r_HxG, *bias = w.recurrent
        return tf.matmul(x[0], w.kernel_IxG) + w.bias_G, sum(bias, tf.matmul(state[0], r_HxG))

    after = kind.inference(5)(*sums(kind.fold(weights)), tuple(state))
    for actual, expected in zip(after, kind.forward(*sums(weights), tuple(state))[0], strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "size", "settings"), combined(CELLS, SIZES[1:], [{}, {"embedding": 3, "layer_norm": True}])
)
def test_loop_matches_keras_layer_in_value_and_gradient(
    rng: np.random.Generator,
    make_model: Callable[..., CharRNN],
    run_keras: Callable[..., Any],
    cell: str,
    settings: dict[str, Any],
    size: tuple[int, ...],
) -> None:
    T, B, H = size
    model = make_model(cell=cell, units=H, layers=2, vocab=11, **settings)
    for weight in model.trainable_variables:  # so that biases and norms differ from 0 and 1
        weight.assign_add(0.1 * rng.normal(size=weight.shape))
    ids = rng.integers(0, 11, (B, T))
    carry = tf.constant(rng.normal(size=model.initial_carry(B).shape), tf.float32)
    weigh_logits = tf.constant(rng.normal(size=(B, T, 11)), tf.float32)
    weigh_carry = tf.constant(rng.normal(size=carry.shape), tf.float32)

    def run(forward: Callable[..., Any]) -> list[np.ndarray]:
        @tf.function
        def outputs_and_gradients() -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(carry)
                logits, after = forward(ids, carry)
                loss = tf.reduce_sum(logits * weigh_logits) + tf.reduce_sum(after * weigh_carry)
            gradients = tape.gradient(loss, [carry, *model.trainable_variables])
            return [logits, after, *(tf.convert_to_tensor(gradient) for gradient in gradients)]

        return [value.numpy() for value in outputs_and_gradients()]

    for loop, stock in zip(run(model), run(functools.partial(run_keras, model)), strict=True):
        np.testing.assert_allclose(loop, stock, rtol=1e-5, atol=1e-5 * (1 + np.abs(stock).max()))


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_lookup_gradient_sums_over_repeated_ids(rng: np.random.Generator, dtype: tf.DType) -> None:
    table, loss_weights = (tf.constant(rng.normal(size=shape), tf.float32) for shape in ((7, 3), (5, 2, 3)))
    ids = rng.integers(0, 6, (5, 2))  # many repeat; id 6 never occurs
    expected = np.zeros((7, 3))
    np.add.at(expected, ids, tf.cast(tf.cast(loss_weights, dtype), tf.float32))
    with tf.GradientTape() as tape:
        tape.watch(table)
        rows = recurrence.look_up(table, tf.constant(ids), dtype)
        loss = tf.reduce_sum(tf.cast(rows, tf.float32) * loss_weights)
    np.testing.assert_array_equal(rows, tf.cast(table, dtype).numpy()[ids])
    np.testing.assert_allclose(tape.gradient(loss, table), expected, atol=1e-5)


@pytest.mark.parametrize("embedding", [0, 3])
def test_large_vocabulary_lookup_matches_table(
    rng: np.random.Generator, make_model: Callable[..., CharRNN], monkeypatch: pytest.MonkeyPatch, embedding: int
) -> None:
    model = make_model(embedding=embedding)
    ids, carry = rng.integers(0, 11, (2, 5)), model.initial_carry(2)

    def run() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            logits, after = model(ids, carry)
            loss = tf.reduce_sum(tf.sin(logits))
        return [logits, after, *tape.gradient(loss, model.trainable_variables)]

    small = run()
    monkeypatch.setattr(recurrence, "TABLE", 10)
    for a, b in zip(small, run(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_matmul_uses_the_given_precision() -> None:
    nearly_one = tf.constant([[1 + 2**-10]])  # bfloat16 keeps 8 bits
    assert float(recurrence.matmul(nearly_one, tf.constant([[1.0]]), tf.float32)[0, 0]) == 1 + 2**-10
    assert float(recurrence.matmul(nearly_one, tf.constant([[1.0]]), tf.bfloat16)[0, 0]) == 1


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_products_stay_near_float32(
    rng: np.random.Generator, make_model: Callable[..., CharRNN], cell: str
) -> None:
    model = make_model(units=16, cell=cell, embedding=5)
    ids, carry = rng.integers(0, 11, (4, 12)), model.initial_carry(4)
    exact, _ = model(ids, carry)
    model.matmul_dtype = tf.bfloat16
    rounded, _ = model(ids, carry)
    assert rounded.dtype == tf.float32
    difference = np.abs(exact - rounded).max()
    assert 0 < difference < 0.05
