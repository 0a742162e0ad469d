"""The state of a text, and its form as bytes: the carry that a caller keeps between calls.

Legend: R rows, M characters remembered, L layers, S states of a cell, H units, W 32-bit words of a carry.
"""

import functools
import hashlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.vocab import Vocab
from trainers.model.char_rnn import CharRNN, States, join_carry, split_carry
from trainers.sampling.codec import first_problem

MEMORY = 64  # M: the window of the repetition penalty, and the longest stop


class TextState(NamedTuple):
    """State of each row's text: everything needed to resume it."""

    states: States
    recent_RxM: tf.Tensor  # the last ids, the latest last; -2 - id if it was read, not drawn; -1: none
    drawn_R: tf.Tensor  # int64: characters drawn, and so random numbers used


def initial_state(model: CharRNN, rows: tf.Tensor) -> TextState:
    """State of an empty text."""
    states = split_carry(model.initial_carry(rows))
    return TextState(states, tf.fill([rows, MEMORY], -1), tf.zeros([rows], tf.int64))


def select_rows(mask_Rx1: tf.Tensor, a: States, b: States) -> States:
    """Take the states `a` where the mask is set, else `b`."""
    return tf.nest.map_structure(lambda x, y: tf.where(mask_Rx1, x, y), a, b)


class CarryBytes:
    """Conversion of a model's text states to bytes and back: fingerprint, drawn, recent, states, in little-endian
    32-bit words."""

    def __init__(self, model: CharRNN, vocab: Vocab):
        self.model, self.vocab = model, vocab
        self._state_words = int(np.prod(model.initial_carry(1).shape))

    @functools.cached_property
    def fingerprint(self) -> list[int]:
        """Two 32-bit words that distinguish this model's carries from those of others."""
        digest = hashlib.sha256(self.vocab.sha256.encode())
        with tf.init_scope():  # also while a graph is traced
            for weight in self.model.get_weights():
                digest.update(weight.tobytes())
        return np.frombuffer(digest.digest()[:8], np.int32).tolist()

    def pack(self, text: TextState) -> tf.Tensor:
        """Pack text states into carry_R, one string per row."""
        R = tf.shape(text.drawn_R)[0]
        words = [
            tf.tile(tf.constant([self.fingerprint]), [R, 1]),
            tf.bitcast(text.drawn_R, tf.int32),
            text.recent_RxM,
            tf.reshape(tf.bitcast(join_carry(text.states), tf.int32), [R, self._state_words]),
        ]
        size = 4 * (2 + 2 + MEMORY + self._state_words)
        # A serialized tensor ends with its content in memory order.
        serialized_R = tf.map_fn(
            tf.io.serialize_tensor, tf.concat(words, axis=1), fn_output_signature=tf.TensorSpec([], tf.string)
        )
        return tf.strings.substr(serialized_R, -size, size)

    def unpack(self, carry_R: tf.Tensor) -> tuple[TextState, tf.Tensor]:
        """Unpack text states, initial ones where a carry is empty or invalid; also return problem_R."""
        R, W = tf.shape(carry_R)[0], 2 + 2 + MEMORY + self._state_words
        whole_R = tf.strings.length(carry_R) == 4 * W
        words_RxW = tf.io.decode_raw(tf.where(whole_R, carry_R, bytes(4 * W)), tf.int32)
        words_RxW = tf.ensure_shape(words_RxW, [None, W])
        fingerprint, drawn, recent_RxM, flat = tf.split(words_RxW, [2, 2, MEMORY, self._state_words], axis=1)
        drawn_R = tf.bitcast(drawn, tf.int64)
        carry_RxLxSxH = tf.reshape(tf.bitcast(flat, tf.float32), [R, *self.model.initial_carry(1).shape[1:]])
        valid_R = (
            whole_R
            & tf.reduce_all(fingerprint == tf.constant([self.fingerprint]), axis=1)
            & tf.reduce_all((recent_RxM >= -1 - self.vocab.size) & (recent_RxM < self.vocab.size), axis=1)
            & (drawn_R >= 0)
            & (drawn_R < 1 << 62)
            & tf.reduce_all(tf.math.is_finite(carry_RxLxSxH), axis=[1, 2, 3])
            & tf.reduce_all(tf.abs(carry_RxLxSxH[:, :, 0]) < 2, axis=[1, 2])  # every cell's h is within [-1, 1]
        )
        initial = initial_state(self.model, R)
        text = TextState(
            select_rows(valid_R[:, None], split_carry(carry_RxLxSxH), initial.states),
            tf.where(valid_R[:, None], recent_RxM, initial.recent_RxM),
            tf.where(valid_R, drawn_R, initial.drawn_R),
        )
        rule = tf.fill([R], "carry_bytes: not a carry of this model; pass one that start or continue returned")
        return text, first_problem((~valid_R & (carry_R != ""), rule))
