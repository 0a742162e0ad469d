"""The recurrent cells: a time step of each, its gradient, and its weights in Keras's layout.

    lstm   keras.layers.LSTM        z = x W + b + h R;  i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)
                                    g = tanh(z_c);  c' = f c + i g;  h' = o tanh(c')
    gru    keras.layers.GRU         x_ = x W + b;  h_ = h R + b_r;  z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
                                    g = tanh(x_h + r h_h);  h' = z h + (1 - z) g
    rnn    keras.layers.SimpleRNN   h' = tanh(x W + b + h R)

The LSTM is that of Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; the GRU that of Cho et al.
2014 with the reset gate after the product, as in cuDNN and by default in Keras.

Legend: B lanes, I inputs, H units, G gate columns (4 H, 3 H, H). A state is a tuple of BxH tensors that a cell
carries from step to step: (h, c) for the LSTM, (h,) for the others; h is the output.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

State = tuple[tf.Tensor, ...]
Residuals = tuple[tf.Tensor, ...]  # BxH each
Infer = Callable[[tf.Tensor, tf.Tensor, State], State]  # from z, h R and the previous state

_sigmoid_grad = tf.raw_ops.SigmoidGrad  # dy y (1 - y) in a single op
_tanh_grad = tf.raw_ops.TanhGrad  # dy (1 - y y)


class Weights(NamedTuple):
    """Weights of a layer, with the gate columns in Keras's order."""

    kernel_IxG: tf.Tensor
    bias_G: tf.Tensor
    recurrent: tuple[tf.Tensor, ...]  # the kernel R_HxG and, for the GRU, the bias_G of the recurrent product


class Cell(Protocol):
    """Kind of layer. A step combines the projected input z = x W + b and the recurrent product h R (+ b_r)."""

    layer: type[keras.Layer]  # the stock layer that owns the weights
    cudnn: str  # its name in cuDNN
    states: int  # S, tensors in its state
    residuals: int  # tensors, BxH each, that `forward` saves for `backward`
    separate_gradients: bool  # whether the gradient of the recurrent product differs from that of z

    def weights(self, layer: Any) -> Weights:
        """Read a built Keras layer's weights. Gradients flow back to its variables."""

    def forward(self, z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> tuple[State, Residuals]:
        """Run a step: the state after it, and the tensors that its gradient needs."""

    def backward(self, after: State, residuals: Residuals) -> tuple[tf.Tensor, tf.Tensor, tuple[Any, ...]]:
        """Compute the gradients of z, of h R and of the state before the step, from those of the state after it.

        The first two are the same tensor unless `separate_gradients`. The last leaves out the path through h R; None
        where it is zero.
        """

    def gates(self, residuals: Residuals) -> dict[str, tf.Tensor]:
        """Name a step's gates, and an LSTM's c, given its residuals."""

    def fold(self, w: Weights) -> Weights:
        """Fold the factors that `forward` applies to its sums into the weights, for `inference`."""

    def inference(self, units: int) -> Infer:
        """Return `forward` for folded weights, in fewer ops and without a gradient. It returns the next state.

        Create it outside the loop that calls it: inside, its constants would be rebuilt at every turn.
        """


def _read(layer: Any) -> Weights:
    kernel, recurrent, bias = (
        tf.convert_to_tensor(w) for w in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias)
    )
    return Weights(kernel, bias, (recurrent,))


