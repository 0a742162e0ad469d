"""Models, resets and results to compare ways of running the layers, without a GPU and on one (tests/gpu)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainers.model.char_rnn import CharRNN

V = 11
KINDS = {
    "plain": {"layers": 3},
    "embedding and norms": {"layers": 3, "embedding": 4, "layer_norm": True},
    "dropout": {"layers": 3, "dropout": 0.4, "output_dropout": 0.3},
}
# Where documents start: nowhere, at random, at each step, and at the first and last step of one lane.
RESETS: dict[str, Callable[[np.random.Generator, int, int], Any]] = {
    "no documents": lambda rng, B, T: None,
    "documents": lambda rng, B, T: rng.random((B, T)) < 0.3,
    "no document starts": lambda rng, B, T: np.zeros((B, T), bool),
    "documents of one step": lambda rng, B, T: np.ones((B, T), bool),
    "at the edges": lambda rng, B, T: (np.arange(B)[:, None] == 0) & np.isin(np.arange(T), [0, T - 1]),
}


def results(model: CharRNN, ids: Any, carry: Any, masks: Any, reset: Any, weigh: Any) -> list[tf.Tensor]:
    """Return logits, carry, and the gradients of the carry before and of all weights."""
    with tf.GradientTape() as tape:
        tape.watch(carry)
        logits, after = model(ids, carry, masks, reset)
        loss = tf.reduce_sum(logits * weigh[0]) + tf.reduce_sum(after * weigh[1])
    gradients = tape.gradient(loss, [carry, *model.trainable_variables])
    return [logits, after, *map(tf.convert_to_tensor, gradients)]


def case(rng: np.random.Generator, model: CharRNN, B: int, T: int) -> tuple[Any, ...]:
    """Return random ids, carry and loss weights, and give the model random biases and norms.

    Its kernels keep their initial values: with larger ones, rounding errors would grow from step to step.
    """
    for weight in model.trainable_variables:
        if not weight.path.endswith("kernel"):
            weight.assign_add(0.1 * rng.normal(size=weight.shape))
    carry = tf.constant(rng.normal(size=model.initial_carry(B).shape), tf.float32)
    weigh = [tf.constant(rng.normal(size=shape), tf.float32) for shape in ((B, T, V), carry.shape)]
    return rng.integers(0, V, (B, T)), carry, weigh
