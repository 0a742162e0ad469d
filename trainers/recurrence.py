"""A recurrent layer's weights, in Keras's own layout, run without Keras.

    stock    keras.layers.LSTM, GRU or SimpleRNN itself: cuDNN on a GPU
    loop     a graph loop for the CPU with a hand-written gradient: this file's `recur`
    step     a single time step for sampling and export: this file's `step`

What differs from cell to cell stands in trainers.cells; this file is what they share.

Where a text of documents comes to a new one inside a window, the state is multiplied by `keep` = 0 before the step,
else by 1. cuDNN has no such thing, so the loop serves these.

Legend: T time steps, B lanes, I inputs, V vocabulary, H units, G gate columns, K columns, N turns of the loop, U steps
unrolled in a turn. A state is a tuple of BxH, h first.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from trainers.cells import Cell, State, Weights

UNROLL = 10  # steps a turn: fewer leave the loop's own cost in sight, more only lengthen the first trace
DENSE = 256  # the largest vocabulary of which a one-hot product is as fast as a sum by rows; at 2,048 it takes 10 times
TABLE = 2048  # the largest vocabulary that is projected whole, rather than the rows that a window reads

Recurrent = tuple[tf.Tensor, ...]  # trainers.cells.Weights.recurrent


def matmul(a: tf.Tensor, b: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The float32 product of two float32 matrices, multiplied in `dtype` (float32 or bfloat16)."""
    return tf.cast(tf.matmul(tf.cast(a, dtype), tf.cast(b, dtype)), tf.float32)


