"""Recurrent layers on a GPU, through cuDNN: one op runs layers that have nothing between them.

cuDNN cannot empty a state inside a window. So each lane is cut where its documents start, and the pieces become the
rows of one batch, with a length each. Names of seven characters, in a window of 50 steps, then take only as many steps
as the longest name.

Legend: T time steps, B lanes, N steps of all lanes, P pieces, Q steps of the longest piece, L layers, S states of a
cell, I inputs, H units, G gate columns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from trainers.model.cells import Cell


class CudnnRows:
    """Lanes of a window as cuDNN takes them: time-major and, if there are resets, in pieces."""

    def __init__(self, shape: tuple[int, int], reset_BxT: tf.Tensor | None = None):
        self.shape, self.cut = tuple(shape), reset_BxT is not None
        # On the host, where cuDNN's op takes the lengths, and where TensorFlow computes integers anyway.
        with tf.device("/CPU:0"):
            if reset_BxT is None:
                self.length_P = tf.fill([shape[0]], shape[1])
            else:
                self._cut(reset_BxT)

    def _cut(self, reset_BxT: tf.Tensor) -> None:
        T, N = self.shape[1], self.shape[0] * self.shape[1]
        start_N = tf.reshape(reset_BxT | (tf.range(T) == 0), [N])
        first_P = tf.cast(tf.where(start_N)[:, 0], tf.int32)
        piece_N = tf.cumsum(tf.cast(start_N, tf.int32)) - 1
        self.length_P = tf.concat([first_P[1:], [N]], 0) - first_P
        step_Qx1 = tf.range(tf.reduce_max(self.length_P))[:, None]
        # Where each step of a piece comes from, and where it is among the pieces.
        self.source_QxP = tf.minimum(first_P + step_Qx1, N - 1)
        self.place_N = (tf.range(N) - tf.gather(first_P, piece_N)) * tf.size(first_P) + piece_N
        self.real_QxPx1 = tf.cast(step_Qx1 < self.length_P, tf.float32)[..., None]
        self.lane_P, self.last_B = first_P // T, piece_N[T - 1 :: T]
        self.keep_Px1 = tf.cast(~tf.gather(tf.reshape(reset_BxT, [N]), first_P), tf.float32)[:, None]

    def enter(self, x_BxT: tf.Tensor) -> tf.Tensor:
        """Rearrange values of each lane and step from [B, T, ...] to [T, B, ...] or [Q, P, ...]. Has no gradient."""
        if self.cut:
            return tf.gather(tf.reshape(x_BxT, [-1, *x_BxT.shape[2:]]), self.source_QxP)
        return tf.transpose(x_BxT, [1, 0, *range(2, len(x_BxT.shape))])

    def leave(self, y: tf.Tensor) -> tf.Tensor:
        """Undo `enter`: from y_TxBxH or y_QxPxH to y_BxTxH."""
        if not self.cut:
            return tf.transpose(y, [1, 0, 2])
        H = y.shape[-1]

        @tf.custom_gradient
        def take(y_QxPxH: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            # TensorFlow's own gradient adds rows in any order.
            def grad(dy_NxH: tf.Tensor) -> tf.Tensor:
                return tf.gather(dy_NxH, self.source_QxP) * tf.cast(self.real_QxPx1, dy_NxH.dtype)

            return tf.gather(tf.reshape(y_QxPxH, [-1, H]), self.place_N), grad

        return tf.reshape(take(y), [*self.shape, H])

    def begin(self, carry_BxLxSxH: tf.Tensor) -> tf.Tensor:
        """States before the first step of each lane or piece, SxLxBxH or SxLxPxH."""
        states = tf.transpose(carry_BxLxSxH, [2, 1, 0, 3])
        return tf.gather(states, self.lane_P, axis=2) * self.keep_Px1 if self.cut else states

    def end(self, states: tf.Tensor) -> tf.Tensor:
        """carry_BxLxSxH after the window, from the states after each lane or piece."""
        states_SxLxBxH = tf.gather(states, self.last_B, axis=2) if self.cut else states
        return tf.transpose(states_SxLxBxH, [2, 1, 0, 3])


def pack(cell: Cell, layers: Sequence[Any], dtype: tf.DType) -> tf.Tensor:
    """Pack the weights of Keras layers for cuDNN: first each layer's kernels, transposed, then two biases of each.

    The gradient is written by hand because that of tf.concat is a slice for each part.
    """
    gru = cell.cudnn == "gru"  # which alone adds a bias to the recurrent product too, and whose first gates are swapped
    cells = [layer.cell for layer in layers]
    kernels = [tf.convert_to_tensor(w) for each in cells for w in (each.kernel, each.recurrent_kernel)]
    biases = [tf.convert_to_tensor(each.bias) for each in cells]
    biases = biases if gru else [tf.stack([bias_G, tf.zeros_like(bias_G)]) for bias_G in biases]
    # The order of each weight's rows, in equal blocks. Its own inverse.
    orders = [[1, 0, 2] if gru else [0]] * len(kernels) + [[1, 0, 2, 4, 3, 5] if gru else [0]] * len(biases)

    @tf.custom_gradient
    def flat(*weights: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        parts = []
        for index, (w, order) in enumerate(zip(weights, orders, strict=True)):
            rows = tf.transpose(tf.cast(w, dtype)) if index < len(kernels) else tf.reshape(tf.cast(w, dtype), [-1])
            blocks = tf.split(rows, len(order))
            parts += [tf.reshape(blocks[k], [-1]) for k in order]

        def grad(dparams: tf.Tensor) -> list[tf.Tensor]:
            dparts, gradients = iter(tf.split(tf.cast(dparams, tf.float32), [part.shape[0] for part in parts])), []
            for index, (w, order) in enumerate(zip(weights, orders, strict=True)):
                blocks = [next(dparts) for _ in order]
                dw = tf.concat([blocks[k] for k in order], 0)
                turned = index < len(kernels)
                gradients.append(tf.transpose(tf.reshape(dw, w.shape[::-1])) if turned else tf.reshape(dw, w.shape))
            return gradients

        return tf.concat(parts, 0), grad

    return flat(*kernels, *biases)


def run(
    cell: Cell, layers: Sequence[Any], x: tf.Tensor, states_SxLxBxH: tf.Tensor, length_B: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Run Keras layers over x_TxBxI. Returns y_TxBxH, in its dtype, and the states after each row's last step.

    length: steps of each row. The rest of y is 0.
    """
    h_LxBxH, *c = tf.unstack(tf.cast(states_SxLxBxH, x.dtype))
    y_TxBxH, h_LxBxH, c_LxBxH, *_ = tf.raw_ops.CudnnRNNV3(
        input=x,
        input_h=h_LxBxH,
        input_c=c[0] if c else tf.zeros([], x.dtype),
        params=pack(cell, layers, x.dtype),
        sequence_lengths=length_B,
        rnn_mode=cell.cudnn,
        is_training=True,
        time_major=True,
    )
    after = [h_LxBxH, c_LxBxH][: cell.states]
    return y_TxBxH, tf.cast(tf.stack(after), tf.float32)
