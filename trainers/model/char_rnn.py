"""The model: (ids, carry) -> (logits, carry). The carry is an argument and a result, never hidden in a layer.

Legend: B lanes, T time steps, L layers, S states of a cell, H units, E numbers of an embedding, G gate columns, V
vocabulary. carry_BxLxSxH contains the state of every layer, one row per lane: h (index 0) and, for an LSTM, c
(index 1). It can be split, gathered, saved and sent like any other batch.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainers.config import ModelConfig
from trainers.model import cudnn, recurrence
from trainers.model.cells import CELLS, Cell, State, Weights

States = list[State]  # per layer: the carry, unstacked
Masks = Sequence[tf.Tensor | None]  # per layer, of its output; None: no dropout; empty: none in any layer
Recur = Callable[..., tuple[tf.Tensor, State]]  # trainers.model.recurrence.recur, or a replacement


def split_carry(carry_BxLxSxH: tf.Tensor) -> States:
    """Split a carry into one state per layer."""
    return [tuple(tf.unstack(state_BxSxH, axis=1)) for state_BxSxH in tf.unstack(carry_BxLxSxH, axis=1)]


def join_carry(states: States) -> tf.Tensor:
    """Join states into carry_BxLxSxH, the inverse of `split_carry`."""
    return tf.stack([tf.stack(state, 1) for state in states], 1)


@keras.saving.register_keras_serializable(package="unreasonable_rnn")
class CharRNN(keras.Model):
    """L recurrent layers of H units between ids (one-hot, or an embedding of E numbers) and a dense layer to logits.

    The layers are stock Keras layers with their usual weights, names and initial values (orthogonal recurrent kernels,
    an LSTM's forget bias 1), except in the first kernel. With `layer_norm` a LayerNormalization follows each, before
    dropout; the state is not normalized. Only their weights are Keras's: the layers run in trainers.model.cudnn on a
    GPU, else in trainers.model.recurrence, which is several times faster on a CPU.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, seed: int = 1, precision: str = "float32"):
        super().__init__(name="char_rnn")
        self.config, self.vocab_size, self.seed = config, vocab_size, seed
        self.matmul_dtype = tf.as_dtype(precision.replace("tf32", "float32"))  # tf32 is a mode of the GPU, not a type
        self.use_cudnn = bool(tf.config.list_logical_devices("GPU"))
        seeds = itertools.count(1000 * seed)  # one seed determines every initial value

        def initializer(kind: type[keras.Initializer], **settings: float) -> keras.Initializer:
            return kind(seed=next(seeds), **settings)

        # Gates start with unit variance. A one-hot input selects a row of the first kernel, so the fan-in is 1, not V,
        # and rows get unit variance; Glorot's rule would start 20 times smaller and learn far more slowly. The rows of
        # an embedding have unit variance too, and Lecun's rule (variance 1 / E) preserves it through the kernel.
        if config.embedding:
            first = initializer(keras.initializers.LecunNormal)
            rows = initializer(keras.initializers.RandomNormal, stddev=1.0)
            self.embedding = keras.layers.Embedding(vocab_size, config.embedding, rows, name="embedding")
            self.embedding.build()
        else:
            first, self.embedding = initializer(keras.initializers.RandomNormal, stddev=1.0), None

        self.rnns = [
            self.cell.layer(
                config.units,
                return_sequences=True,
                return_state=True,
                kernel_initializer=initializer(keras.initializers.GlorotUniform) if index else first,
                recurrent_initializer=initializer(keras.initializers.Orthogonal),
                name=f"{config.cell}_{index}",
            )
            for index in range(config.layers)
        ]
        self.norms = [
            keras.layers.LayerNormalization(name=f"norm_{index}") for index in range(config.layers * config.layer_norm)
        ]
        self.dense = keras.layers.Dense(
            vocab_size, kernel_initializer=initializer(keras.initializers.GlorotUniform), name="logits"
        )
        for index, layer in enumerate(self.rnns):
            layer.build((None, None, config.units if index else config.embedding or vocab_size))
        for layer in (*self.norms, self.dense):
            layer.build((None, None, config.units))
        self.built = True

    @property
    def cell(self) -> Cell:
        """Cell of the layers."""
        return CELLS[self.config.cell]

    def get_config(self) -> dict[str, Any]:
        """Arguments from which `from_config` rebuilds the model, without weights, for model.save and load_model."""
        return {
            "config": dataclasses.asdict(self.config),
            "vocab_size": self.vocab_size,
            "seed": self.seed,
            "precision": self.matmul_dtype.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CharRNN":
        return cls(**{**config, "config": ModelConfig(**config["config"])})

    def initial_carry(self, lanes: int | tf.Tensor) -> tf.Tensor:
        """carry_BxLxSxH of an empty text: zeros."""
        return tf.zeros([lanes, self.config.layers, self.cell.states, self.config.units])

    def vocab_axis(self, weight: keras.Variable) -> int | None:
        """Axis of a weight with one entry per symbol of the vocabulary; None if there is none."""
        first = self.embedding.embeddings if self.embedding else self.rnns[0].cell.kernel
        return {first.path: 0, self.dense.kernel.path: 1, self.dense.bias.path: 0}.get(weight.path)

    @property
    def inner_kernels(self) -> list[keras.Variable]:
        """Kernels without an axis of the vocabulary: from units to units, or from an embedding to units."""
        return [w for w in self.trainable_variables if w.path.endswith("kernel") and self.vocab_axis(w) is None]

    def dropout_masks(self, lanes: int, window: int, seed: tf.Tensor) -> Masks:
        """Draw mask_BxTxH of each layer's output, 0 or 1 / (1 - rate); None for a layer without dropout.

        A pure function of the seed (shape [2], integers), so that a step repeats exactly. Masks are drawn for all lanes
        of a step, and each replica takes its own rows, so they do not depend on the number of replicas.
        """
        config = self.config
        rates = [config.dropout] * (config.layers - 1) + [config.output_dropout]
        masks: list[tf.Tensor | None] = [None] * config.layers
        for layer, rate in enumerate(rates):
            if rate:  # a draw for each layer, so that several cores draw
                draws_BxTxH = tf.random.stateless_uniform([lanes, window, config.units], tf.random.fold_in(seed, layer))
                masks[layer] = tf.cast(draws_BxTxH >= rate, tf.float32) / (1 - rate)
        return masks

    def call(
        self,
        ids_BxT: tf.Tensor,
        carry_BxLxSxH: tf.Tensor,
        masks: Masks = (),
        reset_BxT: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute logits_BxTxV of the character after each id, and the carry after the window. T must be static.

        masks: from `dropout_masks` while training.
        reset: bool, whether to empty the carry before each id; None: never.
        """
        ids_BxT = tf.cast(ids_BxT, tf.int32)
        if self.use_cudnn:
            y_BxTxH, carry_BxLxSxH = self._run_cudnn(ids_BxT, carry_BxLxSxH, masks, reset_BxT)
            return self._logits(y_BxTxH), carry_BxLxSxH
        states = split_carry(carry_BxLxSxH)
        y_BxTxH, states = self._run_loop(ids_BxT, states, masks, reset_BxT, self.matmul_dtype, recurrence.recur)
        return self._logits(y_BxTxH), join_carry(states)

    def internals(
        self, ids_BxT: tf.Tensor, carry_BxLxSxH: tf.Tensor, reset_BxT: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Run `call` in float32; also return the states and gates of every layer after each id, BxTxH each.

        By layer and name: lstm_0/h, c, input, forget, output, candidate; gru_0/h, update, reset, candidate; rnn_0/h,
        state (equal to h).
        """
        values: dict[str, tf.Tensor] = {}
        names = iter(layer.name for layer in self.rnns)

        def recur(cell: Cell, z_TxBxG: tf.Tensor, state: State, recurrent: Any, _: tf.DType, keep: Any) -> Any:
            y_TxBxH, after, gates = recurrence.loop_with_gates(cell, z_TxBxG, state, recurrent, keep)
            layer = next(names)
            gates = {"h": y_TxBxH, **gates}
            values.update({f"{layer}/{name}": tf.transpose(x, [1, 0, 2]) for name, x in gates.items()})
            return y_TxBxH, after

        ids_BxT, states = tf.cast(ids_BxT, tf.int32), split_carry(carry_BxLxSxH)
        y_BxTxH, states = self._run_loop(ids_BxT, states, (), reset_BxT, tf.float32, recur)
        return self._logits(y_BxTxH), join_carry(states), values

    def gates(
        self, ids_BxT: tf.Tensor, carry_BxLxSxH: tf.Tensor, reset_BxT: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """Compute the gates of `internals`; for the plain RNN, its state."""
        values = self.internals(ids_BxT, carry_BxLxSxH, reset_BxT)[2]
        return {name: x for name, x in values.items() if not name.endswith(("/h", "/c"))}

    def _logits(self, y_BxTxH: tf.Tensor) -> tf.Tensor:
        """Apply the dense layer, multiplied in the precision of the other products, with a result in float32."""
        B, T = tf.shape(y_BxTxH)[0], y_BxTxH.shape[1]
        y_NxH = tf.reshape(y_BxTxH, [-1, self.config.units])
        logits_NxV = recurrence.matmul(y_NxH, self.dense.kernel, self.matmul_dtype) + self.dense.bias
        return tf.reshape(logits_NxV, [B, T, self.vocab_size])

    def _normed(self, index: int, y: tf.Tensor) -> tf.Tensor:
        """Normalize the output of layer `index`, if the model has layer_norm."""
        return self.norms[index](y) if self.norms else y

    def _first(self, w: Weights, dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return x W + b of the first layer as a function of ids, [*ids.shape, G]."""

        def look_up(table: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
            return lambda ids: recurrence.look_up(table, ids, tf.float32)

        if self.embedding is None:
            return look_up(w.kernel_IxG + w.bias_G)
        rows_VxE = tf.convert_to_tensor(self.embedding.embeddings)
        if self.vocab_size > recurrence.TABLE:
            return lambda ids: recurrence.project(look_up(rows_VxE)(ids), w, dtype)
        # Project a small vocabulary once rather than every character of the window.
        return look_up(recurrence.matmul(rows_VxE, w.kernel_IxG, dtype) + w.bias_G)

    def _run_cudnn(
        self, ids_BxT: tf.Tensor, carry_BxLxSxH: tf.Tensor, masks: Masks, reset_BxT: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        rows, L = cudnn.CudnnRows(ids_BxT.shape, reset_BxT), self.config.layers
        # TensorFlow's op multiplies bfloat16 in float32: it would convert all inputs to that, and the results back.
        dtype = tf.float32 if self.matmul_dtype == tf.bfloat16 else self.matmul_dtype
        ids, states, after, first = rows.enter(ids_BxT), rows.begin(carry_BxLxSxH), [], 0
        if self.embedding is None:
            y = tf.one_hot(ids, self.vocab_size, dtype=dtype)
        else:
            y = recurrence.look_up(tf.convert_to_tensor(self.embedding.embeddings), ids, dtype)
        for index in range(L):
            dropped = bool(masks) and masks[index] is not None
            if index + 1 < L and not dropped and not self.norms:
                continue  # nothing between this layer and the next: cuDNN runs both in one op
            group = slice(first, index + 1)
            y, states_after = cudnn.run(self.cell, self.rnns[group], tf.cast(y, dtype), states[:, group], rows.length_P)
            y = self._normed(index, y)
            if dropped:
                mask = tf.broadcast_to(masks[index], [*rows.shape, self.config.units])
                y = tf.cast(y, tf.float32) * rows.enter(mask)
            if rows.cut and index + 1 < L:
                y = tf.cast(y, tf.float32) * rows.real_QxPx1  # stops the gradient of steps behind a piece's end
            after.append(states_after)
            first = index + 1
        return rows.leave(y), rows.end(tf.concat(after, 1))

    def _run_loop(
        self,
        ids_BxT: tf.Tensor,
        states: States,
        masks: Masks,
        reset_BxT: tf.Tensor | None,
        dtype: tf.DType,
        recur: Recur,
    ) -> tuple[tf.Tensor, States]:
        y_TxBxH, keep_TxBx1 = None, None
        if reset_BxT is not None:
            keep_TxBx1 = 1 - tf.cast(tf.transpose(reset_BxT), tf.float32)[..., None]
        after: States = []
        for index, (layer, state) in enumerate(zip(self.rnns, states, strict=True)):
            w = self.cell.weights(layer)
            if y_TxBxH is None:
                z_TxBxG = self._first(w, dtype)(tf.transpose(ids_BxT))
            else:
                z_TxBxG = recurrence.project(y_TxBxH, w, dtype)
            y_TxBxH, state_after = recur(self.cell, z_TxBxG, state, w.recurrent, dtype, keep_TxBx1)
            y_TxBxH = self._normed(index, y_TxBxH)
            if masks and masks[index] is not None:
                y_TxBxH = tf.cast(y_TxBxH, tf.float32) * tf.transpose(masks[index], [1, 0, 2])
            after.append(state_after)
        return tf.transpose(y_TxBxH, [1, 0, 2]), after
