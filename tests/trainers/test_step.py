from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from pipeline.lanes import Batch
from trainers.config import ModelConfig
from trainers.devices import Devices, plan
from trainers.model import CharRNN
from trainers.step import Steps, total_nats

On = Callable[..., Devices]
B, T, V = 4, 6, 11


def text(rng: np.random.Generator, windows: int) -> list[Batch]:
    ids = rng.integers(0, V, (B, windows * T + 1)).astype(np.uint8)
    full = np.full(B, T, np.int32)
    spans = [slice(k * T, (k + 1) * T) for k in range(windows)]
    return [Batch(ids[:, span], ids[:, 1:][:, span], full) for span in spans]


def documents(rng: np.random.Generator, windows: int) -> list[Batch]:
    """Text that starts afresh at every third character or so."""
    return [batch._replace(reset_BxT=rng.random((B, T)) < 1 / 3) for batch in text(rng, windows)]


def build(devices: Devices, dropout: float = 0.0, optimizer: str = "adam", **kwargs: float) -> Steps:
    with devices.strategy.scope():
        model = CharRNN(ModelConfig(units=7, layers=2, dropout=dropout), V, seed=3)
        optimizer = keras.optimizers.get(
            {"class_name": optimizer, "config": {"learning_rate": kwargs.pop("rate", 0.01)}}
        )
        optimizer.build(model.trainable_variables)
    return Steps(devices, model, optimizer, **kwargs)


def run(
    steps: Steps, batches: list[Batch], first: int = 0, carry: np.ndarray | None = None
) -> tuple[list[float], np.ndarray]:
    """Trains on the batches; the losses and the carry after them."""
    start = steps.model.initial_carry(B) if carry is None else carry
    shares, losses = steps.scatter(start), []
    parts = tuple(np.stack(part) for part in zip(*batches, strict=True) if part[0] is not None)
    dataset = tf.data.Dataset.from_tensor_slices(parts).map(Batch)
    for step, batch in enumerate(steps.distribute(dataset), start=first):
        totals, shares = steps.train(batch, shares, tf.constant(step, tf.int64))
        losses.append(float(totals.nats) / int(totals.targets))
    return losses, steps.gather(shares).numpy()


def test_the_loss_counts_the_real_targets_only(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(3, 4, V)).astype(np.float32)
    targets = rng.integers(0, V, (3, 4)).astype(np.uint8)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -sum(log_p[b, t, targets[b, t]] for b, n in enumerate((4, 2, 0)) for t in range(n))
    np.testing.assert_allclose(total_nats(tf.constant(logits), targets, tf.constant([4, 2, 0])), expected, rtol=1e-5)


@pytest.mark.parametrize(("dropout", "make"), [(0.0, text), (0.3, documents)])
@pytest.mark.parametrize(
    "shape", [(1, 2), (2, 1), (2, 2)], ids=["1 replica 2 towers", "2 replicas", "2 replicas 2 towers"]
)
def test_replicas_and_towers_train_as_one(
    rng: np.random.Generator, on: On, shape: tuple[int, int], dropout: float, make: Callable[..., list[Batch]]
) -> None:
    batches = make(rng, 5)
    one, many = build(on(), dropout), build(on(*shape), dropout)
    (one_losses, one_carry), (losses, carry) = run(one, batches), run(many, batches)
    np.testing.assert_allclose(losses, one_losses, atol=1e-5)
    np.testing.assert_allclose(carry, one_carry, atol=1e-5)
    for a, b in zip(many.model.get_weights(), one.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for copy in many.model.trainable_variables:
        first, *others = many.strategy.experimental_local_results(copy.value)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg="the replicas' copies of a weight have parted")


def test_a_step_moves_by_the_clipped_gradient(rng: np.random.Generator, on: On) -> None:
    steps = build(on(replicas=2), optimizer="sgd", rate=1.0, clip=0.001)
    before = steps.model.get_weights()
    run(steps, text(rng, 1))
    moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(steps.model.get_weights(), before, strict=True)))
    np.testing.assert_allclose(moved, 0.001, rtol=1e-3)


def test_a_window_that_is_not_full_weighs_its_targets_as_any_other(rng: np.random.Generator, on: On) -> None:
    (batch,) = text(rng, 1)
    half = Batch(batch.ids_BxT, batch.targets_BxT, np.array([T, 0, 0, 0], np.int32))
    moves = []
    for one in (batch, half):
        steps = build(on(), optimizer="sgd", rate=1.0, clip=1e9)
        before = steps.model.dense.bias.numpy()
        run(steps, [one])
        moves.append(steps.model.dense.bias.numpy() - before)
    # The dense bias moves by sum over targets of (onehot - p) / (B T): the rows that were left out are missed, no more.
    logits, _ = build(on()).model(batch.ids_BxT, tf.zeros([B, 2, 2, 7]))
    error = tf.one_hot(batch.targets_BxT, V) - tf.nn.softmax(logits)
    np.testing.assert_allclose(moves[0], np.sum(error, (0, 1)) / (B * T), atol=1e-5)
    np.testing.assert_allclose(moves[1], np.sum(error[0], 0) / (B * T), atol=1e-5)


def test_training_and_evaluation_start_afresh_at_a_document(rng: np.random.Generator, on: On) -> None:
    (plain,), (carry,) = text(rng, 1), rng.normal(size=(1, B, 2, 2, 7)).astype(np.float32)
    fresh = plain._replace(reset_BxT=np.tile(np.arange(T) == 0, (B, 1)))  # at its first input alone: an empty carry
    for evaluate in (False, True):
        nats = []
        for batch, start in ((plain, carry), (fresh, carry), (plain, 0 * carry)):
            steps = build(on())
            function = steps.evaluate if evaluate else lambda *x, steps=steps: steps.train(*x, tf.constant(0, tf.int64))
            totals, _ = function(batch, steps.scatter(start))
            nats.append(float(totals.nats))
        assert nats[1] == pytest.approx(nats[2], abs=1e-5)
        assert abs(nats[0] - nats[2]) > 1e-3


def test_evaluation_repeats_and_leaves_the_weights_alone(rng: np.random.Generator, on: On) -> None:
    steps = build(on(towers=2), dropout=0.5)
    (batch,), before = text(rng, 1), steps.model.get_weights()
    carry = steps.scatter(steps.model.initial_carry(B))
    (first, after), (again, _) = steps.evaluate(batch, carry), steps.evaluate(batch, carry)
    logits, model_after = steps.model(batch.ids_BxT, steps.model.initial_carry(B))
    expected = total_nats(logits, batch.targets_BxT, batch.count_B)
    np.testing.assert_allclose(first.nats, expected, rtol=1e-6)
    np.testing.assert_allclose(steps.gather(after), model_after, atol=1e-6)
    assert float(first.nats) == float(again.nats)
    assert int(first.targets) == B * T
    for a, b in zip(steps.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_scatter_and_gather_are_inverse(rng: np.random.Generator, on: On) -> None:
    steps = build(on(replicas=2))
    carry = rng.normal(size=(B, 2, 2, 7)).astype(np.float32)
    np.testing.assert_array_equal(steps.gather(steps.scatter(carry)), carry)


def test_lanes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match=r"6 lanes do not divide over 4 replicas; numbers that do: 1, 2, 3, 6$"):
        plan(6, replicas=4)
