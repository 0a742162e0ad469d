"""Single steps against a whole window."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainers.model import recurrence
from trainers.model.char_rnn import CharRNN, join_carry, split_carry
from trainers.sampling import stepper
from trainers.sampling.draw import NEVER
from trainers.sampling.stepper import Stepper, pack_weights, padded_rows

MakeModel = Callable[..., CharRNN]

KINDS = [
    {"cell": "lstm"},
    {"cell": "gru", "embedding": 4, "layer_norm": True},
    {"cell": "rnn", "layer_norm": True},
    {"cell": "lstm", "embedding": 5},
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["lstm", "gru", "rnn", "embedding"])


def check_steps(model: CharRNN, ids: np.ndarray, end_id: int | None = None) -> None:
    B, T = ids.shape
    reset = None if end_id is None else ids == end_id
    logits, carry = model(ids, model.initial_carry(B), reset_BxT=reset)
    single, states = Stepper(model, end_id), split_carry(model.initial_carry(B))
    for t in range(T):
        states = single.read(tf.constant(ids[:, t]), states)
        real, rest = tf.split(single.logits(states), [model.vocab_size, -1], axis=1)
        np.testing.assert_allclose(real, logits[:, t], atol=1e-5)
        assert (rest.shape[1], np.unique(rest).tolist()) == (5, [float(np.float32(NEVER))]), "padding is never drawn"
    np.testing.assert_allclose(join_carry(states), carry, atol=1e-5)


@kinds
def test_steps_match_window(rng: np.random.Generator, make_model: MakeModel, kind: dict[str, Any]) -> None:
    check_steps(make_model(layers=3, **kind), rng.integers(0, 11, (2, 9)))


@kinds
def test_step_resets_at_end_of_document(rng: np.random.Generator, make_model: MakeModel, kind: dict[str, Any]) -> None:
    check_steps(make_model(**kind), rng.integers(0, 4, (3, 12)), end_id=2)


@kinds
def test_panels_and_lookup_match_window(
    rng: np.random.Generator, make_model: MakeModel, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepper, "WIDE", 0)
    monkeypatch.setattr(stepper, "PANEL", 5)  # the number of gate columns is not a multiple of 5
    monkeypatch.setattr(stepper, "INPUTS", (4, 3))
    monkeypatch.setattr(recurrence, "TABLE", 10)
    model = make_model(**kind)
    weights = pack_weights(model)
    assert [[panel.shape for panel in piece] for piece in weights.dense] == [
        [(4, 5)] * 3 + [(4, 1)],
        [(3, 5)] * 3 + [(3, 1)],
    ]
    assert bool(weights.layers[0].kernel) == bool(model.embedding)
    check_steps(model, rng.integers(0, 11, (2, 5)))


@pytest.mark.parametrize(
    "shape", [(1, 4), (13, 52), (112, 112), (256, 1024), (333, 999), (83, 1329), (512, 2048), (1100, 112), (0, 0)]
)
def test_row_product_is_bit_identical_in_any_batch(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    """Compare products bit by bit, which makes served texts reproducible. Verified with AVX2 and AVX-512."""
    K, G = shape if shape[0] else rng.integers(1, 1100, 2).tolist()
    w, x = rng.normal(size=(K, G)).astype(np.float32), rng.normal(size=(64, K)).astype(np.float32)
    cut = stepper._cut(tf.constant(w))
    times = tf.function(lambda x: stepper._times(x, cut, G), input_signature=[tf.TensorSpec([None, K])])
    by_four = np.concatenate([times(x[start : start + 4]) for start in range(0, 64, 4)])
    np.testing.assert_allclose(by_four, x.astype(np.float64) @ w, atol=1e-6 * K, err_msg=f"{K} x {G}")
    for count in range(1, 65):
        rows = rng.permutation(64)[: int(padded_rows(count))]
        np.testing.assert_array_equal(times(x[rows]), by_four[rows], err_msg=f"{len(rows)} rows of {K} x {G}")


def test_padded_rows() -> None:
    padded = {rows: int(padded_rows(tf.constant(rows))) for rows in (0, 1, 4, 5, 12, 13, 16, 17, 32, 64)}
    assert padded == {0: 4, 1: 4, 4: 4, 5: 12, 12: 12, 13: 16, 16: 16, 17: 24, 32: 36, 64: 64}


def test_packed_weights_do_not_follow_training(rng: np.random.Generator, make_model: MakeModel) -> None:
    model, ids = make_model(), tf.constant([3, 4])
    weights, before = tf.nest.map_structure(tf.Variable, pack_weights(model)), split_carry(model.initial_carry(2))
    frozen = Stepper(model, weights=weights)
    first = frozen.logits(frozen.read(ids, before))
    model.set_weights([weight + 1 for weight in model.get_weights()])
    np.testing.assert_array_equal(frozen.logits(frozen.read(ids, before)), first)
    updated = Stepper(model)
    assert np.abs(updated.logits(updated.read(ids, before)) - first).max() > 0.1
