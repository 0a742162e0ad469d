import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainers.config import ModelConfig, TrainConfig
from trainers.model import kernel
from trainers.model.char_rnn import CharRNN
from trainers.training.optimizer import LearningRate, make_optimizer

TOTAL, EPOCH = 41, 10


def rates(**settings: object) -> np.ndarray:
    """Return the learning rate of every step of a run of 41 steps, 10 per epoch."""
    rate = LearningRate(TrainConfig(learning_rate=0.5, **settings), TOTAL, EPOCH)
    return np.array([float(rate(tf.constant(step, tf.int64))) for step in range(TOTAL)])


def test_schedules_match_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.training.optimizer.DECAY_AFTER", 2)
    steps = np.arange(TOTAL)
    warm = np.minimum((steps + 1) / 8, 1)
    for warmup, risen in ((0, 1), (8, warm)):
        share = steps / 40 if not warmup else np.maximum(0, steps - 7) / 33  # falls from the peak on
        falling = {
            "exponential": 0.2**share,
            "cosine": 0.2 + 0.8 * (1 + np.cos(math.pi * share)) / 2,
            "char-rnn": 0.2 ** np.maximum(0, steps // EPOCH - 1),  # from epoch 3 on, after two full epochs
        }
        for schedule, factor in falling.items():
            measured = rates(schedule=schedule, decay=0.2, warmup=warmup)
            np.testing.assert_allclose(measured, 0.5 * factor * risen, rtol=1e-5, err_msg=schedule)
            assert schedule == "char-rnn" or measured.max() == np.float32(0.5)
    np.testing.assert_allclose(rates(warmup=8), 0.5 * warm, rtol=1e-6)


def test_char_rnn_schedule_matches_train_lua() -> None:
    """Follow train.lua, which multiplies by 0.97 at the end of each epoch, from the tenth on."""
    rate, expected = 0.002, []
    for iteration in range(1, 13 * EPOCH + 1):
        expected.append(rate)
        epoch = iteration / EPOCH
        if iteration % EPOCH == 0 and epoch >= 10:
            rate *= 0.97
    config = TrainConfig(schedule="char-rnn", decay=0.97)
    ours = LearningRate(config, 13 * EPOCH, EPOCH)
    np.testing.assert_allclose([float(ours(step)) for step in range(13 * EPOCH)], expected, rtol=1e-6)


def test_schedule_and_precision_survive_serialization() -> None:
    config = TrainConfig(optimizer="muon", schedule="cosine", decay=0.1, warmup=3)
    optimizer = make_optimizer(config, TOTAL, EPOCH, [], [], matmul_dtype=tf.bfloat16)
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert restored.matmul_dtype == tf.bfloat16
    for step in (0, 7, 40):
        assert float(restored._learning_rate(step)) == float(optimizer._learning_rate(step))


def apply_gradients(gradients: list[list[float]], **settings: object) -> np.ndarray:
    """Apply gradients to a kernel and a bias of [1, -2], one per step, and return both."""
    kernel, bias = (keras.Variable(np.array([1.0, -2.0], np.float32), name=name) for name in ("kernel", "bias"))
    optimizer = make_optimizer(TrainConfig(learning_rate=0.1, **settings), TOTAL, EPOCH, [kernel, bias], [])
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient), tf.constant(gradient)], [kernel, bias])
    return np.stack([kernel.numpy(), bias.numpy()])


def test_optimizers_match_their_papers() -> None:
    gradients = np.array([[0.5, -0.25], [-0.125, 1.0], [0.75, 0.0]])
    start = np.array([1.0, -2.0])
    expected = {}
    w, velocity = start, np.zeros(2)
    for g in gradients:  # momentum: Sutskever et al. 2013
        velocity = 0.9 * velocity - 0.1 * g
        w = w + velocity
    expected["sgd"] = w
    w, square = start, np.zeros(2)
    for g in gradients:  # RMSProp: Tieleman & Hinton 2012
        square = 0.9 * square + 0.1 * g * g
        w = w - 0.1 * g / np.sqrt(square + 1e-7)
    expected["rmsprop"] = w
    w, m, v = start, np.zeros(2), np.zeros(2)
    for t, g in enumerate(gradients, 1):  # Adam: Kingma & Ba 2014
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - 0.1 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
    expected["adam"] = w
    for name, w in expected.items():
        np.testing.assert_allclose(apply_gradients(gradients.tolist(), optimizer=name), [w, w], rtol=1e-4)


