"""Drawing a character from logits, with per-row temperature, top-k, top-p and repetition penalty.

In the order of Hugging Face's generate: the penalty on the logits, then temperature, then top-k, then top-p among the
rest. Plain ops; each row depends on itself alone.

Legend: B rows, V vocabulary, N characters to draw, M characters remembered.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

Cumulate = Callable[[tf.Tensor], tf.Tensor]

# TensorFlow's exp, 1 / x, rsqrt and sigmoid (not tanh, sqrt and x / y) round the last elements of a tensor differently
# if they do not fill a vector register. A row must be drawn alike anywhere in the batch, so V is always a multiple of
# the register's width.
AT_ONCE = 16
NEVER = -1e30  # a logit that is never drawn

GREEDY = 1e-3  # temperatures below this take the likeliest character
SHARPEST = 1e20  # the factor of the logits then: any difference becomes decisive
FLATTEST = 1e-20  # the smallest factor: all logits become equal, except NEVER
LARGEST = 1e18  # bound of a penalised logit: finite even times SHARPEST
TRIANGLE = 512  # largest vocabulary to cumulate by a matrix product, several times as fast as tf.cumsum


def sharpness(temperature_B: tf.Tensor) -> tf.Tensor:
    """Factor for the logits: 1 / temperature, at least FLATTEST, or SHARPEST at temperatures below GREEDY."""
    warm_B = temperature_B >= GREEDY
    inverse_B = 1 / tf.cast(tf.where(warm_B, temperature_B, 1), tf.float64)  # float32 would round by position
    return tf.where(warm_B, tf.maximum(tf.cast(inverse_B, tf.float32), FLATTEST), SHARPEST)


def uniforms(seed_B: tf.Tensor, drawn_B: tf.Tensor, sharpness_B: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Draw uniform_NxB in [0, 1): the `count` numbers of each row's sequence after the first `drawn`. Zeros for greedy
    rows.

    seed, drawn: int64. The sequence is Philox with the seed as its key, which can start at any position for free.
    """

    def row(inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        seed, drawn = inputs
        block = tf.cast(drawn // 4, tf.uint64)  # Philox makes four numbers per counter step
        numbers = tf.raw_ops.StatelessRandomUniformV2(
            shape=[count + 3], key=tf.bitcast(seed, tf.uint64)[None], counter=tf.stack([block, 0]), alg=1
        )
        return tf.slice(numbers, [tf.cast(drawn % 4, tf.int32)], [count])

    uniform_BxN = tf.map_fn(row, (seed_B, drawn_B), fn_output_signature=tf.TensorSpec([None], tf.float32))
    return tf.transpose(tf.where(sharpness_B[:, None] < SHARPEST, uniform_BxN, 0))


def cumulation(V: int) -> Cumulate:
    """Return a function that computes each row's cumulative sums. Create it outside the loop that calls it."""
    if V > TRIANGLE:
        return lambda x_BxV: tf.cumsum(x_BxV, axis=1)
    ones_VxV = tf.linalg.band_part(tf.ones([V, V]), 0, -1)
    return lambda x_BxV: tf.matmul(x_BxV, ones_VxV)


def choose(scaled_BxV: tf.Tensor, uniform_Bx1: tf.Tensor, cumulate: Cumulate) -> tf.Tensor:
    """Draw ids_B from softmax(scaled) by inverting the cumulative distribution at `uniform`; 0 selects the first id
    with any probability."""
    below_BxV = scaled_BxV - tf.reduce_max(scaled_BxV, axis=1, keepdims=True)
    cumulated_BxV = cumulate(tf.exp(below_BxV))
    # The largest uniform float32, 1 - 2**-23, times the total is below the total, so an id of weight 0 is never drawn.
    threshold_Bx1 = uniform_Bx1 * cumulated_BxV[:, -1:]
    return tf.reshape(tf.raw_ops.UpperBound(sorted_inputs=cumulated_BxV, values=threshold_Bx1), [-1])


def log_probability(logits_BxV: tf.Tensor, ids_B: tf.Tensor) -> tf.Tensor:
    """Compute ln softmax(logits)[id], in nats."""
    return -tf.nn.sparse_softmax_cross_entropy_with_logits(ids_B, logits_BxV)


def penalised(logits_BxV: tf.Tensor, recent_BxM: tf.Tensor, penalty_B: tf.Tensor) -> tf.Tensor:
    """Penalise the ids in `recent` (-1: none): divide their logits by the penalty, or multiply negative ones by it
    (Keskar et al. 2019, CTRL, section 4.1)."""
    seen_BxV = tf.reduce_max(tf.one_hot(recent_BxM, logits_BxV.shape[1]), axis=1) > 0
    penalty_Bx1 = penalty_B[:, None]
    changed_BxV = tf.where(logits_BxV > 0, logits_BxV / penalty_Bx1, logits_BxV * penalty_Bx1)
    return tf.where(seen_BxV, tf.clip_by_value(changed_BxV, -LARGEST, LARGEST), logits_BxV)


def narrowed(scaled_BxV: tf.Tensor, top_k_B: tf.Tensor, top_p_B: tf.Tensor) -> tf.Tensor:
    """Set all logits to -inf but the `top_k` largest (0: all) and, of those, the fewest whose probabilities sum to
    `top_p`. Ties with the last one kept are kept."""
    V = scaled_BxV.shape[1]
    sorted_BxV = tf.sort(scaled_BxV, axis=1, direction="DESCENDING")
    few_B = tf.clip_by_value(tf.where(top_k_B == 0, V, top_k_B), 1, V)
    sorted_BxV = tf.where(tf.range(V)[None] < few_B[:, None], sorted_BxV, -np.inf)
    before_BxV = tf.cumsum(tf.nn.softmax(sorted_BxV), axis=1, exclusive=True)
    enough_B = tf.reduce_sum(tf.cast(before_BxV < top_p_B[:, None], tf.int32), axis=1)
    last_B = tf.minimum(tf.where(top_p_B < 1, tf.maximum(enough_B, 1), V), few_B) - 1
    return tf.where(scaled_BxV >= tf.gather(sorted_BxV, last_B, batch_dims=1)[:, None], scaled_BxV, -np.inf)
