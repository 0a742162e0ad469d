"""Stand-in for tf.raw_ops.CudnnRNNV3 in plain ops, by the equations of cuDNN's manual (cudnnRNNMode_t)."""

from typing import Any

import tensorflow as tf

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1}


def split_params(params: tf.Tensor, mode: str, layers: int, inputs: int, H: int) -> list[list[tf.Tensor]]:
    """Return a list per layer: W and R of each gate (units x inputs), then b_W and b_R of each gate.

    All matrices precede all biases; cudnnGetRNNWeightParams numbers them in this order.
    """
    widths = [inputs, *[H] * (layers - 1)]
    shapes = [[(H, width)] * GATES[mode] + [(H, H)] * GATES[mode] for width in widths]
    shapes += [[(H,)] * (2 * GATES[mode])] * layers
    flat = [shape for each in shapes for shape in each]
    sizes = [tf.TensorShape(shape).num_elements() for shape in flat]
    assert sum(sizes) == params.shape[0], "params must have the size that cuDNN expects"
    parts = iter(tf.reshape(part, shape) for part, shape in zip(tf.split(params, sizes), flat, strict=True))
    per_layer = [[next(parts) for _ in each] for each in shapes]
    return [per_layer[layer] + per_layer[layers + layer] for layer in range(layers)]


def step(mode: str, weights: list[tf.Tensor], x: tf.Tensor, h: tf.Tensor, c: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    n = GATES[mode]
    W, R, b_W, b_R = (weights[k * n : (k + 1) * n] for k in range(4))
    xs = [tf.matmul(x, W[k], transpose_b=True) + b_W[k] for k in range(n)]
    hs = [tf.matmul(h, R[k], transpose_b=True) + b_R[k] for k in range(n)]
    if mode == "rnn_tanh":
        return tf.tanh(xs[0] + hs[0]), c
    if mode == "lstm":
        i, f, o = (tf.sigmoid(xs[k] + hs[k]) for k in (0, 1, 3))
        c = f * c + i * tf.tanh(xs[2] + hs[2])
        return o * tf.tanh(c), c
    r, i = (tf.sigmoid(xs[k] + hs[k]) for k in (0, 1))
    return (1 - i) * tf.tanh(xs[2] + r * hs[2]) + i * h, c


def cudnn_rnn_v3(
    input: tf.Tensor,
    input_h: tf.Tensor,
    input_c: tf.Tensor,
    params: tf.Tensor,
    sequence_lengths: tf.Tensor,
    rnn_mode: str,
    is_training: bool,
    time_major: bool,
) -> tuple[Any, ...]:
    """Return output, output_h and output_c. Gradients come from the ops; those of output beyond a length are lost."""
    assert is_training
    assert time_major
    dtype, (layers, _, H) = input.dtype, input_h.shape
    y, h, params = (tf.cast(value, tf.float32) for value in (input, input_h, params))
    c = tf.cast(input_c, tf.float32) if rnn_mode == "lstm" else tf.zeros_like(h)
    hs, cs = [], []
    for layer, weights in enumerate(split_params(params, rnn_mode, layers, input.shape[-1], H)):
        outputs, state = [], (h[layer], c[layer])
        for t in range(y.shape[0]):
            live = (t < sequence_lengths)[:, None]
            state = tuple(
                tf.where(live, new, old) for new, old in zip(step(rnn_mode, weights, y[t], *state), state, strict=True)
            )
            outputs.append(tf.where(live, state[0], 0))
        y = tf.stack(outputs)
        hs.append(state[0])
        cs.append(state[1])
    return *(tf.cast(value, dtype) for value in (y, tf.stack(hs), tf.stack(cs))), None, None