class Lstm:
    """Gate columns i, f, c, o, as in Keras."""

    layer, cudnn = keras.layers.LSTM, "lstm"
    states, residuals, separate_gradients = 2, 6, False

    def weights(self, layer: Any) -> Weights:
        return _read(layer)

    def forward(self, z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> tuple[State, Residuals]:
        _, c_prev_BxH = before
        H = c_prev_BxH.shape[-1]
        # sigmoid(x) = tanh(x / 2) / 2 + 1 / 2: one tanh over all gates is faster than three sigmoids.
        half_G = self._half(H)
        i, f, g, o = tf.split(tf.tanh((z_BxG + hr_BxG) * half_G) * half_G + (1 - half_G), 4, axis=1)
        c_BxH = f * c_prev_BxH + i * g
        tanh_c = tf.tanh(c_BxH)
        return (o * tanh_c, c_BxH), (i, f, o, g, c_prev_BxH, tanh_c)

    def gates(self, residuals: Residuals) -> dict[str, tf.Tensor]:
        i, f, o, g, c_prev, _ = residuals
        return {"input": i, "forget": f, "output": o, "candidate": g, "c": f * c_prev + i * g}

    def _half(self, H: int) -> tf.Tensor:
        return tf.constant([0.5] * (2 * H) + [1.0] * H + [0.5] * H)

    def fold(self, w: Weights) -> Weights:
        half_G = self._half(w.recurrent[0].shape[0])
        return Weights(w.kernel_IxG * half_G, w.bias_G * half_G, (w.recurrent[0] * half_G,))

    def inference(self, units: int) -> Infer:
        half_G = self._half(units)
        rest_G = 1 - half_G

        def infer(z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> State:
            i, f, g, o = tf.split(tf.tanh(z_BxG + hr_BxG) * half_G + rest_G, 4, axis=1)
            c_BxH = f * before[1] + i * g
            return (o * tf.tanh(c_BxH), c_BxH)

        return infer

    def backward(self, after: State, residuals: Residuals) -> tuple[tf.Tensor, tf.Tensor, tuple[Any, ...]]:
        dh_BxH, dc_BxH = after
        i, f, o, g, c_prev_BxH, tanh_c = residuals
        dc_BxH += _tanh_grad(y=tanh_c, dy=dh_BxH * o)
        dz = [_sigmoid_grad(y=i, dy=dc_BxH * g), _sigmoid_grad(y=f, dy=dc_BxH * c_prev_BxH)]
        dz += [_tanh_grad(y=g, dy=dc_BxH * i), _sigmoid_grad(y=o, dy=dh_BxH * tanh_c)]
        dz_BxG = tf.concat(dz, 1)
        return dz_BxG, dz_BxG, (None, dc_BxH * f)


class Gru:
    """Gate columns z, r, h, as in Keras. The reset gate scales the recurrent product, so its gradient is separate."""

    layer, cudnn = keras.layers.GRU, "gru"
    states, residuals, separate_gradients = 1, 5, True

    def weights(self, layer: Any) -> Weights:
        w = _read(layer)
        bias_G, recurrent_bias_G = tf.unstack(w.bias_G)
        return Weights(w.kernel_IxG, bias_G, (*w.recurrent, recurrent_bias_G))

    def forward(self, z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> tuple[State, Residuals]:
        (h_prev_BxH,) = before
        H = h_prev_BxH.shape[-1]
        z, r = tf.split(tf.sigmoid(z_BxG[:, : 2 * H] + hr_BxG[:, : 2 * H]), 2, axis=1)
        hr_h = hr_BxG[:, 2 * H :]
        g = tf.tanh(z_BxG[:, 2 * H :] + r * hr_h)
        return (g + z * (h_prev_BxH - g),), (z, r, g, hr_h, h_prev_BxH)

    def backward(self, after: State, residuals: Residuals) -> tuple[tf.Tensor, tf.Tensor, tuple[Any, ...]]:
        (dh_BxH,), (z, r, g, hr_h, h_prev_BxH) = after, residuals
        dz_z = _sigmoid_grad(y=z, dy=dh_BxH * (h_prev_BxH - g))
        dz_g = _tanh_grad(y=g, dy=dh_BxH * (1 - z))
        dz_r = _sigmoid_grad(y=r, dy=dz_g * hr_h)
        return tf.concat([dz_z, dz_r, dz_g], 1), tf.concat([dz_z, dz_r, dz_g * r], 1), (dh_BxH * z,)

    def gates(self, residuals: Residuals) -> dict[str, tf.Tensor]:
        return dict(zip(("update", "reset", "candidate"), residuals, strict=False))

    def fold(self, w: Weights) -> Weights:
        H = w.recurrent[0].shape[0]
        half_G = tf.constant([0.5] * (2 * H) + [1.0] * H)
        recurrent, recurrent_bias = w.recurrent
        return Weights(w.kernel_IxG * half_G, w.bias_G * half_G, (recurrent * half_G, recurrent_bias * half_G))

    def inference(self, units: int) -> Infer:
        H = units

        def infer(z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> State:
            # Unlike sigmoid's, tanh's rounding does not depend on a row's position in the batch.
            gates = tf.tanh(z_BxG[:, : 2 * H] + hr_BxG[:, : 2 * H]) * 0.5 + 0.5
            z, r = tf.split(gates, 2, axis=1)
            g = tf.tanh(z_BxG[:, 2 * H :] + r * hr_BxG[:, 2 * H :])
            return (g + z * (before[0] - g),)

        return infer


class Rnn:
    """Plain tanh layer."""

    layer, cudnn = keras.layers.SimpleRNN, "rnn_tanh"
    states, residuals, separate_gradients = 1, 1, False

    def weights(self, layer: Any) -> Weights:
        return _read(layer)

    def forward(self, z_BxG: tf.Tensor, hr_BxG: tf.Tensor, before: State) -> tuple[State, Residuals]:
        h_BxH = tf.tanh(z_BxG + hr_BxG)
        return (h_BxH,), (h_BxH,)

    def backward(self, after: State, residuals: Residuals) -> tuple[tf.Tensor, tf.Tensor, tuple[Any, ...]]:
        (dh_BxH,), (h_BxH,) = after, residuals
        dz_BxH = _tanh_grad(y=h_BxH, dy=dh_BxH)
        return dz_BxH, dz_BxH, (None,)

    def gates(self, residuals: Residuals) -> dict[str, tf.Tensor]:
        return {"state": residuals[0]}

    def fold(self, w: Weights) -> Weights:
        return w

    def inference(self, units: int) -> Infer:
        return lambda z_BxG, hr_BxG, before: self.forward(z_BxG, hr_BxG, before)[0]


CELLS: dict[str, Cell] = {"lstm": Lstm(), "gru": Gru(), "rnn": Rnn()}
