"""One LSTM layer's weights, in Keras's own layout, and three ways to run them.

    stock    keras.layers.LSTM itself: cuDNN on a GPU
    loop     a graph loop for the CPU with a hand-written gradient: this file's `recur`
    step     a single time step for sampling and export: this file's `step`

The equations (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000):

    z = x W + h R + b;   i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_c), sigmoid(z_o)
    c' = f c + i g;      h' = o tanh(c')

Where a text of documents comes to a new one inside a window, h and c are multiplied by `keep` = 0 before the step, else
by 1. cuDNN has no such thing, so the loop serves these.

Legend: T time steps, B lanes, I inputs, H units, G = 4 H gate columns, N turns of the loop, U steps unrolled in a turn.
Keras orders the gate columns i, f, c, o. The loops here want i, f, o, c: three sigmoids side by side, then one tanh.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

UNROLL = 10  # steps a turn: fewer leave the loop's own cost in sight, more only lengthen the first trace


class Weights(NamedTuple):
    """A layer's weights with the gate columns in the order i, f, o, c."""

    kernel_IxG: tf.Tensor
    recurrent_HxG: tf.Tensor
    bias_G: tf.Tensor


def weights(layer: keras.layers.LSTM) -> Weights:
    """Reads a built Keras layer's weights into this file's gate order. Gradients flow back to the layer's variables."""
    cell = layer.cell
    return Weights(*(_reorder(tf.convert_to_tensor(w)) for w in (cell.kernel, cell.recurrent_kernel, cell.bias)))


def _reorder(w_G: tf.Tensor) -> tf.Tensor:
    i, f, c, o = tf.split(w_G, 4, axis=-1)
    return tf.concat([i, f, o, c], axis=-1)


