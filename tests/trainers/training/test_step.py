import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.lanes import Batch
from trainers.config import ModelConfig, TrainConfig
from trainers.model.char_rnn import CharRNN
from trainers.training.devices import Devices
from trainers.training.optimizer import make_optimizer
from trainers.training.step import Steps, total_nats

On = Callable[..., Devices]
B, T, V = 4, 3, 11


def text(rng: np.random.Generator, windows: int) -> list[Batch]:
    ids = rng.integers(0, V, (B, windows * T + 1)).astype(np.uint8)
    full = np.full(B, T, np.int32)
    spans = [slice(k * T, (k + 1) * T) for k in range(windows)]
    return [Batch(ids[:, span], ids[:, 1:][:, span], full) for span in spans]


def documents(rng: np.random.Generator, windows: int) -> list[Batch]:
    """Return text with resets at about every third character."""
    return [batch._replace(reset_BxT=rng.random((B, T)) < 1 / 3) for batch in text(rng, windows)]


def build(devices: Devices, dropout: float = 0.0, **settings: object) -> Steps:
    config = TrainConfig(**{"learning_rate": 0.01, "clip": 5.0, **settings})
    with devices.strategy.scope():
        model = CharRNN(ModelConfig(units=7, layers=2, dropout=dropout, output_dropout=dropout), V, seed=3)
        optimizer = make_optimizer(config, 100, 10, model.trainable_variables, model.inner_kernels)
    return Steps(devices, model, optimizer, config)


def stream(steps: Steps, batches: list[Batch]) -> Any:
    """Iterate over a worker's rows of batches, as the training loop does."""
    parts = Batch(*(None if part[0] is None else np.stack(part) for part in zip(*batches, strict=True)))
    rows = steps.devices.rows(B)
    mine = Batch(*(None if part is None else part[:, rows.start : rows.stop] for part in parts))
    return iter(tf.data.Dataset.from_tensor_slices(mine))


def run(
    steps: Steps, batches: list[Batch], carry: np.ndarray | None = None, calls: tuple[int, ...] = ()
) -> tuple[list[float], np.ndarray]:
    """Train on the batches, `calls` steps per call, and return losses and final carry."""
    shares = steps.scatter(steps.model.initial_carry(B) if carry is None else carry)
    iterator, losses = stream(steps, batches), []
    for count in calls or (len(batches),):
        totals, shares = steps.train(iterator, shares, tf.constant(len(losses), tf.int64), tf.constant(count))
        losses += list(totals.nats.numpy() / totals.targets.numpy())
    return losses, steps.gather(shares).numpy()


def test_loss_ignores_padding(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(3, 4, V)).astype(np.float32)
    targets = rng.integers(0, V, (3, 4)).astype(np.uint8)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -sum(log_p[b, t, targets[b, t]] for b, n in enumerate((4, 2, 0)) for t in range(n))
    np.testing.assert_allclose(total_nats(tf.constant(logits), targets, tf.constant([4, 2, 0])), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dropout", "make", "optimizer"),
    [pytest.param(0.0, text, "adam", marks=pytest.mark.slow), (0.3, documents, "muon")],
)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 2), id="1 replica 2 towers", marks=pytest.mark.slow),
        pytest.param((2, 1), id="2 replicas", marks=pytest.mark.slow),
        pytest.param((2, 2), id="2 replicas 2 towers"),
    ],
)
def test_replicas_and_towers_match_one_device(
    rng: np.random.Generator,
    on: On,
    shape: tuple[int, int],
    dropout: float,
    make: Callable[..., list[Batch]],
    optimizer: str,
) -> None:
    batches = make(rng, 5)
    settings = {"optimizer": optimizer, "schedule": "cosine", "decay": 0.1}
    single, parallel = (build(devices, dropout, **settings) for devices in (on(), on(*shape)))
    (single_losses, single_carry), (losses, carry) = run(single, batches), run(parallel, batches)
    np.testing.assert_allclose(losses, single_losses, atol=1e-5)
    np.testing.assert_allclose(carry, single_carry, atol=1e-5)
    for a, b in zip(parallel.model.get_weights(), single.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for copy in parallel.model.trainable_variables:
        first, *others = parallel.strategy.experimental_local_results(copy.value)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg="replicas must keep equal copies of each weight")