def look_up(table_VxK: tf.Tensor, ids: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The rows of a table, float32 [*ids.shape, K]: one-hot inputs times the table, gathered instead of multiplied out.

    The gradient of a small table is a product in `dtype`, that of a large one (V above DENSE) a sum in float32.
    """

    @tf.custom_gradient
    def gather(table_VxK: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        V, K = table_VxK.shape

        def grad(dy: tf.Tensor) -> tf.Tensor:
            ids_N, dy_NxK = tf.reshape(ids, [-1]), tf.reshape(dy, [-1, K])
            if V > DENSE:
                return tf.math.unsorted_segment_sum(dy_NxK, ids_N, V)
            one_hot_NxV = tf.one_hot(ids_N, V, dtype=dtype)
            return tf.cast(tf.matmul(one_hot_NxV, tf.cast(dy_NxK, dtype), transpose_a=True), tf.float32)

        return tf.gather(table_VxK, ids), grad

    return gather(table_VxK)


def project(x: tf.Tensor, w: Weights, dtype: tf.DType) -> tf.Tensor:
    """x W + b, of x [..., I] in one product. Gives z [..., G], float32."""
    lengths = [tf.shape(x)[axis] for axis in range(len(x.shape) - 1)]
    z_NxG = matmul(tf.reshape(x, [-1, x.shape[-1]]), w.kernel_IxG, dtype) + w.bias_G
    return tf.reshape(z_NxG, [*lengths, z_NxG.shape[-1]])


def step(cell: Cell, z_BxG: tf.Tensor, before: State, recurrent: Recurrent) -> State:
    """One time step from the projected input z = x W + b. Gives the next state."""
    return cell.forward(z_BxG, _product(before[0], recurrent, tf.float32), before)[0]


def recur(
    cell: Cell,
    z_TxBxG: tf.Tensor,
    before: State,
    recurrent: Recurrent,
    dtype: tf.DType,
    keep_TxBx1: tf.Tensor | None = None,
) -> tuple[tf.Tensor, State]:
    """The recurrence over a window from a state. T must be static.

    keep: float32, 0 at the steps that start from an empty state, else 1; without it, none does.
    Gives h_TxBxH and the state after the window, float32; products run in `dtype`.
    """
    T = z_TxBxG.shape[0]
    whole, state = T - T % UNROLL, before
    pieces = []
    for start, stop, unroll in ((0, whole, UNROLL), (whole, T, T % UNROLL)):
        if start < stop:
            keep = None if keep_TxBx1 is None else keep_TxBx1[start:stop]
            h_NxBxH, state = _loop(cell, z_TxBxG[start:stop], state, recurrent, keep, unroll, dtype)
            pieces.append(h_NxBxH)
    return tf.concat(pieces, 0) if len(pieces) > 1 else pieces[0], state


def watch(
    cell: Cell, z_TxBxG: tf.Tensor, before: State, recurrent: Recurrent, keep_TxBx1: tf.Tensor | None = None
) -> tuple[tf.Tensor, State, dict[str, tf.Tensor]]:
    """`recur` in float32, and the activations of every step by the cell's names for them, each TxBxH."""
    after, h_TxBxH, kept_TxBxK = _forward(cell, z_TxBxG, before, recurrent, keep_TxBx1, 1, tf.float32)
    H = h_TxBxH.shape[-1]
    return h_TxBxH, after, {name: kept_TxBxK[..., n * H : (n + 1) * H] for n, name in enumerate(cell.names)}


def _product(h_BxH: tf.Tensor, recurrent: Recurrent, dtype: tf.DType) -> tf.Tensor:
    """h R, with its bias where it has one: hr_BxG, float32. R may be in `dtype` already."""
    r_HxG, *bias = recurrent
    hr_BxG = matmul(h_BxH, r_HxG, dtype)
    return hr_BxG + bias[0] if bias else hr_BxG


def _array(size: int, dtype: tf.DType) -> tf.TensorArray:
    return tf.TensorArray(dtype, size=size)


def _kept(state: State, keep_UxBx1: tf.Tensor | None, u: int) -> State:
    """A state, or its gradient, zero in the lanes that start afresh at step u of a turn."""
    return state if keep_UxBx1 is None else tuple(x_BxH * keep_UxBx1[u] for x_BxH in state)


def _turns(x_TxBxK: tf.Tensor | None, unroll: int) -> Any:
    """Cuts the time axis into turns of `unroll` steps, one array element a turn. Nothing stays nothing."""
    if x_TxBxK is None:
        return None
    n = x_TxBxK.shape[0] // unroll
    shape = tf.shape(x_TxBxK)
    x_NxUxBxK = tf.reshape(x_TxBxK, [n, unroll, shape[1], x_TxBxK.shape[2]])
    return _array(n, x_TxBxK.dtype).unstack(x_NxUxBxK)


def _time(array: tf.TensorArray, columns: int) -> tf.Tensor:
    """Joins turns again: [N, U, B, K] to [T, B, K]."""
    x_NxUxBxK = array.stack()
    shape = tf.shape(x_NxUxBxK)
    return tf.reshape(x_NxUxBxK, [shape[0] * shape[1], shape[2], columns])


def _write(t: tf.Tensor, arrays: Sequence[tf.TensorArray], steps: list[tuple[tf.Tensor, ...]]) -> list[tf.TensorArray]:
    """Writes turn t: of each step one tensor an array."""
    return [array.write(t, tf.stack(x_U)) for array, x_U in zip(arrays, zip(*steps, strict=True), strict=True)]


def _loop(
    cell: Cell,
    z_TxBxG: tf.Tensor,
    before: State,
    recurrent: Recurrent,
    keep: tf.Tensor | None,
    unroll: int,
    dtype: tf.DType,
) -> tuple[tf.Tensor, State]:
    """`recur` for a T that `unroll` divides.

    The gradient is written out because tf.while_loop's own stacks every intermediate of every step; this one keeps h
    and what the cell asks for, and multiplies the recurrent kernel's gradient once, after the loop, over all steps.
    """

    @tf.custom_gradient
    def loop(z_TxBxG: tf.Tensor, *rest: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., list[tf.Tensor]]]:
        before, recurrent = rest[: cell.states], rest[cell.states :]
        after, h_TxBxH, kept_TxBxK = _forward(cell, z_TxBxG, before, recurrent, keep, unroll, dtype)

        def grad(dhs_TxBxH: tf.Tensor, *dafter: tf.Tensor) -> list[tf.Tensor]:
            h_prev_TxBxH = tf.concat([before[0][None], h_TxBxH[:-1]], 0)
            return _backward(cell, dhs_TxBxH, dafter, h_prev_TxBxH, kept_TxBxK, recurrent, keep, unroll, dtype)

        return (h_TxBxH, *after), grad

    h_TxBxH, *after = loop(z_TxBxG, *before, *recurrent)
    return h_TxBxH, tuple(after)


