"""Single time steps, for sampling: a model's weights laid out once for products of few rows, in plain float32 ops.

Legend: B rows, V vocabulary, E numbers of an embedding, K inputs, G gate columns, H units.
"""

from typing import NamedTuple

import tensorflow as tf

from trainers.model import recurrence
from trainers.model.cells import State
from trainers.model.char_rnn import CharRNN, States
from trainers.sampling.draw import AT_ONCE, NEVER

# One row times 512 x 2048 is 123 us with TensorFlow's kernels, and 40 us as panels of 256 or 512 columns, which the
# cores share. Where a matrix is small, the panels' own ops cost more than they bring.
PANEL, WIDE = 256, 1024  # columns of a panel; the columns above which a matrix is cut into panels

# A row is to have the same product, to the last bit, whatever rows are beside it. TensorFlow does not give that by
# itself. How it sums depends on the number of rows: with AVX2 it takes a dozen at once, and of those left over it sums
# four as it does a dozen, but not eight, nor one to three; with AVX-512 all but a single one alike. And where inputs
# are many, or the columns odd, it depends on how the threads divide them. So there are so many rows (`alike`), so many
# inputs at once, and an even number of columns.
QUAD = 4
INPUTS = (512, 256)  # as many as go into pieces of the first, and the others in pieces of the second

Matrix = tuple[tuple[tf.Tensor, ...], ...]  # pieces by inputs, of panels by columns


class Layer(NamedTuple):
    """The weights of a recurrent layer, its cell's factors folded in."""

    kernel: Matrix  # none where the layer's input is gathered as it enters the gates
    bias_G: tf.Tensor
    recurrent: Matrix
    recurrent_bias: tuple[tf.Tensor, ...]  # where the cell has one
    norm: tuple[tf.Tensor, ...]  # scale_H and offset_H, where the model has layer norms


class Laid(NamedTuple):
    """A model's weights, laid out for single steps."""

    rows: tf.Tensor  # which an id picks one of: x W + b of the first layer (V x G), or the embedding (V x E)
    layers: tuple[Layer, ...]
    dense: Matrix
    dense_bias_V: tf.Tensor


def alike(rows: tf.Tensor) -> tf.Tensor:
    """The number of rows that so many are run as, for each to be multiplied as among any others: 4, 12, 16, 24, …"""
    quads = tf.maximum(-(-rows // QUAD), 1)
    return QUAD * (quads + tf.cast(quads % 3 == 2, quads.dtype))


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
    return Laid(rows, tuple(layers), _cut(dense), bias_V)


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
        """logits_BxV of the character after those that were read.

        V: the vocabulary's size rounded up to AT_ONCE; what stands for no symbol is at NEVER.
        """
        y_BxH, bias_V = self._normed(len(states) - 1, states[-1]), self.laid.dense_bias_V
        return tf.nn.bias_add(_times(y_BxH, self.laid.dense, bias_V.shape[0]), bias_V)

    def _normed(self, index: int, state: State) -> tf.Tensor:
        """What a layer gives to the one above it: its h, and where there are layer norms as Keras has them, that."""
        h_BxH, norm = state[0], self.laid.layers[index].norm
        if not norm:
            return h_BxH
        mean_Bx1, variance_Bx1 = tf.nn.moments(h_BxH, axes=[1], keepdims=True)
        # rsqrt rounds as a row's place in the batch has it; so does x / sqrt, which TensorFlow takes for the same.
        deviation_Bx1 = tf.maximum(tf.sqrt(variance_Bx1 + self.epsilon[index]), 0)
        return (h_BxH - mean_Bx1) / deviation_Bx1 * norm[0] + norm[1]


def _cut(w_KxG: tf.Tensor) -> Matrix:
    """A matrix in pieces by inputs, and those, if it is wide, in panels; with one more column where they are odd."""
    K, G = w_KxG.shape
    even, (large, small) = G + G % 2, INPUTS
    w_KxG = tf.pad(w_KxG, [[0, 0], [0, even - G]])
    pieces = tf.split(w_KxG, [large] * (K // large) + _sizes(K % large, small), axis=0)
    return tuple(tuple(tf.split(piece, _sizes(even, PANEL) if even > WIDE else [even], axis=1)) for piece in pieces)


def _sizes(whole: int, size: int) -> list[int]:
    """The sizes of its pieces: as many as can be of `size`, and the rest."""
    return [size] * (whole // size) + [whole % size] * (whole % size > 0)


def _times(y_BxK: tf.Tensor, matrix: Matrix, G: int) -> tf.Tensor:
    """The product with a matrix that had G columns."""
    parts = tf.split(y_BxK, [piece[0].shape[0] for piece in matrix], axis=1) if len(matrix) > 1 else [y_BxK]
    sums = []
    for y, piece in zip(parts, matrix, strict=True):
        products = [tf.matmul(y, tf.convert_to_tensor(panel)) for panel in piece]
        sums.append(products[0] if len(products) == 1 else tf.concat(products, axis=1))
    product = sums[0] if len(sums) == 1 else tf.add_n(sums)
    return product if product.shape[1] == G else product[:, :G]