def test_steps_per_call_do_not_change_training(rng: np.random.Generator, on: On) -> None:
    batches, results = documents(rng, 6), []
    for calls in ((6,), (1, 3, 2)):
        steps = build(on(towers=2), dropout=0.3)
        losses, carry = run(steps, batches, calls=calls)
        results.append([np.array(losses), carry, *steps.model.get_weights()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_lanes_stay_on_their_replica(rng: np.random.Generator, on: On) -> None:
    batches = documents(rng, 3)
    steps = build(on(replicas=2))
    for batch, read in zip(batches, stream(steps, batches), strict=True):
        shares = steps.strategy.run(steps._share, args=(read,))
        for part, expected in zip(shares, batch, strict=True):
            np.testing.assert_array_equal(tf.concat(steps.strategy.experimental_local_results(part), 0), expected)


def test_a_step_on_a_gpu_runs_all_layers_in_one_op(on: On) -> None:
    """Trace the step only, since the op needs a GPU; also with documents, whose pieces have unknown sizes."""
    for reset in (None, tf.zeros([B, T], bool)):
        steps = build(on())
        steps.model.use_cudnn = True
        batch = Batch(tf.zeros([B, T], tf.uint8), tf.zeros([B, T], tf.uint8), tf.fill([B], T), reset)

        @tf.function
        def step(batch: Batch, carry: tf.Tensor, steps: Steps = steps) -> Any:
            return steps.strategy.run(steps._update, args=(batch, carry, tf.constant(0)))

        graph = step.get_concrete_function(batch, steps.model.initial_carry(B)).graph
        ops = collections.Counter(node.op for node in graph.as_graph_def().node)
        assert (ops["CudnnRNNV3"], ops["CudnnRNNBackpropV3"], ops["While"]) == (1, 1, 0)


def test_small_gradients_survive_float16(rng: np.random.Generator, on: On) -> None:
    """With this many targets per step, most gradients would round to 0 without a scale."""
    steps, (batch,) = build(on()), documents(rng, 1)
    exact, halves = [], []
    for dtype, gradients in ((tf.float32, exact), (tf.float16, halves)):
        steps.model.matmul_dtype = dtype
        gradients += steps._tower(batch, steps.model.initial_carry(B), [], 10**5)[2]
    for half, gradient in zip(halves, exact, strict=True):
        assert half.dtype == tf.float32
        assert np.linalg.norm(half - gradient) < 0.02 * np.linalg.norm(gradient)


def test_a_gradient_beyond_float16_changes_no_weight(
    rng: np.random.Generator, on: On, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, batches = build(on(replicas=2), optimizer="sgd", learning_rate=1.0), text(rng, 2)
    steps.model.matmul_dtype = tf.float16
    monkeypatch.setattr("trainers.training.step.LOSS_SCALE", 2.0**40)
    before = steps.model.get_weights()
    carry = steps.scatter(steps.model.initial_carry(B))
    totals, _ = steps.train(stream(steps, batches), carry, tf.constant(0, tf.int64), tf.constant(2))
    np.testing.assert_array_equal(totals.gradient_norm, [0, 0])
    assert np.isfinite(totals.nats).all()
    for after, weight in zip(steps.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(after, weight)


def test_update_is_the_clipped_gradient(rng: np.random.Generator, on: On) -> None:
    steps = build(on(replicas=2), optimizer="sgd", learning_rate=1.0, clip=0.001)
    before = steps.model.get_weights()
    run(steps, text(rng, 1))
    update_norm = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(steps.model.get_weights(), before, strict=True)))
    np.testing.assert_allclose(update_norm, 0.001, rtol=1e-3)


def test_partial_window_weighs_targets_equally(rng: np.random.Generator, on: On) -> None:
    (batch,) = text(rng, 1)
    half = Batch(batch.ids_BxT, batch.targets_BxT, np.array([T, 0, 0, 0], np.int32))
    updates = []
    for window in (batch, half):
        steps = build(on(), optimizer="sgd", learning_rate=1.0, clip=1e9)
        before = steps.model.dense.bias.numpy()
        run(steps, [window])
        updates.append(steps.model.dense.bias.numpy() - before)
    # The dense bias moves by the sum over targets of (onehot - p) / (B T); empty rows contribute nothing.
    logits, _ = build(on()).model(batch.ids_BxT, tf.zeros([B, 2, 2, 7]))
    error = tf.one_hot(batch.targets_BxT, V) - tf.nn.softmax(logits)
    np.testing.assert_allclose(updates[0], np.sum(error, (0, 1)) / (B * T), atol=1e-5)
    np.testing.assert_allclose(updates[1], np.sum(error[0], 0) / (B * T), atol=1e-5)


def test_training_and_evaluation_reset_at_documents(rng: np.random.Generator, on: On) -> None:
    (plain,), (carry,) = text(rng, 1), rng.normal(size=(1, B, 2, 2, 7)).astype(np.float32)
    fresh = plain._replace(
        reset_BxT=np.tile(np.arange(T) == 0, (B, 1))
    )  # a reset at the first input equals an empty carry
    for evaluate in (False, True):
        nats = []
        for batch, start in ((plain, carry), (fresh, carry), (plain, 0 * carry)):
            steps = build(on())
            iterator, shares = stream(steps, [batch]), steps.scatter(start)
            if evaluate:
                totals, _ = steps.evaluate(next(iterator), shares)
                nats.append(float(totals.nats))
            else:
                totals, _ = steps.train(iterator, shares, tf.constant(0, tf.int64), tf.constant(1))
                nats += list(totals.nats.numpy())
        assert nats[1] == pytest.approx(nats[2], abs=1e-5)
        assert abs(nats[0] - nats[2]) > 1e-3


def test_evaluation_is_deterministic_and_keeps_weights(rng: np.random.Generator, on: On) -> None:
    steps = build(on(towers=2), dropout=0.5)
    (batch,), before = text(rng, 1), steps.model.get_weights()
    carry = steps.scatter(steps.model.initial_carry(B))
    same = next(stream(steps, [batch]))
    (first, after), (again, _) = steps.evaluate(same, carry), steps.evaluate(same, carry)
    logits, model_after = steps.model(batch.ids_BxT, steps.model.initial_carry(B))
    expected = total_nats(logits, batch.targets_BxT, batch.count_B)
    np.testing.assert_allclose(first.nats, expected, rtol=1e-6)
    np.testing.assert_allclose(steps.gather(after), model_after, atol=1e-6)
    assert float(first.nats) == float(again.nats)
    assert int(first.targets) == B * T
    for a, b in zip(steps.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gather_inverts_scatter(rng: np.random.Generator, on: On) -> None:
    steps = build(on(replicas=2))
    carry = rng.normal(size=(B, 2, 2, 7)).astype(np.float32)
    np.testing.assert_array_equal(steps.gather(steps.scatter(carry)), carry)
