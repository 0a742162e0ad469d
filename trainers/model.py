"""The model: (ids, carry) -> (logits, carry). The carry is an argument and a result, never hidden in a layer.

Legend: B lanes, T time steps, L layers, H units, V vocabulary. carry_BxLx2xH holds h (index 0) and c (index 1) of every
layer, one row a lane: it splits, gathers, is saved and is sent over a wire as any other batch does.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from trainers import lstm
from trainers.config import ModelConfig

States = list[tuple[tf.Tensor, tf.Tensor]]  # h_BxH and c_BxH of each layer: the carry, taken apart
Step = Callable[[tf.Tensor, States], tuple[tf.Tensor, States]]


def split_carry(carry_BxLx2xH: tf.Tensor) -> States:
    """The carry as (h, c) a layer."""
    return [tuple(tf.unstack(hc_Bx2xH, axis=1)) for hc_Bx2xH in tf.unstack(carry_BxLx2xH, axis=1)]


def join_carry(states: States) -> tf.Tensor:
    """The inverse of `split_carry`: carry_BxLx2xH."""
    return tf.stack([tf.stack(hc, 1) for hc in states], 1)


class CharLSTM(keras.Model):
    """L LSTM layers of H units between one-hot ids and a dense layer to logits.

    The layers are stock Keras ones: their weights, names and, but for the first kernel, initial values (orthogonal
    recurrent kernels, forget bias 1) are what any Keras user expects. How they are run is chosen here: through cuDNN
    where a GPU is visible, else by the loop of trainers.lstm, which is several times faster on a CPU, and which alone
    can start afresh inside a window.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, seed: int = 1, precision: str = "float32"):
        super().__init__(name="char_lstm")
        self.config, self.vocab_size = config, vocab_size
        self.matmul_dtype = tf.as_dtype(precision)
        self.use_stock_layers = bool(tf.config.list_logical_devices("GPU"))
        seeds = iter(range(1000 * seed, 1000 * seed + 1000))  # every initial value is a function of the one seed

        def initializer(kind: type[keras.Initializer], **settings: float) -> keras.Initializer:
            return kind(seed=next(seeds), **settings)

        # A one-hot input picks one row of the first kernel: its fan-in is 1, not V, and rows of unit variance give
        # gates of unit variance. Glorot's rule counts V inputs, starts 20 times smaller, and learns far more slowly.
        first = initializer(keras.initializers.RandomNormal, stddev=1.0)

        self.lstms = [
            keras.layers.LSTM(
                config.units,
                return_sequences=True,
                return_state=True,
                kernel_initializer=initializer(keras.initializers.GlorotUniform) if index else first,
                recurrent_initializer=initializer(keras.initializers.Orthogonal),
                name=f"lstm_{index}",
            )
            for index in range(config.layers)
        ]
        self.dense = keras.layers.Dense(
            vocab_size, kernel_initializer=initializer(keras.initializers.GlorotUniform), name="logits"
        )
        for index, layer in enumerate(self.lstms):
            layer.build((None, None, config.units if index else vocab_size))
        self.dense.build((None, None, config.units))
        self.built = True

    def initial_carry(self, lanes: int | tf.Tensor) -> tf.Tensor:
        """Zeros, carry_BxLx2xH: what a text starts from."""
        return tf.zeros([lanes, self.config.layers, 2, self.config.units])

    def vocab_axis(self, weight: keras.Variable) -> int | None:
        """The axis of a weight that has an entry a symbol of the vocabulary; None where none has."""
        axes = {self.lstms[0].cell.kernel.path: 0, self.dense.kernel.path: 1, self.dense.bias.path: 0}
        return axes.get(weight.path)

    def dropout_masks(self, lanes: int, window: int, seed: tf.Tensor) -> list[tf.Tensor]:
        """Masks for the connections between layers, mask_BxTxH each, 0 or 1 / (1 - dropout); none without dropout.

        A pure function of the seed (shape [2], integers), so that a step repeats exactly. Made for all lanes of a step,
        of which each replica takes its own rows: the masks do not depend on how many replicas there are.
        """
        rate = self.config.dropout
        if rate == 0:
            return []
        draws_LxBxTxH = tf.random.stateless_uniform([len(self.lstms) - 1, lanes, window, self.config.units], seed)
        return tf.unstack(tf.cast(draws_LxBxTxH >= rate, tf.float32) / (1 - rate))

    def call(
        self,
        ids_BxT: tf.Tensor,
        carry_BxLx2xH: tf.Tensor,
        masks: Sequence[tf.Tensor] = (),
        reset_BxT: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Gives logits_BxTxV (of the character after each id) and the carry after the window. T must be static.

        masks: from `dropout_masks` while training; none otherwise.
        reset: the ids (bool) that are read from an empty carry, as if the text began with them; None: none is.
        """
        ids_BxT, states = tf.cast(ids_BxT, tf.int32), split_carry(carry_BxLx2xH)
        if self.use_stock_layers and reset_BxT is None:
            y_BxTxH, states = self._run_stock(ids_BxT, states, masks)
        else:
            y_BxTxH, states = self._run_loop(ids_BxT, states, masks, reset_BxT)
        return self.dense(y_BxTxH), join_carry(states)

    def stepper(self, end_id: int | None = None) -> Step:
        """Prepares the weights for many single steps. Gives step(ids_B, states) -> (logits_BxV, states), plain ops.

        end_id: the id that is read from an empty carry, since a document ends with it; None: none is.
        What does not change from step to step is made here, once, outside the loop that calls the step.
        """
        layers = [lstm.weights(layer) for layer in self.lstms]
        first_VxG = layers[0].kernel_IxG + layers[0].bias_G

        def step(ids_B: tf.Tensor, states: States) -> tuple[tf.Tensor, States]:
            if end_id is not None:
                keep_Bx1 = tf.cast(ids_B != end_id, tf.float32)[:, None]
                states = [(h_BxH * keep_Bx1, c_BxH * keep_Bx1) for h_BxH, c_BxH in states]
            z_BxG = tf.gather(first_VxG, ids_B)
            after: States = []
            for index, (w, (h_BxH, c_BxH)) in enumerate(zip(layers, states, strict=True)):
                if index:
                    z_BxG = tf.matmul(after[-1][0], w.kernel_IxG) + w.bias_G
                after.append(lstm.step(z_BxG, h_BxH, c_BxH, w.recurrent_HxG))
            return self.dense(after[-1][0]), after

        return step

    def _run_stock(self, ids_BxT: tf.Tensor, states: States, masks: Sequence[tf.Tensor]) -> tuple[tf.Tensor, States]:
        y_BxTxK = tf.one_hot(ids_BxT, self.vocab_size)
        after: States = []
        for index, (layer, state) in enumerate(zip(self.lstms, states, strict=True)):
            if index and masks:
                y_BxTxK = y_BxTxK * masks[index - 1]
            y_BxTxK, *hc = layer(y_BxTxK, initial_state=list(state))
            after.append(tuple(hc))
        return y_BxTxK, after

    def _run_loop(
        self, ids_BxT: tf.Tensor, states: States, masks: Sequence[tf.Tensor], reset_BxT: tf.Tensor | None
    ) -> tuple[tf.Tensor, States]:
        dtype, y_TxBxH, keep_TxBx1 = self.matmul_dtype, None, None
        if reset_BxT is not None:
            keep_TxBx1 = 1 - tf.cast(tf.transpose(reset_BxT), tf.float32)[..., None]
        after: States = []
        for index, (layer, (h_BxH, c_BxH)) in enumerate(zip(self.lstms, states, strict=True)):
            w = lstm.weights(layer)
            if y_TxBxH is None:
                z_TxBxG = lstm.project_ids(tf.transpose(ids_BxT), w, dtype)
            else:
                if masks:
                    y_TxBxH = y_TxBxH * tf.transpose(masks[index - 1], [1, 0, 2])
                z_TxBxG = lstm.project(y_TxBxH, w, dtype)
            y_TxBxH, h_BxH, c_BxH = lstm.recur(z_TxBxG, h_BxH, c_BxH, w.recurrent_HxG, dtype, keep_TxBx1)
            after.append((h_BxH, c_BxH))
        return tf.transpose(y_TxBxH, [1, 0, 2]), after
