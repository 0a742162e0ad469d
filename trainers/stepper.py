"""Single time steps, for sampling: a model's weights laid out once for products of few rows, in plain float32 ops.

Legend: B rows, V vocabulary, E numbers of an embedding, K inputs, G gate columns, H units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from trainers import recurrence
from trainers.cells import State
from trainers.model import CharRNN, States

# One row times 512 x 2048 is 123 us with TensorFlow's kernels, and 40 us as panels of 256 or 512 columns, which the
# cores share. Where a matrix is small, the panels' own ops cost more than they bring.
PANEL, WIDE = 256, 1 << 19  # columns of a panel; the weights above which a matrix is cut into panels

# TensorFlow multiplies one row by another routine than several, which sums in another order where there are more than
# so many inputs. Two rows or more are always multiplied alike.
ALIKE = 256

Panels = tuple[tf.Tensor, ...]


class Layer(NamedTuple):
    """The weights of a recurrent layer, its cell's factors folded in."""

    kernel: Panels  # none where the layer's input is gathered as it enters the gates
    bias_G: tf.Tensor
    recurrent: Panels
    recurrent_bias: tuple[tf.Tensor, ...]  # where the cell has one
    norm: tuple[tf.Tensor, ...]  # scale_H and offset_H, where the model has layer norms


class Laid(NamedTuple):
    """A model's weights, laid out for single steps."""

    rows: tf.Tensor  # which an id picks one of: x W + b of the first layer (V x G), or the embedding (V x E)
    layers: tuple[Layer, ...]
    dense: Panels
    dense_bias_V: tf.Tensor


def lay_out(model: CharRNN) -> Laid:
    """Lays out a model's weights. In a graph the ops that do so run once a call, outside the loop that calls a step."""
    rows, layers = None, []
    for index, layer in enumerate(model.rnns):
        w = model.cell.fold(model.cell.weights(layer))
        gathered = index == 0 and (model.embedding is None or model.vocab_size <= recurrence.TABLE)
        if index == 0:
            rows = w.kernel_IxG if model.embedding is None else tf.convert_to_tensor(model.embedding.embeddings)
            if gathered:
                rows = (rows if model.embedding is None else tf.matmul(rows, w.kernel_IxG)) + w.bias_G
        recurrent_HxG, *bias = w.recurrent
        norm = [model.norms[index].gamma, model.norms[index].beta] if model.norms else []
        layers.append(
            Layer(
                () if gathered else _panels(w.kernel_IxG),
                w.bias_G,
                _panels(recurrent_HxG),
                tuple(bias),
                tuple(tf.convert_to_tensor(x) for x in norm),
            )
        )
    dense, bias_V = (tf.convert_to_tensor(w) for w in (model.dense.kernel, model.dense.bias))
    return Laid(rows, tuple(layers), _panels(dense), bias_V)


class Stepper:
    """A model one character at a time: `read` moves the states on, `logits` says what they expect next.

    To be made outside the loop that calls it.

    end_id: the id that is read from an empty carry, since a document ends with it; None: none is.
    laid: of `lay_out`, where the caller keeps it.
    """

    def __init__(self, model: CharRNN, end_id: int | None = None, laid: Laid | None = None):
        self.infer, self.end_id, self.laid = model.cell.inference(model.config.units), end_id, laid or lay_out(model)
        self.epsilon = [norm.epsilon for norm in model.norms]

    def read(self, ids_B: tf.Tensor, states: States) -> States:
        """The states after one more character each."""
        if self.end_id is not None:
            keep_Bx1 = tf.cast(ids_B != self.end_id, tf.float32)[:, None]
            states = [tuple(x_BxH * keep_Bx1 for x_BxH in state) for state in states]
        y, after = tf.gather(self.laid.rows, ids_B), []
        for index, (layer, state) in enumerate(zip(self.laid.layers, states, strict=True)):
            z_BxG = tf.nn.bias_add(_times(y, layer.kernel), layer.bias_G) if layer.kernel else y
            hr_BxG = _times(state[0], layer.recurrent)
            if layer.recurrent_bias:
                hr_BxG = tf.nn.bias_add(hr_BxG, layer.recurrent_bias[0])
            after.append(self.infer(z_BxG, hr_BxG, state))
            if index + 1 < len(states):
                y = self._normed(index, after[-1])
        return after

    def logits(self, states: States) -> tf.Tensor:
        """logits_BxV of the character after those that were read."""
        y_BxH = self._normed(len(states) - 1, states[-1])
        return tf.nn.bias_add(_times(y_BxH, self.laid.dense), self.laid.dense_bias_V)

    def _normed(self, index: int, state: State) -> tf.Tensor:
        """What a layer gives to the one above it: its h, and where there are layer norms as Keras has them, that."""
        h_BxH, norm = state[0], self.laid.layers[index].norm
        if not norm:
            return h_BxH
        mean_Bx1, variance_Bx1 = tf.nn.moments(h_BxH, axes=[1], keepdims=True)
        # rsqrt rounds as a row's place in the batch has it; so does x / sqrt, which TensorFlow takes for the same.
        deviation_Bx1 = tf.maximum(tf.sqrt(variance_Bx1 + self.epsilon[index]), 0)
        return (h_BxH - mean_Bx1) / deviation_Bx1 * norm[0] + norm[1]


def _panels(w_KxG: tf.Tensor) -> Panels:
    K, G = w_KxG.shape
    if K * G <= WIDE:
        return (w_KxG,)
    return tuple(tf.split(w_KxG, [PANEL] * (G // PANEL) + [G % PANEL] * (G % PANEL > 0), axis=1))


def _times(y_BxK: tf.Tensor, w: Sequence[tf.Tensor]) -> tf.Tensor:
    products = [tf.matmul(y_BxK, tf.convert_to_tensor(panel)) for panel in w]
    return products[0] if len(products) == 1 else tf.concat(products, axis=1)
