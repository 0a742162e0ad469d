import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from combined import combined

from trainers.model.char_rnn import CharRNN

MakeModel = Callable[..., CharRNN]

KINDS = [{"cell": "lstm"}, {"cell": "gru", "embedding": 4, "layer_norm": True}, {"cell": "rnn", "layer_norm": True}]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["lstm", "gru", "rnn"])


@kinds
def test_carry_makes_short_windows_equal_one_long_window(
    rng: np.random.Generator, make_model: MakeModel, kind: dict[str, Any]
) -> None:
    model = make_model(**kind)
    ids = rng.integers(0, 11, (3, 24))
    long_logits, long_carry = model(ids, model.initial_carry(3))
    carry, pieces, cold = model.initial_carry(3), [], []
    for start, stop in ((0, 5), (5, 6), (6, 17), (17, 24)):
        logits, carry = model(ids[:, start:stop], carry)
        pieces.append(logits)
        cold.append(model(ids[:, start:stop], model.initial_carry(3))[0])
    np.testing.assert_allclose(tf.concat(pieces, 1), long_logits, atol=1e-5)
    np.testing.assert_allclose(carry, long_carry, atol=1e-5)
    assert np.abs(tf.concat(cold, 1) - long_logits)[:, 5:].max() > 1e-3, "an empty carry must change the logits"


def test_lanes_are_independent(rng: np.random.Generator, make_model: MakeModel) -> None:
    model = make_model()
    ids = rng.integers(0, 11, (3, 8))
    together, _ = model(ids, model.initial_carry(3))
    alone, _ = model(ids[1:2], model.initial_carry(1))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-6)


@pytest.mark.parametrize(("precision", "kind"), combined(["float32", "bfloat16"], KINDS))
def test_reset_makes_documents_independent(
    rng: np.random.Generator, make_model: MakeModel, precision: str, kind: dict[str, Any]
) -> None:
    model = make_model(layers=3, **kind)
    model.matmul_dtype = tf.as_dtype(precision)
    tolerance = 1e-5 if precision == "float32" else 0.05
    ids, reset = rng.integers(0, 11, (2, 23)), np.zeros((2, 23), bool)
    documents = [[0, 4, 5, 17, 23], [0, 9, 10, 20, 23]]
    for row, starts in enumerate(documents):
        reset[row, starts[1:-1]] = True
    together, carry = model(ids, model.initial_carry(2), reset_BxT=reset)
    for row, starts in enumerate(documents):
        for start, stop in itertools.pairwise(starts):
            alone, last = model(ids[row : row + 1, start:stop], model.initial_carry(1))
            np.testing.assert_allclose(together[row, start:stop], alone[0], atol=tolerance)
        np.testing.assert_allclose(carry[row], last[0], atol=tolerance)


def test_initial_weights_depend_only_on_the_seed(make_model: MakeModel) -> None:
    first, same, other = (make_model(seed=seed).get_weights() for seed in (5, 5, 6))
    for a, b in zip(first, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first[0] - other[0]).max() > 0
    kernels = [weight for weight in first if weight.shape == (7, 28)]
    assert np.abs(kernels[0] - kernels[-1]).max() > 0, "layers must start from different weights"


@pytest.mark.slow
def test_hundreds_of_layers_have_their_own_seeds(make_model: MakeModel) -> None:
    kernels = {layer.cell.kernel.numpy().tobytes() for layer in make_model(units=1, layers=500).rnns[1:]}
    assert len(kernels) == 499


def test_lstm_initialization(make_model: MakeModel) -> None:
    cell = make_model(units=6).rnns[1].cell
    np.testing.assert_array_equal(cell.bias.numpy(), np.repeat([0, 1, 0, 0], 6))
    recurrent_HxG = cell.recurrent_kernel.numpy()
    np.testing.assert_allclose(recurrent_HxG @ recurrent_HxG.T, np.eye(6), atol=1e-5)
    rows_VxG = make_model(units=40, vocab=100).rnns[0].cell.kernel.numpy()
    assert abs(rows_VxG.std() - 1) < 0.05, "a one-hot input must give gates unit variance"