def matmul(a: tf.Tensor, b: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The float32 product of two float32 matrices, multiplied in `dtype` (float32 or bfloat16)."""
    return tf.cast(tf.matmul(tf.cast(a, dtype), tf.cast(b, dtype)), tf.float32)


def project_ids(ids_TxB: tf.Tensor, w: Weights, dtype: tf.DType) -> tf.Tensor:
    """x W + b for one-hot inputs: rows of W, gathered instead of multiplied out. Gives z_TxBxG, float32."""

    @tf.custom_gradient
    def gather(kernel_VxG: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def grad(dz_TxBxG: tf.Tensor) -> tf.Tensor:
            # One dense product: tf.gather's own gradient scatters row by row, several times slower on a CPU.
            one_hot_NxV = tf.one_hot(tf.reshape(ids_TxB, [-1]), kernel_VxG.shape[0], dtype=dtype)
            dz_NxG = tf.cast(tf.reshape(dz_TxBxG, [-1, dz_TxBxG.shape[-1]]), dtype)
            return tf.cast(tf.matmul(one_hot_NxV, dz_NxG, transpose_a=True), tf.float32)

        return tf.gather(kernel_VxG, ids_TxB), grad

    return gather(w.kernel_IxG) + w.bias_G


def project(x_TxBxI: tf.Tensor, w: Weights, dtype: tf.DType) -> tf.Tensor:
    """x W + b for all time steps in one product. Gives z_TxBxG, float32."""
    shape = tf.shape(x_TxBxI)
    z_NxG = matmul(tf.reshape(x_TxBxI, [-1, x_TxBxI.shape[-1]]), w.kernel_IxG, dtype) + w.bias_G
    return tf.reshape(z_NxG, [shape[0], shape[1], z_NxG.shape[-1]])


def step(z_BxG: tf.Tensor, h_BxH: tf.Tensor, c_BxH: tf.Tensor, recurrent_HxG: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One time step from the projected input z = x W + b. Gives the next h_BxH and c_BxH."""
    c_BxH, h_BxH, _ = _cell(z_BxG + tf.matmul(h_BxH, recurrent_HxG), c_BxH)
    return h_BxH, c_BxH


def recur(
    z_TxBxG: tf.Tensor,
    h_BxH: tf.Tensor,
    c_BxH: tf.Tensor,
    recurrent_HxG: tf.Tensor,
    dtype: tf.DType,
    keep_TxBx1: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The recurrence over a window from the carry (h, c). T must be static.

    keep: float32, 0 at the steps that start from an empty carry, else 1; without it, none does.
    Gives h_TxBxH and the carry after the window, float32; products run in `dtype`.
    """
    T = z_TxBxG.shape[0]
    whole = T - T % UNROLL
    pieces = []
    for start, stop, unroll in ((0, whole, UNROLL), (whole, T, T % UNROLL)):
        if start < stop:
            keep = None if keep_TxBx1 is None else keep_TxBx1[start:stop]
            h_NxBxH, h_BxH, c_BxH = _loop(z_TxBxG[start:stop], h_BxH, c_BxH, recurrent_HxG, keep, unroll, dtype)
            pieces.append(h_NxBxH)
    return tf.concat(pieces, 0) if len(pieces) > 1 else pieces[0], h_BxH, c_BxH


def _cell(z_BxG: tf.Tensor, c_BxH: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gates of one step. Gives c, h and the activations (i, f, o, g side by side) that the gradient needs."""
    H = c_BxH.shape[-1]
    ifo_Bx3H, g = tf.sigmoid(z_BxG[:, : 3 * H]), tf.tanh(z_BxG[:, 3 * H :])
    i, f, o = tf.split(ifo_Bx3H, 3, axis=1)
    c_BxH = f * c_BxH + i * g
    return c_BxH, o * tf.tanh(c_BxH), tf.concat([ifo_Bx3H, g], 1)


def _cell_grad(
    dh_BxH: tf.Tensor, dc_BxH: tf.Tensor, c_prev_BxH: tf.Tensor, c_BxH: tf.Tensor, gates_BxG: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The gradient of `_cell`: from dh and dc after the step to dz and the dc before it."""
    i, f, o, g = tf.split(gates_BxG, 4, axis=1)
    tanh_c = tf.tanh(c_BxH)
    dc_BxH = dc_BxH + dh_BxH * o * (1 - tanh_c * tanh_c)
    dz_i = dc_BxH * g * i * (1 - i)
    dz_f = dc_BxH * c_prev_BxH * f * (1 - f)
    dz_o = dh_BxH * tanh_c * o * (1 - o)
    dz_g = dc_BxH * i * (1 - g * g)
    return tf.concat([dz_i, dz_f, dz_o, dz_g], 1), dc_BxH * f


def _array(size: int, dtype: tf.DType) -> tf.TensorArray:
    return tf.TensorArray(dtype, size=size)


def _kept(a_BxH: tf.Tensor, b_BxH: tf.Tensor, keep_UxBx1: tf.Tensor | None, u: int) -> tuple[tf.Tensor, tf.Tensor]:
    """h and c, or their gradients, zero in the lanes that start afresh at step u of a turn."""
    return (a_BxH, b_BxH) if keep_UxBx1 is None else (a_BxH * keep_UxBx1[u], b_BxH * keep_UxBx1[u])


def _turns(x_TxBxK: tf.Tensor | None, unroll: int) -> Any:
    """Cuts the time axis into turns of `unroll` steps, one array element a turn. Nothing stays nothing."""
    if x_TxBxK is None:
        return None
    n = x_TxBxK.shape[0] // unroll
    shape = tf.shape(x_TxBxK)
    x_NxUxBxK = tf.reshape(x_TxBxK, [n, unroll, shape[1], x_TxBxK.shape[2]])
    return _array(n, x_TxBxK.dtype).unstack(x_NxUxBxK)


def _time(array: tf.TensorArray, units: int) -> tf.Tensor:
    """Joins turns again: [N, U, B, K] to [T, B, K]."""
    x_NxUxBxK = array.stack()
    shape = tf.shape(x_NxUxBxK)
    return tf.reshape(x_NxUxBxK, [shape[0] * shape[1], shape[2], units])


def _loop(
    z_TxBxG: tf.Tensor,
    h_BxH: tf.Tensor,
    c_BxH: tf.Tensor,
    recurrent_HxG: tf.Tensor,
    keep: tf.Tensor | None,
    unroll: int,
    dtype: tf.DType,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`recur` for a T that `unroll` divides.

    The gradient is written out because tf.while_loop's own stacks every intermediate of every step; this one keeps h, c
    and the gates, and multiplies the recurrent kernel's gradient once, after the loop, over all steps at a time.
    """

    @tf.custom_gradient
    def loop(
        z_TxBxG: tf.Tensor, h_0: tf.Tensor, c_0: tf.Tensor, recurrent_HxG: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], Callable[..., tuple[tf.Tensor, ...]]]:
        h_BxH, c_BxH, *kept = _forward(z_TxBxG, h_0, c_0, recurrent_HxG, keep, unroll, dtype)
        kept = [h_0, c_0, recurrent_HxG, *kept]
        return (kept[3], h_BxH, c_BxH), lambda dhs, dh, dc: _backward(dhs, dh, dc, kept, keep, unroll, dtype)

    return loop(z_TxBxG, h_BxH, c_BxH, recurrent_HxG)


def _forward(
    z_TxBxG: tf.Tensor,
    h_BxH: tf.Tensor,
    c_BxH: tf.Tensor,
    recurrent_HxG: tf.Tensor,
    keep: tf.Tensor | None,
    unroll: int,
    dtype: tf.DType,
) -> tuple[tf.Tensor, ...]:
    """The carry after the last step, and what the gradient needs: h_TxBxH, c_TxBxH, gates_TxBxG."""
    H, turns = h_BxH.shape[-1], z_TxBxG.shape[0] // unroll
    r_HxG = tf.cast(recurrent_HxG, dtype)
    z_N, keep_N = _turns(z_TxBxG, unroll), _turns(keep, unroll)

    def turn(t: Any, h_BxH: Any, c_BxH: Any, hs: Any, cs: Any, gates: Any) -> tuple[Any, ...]:
        z_UxBxG, h_U, c_U, gates_U = z_N.read(t), [], [], []
        keep_UxBx1 = keep_N and keep_N.read(t)
        for u in range(unroll):
            h_BxH, c_BxH = _kept(h_BxH, c_BxH, keep_UxBx1, u)
            hr_BxG = tf.cast(tf.matmul(tf.cast(h_BxH, dtype), r_HxG), tf.float32)
            c_BxH, h_BxH, gates_BxG = _cell(z_UxBxG[u] + hr_BxG, c_BxH)
            h_U.append(h_BxH)
            c_U.append(c_BxH)
            gates_U.append(gates_BxG)
        arrays = (hs.write(t, tf.stack(h_U)), cs.write(t, tf.stack(c_U)), gates.write(t, tf.stack(gates_U)))
        return t + 1, h_BxH, c_BxH, *arrays

    arrays = [_array(turns, tf.float32) for _ in range(3)]
    _, h_BxH, c_BxH, *arrays = tf.while_loop(
        lambda t, *_: t < turns, turn, (0, h_BxH, c_BxH, *arrays), parallel_iterations=1, maximum_iterations=turns
    )
    return h_BxH, c_BxH, *(_time(array, k) for array, k in zip(arrays, (H, H, 4 * H), strict=True))


def _backward(
    dhs_TxBxH: tf.Tensor,
    dh_BxH: tf.Tensor,
    dc_BxH: tf.Tensor,
    kept: list[tf.Tensor],
    keep: tf.Tensor | None,
    unroll: int,
    dtype: tf.DType,
) -> tuple[tf.Tensor, ...]:
    """The gradients of z, h, c and the recurrent kernel, from those of every h and of the carry after the last step."""
    h_0, c_0, recurrent_HxG, h_TxBxH, c_TxBxH, gates_TxBxG = kept
    H, turns = h_0.shape[-1], h_TxBxH.shape[0] // unroll
    r_GxH = tf.cast(tf.transpose(recurrent_HxG), dtype)
    before = [tf.concat([first[None], x[:-1]], 0) for first, x in ((h_0, h_TxBxH), (c_0, c_TxBxH))]
    before = before if keep is None else [x * keep for x in before]
    keep_N = _turns(keep, unroll)
    reads = [_turns(x, unroll) for x in (dhs_TxBxH, before[1], c_TxBxH, gates_TxBxG)]

    def turn(t: Any, dh_BxH: Any, dc_BxH: Any, dzs: Any) -> tuple[Any, ...]:
        dhs_U, c_prev_U, c_U, gates_U = (array.read(t) for array in reads)
        keep_UxBx1, dz_U = keep_N and keep_N.read(t), []
        for u in reversed(range(unroll)):
            dz_BxG, dc_BxH = _cell_grad(dhs_U[u] + dh_BxH, dc_BxH, c_prev_U[u], c_U[u], gates_U[u])
            dz_BxG = tf.cast(dz_BxG, dtype)
            dh_BxH = tf.cast(tf.matmul(dz_BxG, r_GxH), tf.float32)
            dh_BxH, dc_BxH = _kept(dh_BxH, dc_BxH, keep_UxBx1, u)
            dz_U.append(dz_BxG)
        return t - 1, dh_BxH, dc_BxH, dzs.write(t, tf.stack(dz_U[::-1]))

    _, dh_BxH, dc_BxH, dzs = tf.while_loop(
        lambda t, *_: t >= 0,
        turn,
        (turns - 1, dh_BxH, dc_BxH, _array(turns, dtype)),
        parallel_iterations=1,
        maximum_iterations=turns,
    )
    dz_TxBxG = _time(dzs, 4 * H)
    h_prev_NxH = tf.cast(tf.reshape(before[0], [-1, H]), dtype)
    dr_HxG = tf.matmul(h_prev_NxH, tf.reshape(dz_TxBxG, [-1, 4 * H]), transpose_a=True)
    return tf.cast(dz_TxBxG, tf.float32), dh_BxH, dc_BxH, tf.cast(dr_HxG, tf.float32)
