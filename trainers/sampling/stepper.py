"""Single time steps for sampling: a model's weights packed once for products of few rows, in plain float32 ops.

Legend: B rows, V vocabulary, E units of an embedding, K inputs, G gate columns, H units.
"""

from typing import NamedTuple

import tensorflow as tf

from trainers.model import recurrence
from trainers.model.cells import State
from trainers.model.char_rnn import CharRNN, States
from trainers.sampling.draw import AT_ONCE, NEVER

# One row times 512 x 2048 takes 123 us with TensorFlow's kernel, and 40 us as panels of 256 or 512 columns, which run
# on all cores. For a small matrix the extra ops cost more than that saves.
PANEL, WIDE = 256, 1024  # columns of a panel; columns above which a matrix is cut into panels

# A row's product must be bit-identical in any batch, but TensorFlow picks its summation order by shape: with AVX2 it
# treats 12 rows at once, and of the remainder sums 4 like 12, but not 8 or 1 to 3; with AVX-512 all but a single row
# alike. With many inputs or an odd number of columns the order also depends on the threads. So pad the rows to 4, 12,
# 16, 24, … (`padded_rows`), block the inputs, and keep the columns even.
QUAD = 4
INPUTS = (512, 256)  # inputs per block: as many blocks of the first size as fit, the rest in blocks of the second

Matrix = tuple[tuple[tf.Tensor, ...], ...]  # blocks of inputs, each cut into panels of columns


class Layer(NamedTuple):
    """Weights of a recurrent layer, with its cell's constant factors folded in."""

    kernel: Matrix  # empty where the first layer's gate inputs are looked up by id
    bias_G: tf.Tensor
    recurrent: Matrix
    recurrent_bias: tuple[tf.Tensor, ...]  # empty where the cell has none
    norm: tuple[tf.Tensor, ...]  # scale_H and offset_H, or empty without layer_norm


class PackedWeights(NamedTuple):
    """Weights of a model, arranged for single steps."""

    rows: tf.Tensor  # looked up by id: x W + b of the first layer (V x G), or the embedding (V x E)
    layers: tuple[Layer, ...]
    dense: Matrix
    dense_bias_V: tf.Tensor


def padded_rows(rows: tf.Tensor) -> tf.Tensor:
    """Round up the number of rows to 4, 12, 16, 24, …, so that a row gets the same product in any batch."""
    quads = tf.maximum(-(-rows // QUAD), 1)
    return QUAD * (quads + tf.cast(quads % 3 == 2, quads.dtype))


def pack_weights(model: CharRNN) -> PackedWeights:
    """Pack a model's weights. In a graph this runs once per call, outside the loop over steps."""
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
                () if gathered else _cut(w.kernel_IxG),
                w.bias_G,
                _cut(recurrent_HxG),
                tuple(bias),
                tuple(tf.convert_to_tensor(x) for x in norm),
            )
        )
    more = -model.vocab_size % AT_ONCE
    dense, bias_V = (
        tf.pad(model.dense.kernel, [[0, 0], [0, more]]),
        tf.pad(model.dense.bias, [[0, more]], constant_values=NEVER),
    )
    return PackedWeights(rows, tuple(layers), _cut(dense), bias_V)


class Stepper:
    """Model that runs one character at a time: `read` advances the states, `logits` predicts the next character.

    Create it outside the loop that calls it.

    end_id: the id that ends a document, after which the states start empty; None: documents have no end.
    weights: from `pack_weights`; by default, packed here.
    """

    def __init__(self, model: CharRNN, end_id: int | None = None, weights: PackedWeights | None = None):
        self.infer, self.end_id = model.cell.inference(model.config.units), end_id
        self.weights = weights or pack_weights(model)
        self.epsilon = [norm.epsilon for norm in model.norms]

    def read(self, ids_B: tf.Tensor, states: States) -> States:
        """Compute the states after one more character per row."""
        if self.end_id is not None:
            keep_Bx1 = tf.cast(ids_B != self.end_id, tf.float32)[:, None]
            states = [tuple(x_BxH * keep_Bx1 for x_BxH in state) for state in states]
        y, after = tf.gather(self.weights.rows, ids_B), []
        for index, (layer, state) in enumerate(zip(self.weights.layers, states, strict=True)):
            G = layer.bias_G.shape[0]
            z_BxG = tf.nn.bias_add(_times(y, layer.kernel, G), layer.bias_G) if layer.kernel else y
            hr_BxG = _times(state[0], layer.recurrent, G)
            if layer.recurrent_bias:
                hr_BxG = tf.nn.bias_add(hr_BxG, layer.recurrent_bias[0])
            after.append(self.infer(z_BxG, hr_BxG, state))
            if index + 1 < len(states):
                y = self._normed(index, after[-1])
        return after

    def logits(self, states: States) -> tf.Tensor:
        """Compute logits_BxV of the next character.

        V: the vocabulary's size rounded up to AT_ONCE; the extra columns are at NEVER.
        """
        y_BxH, bias_V = self._normed(len(states) - 1, states[-1]), self.weights.dense_bias_V
        return tf.nn.bias_add(_times(y_BxH, self.weights.dense, bias_V.shape[0]), bias_V)

    def _normed(self, index: int, state: State) -> tf.Tensor:
        """Output of a layer: its h, normalized as by keras.layers.LayerNormalization if the model has layer_norm."""
        h_BxH, norm = state[0], self.weights.layers[index].norm
        if not norm:
            return h_BxH
        mean_Bx1, variance_Bx1 = tf.nn.moments(h_BxH, axes=[1], keepdims=True)
        # rsqrt rounds differently by batch position. TensorFlow rewrites x / sqrt as rsqrt; tf.maximum prevents that.
        deviation_Bx1 = tf.maximum(tf.sqrt(variance_Bx1 + self.epsilon[index]), 0)
        return (h_BxH - mean_Bx1) / deviation_Bx1 * norm[0] + norm[1]


def _cut(w_KxG: tf.Tensor) -> Matrix:
    """Cut a matrix into blocks of inputs and, if it is wide, those into panels; add a column to make them even."""
    K, G = w_KxG.shape
    even, (large, small) = G + G % 2, INPUTS
    w_KxG = tf.pad(w_KxG, [[0, 0], [0, even - G]])
    pieces = tf.split(w_KxG, [large] * (K // large) + _sizes(K % large, small), axis=0)
    return tuple(tuple(tf.split(piece, _sizes(even, PANEL) if even > WIDE else [even], axis=1)) for piece in pieces)


def _sizes(whole: int, size: int) -> list[int]:
    """Split `whole` into as many pieces of `size` as fit, and the rest."""
    return [size] * (whole // size) + [whole % size] * (whole % size > 0)


def _times(y_BxK: tf.Tensor, matrix: Matrix, G: int) -> tf.Tensor:
    """Multiply by a matrix of G columns before padding."""
    parts = tf.split(y_BxK, [piece[0].shape[0] for piece in matrix], axis=1) if len(matrix) > 1 else [y_BxK]
    sums = []
    for y, piece in zip(parts, matrix, strict=True):
        products = [tf.matmul(y, tf.convert_to_tensor(panel)) for panel in piece]
        sums.append(products[0] if len(products) == 1 else tf.concat(products, axis=1))
    product = sums[0] if len(sums) == 1 else tf.add_n(sums)
    return product if product.shape[1] == G else product[:, :G]
