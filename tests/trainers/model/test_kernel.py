"""Compiled ops against float64 and the graph loop, at sizes that are not multiples of vectors and blocks."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainers.config import TrainConfig
from trainers.model import kernel, recurrence
from trainers.model.cells import CELLS
from trainers.model.char_rnn import CharRNN
from trainers.training.optimizer import make_optimizer

SIZES = [(1, 1, 1), (3, 2, 5), (2, 25, 16), (4, 7, 33), (2, 13, 300)]  # T, B, H


@pytest.fixture(autouse=True)
def compiled() -> None:
    assert kernel.ops(), "the ops need a C++ compiler, which `make setup` requires"


def case(rng: np.random.Generator, T: int, B: int, H: int, resets: bool) -> Callable[..., list[np.ndarray]]:
    """Return a function from a recurrence to its values and gradients, on random inputs."""
    keep = tf.constant(rng.random((T, B, 1)) < 0.7, tf.float32) if resets else None
    shapes = [(T, B, 4 * H), (B, H), (B, H), (H, 4 * H)]
    half_z, h, c, r = (tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes)
    r /= H**0.5
    weights = [tf.constant(rng.normal(size=shape), tf.float32) for shape in ((T, B, H), (B, H), (B, H))]

    def run(recur: Callable[..., Any]) -> list[np.ndarray]:
        @tf.function(autograph=False)
        def values_and_gradients() -> list[tf.Tensor]:
            z = half_z + half_z  # computed here, so that the op may write over it
            with tf.GradientTape() as tape:
                tape.watch([z, h, c, r])
                h_TxBxH, after = recur(z, (h, c), r, keep)
                values = [h_TxBxH, *after]
                loss = tf.add_n([tf.reduce_sum(x * w) for x, w in zip(values, weights, strict=True)])
            return [*values, *tape.gradient(loss, [z, h, c, r])]

        return [x.numpy() for x in values_and_gradients()]

    return run


@pytest.mark.parametrize("multiplies", [False, True])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_values_and_gradients_match_the_loop(
    rng: np.random.Generator, T: int, B: int, H: int, resets: bool, multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "multiplies", lambda dtype: multiplies)
    run = case(rng, T, B, H, resets)
    loop = run(lambda z, state, r, keep: recurrence.loop(CELLS["lstm"], z, state, (r,), tf.float32, keep))
    for actual, expected in zip(run(kernel.lstm), loop, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(("T", "B", "H"), SIZES)
def test_bfloat16_matches_the_loop_to_its_rounding(
    rng: np.random.Generator, T: int, B: int, H: int, resets: bool
) -> None:
    run = case(rng, T, B, H, resets)
    loop = run(lambda z, state, r, keep: recurrence.loop(CELLS["lstm"], z, state, (r,), tf.bfloat16, keep))
    rounded = run(functools.partial(kernel.lstm, dtype=tf.bfloat16))
    for actual, expected in zip(rounded, loop, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=0.01 * (1 + np.abs(expected).max()))


def test_inputs_that_are_needed_later_stay(rng: np.random.Generator) -> None:
    T, B, H = 3, 2, 5
    half_z, r = (tf.constant(rng.normal(size=shape), tf.float32) for shape in [(T, B, 4 * H), (H, 4 * H)])
    state, keep = tf.zeros([B, H]), tf.ones([T, B])

    @tf.function(autograph=False)
    def run(later: bool) -> tuple[tf.Tensor, ...]:
        z = half_z + half_z
        h, c, gates = kernel.ops().char_rnn_lstm(z, r, state, state, keep)
        dz, *_ = kernel.ops().char_rnn_lstm_grad(r, state, keep, c, gates, h[1:], state, state)
        return (dz, z, gates) if later else (dz,)

    dz, z, gates = run(later=True)
    np.testing.assert_array_equal(z, 2 * half_z)
    np.testing.assert_array_equal(gates, kernel.ops().char_rnn_lstm(2 * half_z, r, state, state, keep)[2])
    np.testing.assert_array_equal(dz, run(later=False)[0])


def test_each_result_is_rounded_in_bfloat16(rng: np.random.Generator) -> None:
    T, B, H = 2, 3, 5
    shapes = [(T, B, 4 * H), (H, 4 * H), (B, H), (B, H), (T, B, H), (B, H), (B, H)]
    z, r, h0, c0, *dafter = (tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes)
    keep = tf.ones([T, B])
    forward = functools.partial(kernel.ops().char_rnn_lstm, z, r, h0, c0, keep)
    _, c, gates = forward()
    backward = functools.partial(kernel.ops().char_rnn_lstm_grad, r, c0, keep, c, gates, *dafter)
    for run in (forward, backward):
        for exact, rounded in zip(run(), run(rounded=True), strict=True):
            assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()

    gradients = []
    for dtype in (tf.float32, tf.bfloat16):
        no_r = tf.zeros([H, 4 * H])  # equal states, so that only the product of the last gradient differs
        with tf.GradientTape() as tape:
            tape.watch(no_r)
            loss = tf.reduce_sum(kernel.lstm(z, (h0, c0), no_r, None, dtype)[0])
        gradients.append(tape.gradient(loss, no_r).numpy())
    exact, rounded = gradients
    assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("name", ["adam", "adamw", "muon", "rmsprop", "sgd"])
def test_each_optimizer_trains_through_the_ops(name: Any, make_model: Callable[..., CharRNN]) -> None:
    model = make_model(units=4, layers=2)
    weights = model.trainable_variables
    config = TrainConfig(optimizer=name, weight_decay=0.1 * (name == "adamw"))
    optimizer = make_optimizer(config, 10, 10, weights, model.inner_kernels)

    @tf.function(autograph=False)
    def update() -> None:
        with tf.GradientTape() as tape:
            logits, _ = model(tf.ones([2, 5], tf.int32), model.initial_carry(2))
            loss = tf.reduce_sum(tf.nn.log_softmax(logits)[..., 0])
        gradients = tape.gradient(loss, weights)
        assert [gradient.shape for gradient in gradients] == [weight.shape for weight in weights]
        optimizer.apply(gradients, weights)

    before = [weight.numpy() for weight in weights]
    update()
    for weight, value in zip(weights, before, strict=True):
        assert np.any(weight.numpy() != value), weight.path


@pytest.mark.parametrize(
    ("M", "K", "N"), [(0, 3, 5), (1, 1, 1), (25, 300, 17), (97, 5, 64), (200, 257, 33), (600, 1100, 50)]
)
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul_and_its_gradients_match_float64(
    rng: np.random.Generator, M: int, K: int, N: int, transpose_b: bool, dtype: tf.DType
) -> None:
    shapes = (M, K), (N, K) if transpose_b else (K, N), (M, N)
    a, b, w = (rng.normal(size=shape).astype(dtype.as_numpy_dtype) for shape in shapes)
    with tf.GradientTape() as tape:
        inputs = [tf.constant(x, tf.float32) for x in (a, b)]
        tape.watch(inputs)
        c = kernel.matmul(*inputs, dtype, transpose_b)
        loss = tf.reduce_sum(c * tf.constant(w, tf.float32))
    a, b, w = (x.astype(np.float64) for x in (a, b, w))
    expected = [a @ b.T, w @ b, w.T @ a] if transpose_b else [a @ b, w @ b.T, a.T @ w]
    for actual, value in zip([c, *tape.gradient(loss, inputs)], expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=0, atol=1e-6 * max(M, K, N) ** 0.5 * 10)


@pytest.mark.parametrize("count", [0, 1, 17, 37])
def test_adam_matches_float64(rng: np.random.Generator, count: int) -> None:
    weight, m, gradient = rng.normal(size=(3, count)).astype(np.float32)
    v, (rate, new_m, new_v, epsilon) = m**2, (0.01, 0.1, 0.001, 1e-7)
    actual = kernel.adam([tf.constant(x) for x in (weight, m, v)], tf.constant(gradient), [rate, new_m, new_v, epsilon])
    weight, m, v, gradient = (x.astype(np.float64) for x in (weight, m, v, gradient))
    m, v = m + (gradient - m) * new_m, v + (gradient**2 - v) * new_v
    for value, expected in zip(actual, [weight - rate * m / (np.sqrt(v) + epsilon), m, v], strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_float32_is_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, chosen in [({"avx2"}, [tf.float32, tf.bfloat16]), ({"avx2", "avx512_vnni"}, [tf.bfloat16])]:
        monkeypatch.setattr(kernel, "processor", lambda flags=flags: ("", flags))
        assert [dtype for dtype in (tf.float32, tf.bfloat16, tf.float16) if kernel.multiplies(dtype)] == chosen


def test_bfloat16_rounds_to_nearest_even() -> None:
    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3e38, 0], np.float32)[:, None]
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)[:, None]
    assert np.isnan(kernel.matmul(nans, [[1.0]], tf.bfloat16)).all()
    for product in (kernel.matmul(x, [[1.0]], tf.bfloat16), tf.transpose(kernel.matmul([[1.0]], x.T, tf.bfloat16))):
        np.testing.assert_array_equal(product, tf.cast(tf.cast(x, tf.bfloat16), tf.float32))


@pytest.mark.parametrize(("N", "V", "K"), [(0, 3, 2), (1, 1, 1), (50, 7, 33)])
def test_sum_rows_matches_numpy(rng: np.random.Generator, N: int, V: int, K: int) -> None:
    x, ids, expected = rng.normal(size=(N, K)), rng.integers(0, V, N), np.zeros((V, K))
    np.add.at(expected, ids, x)
    actual = kernel.sum_rows(tf.constant(x, tf.float32), tf.constant(ids), tf.zeros([V, K]))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_tanh_matches_float64() -> None:
    """Read tanh from the op: with h = 0 and open gates, it returns c = tanh(candidate)."""
    beyond = [-np.inf, np.inf, np.nan]
    x = np.concatenate([np.linspace(-12, 12, 4001), np.logspace(-30, 0, 100), beyond]).astype(np.float32)[:, None]
    open_gates = np.full((len(x), 1), 20, np.float32)
    z = np.concatenate([open_gates, -open_gates, x, open_gates], axis=1)[None]
    zero = tf.zeros([len(x), 1])
    _, (_, c) = kernel.lstm(tf.constant(z), (zero, zero), tf.zeros([1, 4]), None)
    np.testing.assert_allclose(c, np.tanh(x.astype(np.float64)), rtol=1e-6)


def test_mismatched_shapes_and_ids_raise() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        kernel.ops().char_rnn_lstm(
            tf.zeros([2, 3, 8]), tf.zeros([3, 8]), tf.zeros([3, 2]), tf.zeros([3, 2]), tf.ones([2, 3])
        )
    with pytest.raises(tf.errors.InvalidArgumentError):
        kernel.ops().char_rnn_product(tf.zeros([2, 3, 1]), tf.zeros([3, 4]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        kernel.sum_rows(tf.zeros([1, 2]), tf.constant([3]), tf.zeros([3, 2]))


def test_too_little_memory_raises() -> None:
    with pytest.raises(tf.errors.ResourceExhaustedError):
        kernel.matmul(tf.zeros([2**22, 0]), tf.zeros([0, 2**22]))


def test_missing_compiler_falls_back_to_the_loop(
    make_model: Callable[..., CharRNN],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, ids = make_model(), np.zeros((2, 3), int)
    compiled, _ = model(ids, model.initial_carry(2))
    monkeypatch.setattr(kernel, "BUILT", tmp_path)
    monkeypatch.setenv("CXX", "false")
    kernel.ops.cache_clear()
    try:
        looped, _ = model(ids, model.initial_carry(2))
    finally:
        kernel.ops.cache_clear()
    assert "lstm.cc cannot be compiled" in capsys.readouterr().err
    np.testing.assert_allclose(looped, compiled, atol=1e-5)
    assert not list(tmp_path.iterdir()), "no partial library is left"


def test_library_is_compiled_once_per_source_and_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def compile_with(command: list[str], **_: Any) -> None:
        calls.append(command)
        with open(command[command.index("-o") + 1], "wb"):
            pass

    monkeypatch.setattr(kernel, "BUILT", tmp_path)
    monkeypatch.setattr(subprocess, "run", compile_with)
    first = kernel._build()
    assert kernel._build() == first
    assert len(calls) == 1
    monkeypatch.setattr(kernel, "processor", lambda: ("another", set()))
    assert kernel._build() != first


@pytest.mark.slow
@pytest.mark.parametrize("without", [["amx-bf16"], ["amx-bf16", "avx512bf16"], ["amx-bf16", "avx512f"]])
def test_every_processor(tmp_path: Path, without: list[str]) -> None:
    """Compile for a processor without some of this one's instructions, and run the other tests."""
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nexec c++ "$@" {" ".join(f"-mno-{name}" for name in without)}\n')
    compiler.chmod(0o755)
    script = (
        "import pathlib, sys, pytest; from trainers.model import kernel; kernel.BUILT = pathlib.Path(sys.argv[1]); "
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-m', 'not slow', sys.argv[2]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path, __file__],
        env=os.environ | {"CXX": str(compiler)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
