"""Drawing a character from logits, a row at a time its own way: temperature, top-k, top-p, repetition penalty.

In the order of Hugging Face's generate: the penalty on the logits, then temperature, then top-k, then top-p among what
is left. Plain ops, whose every row depends on that row alone.

Legend: B rows, V vocabulary, N characters to draw, M characters remembered.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

Cumulate = Callable[[tf.Tensor], tf.Tensor]

# Some of TensorFlow's functions round the numbers at the end of a tensor, too few for an instruction that takes so many
# at once, otherwise than the others: exp, 1 / x, rsqrt, sigmoid; tanh, sqrt and x / y do not. A row is to be drawn the
# same wherever it stands, so V is a multiple of this throughout.
AT_ONCE = 16
NEVER = -1e30  # a logit of what is not drawn

GREEDY = 1e-3  # temperatures below this take the likeliest character, with nothing left to chance
SHARPEST = 1e20  # what logits are multiplied by then: of two that differ at all, one is nothing beside the other
FLATTEST = 1e-20  # and what at least: of any two, both are as likely; only NEVER remains
LARGEST = 1e18  # what a penalty may make of a logit: times SHARPEST, it is still a number
TRIANGLE = 512  # the largest vocabulary that is cumulated by a product: tf.cumsum takes several times as long


def sharpness(temperature_B: tf.Tensor) -> tf.Tensor:
    """What the logits are multiplied by: 1 / temperature, FLATTEST at least, or SHARPEST where that is below GREEDY."""
    warm_B = temperature_B >= GREEDY
    one_by_B = 1 / tf.cast(tf.where(warm_B, temperature_B, 1), tf.float64)  # in float32 it rounds as its place has it
    return tf.where(warm_B, tf.maximum(tf.cast(one_by_B, tf.float32), FLATTEST), SHARPEST)


def uniforms(seed_B: tf.Tensor, drawn_B: tf.Tensor, sharpness_B: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """What chance decides with, uniform_NxB, in [0, 1): of each row's own sequence, the `count` numbers after the first
    `drawn`. Where a row is greedy, zeros.

    seed, drawn: int64. The sequence is Philox's under the seed as its key, which begins anywhere at no cost.
    """

    def row(inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        seed, drawn = inputs
        block = tf.cast(drawn // 4, tf.uint64)  # a step of Philox's counter makes four numbers
        numbers = tf.raw_ops.StatelessRandomUniformV2(
            shape=[count + 3], key=tf.bitcast(seed, tf.uint64)[None], counter=tf.stack([block, 0]), alg=1
        )
        return tf.slice(numbers, [tf.cast(drawn % 4, tf.int32)], [count])

    uniform_BxN = tf.map_fn(row, (seed_B, drawn_B), fn_output_signature=tf.TensorSpec([None], tf.float32))
    return tf.transpose(tf.where(sharpness_B[:, None] < SHARPEST, uniform_BxN, 0))


def cumulation(V: int) -> Cumulate:
    """The sums of the first 1, 2, … V numbers of each row, as a function. To be made outside the loop that calls it."""
    if V > TRIANGLE:
        return lambda x_BxV: tf.cumsum(x_BxV, axis=1)
    ones_VxV = tf.linalg.band_part(tf.ones([V, V]), 0, -1)
    return lambda x_BxV: tf.matmul(x_BxV, ones_VxV)


def choose(scaled_BxV: tf.Tensor, uniform_Bx1: tf.Tensor, cumulate: Cumulate) -> tf.Tensor:
    """Draws ids_B from softmax(scaled): where `uniform` falls in the cumulated probabilities; at 0, the first id that
    has any."""
    below_BxV = scaled_BxV - tf.reduce_max(scaled_BxV, axis=1, keepdims=True)
    cumulated_BxV = cumulate(tf.exp(below_BxV))
    # The largest uniform float32, 1 - 2**-23, times the whole is less than the whole: what has no weight is not drawn.
    falls_Bx1 = uniform_Bx1 * cumulated_BxV[:, -1:]
    return tf.reshape(tf.raw_ops.UpperBound(sorted_inputs=cumulated_BxV, values=falls_Bx1), [-1])


def log_probability(logits_BxV: tf.Tensor, ids_B: tf.Tensor) -> tf.Tensor:
    """ln softmax(logits)[id], in nats."""
    return -tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits_BxV, labels=ids_B)[0]


def penalised(logits_BxV: tf.Tensor, recent_BxM: tf.Tensor, penalty_B: tf.Tensor) -> tf.Tensor:
    """Makes the ids in `recent` (-1: none) less likely: their logits are divided by the penalty, or multiplied where
    negative (Keskar et al. 2019, CTRL, section 4.1)."""
    seen_BxV = tf.reduce_max(tf.one_hot(recent_BxM, logits_BxV.shape[1]), axis=1) > 0
    penalty_Bx1 = penalty_B[:, None]
    changed_BxV = tf.where(logits_BxV > 0, logits_BxV / penalty_Bx1, logits_BxV * penalty_Bx1)
    return tf.where(seen_BxV, tf.clip_by_value(changed_BxV, -LARGEST, LARGEST), logits_BxV)


def narrowed(scaled_BxV: tf.Tensor, top_k_B: tf.Tensor, top_p_B: tf.Tensor) -> tf.Tensor:
    """The logits with -inf where they are not among the `top_k` largest (0: all are), or not among the fewest that
    have `top_p` of their probability between them. What is as likely as the last that stays, stays."""
    V = scaled_BxV.shape[1]
    sorted_BxV = tf.sort(scaled_BxV, axis=1, direction="DESCENDING")
    few_B = tf.clip_by_value(tf.where(top_k_B == 0, V, top_k_B), 1, V)
    sorted_BxV = tf.where(tf.range(V)[None] < few_B[:, None], sorted_BxV, -np.inf)
    before_BxV = tf.cumsum(tf.nn.softmax(sorted_BxV), axis=1, exclusive=True)
    enough_B = tf.reduce_sum(tf.cast(before_BxV < top_p_B[:, None], tf.int32), axis=1)
    last_B = tf.minimum(tf.where(top_p_B < 1, tf.maximum(enough_B, 1), V), few_B) - 1
    return tf.where(scaled_BxV >= tf.gather(sorted_BxV, last_B, batch_dims=1)[:, None], scaled_BxV, -np.inf)