def _forward(
    cell: Cell,
    z_TxBxG: tf.Tensor,
    before: State,
    recurrent: Recurrent,
    keep: tf.Tensor | None,
    unroll: int,
    dtype: tf.DType,
) -> tuple[State, tf.Tensor, tf.Tensor]:
    """The state after the last step, and of every step h_TxBxH and kept_TxBxK."""
    H, turns = before[0].shape[-1], z_TxBxG.shape[0] // unroll
    recurrent = (tf.cast(recurrent[0], dtype), *recurrent[1:])
    z_N, keep_N = _turns(z_TxBxG, unroll), _turns(keep, unroll)

    def turn(t: Any, state: Any, arrays: Any) -> tuple[Any, ...]:
        z_UxBxG, steps = z_N.read(t), []
        keep_UxBx1 = keep_N and keep_N.read(t)
        for u in range(unroll):
            state = _kept(state, keep_UxBx1, u)
            state, kept_BxK = cell.forward(z_UxBxG[u], _product(state[0], recurrent, dtype), state)
            steps.append((state[0], kept_BxK))
        return t + 1, state, _write(t, arrays, steps)

    _, after, (hs, kept) = tf.while_loop(
        lambda t, *_: t < turns,
        turn,
        (0, tuple(before), [_array(turns, tf.float32) for _ in range(2)]),
        parallel_iterations=1,
        maximum_iterations=turns,
    )
    return after, _time(hs, H), _time(kept, cell.kept * H)


def _backward(
    cell: Cell,
    dhs_TxBxH: tf.Tensor,
    dafter: State,
    h_prev_TxBxH: tf.Tensor,
    kept_TxBxK: tf.Tensor,
    recurrent: Recurrent,
    keep: tf.Tensor | None,
    unroll: int,
    dtype: tf.DType,
) -> list[tf.Tensor]:
    """The gradients of z, the state before and the recurrent weights, from those of every h and of the state after."""
    H, G, turns = h_prev_TxBxH.shape[-1], recurrent[0].shape[-1], h_prev_TxBxH.shape[0] // unroll
    r_GxH = tf.cast(tf.transpose(recurrent[0]), dtype)
    dhs_N, kept_N, keep_N = (_turns(x, unroll) for x in (dhs_TxBxH, kept_TxBxK, keep))

    def turn(t: Any, dstate: Any, arrays: Any) -> tuple[Any, ...]:
        dhs_UxBxH, kept_UxBxK, steps = dhs_N.read(t), kept_N.read(t), []
        keep_UxBx1 = keep_N and keep_N.read(t)
        for u in reversed(range(unroll)):
            dh_BxH, *others = dstate
            dz_BxG, dhr_BxG, (direct, *others) = cell.backward((dhs_UxBxH[u] + dh_BxH, *others), kept_UxBxK[u])
            dz_BxG = tf.cast(dz_BxG, dtype)
            dhr_BxG = tf.cast(dhr_BxG, dtype) if cell.apart else dz_BxG
            dh_BxH = tf.cast(tf.matmul(dhr_BxG, r_GxH), tf.float32)
            dh_BxH = dh_BxH if direct is None else dh_BxH + direct
            dstate = _kept((dh_BxH, *others), keep_UxBx1, u)
            steps.append((dz_BxG, dhr_BxG) if cell.apart else (dz_BxG,))
        return t - 1, dstate, _write(t, arrays, steps[::-1])

    _, dbefore, arrays = tf.while_loop(
        lambda t, *_: t >= 0,
        turn,
        (turns - 1, tuple(dafter), [_array(turns, dtype) for _ in range(1 + cell.apart)]),
        parallel_iterations=1,
        maximum_iterations=turns,
    )
    dzs_TxBxG = [_time(array, G) for array in arrays]  # of z and, where that is another one, of h R
    h_prev_NxH = tf.cast(tf.reshape(h_prev_TxBxH if keep is None else h_prev_TxBxH * keep, [-1, H]), dtype)
    dhr_NxG = tf.reshape(dzs_TxBxG[-1], [-1, G])
    drecurrent = [tf.matmul(h_prev_NxH, dhr_NxG, transpose_a=True)]
    if len(recurrent) > 1:
        drecurrent.append(tf.reduce_sum(tf.cast(dhr_NxG, tf.float32), 0))
    return [tf.cast(x, tf.float32) for x in (dzs_TxBxG[0], *dbefore, *drecurrent)]
