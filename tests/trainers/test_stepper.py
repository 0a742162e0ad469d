"""Single steps against the window."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainers import recurrence, stepper
from trainers.model import CharRNN, join_carry, split_carry
from trainers.stepper import Stepper, lay_out

MakeModel = Callable[..., CharRNN]

KINDS = [
    {"cell": "lstm"},
    {"cell": "gru", "embedding": 4, "layer_norm": True},
    {"cell": "rnn", "layer_norm": True},
    {"cell": "lstm", "embedding": 5},
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["lstm", "gru", "rnn", "embedding"])


def check(model: CharRNN, ids: np.ndarray, end_id: int | None = None) -> None:
    B, T = ids.shape
    reset = None if end_id is None else ids == end_id
    logits, carry = model(ids, model.initial_carry(B), reset_BxT=reset)
    one, states = Stepper(model, end_id), split_carry(model.initial_carry(B))
    for t in range(T):
        states = one.read(tf.constant(ids[:, t]), states)
        np.testing.assert_allclose(one.logits(states), logits[:, t], atol=1e-5)
    np.testing.assert_allclose(join_carry(states), carry, atol=1e-5)


@kinds
def test_a_step_is_a_window_of_one(rng: np.random.Generator, make_model: MakeModel, kind: dict[str, Any]) -> None:
    check(make_model(layers=3, **kind), rng.integers(0, 11, (2, 9)))


@kinds
def test_a_step_starts_afresh_at_the_end_of_a_document(
    rng: np.random.Generator, make_model: MakeModel, kind: dict[str, Any]
) -> None:
    check(make_model(**kind), rng.integers(0, 4, (3, 12)), end_id=2)


@kinds
def test_large_matrices_and_vocabularies_are_multiplied_another_way_to_the_same_end(
    rng: np.random.Generator, make_model: MakeModel, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepper, "WIDE", 0)
    monkeypatch.setattr(stepper, "PANEL", 5)  # which the gate columns are no multiple of
    monkeypatch.setattr(recurrence, "TABLE", 10)
    model = make_model(**kind)
    laid = lay_out(model)
    assert [panel.shape[1] for panel in laid.dense] == [5, 5, 1]
    assert bool(laid.layers[0].kernel) == bool(model.embedding)
    check(model, rng.integers(0, 11, (2, 5)))


def test_what_was_laid_out_stays_when_the_model_learns(rng: np.random.Generator, make_model: MakeModel) -> None:
    model, ids = make_model(), tf.constant([3, 4])
    laid, before = tf.nest.map_structure(tf.Variable, lay_out(model)), split_carry(model.initial_carry(2))
    frozen = Stepper(model, laid=laid)
    first = frozen.logits(frozen.read(ids, before))
    model.set_weights([weight + 1 for weight in model.get_weights()])
    np.testing.assert_array_equal(frozen.logits(frozen.read(ids, before)), first)
    moved = Stepper(model)
    assert np.abs(moved.logits(moved.read(ids, before)) - first).max() > 0.1
