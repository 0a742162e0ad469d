"""A recurrent layer's weights, in Keras's own layout, run without Keras.

    cudnn    on a GPU: trainers.model.cudnn
    kernel   an LSTM on a CPU, compiled: trainers.model.kernel
    loop     a graph loop for everything else, with a hand-written gradient: this file's `loop`
    step     a single time step for sampling and export: trainers.sampling.stepper

The differences between cells are in trainers.model.cells; this file is common to all.

Before each step the state is multiplied by `keep`: 0 where a new document starts, else 1.

Legend: T time steps, B lanes, I inputs, V vocabulary, H units, G gate columns, K columns, N rows. A state is a tuple of
BxH tensors, h first.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from trainers.model import kernel
from trainers.model.cells import Cell, Lstm, State, Weights

UNROLL = 10  # steps per turn of the loop: fewer do not hide its overhead, more only lengthen the first trace
TABLE = 2048  # largest vocabulary to project once as a whole; beyond, each window projects the rows it reads

Recurrent = tuple[tf.Tensor, ...]  # trainers.model.cells.Weights.recurrent


def matmul(a: tf.Tensor, b: tf.Tensor, dtype: tf.DType, transpose_b: bool = False) -> tf.Tensor:
    """Multiply two matrices in `dtype`, with a result in float32."""
    if kernel.multiplies(dtype):
        return kernel.matmul(tf.cast(a, tf.float32), tf.cast(b, tf.float32), dtype, transpose_b)
    return tf.cast(tf.matmul(tf.cast(a, dtype), tf.cast(b, dtype), transpose_b=transpose_b), tf.float32)


def look_up(table_VxK: tf.Tensor, ids: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Look up rows of a float32 table, in `dtype` [*ids.shape, K]: the product of one-hot inputs and the table."""
    V, K = table_VxK.shape

    @tf.custom_gradient
    def gather(table_VxK: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def grad(dy: tf.Tensor) -> tf.Tensor:
            dy_NxK, ids_N = tf.cast(tf.reshape(dy, [-1, K]), tf.float32), tf.reshape(ids, [-1])
            if kernel.ops():
                return kernel.sum_rows(dy_NxK, ids_N, table_VxK)
            return tf.math.unsorted_segment_sum(dy_NxK, ids_N, V)

        return tf.gather(tf.cast(table_VxK, dtype), ids), grad

    return gather(table_VxK)


def project(x: tf.Tensor, w: Weights, dtype: tf.DType) -> tf.Tensor:
    """Compute z = x W + b in one product in `dtype`, [..., G] in float32, for x [..., I]."""
    lengths = [tf.shape(x)[axis] for axis in range(len(x.shape) - 1)]
    z_NxG = tf.nn.bias_add(matmul(tf.reshape(x, [-1, x.shape[-1]]), w.kernel_IxG, dtype), w.bias_G)
    return tf.reshape(z_NxG, [*lengths, z_NxG.shape[-1]])


def recur(
    cell: Cell,
    z_TxBxG: tf.Tensor,
    before: State,
    recurrent: Recurrent,
    dtype: tf.DType,
    keep_TxBx1: tf.Tensor | None = None,
) -> tuple[tf.Tensor, State]:
    """Run the recurrence over a window the fastest way: `kernel.lstm` or, with the same results (in bfloat16 to its
    rounding), `loop`."""
    if isinstance(cell, Lstm) and kernel.ops():
        return kernel.lstm(z_TxBxG, before, recurrent[0], keep_TxBx1, dtype)
    return loop(cell, z_TxBxG, before, recurrent, dtype, keep_TxBx1)


def loop(
    cell: Cell,
    z_TxBxG: tf.Tensor,
    before: State,
    recurrent: Recurrent,
    dtype: tf.DType,
    keep_TxBx1: tf.Tensor | None = None,
) -> tuple[tf.Tensor, State]:
    """Run the recurrence over a window in a graph loop. T must be static.

    keep: float32, 0 at the steps that start from an empty state, else 1; by default none does.
    Returns h_TxBxH and the state after the window. Products run in `dtype`; all values are float32.

    The gradient is written by hand because that of tf.while_loop stacks every intermediate of every step. This one
    saves only h, in the products' dtype, and the cell's residuals, and computes the recurrent kernel's gradient in one
    product after the loop. Of these only h and dz are stacked: in a small layer, a copy costs as much as the products.
    """

    @tf.custom_gradient
    def window(z_TxBxG: tf.Tensor, *rest: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., list[tf.Tensor]]]:
        before, recurrent = rest[: cell.states], rest[cell.states :]
        after, hs, residuals = _forward(cell, z_TxBxG, before, recurrent, keep_TxBx1, dtype)
        h_T1xBxH = hs.stack()

        def grad(dhs_TxBxH: tf.Tensor, *dafter: tf.Tensor) -> list[tf.Tensor]:
            h_prev_TxBxH = h_T1xBxH[:-1] if keep_TxBx1 is None else h_T1xBxH[:-1] * tf.cast(keep_TxBx1, dtype)
            dz_TxBxG, *others = _backward(cell, dhs_TxBxH, dafter, h_prev_TxBxH, residuals, recurrent, keep_TxBx1)
            return [tf.cast(dz_TxBxG, tf.float32), *others]

        return (tf.cast(h_T1xBxH[1:], tf.float32), *after), grad

    h_TxBxH, *after = window(z_TxBxG, *before, *recurrent)
    return h_TxBxH, tuple(after)