def test_initialization_of_other_cells_and_embedding(make_model: MakeModel) -> None:
    for cell, shape in (("gru", (2, 18)), ("rnn", (6,))):
        layer = make_model(units=6, cell=cell).rnns[1].cell
        np.testing.assert_array_equal(layer.bias.numpy(), np.zeros(shape))
        recurrent_HxG = layer.recurrent_kernel.numpy()
        np.testing.assert_allclose(recurrent_HxG @ recurrent_HxG.T, np.eye(6), atol=1e-5)
    model = make_model(units=40, vocab=300, embedding=16, cell="gru")
    rows_VxE, kernel_ExG = model.embedding.embeddings.numpy(), model.rnns[0].cell.kernel.numpy()
    assert abs(rows_VxE.std() - 1) < 0.05
    assert abs((rows_VxE @ kernel_ExG).std() - 1) < 0.1, "an embedded input must give gates unit variance"


def test_dropout_masks_are_deterministic_and_have_the_given_rate(make_model: MakeModel) -> None:
    model = make_model(units=50, layers=3, dropout=0.25)
    (*masks, last), (*same, _), (*other, _) = (
        model.dropout_masks(20, 30, tf.constant([1, step])) for step in (7, 7, 8)
    )
    assert last is None
    assert [mask.shape for mask in masks] == [(20, 30, 50)] * 2
    for mask, again in zip(masks, same, strict=True):
        np.testing.assert_array_equal(mask, again)
    assert np.any(masks[0] != other[0])
    assert np.any(masks[0] != masks[1])
    np.testing.assert_allclose(np.unique(masks[0]), [0, 1 / 0.75])
    assert abs(np.mean(masks[0] == 0) - 0.25) < 0.02
    assert make_model(layers=3).dropout_masks(2, 3, tf.constant([1, 1])) == [None] * 3
    inner, last = make_model(units=50, dropout=0.25, output_dropout=0.5).dropout_masks(20, 30, tf.constant([1, 7]))
    np.testing.assert_array_equal(inner, masks[0])
    np.testing.assert_allclose(np.unique(last), [0, 2])
    assert abs(np.mean(last == 0) - 0.5) < 0.02
    assert abs(np.corrcoef(np.ravel(inner), np.ravel(last))[0, 1]) < 0.05, (
        "output dropout must be independent of inner dropout"
    )
    (only,) = make_model(units=50, layers=1, output_dropout=0.5).dropout_masks(20, 30, tf.constant([1, 7]))
    np.testing.assert_allclose(np.unique(only), [0, 2])


def test_output_dropout_changes_only_the_logits(rng: np.random.Generator, make_model: MakeModel) -> None:
    model = make_model(output_dropout=0.5, layer_norm=True)
    ids, carry = rng.integers(0, 11, (2, 13)), model.initial_carry(2)
    masks = model.dropout_masks(2, 13, tf.constant([3, 4]))
    logits, after = model(ids, carry, masks)
    plain, same = model(ids, carry)
    np.testing.assert_array_equal(after, same)
    kernel_HxV, bias_V = model.dense.get_weights()
    y_BxTxH = (plain - bias_V) @ np.linalg.pinv(kernel_HxV)  # 7 units, 11 characters
    np.testing.assert_allclose(logits, (y_BxTxH * masks[-1]) @ kernel_HxV + bias_V, atol=1e-4)


def test_layer_norm_applies_to_outputs_but_not_to_state(rng: np.random.Generator, make_model: MakeModel) -> None:
    model, plain = make_model(layer_norm=True), make_model()
    for layer, same in zip((*model.rnns, model.dense), (*plain.rnns, plain.dense), strict=True):
        layer.set_weights(same.get_weights())
    ids, carry = rng.integers(0, 11, (2, 6)), model.initial_carry(2)
    np.testing.assert_allclose(model(ids, carry)[1][:, 0], plain(ids, carry)[1][:, 0], atol=1e-6)
    # With gamma 0, the last norm hides all layers from the logits, and the first hides layer 0 from layer 1.
    last, shift = model.norms[1], rng.normal(size=7)
    last.gamma.assign(np.zeros(7))
    last.beta.assign(shift)
    np.testing.assert_allclose(model(ids, carry)[0], np.tile(shift @ model.dense.kernel, (2, 6, 1)), atol=1e-5)
    model.norms[0].gamma.assign(np.zeros(7))
    np.testing.assert_allclose(model(ids, carry)[1][:, 1], model(ids[::-1], carry)[1][:, 1], atol=1e-6)


