"""The recurrent cells: one time step of each, its gradient, and how Keras lays out its weights.

    lstm   keras.layers.LSTM        z = x W + b + h R;  i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)
                                    g = tanh(z_c);  c' = f c + i g;  h' = o tanh(c')
    gru    keras.layers.GRU         x_ = x W + b;  h_ = h R + b_r;  z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
                                    g = tanh(x_h + r h_h);  h' = z h + (1 - z) g
    rnn    keras.layers.SimpleRNN   h' = tanh(x W + b + h R)

The LSTM is that of Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; the GRU that of Cho et al.
2014 with the reset gate after the product, as cuDNN has it and Keras by default.

Legend: B lanes, I inputs, H units, G gate columns (4 H, 3 H, H), K columns kept. A state is the tuple of what a cell
carries from step to step, each BxH: (h, c) for the LSTM, (h,) for the others; h is the output.
"""

from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

State = tuple[tf.Tensor, ...]


class Weights(NamedTuple):
    """A layer's weights with the gate columns in the order of the cell."""

    kernel_IxG: tf.Tensor
    bias_G: tf.Tensor
    recurrent: tuple[tf.Tensor, ...]  # the kernel R_HxG and, where the cell has one, the recurrent product's own bias_G


class Cell(Protocol):
    """One kind of layer. A step is made of the projected input z = x W + b and the recurrent product h R (+ b_r)."""

    layer: type[keras.Layer]  # the stock layer that owns the weights
    states: int  # S: how many tensors it carries
    kept: int  # K / H: the columns of what `forward` keeps for `backward`, side by side since every op of a step counts
    names: tuple[str, ...]  # of the activations that it begins with
    apart: bool  # whether the recurrent product enters the step apart from z: then it has a gradient of its own

    def weights(self, layer: Any) -> Weights:
        """Reads a built Keras layer's weights. Gradients flow back to the layer's variables."""

    def forward(self, z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> tuple[State, tf.Tensor]:
        """The state after the step, and kept_BxK, what its gradient needs."""

    def backward(self, after: State, kept_BxK: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tuple[Any, ...]]:
        """From the gradients of the state after the step to those of z, of h R (the same tensor, unless `apart`) and of
        the state before it, h R aside; None where there is none."""


class Lstm:
    """Keras orders the gate columns i, f, c, o; here i, f, o, c: three sigmoids side by side, then one tanh."""

    layer = keras.layers.LSTM
    states, kept, apart = 2, 6, False
    names: tuple[str, ...] = ("input", "forget", "output", "candidate")

    def weights(self, layer: Any) -> Weights:
        cell = layer.cell
        kernel, recurrent, bias = (self._reorder(w) for w in (cell.kernel, cell.recurrent_kernel, cell.bias))
        return Weights(kernel, bias, (recurrent,))

    def _reorder(self, w_G: Any) -> tf.Tensor:
        i, f, c, o = tf.split(tf.convert_to_tensor(w_G), 4, axis=-1)
        return tf.concat([i, f, o, c], axis=-1)

    def forward(self, z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> tuple[State, tf.Tensor]:
        _, c_prev_BxH = before
        H, z_BxG = c_prev_BxH.shape[-1], z_BxG + hr_BxG
        ifo_Bx3H, g = tf.sigmoid(z_BxG[:, : 3 * H]), tf.tanh(z_BxG[:, 3 * H :])
        i, f, o = tf.split(ifo_Bx3H, 3, axis=1)
        c_BxH = f * c_prev_BxH + i * g
        tanh_c = tf.tanh(c_BxH)
        return (o * tanh_c, c_BxH), tf.concat([ifo_Bx3H, g, c_prev_BxH, tanh_c], 1)

    def backward(self, after: State, kept_BxK: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tuple[Any, ...]]:
        dh_BxH, dc_BxH = after
        i, f, o, g, c_prev_BxH, tanh_c = tf.split(kept_BxK, self.kept, axis=1)
        dc_BxH = dc_BxH + dh_BxH * o * (1 - tanh_c * tanh_c)
        dz_i = dc_BxH * g * i * (1 - i)
        dz_f = dc_BxH * c_prev_BxH * f * (1 - f)
        dz_o = dh_BxH * tanh_c * o * (1 - o)
        dz_g = dc_BxH * i * (1 - g * g)
        dz_BxG = tf.concat([dz_i, dz_f, dz_o, dz_g], 1)
        return dz_BxG, dz_BxG, (None, dc_BxH * f)


class Gru:
    """Gate columns z, r, h, as in Keras. The reset gate weighs the recurrent product, so that one stands apart."""

    layer = keras.layers.GRU
    states, kept, apart = 1, 5, True
    names: tuple[str, ...] = ("update", "reset", "candidate")

    def weights(self, layer: Any) -> Weights:
        cell = layer.cell
        bias_G, recurrent_bias_G = tf.unstack(tf.convert_to_tensor(cell.bias))
        kernel, recurrent = (tf.convert_to_tensor(w) for w in (cell.kernel, cell.recurrent_kernel))
        return Weights(kernel, bias_G, (recurrent, recurrent_bias_G))

    def forward(self, z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> tuple[State, tf.Tensor]:
        (h_prev_BxH,) = before
        H = h_prev_BxH.shape[-1]
        zr_Bx2H, hr_h = tf.sigmoid(z_BxG[:, : 2 * H] + hr_BxG[:, : 2 * H]), hr_BxG[:, 2 * H :]
        z, r = tf.split(zr_Bx2H, 2, axis=1)
        g = tf.tanh(z_BxG[:, 2 * H :] + r * hr_h)
        return (g + z * (h_prev_BxH - g),), tf.concat([zr_Bx2H, g, hr_h, h_prev_BxH], 1)

    def backward(self, after: State, kept_BxK: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tuple[Any, ...]]:
        (dh_BxH,) = after
        z, r, g, hr_h, h_prev_BxH = tf.split(kept_BxK, self.kept, axis=1)
        dz_z = dh_BxH * (h_prev_BxH - g) * z * (1 - z)
        dz_g = dh_BxH * (1 - z) * (1 - g * g)
        dz_r = dz_g * hr_h * r * (1 - r)
        return tf.concat([dz_z, dz_r, dz_g], 1), tf.concat([dz_z, dz_r, dz_g * r], 1), (dh_BxH * z,)


class Rnn:
    """The plain one: a single tanh."""

    layer = keras.layers.SimpleRNN
    states, kept, apart = 1, 1, False
    names: tuple[str, ...] = ("state",)

    def weights(self, layer: Any) -> Weights:
        kernel, recurrent, bias = (
            tf.convert_to_tensor(w) for w in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias)
        )
        return Weights(kernel, bias, (recurrent,))

    def forward(self, z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> tuple[State, tf.Tensor]:
        h_BxH = tf.tanh(z_BxG + hr_BxG)
        return (h_BxH,), h_BxH

    def backward(self, after: State, kept_BxK: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tuple[Any, ...]]:
        (dh_BxH,), h_BxH = after, kept_BxK
        dz_BxH = dh_BxH * (1 - h_BxH * h_BxH)
        return dz_BxH, dz_BxH, (None,)


CELLS: dict[str, Cell] = {"lstm": Lstm(), "gru": Gru(), "rnn": Rnn()}
