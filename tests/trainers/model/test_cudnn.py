"""Layers run by cuDNN against the graph loop, with a stand-in for cuDNN's op; tests/gpu runs the op itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import plain_cudnn
import pytest
import tensorflow as tf
from combined import combined
from layer_cases import KINDS, RESETS, V, case, results

from trainers.model import cudnn
from trainers.model.char_rnn import CharRNN


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace cuDNN's op. Returns the number of layers of each call."""
    layers = []

    def spy(**arguments: Any) -> Any:
        layers.append(arguments["input_h"].shape[0])
        return plain_cudnn.cudnn_rnn_v3(**arguments)

    monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", spy)
    return layers


@pytest.mark.parametrize(("cell", "kind", "resets"), combined(["lstm", "gru", "rnn"], KINDS, RESETS))
def test_values_and_gradients_match_the_loop(
    rng: np.random.Generator, make_model: Callable[..., CharRNN], calls: list[int], cell: str, kind: str, resets: str
) -> None:
    B, T = 3, 9
    # A norm over few units that are nearly equal would enlarge rounding errors.
    model = make_model(units=12, vocab=V, cell=cell, **KINDS[kind])
    ids, carry, weigh = case(rng, model, B, T)
    masks, reset = model.dropout_masks(B, T, tf.constant([1, 2])), RESETS[resets](rng, B, T)
    loop = results(model, ids, carry, masks, reset, weigh)
    model.use_cudnn = True
    for actual, expected in zip(results(model, ids, carry, masks, reset, weigh), loop, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * (1 + np.abs(expected).max()))
    assert calls == ([3] if kind == "plain" else [1] * model.config.layers), "one op for adjacent layers"


@pytest.mark.parametrize(
    ("dtype", "distance", "reset"), [(tf.bfloat16, 0.03, False), (tf.float16, 0.005, False), (tf.float16, 0.005, True)]
)
def test_sixteen_bits_stay_near_float32(
    rng: np.random.Generator,
    make_model: Callable[..., CharRNN],
    calls: list[int],
    dtype: tf.DType,
    distance: float,
    reset: bool,
) -> None:
    model = make_model(units=16, vocab=V)
    ids, carry, weigh = case(rng, model, 4, 12)
    starts = rng.random((4, 12)) < 0.2 if reset else None
    exact = results(model, ids, carry, (), starts, weigh)
    model.use_cudnn, model.matmul_dtype = True, dtype
    rounded = results(model, ids, carry, (), starts, weigh)
    assert np.any(rounded[0].numpy() != exact[0].numpy())
    for actual, expected in zip(rounded, exact, strict=True):
        assert actual.dtype == tf.float32
        assert np.linalg.norm(actual - expected) < distance * np.linalg.norm(expected)


def test_short_documents_take_few_steps() -> None:
    reset = np.tile(np.arange(50) % 7 == 3, (4, 1))
    rows = cudnn.CudnnRows((4, 50), tf.constant(reset))
    assert rows.source_QxP.shape == (7, 4 * 8)
    assert sorted(rows.length_P.numpy())[:4] == [3, 3, 3, 3]
    assert int(tf.reduce_sum(rows.length_P)) == 4 * 50