@kinds
def test_keras_save_and_load_round_trip(
    rng: np.random.Generator, make_model: MakeModel, tmp_path: Path, kind: dict[str, Any]
) -> None:
    model = make_model(layers=3, dropout=0.5, seed=4, **kind)
    model.matmul_dtype = tf.bfloat16
    for weight in model.weights:  # so that none has its initial value
        weight.assign(rng.normal(size=weight.shape))
    model.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    assert type(loaded) is CharRNN
    assert loaded.get_config() == model.get_config()
    ids, carry = rng.integers(0, 11, (2, 13)), tf.constant(rng.normal(size=model.initial_carry(2).shape), tf.float32)
    for restored, original in zip(loaded(ids, carry), model(ids, carry), strict=True):
        np.testing.assert_array_equal(restored, original)
    for restored, original in zip(loaded.weights, model.weights, strict=True):
        assert restored.path == original.path
        np.testing.assert_array_equal(restored, original)


@kinds
def test_gates_reproduce_states_and_logits(
    rng: np.random.Generator, make_model: MakeModel, kind: dict[str, Any]
) -> None:
    model = make_model(**kind)
    ids, carry = rng.integers(0, 11, (2, 6)), tf.constant(rng.normal(size=model.initial_carry(2).shape), tf.float32)
    reset = rng.random((2, 6)) < 0.3
    gates = {name: np.array(value) for name, value in model.gates(ids, carry, reset).items()}
    names = {"lstm": ["input", "forget", "output", "candidate"], "gru": ["update", "reset", "candidate"]}
    names = names.get(kind["cell"], ["state"])
    assert list(gates) == [f"{kind['cell']}_{layer}/{name}" for layer in range(2) for name in names]
    layers, y_BxTxH = [[gates[f"{kind['cell']}_{layer}/{name}"] for name in names] for layer in range(2)], None
    for index, activations in enumerate(layers):
        h, *c = tf.unstack(carry[:, index], axis=1)
        hs = []
        for t in range(6):
            keep = 1.0 - reset[:, t : t + 1]
            h, c = h * keep, [x * keep for x in c]
            now = [a[:, t] for a in activations]
            if kind["cell"] == "lstm":
                c = [now[1] * c[0] + now[0] * now[3]]
                h = now[2] * np.tanh(c[0])
            elif kind["cell"] == "gru":
                h = now[0] * h + (1 - now[0]) * now[2]
            else:
                h = now[0]
            hs.append(h)
        y_BxTxH = np.stack(hs, 1)
    logits, after = model(ids, carry, reset_BxT=reset)
    np.testing.assert_allclose(after[:, 1, 0], y_BxTxH[:, -1], atol=1e-5)
    y_BxTxH = model.norms[1](y_BxTxH) if model.norms else y_BxTxH
    np.testing.assert_allclose(model.dense(y_BxTxH), logits, atol=1e-5)
    assert all(gate.shape == (2, 6, 7) for gate in gates.values())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_dropout_matches_stock_layers(
    rng: np.random.Generator, make_model: MakeModel, run_keras: Callable[..., Any], layer_norm: bool
) -> None:
    model = make_model(dropout=0.5, output_dropout=0.3, layer_norm=layer_norm)
    ids, carry = rng.integers(0, 11, (2, 13)), model.initial_carry(2)
    masks = model.dropout_masks(2, 13, tf.constant([3, 4]))
    loop, _ = model(ids, carry, masks)
    without_dropout, _ = model(ids, carry)
    stock, _ = run_keras(model, ids, carry, masks)
    np.testing.assert_allclose(loop, stock, atol=1e-5)
    assert np.abs(loop - without_dropout).max() > 1e-3