def loop_with_gates(
    cell: Cell, z_TxBxG: tf.Tensor, before: State, recurrent: Recurrent, keep_TxBx1: tf.Tensor | None = None
) -> tuple[tf.Tensor, State, dict[str, tf.Tensor]]:
    """Run `recur` in float32; also return the gates of every step by name (`Cell.gates`), TxBxH each."""
    after, hs, residuals = _forward(cell, z_TxBxG, before, recurrent, keep_TxBx1, tf.float32)
    return hs.stack()[1:], after, cell.gates(tuple(array.stack() for array in residuals))


def _recurrent(recurrent: Recurrent, dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return h -> h R, plus its bias if there is one."""
    r_HxG, *bias = recurrent
    product = _product(r_HxG, dtype)
    return (lambda h_BxH: product(h_BxH) + bias[0]) if bias else product


def _product(b_KxN: tf.Tensor, dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a -> a b in float32, multiplied in `dtype`, for many a of few rows: b is prepared once."""
    if dtype == tf.float32:
        return lambda a_MxK: tf.matmul(a_MxK, b_KxN)
    b_NxK = tf.cast(tf.transpose(b_KxN), dtype)  # oneDNN is faster this way for few rows of bfloat16
    return lambda a_MxK: tf.cast(tf.matmul(tf.cast(a_MxK, dtype), b_NxK, transpose_b=True), tf.float32)


def _array(size: int, dtype: tf.DType) -> tf.TensorArray:
    return tf.TensorArray(dtype, size=size)


def _masked(state: State, keep_TxBx1: tf.Tensor | None, t: Any) -> State:
    """Zero a state, or its gradient, in the lanes that start a document at step t."""
    return state if keep_TxBx1 is None else tuple(x_BxH * keep_TxBx1[t] for x_BxH in state)


def _scan(steps: int, step: Callable[..., Any], state: Any, back: bool = False) -> Any:
    """Run state = step(t, *state) for every t, in order or in reverse.

    A turn of the loop runs UNROLL steps. The last `steps` % UNROLL, in either order, are unrolled outside it.
    """
    whole = steps - steps % UNROLL

    def turn(t: Any, *state: Any) -> tuple[Any, ...]:
        for u in range(UNROLL):
            state = step(t - u if back else t + u, *state)
        return (t - UNROLL if back else t + UNROLL, *state)

    def turns(state: Any) -> Any:
        more = (lambda t, *_: t >= 0) if back else (lambda t, *_: t < whole)
        start = (whole - 1 if back else 0, *state)
        return tf.while_loop(more, turn, start, parallel_iterations=1, maximum_iterations=whole // UNROLL)[1:]

    if whole and not back:
        state = turns(state)
    for t in reversed(range(whole, steps)) if back else range(whole, steps):
        state = step(t, *state)
    return turns(state) if whole and back else state


def _forward(
    cell: Cell,
    z_TxBxG: tf.Tensor,
    before: State,
    recurrent: Recurrent,
    keep_TxBx1: tf.Tensor | None,
    dtype: tf.DType,
) -> tuple[State, tf.TensorArray, Sequence[tf.TensorArray]]:
    """Compute the state after the last step, the array of h from before the first step to the last, in `dtype`, and the
    arrays of the cell's residuals."""
    T, product = z_TxBxG.shape[0], _recurrent(recurrent, dtype)

    def step(t: Any, state: Any, hs: Any, residuals: Any) -> tuple[Any, ...]:
        state = _masked(state, keep_TxBx1, t)
        state, keeps = cell.forward(z_TxBxG[t], product(state[0]), state)
        hs = hs.write(t + 1, tf.cast(state[0], dtype))
        return state, hs, tuple(array.write(t, x_BxH) for array, x_BxH in zip(residuals, keeps, strict=True))

    hs = _array(T + 1, dtype).write(0, tf.cast(before[0], dtype))
    return _scan(T, step, (tuple(before), hs, tuple(_array(T, tf.float32) for _ in range(cell.residuals))))


def _backward(
    cell: Cell,
    dhs_TxBxH: tf.Tensor,
    dafter: State,
    h_prev_TxBxH: tf.Tensor,
    residuals: Sequence[tf.TensorArray],
    recurrent: Recurrent,
    keep_TxBx1: tf.Tensor | None,
) -> list[tf.Tensor]:
    """Compute the gradients of z, the state before and the recurrent weights, from those of every h and the state
    after."""
    T, dtype, G = h_prev_TxBxH.shape[0], h_prev_TxBxH.dtype, recurrent[0].shape[-1]
    product = _product(tf.transpose(recurrent[0]), dtype)

    def step(t: Any, dstate: Any, dzs: Any) -> tuple[Any, ...]:
        dh_BxH, *others = dstate
        dh_BxH += dhs_TxBxH[t]
        dz_BxG, dhr_BxG, (direct, *others) = cell.backward(
            (dh_BxH, *others), tuple(array.read(t) for array in residuals)
        )
        dz_BxG = tf.cast(dz_BxG, dtype)
        written = (dz_BxG, tf.cast(dhr_BxG, dtype)) if cell.separate_gradients else (dz_BxG,)
        dh_BxH = product(written[-1])
        dstate = _masked((dh_BxH if direct is None else dh_BxH + direct, *others), keep_TxBx1, t)
        return dstate, tuple(array.write(t, x_BxG) for array, x_BxG in zip(dzs, written, strict=True))

    dzs = tuple(_array(T, dtype) for _ in range(1 + cell.separate_gradients))  # of z and, if separate, of h R
    dbefore, dzs = _scan(T, step, (tuple(dafter), dzs), back=True)
    dz_TxBxG, dhr_TxBxG = dzs[0].stack(), dzs[-1].stack()
    h_NxH, dhr_NxG = tf.reshape(h_prev_TxBxH, [-1, h_prev_TxBxH.shape[-1]]), tf.reshape(dhr_TxBxG, [-1, G])
    drecurrent = [tf.cast(tf.matmul(h_NxH, dhr_NxG, transpose_a=True), tf.float32)]
    if len(recurrent) > 1:
        drecurrent.append(tf.reduce_sum(tf.cast(dhr_NxG, tf.float32), 0))
    return [dz_TxBxG, *dbefore, *drecurrent]