def test_weight_decay_applies_to_kernels_but_not_biases() -> None:
    zero_gradients = [[0.0, 0.0]] * 2
    kernel, bias = apply_gradients(zero_gradients, optimizer="adamw", weight_decay=0.5)
    np.testing.assert_allclose(kernel, np.array([1.0, -2.0]) * (1 - 0.1 * 0.5) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(bias, [1.0, -2.0])


def orthogonal(g: np.ndarray) -> np.ndarray:
    """Apply five Newton-Schulz steps of Jordan's polynomial, which bring singular values near 1."""
    x = g.T / np.linalg.norm(g) if g.shape[0] > g.shape[1] else g / np.linalg.norm(g)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_muon_updates_inner_kernels_and_adam_the_rest(cell: Any, rng: np.random.Generator) -> None:
    model = CharRNN(ModelConfig(cell=cell, units=4, layers=2), 5)
    weights, inner = model.trainable_variables, model.inner_kernels
    paths = [w.path for w in inner]
    assert [path.split("/")[-1] for path in paths] == ["recurrent_kernel", "kernel", "recurrent_kernel"]
    optimizers = {
        name: make_optimizer(TrainConfig(learning_rate=0.1, optimizer=name), TOTAL, EPOCH, weights, inner)
        for name in ("muon", "adam")
    }
    start = [w.numpy() for w in weights]
    gradients = [[rng.normal(size=w.shape).astype(np.float32) for w in weights] for _ in range(3)]
    after = {}
    for name, optimizer in optimizers.items():
        for weight, value in zip(weights, start, strict=True):
            weight.assign(value)
        for gradient in gradients:
            optimizer.apply([tf.constant(g) for g in gradient], weights)
        after[name] = [w.numpy() for w in weights]
    for index, weight in enumerate(weights):
        expected = after["adam"][index]
        if weight.path in paths:
            expected, momentum = start[index].astype(np.float64), np.zeros(weight.shape)
            for g in (gradient[index].astype(np.float64) for gradient in gradients):
                momentum = 0.95 * momentum + g
                expected -= 0.1 * 0.2 * math.sqrt(max(weight.shape)) * orthogonal(g + 0.95 * momentum)
        np.testing.assert_allclose(after["muon"][index], expected, rtol=1e-3, atol=1e-4, err_msg=weight.path)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_muon_multiplies_in_bfloat16(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    gradient, updates = rng.normal(size=shape).astype(np.float32), []
    for dtype in (tf.float32, tf.bfloat16):
        weight = keras.Variable(tf.zeros(shape), name="kernel")
        config = TrainConfig(learning_rate=0.1, optimizer="muon")
        optimizer = make_optimizer(config, TOTAL, EPOCH, [weight], [weight], matmul_dtype=dtype)
        optimizer.apply([tf.constant(gradient)], [weight])
        updates.append(weight.numpy())
    exact, rounded = updates
    assert 0 < np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_fused_optimizers_match_keras(
    name: Any, compiled: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CharRNN(ModelConfig(units=4, layers=2), 5)
    weights, inner = model.trainable_variables, model.inner_kernels
    config = TrainConfig(optimizer=name, learning_rate=0.1, warmup=2, weight_decay=0.1)
    fused = make_optimizer(config, TOTAL, EPOCH, weights, inner)
    with monkeypatch.context() as without_compiler:
        without_compiler.setattr(kernel, "ops", lambda: None)
        pair = [make_optimizer(config, TOTAL, EPOCH, weights, inner), fused]
    assert type(pair[0]) is not type(fused)
    if not compiled:  # TensorFlow's op, as on a GPU
        monkeypatch.setattr(kernel, "ops", lambda: None)
    start = [w.numpy() for w in weights]
    gradients = [[rng.normal(size=w.shape).astype(np.float32) for w in weights] for _ in range(3)]
    after = []
    for optimizer in pair:
        for weight, value in zip(weights, start, strict=True):
            weight.assign(value)
        for gradient in gradients:
            optimizer.apply([tf.constant(g) for g in gradient], weights)
        after.append([*(w.numpy() for w in weights), *(v.numpy() for v in optimizer.variables)])
    for keras_value, fused_value in zip(*after, strict=True):
        np.testing.assert_allclose(fused_value, keras_value, rtol=1e-4, atol=1e-5)
    names = [[variable.path.partition("/")[2] for variable in optimizer.variables] for optimizer in pair]
    assert names[0] == names[1], "a run must be able to move from a CPU to a GPU and back"
    assert type(keras.optimizers.deserialize(keras.optimizers.serialize(pair[1]))) is type(pair[1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_skips_norms_and_embeddings(optimizer: Any) -> None:
    model = CharRNN(ModelConfig(units=3, layers=2, embedding=2, layer_norm=True), 5)
    config = TrainConfig(learning_rate=0.5, optimizer=optimizer, weight_decay=1.0)
    instance = make_optimizer(config, TOTAL, EPOCH, model.trainable_variables, model.inner_kernels)
    before = [w.numpy() for w in model.trainable_variables]
    instance.apply([tf.zeros(w.shape) for w in before], model.trainable_variables)
    for weight, start in zip(model.trainable_variables, before, strict=True):
        expected = start / 2 if weight.path.endswith("kernel") else start
        np.testing.assert_allclose(weight, expected, rtol=1e-6, err_msg=weight.path)
