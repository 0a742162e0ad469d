"""Text to ids and back in graph ops, as in pipeline.vocab. An invalid row reports its problem; the others run.

Legend: B rows, P ids of the longest row, N ids.
"""

from typing import NamedTuple

import tensorflow as tf

from pipeline.vocab import Vocab


class Ids(NamedTuple):
    """Texts as ids. An invalid row is empty."""

    ids_BxP: tf.Tensor  # int32; padding follows each row's length
    length_B: tf.Tensor
    problem_B: tf.Tensor  # string; empty for a valid row


def first_problem(*checks: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Return problem_B: the message of the first check (invalid_B, message_B) that a row fails, or empty."""
    problem_B = tf.zeros_like(checks[0][0], tf.string)
    for invalid_B, message_B in reversed(checks):
        problem_B = tf.where(invalid_B, message_B, problem_B)
    return problem_B


def named(problem_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Turn an earlier problem into a check for `first_problem`."""
    return problem_B != "", problem_B


class Codec:
    """Encoder and decoder for a vocabulary."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self._written = [symbol for symbol in vocab.symbols if symbol]

    def encode(self, text_B: tf.Tensor, most: int, name: str, exact: bool = False) -> Ids:
        """Encode texts of at most `most` ids per row. name: of the input, for the messages.

        Symbols outside the vocabulary become its unknown id. If it has none, or with `exact`, they are a problem, as is
        invalid UTF-8 if the unit is the character.
        """
        unit = "bytes" if self.vocab.unit == "byte" else "characters"
        widest = 1 if self.vocab.unit == "byte" else 4  # bytes per unit
        size_B = tf.strings.length(text_B)
        large_B = size_B > most * widest  # certainly too long: not even decoded
        read = self._encode_bytes if self.vocab.unit == "byte" else self._encode_characters
        ids_BxP, length_B, malformed_B, unknown_B, symbol_B = read(tf.where(large_B, "", text_B))
        if self.vocab.unknown_id is not None and not exact:
            unknown_B = tf.zeros_like(unknown_B)
        long_B = large_B | (length_B > most)
        got_B = tf.where(large_B, tf.strings.as_string(size_B) + " bytes", tf.strings.as_string(length_B))
        problem_B = first_problem(
            (long_B, tf.strings.join([f"{name}: at most {most} {unit} are read, got ", got_B])),
            (malformed_B, tf.fill(tf.shape(text_B), f"{name}: must be valid UTF-8")),
            (unknown_B, tf.strings.join([f"{name}: ", symbol_B, " is not in the model's vocabulary; see info"])),
        )
        return Ids(ids_BxP, tf.where(problem_B == "", length_B, 0), problem_B)

    def begin(self, encoded: Ids, fresh_B: tf.Tensor) -> Ids:
        """Prepend the start id to the `fresh` rows: the end of a document, else a newline.

        Vocab.prompt_ids omits it before a non-empty text if the vocabulary has no end of documents; so do callers here.
        """
        start_B = [[0, 0], [1, 0]], [[0, 0], [0, 1]]
        ahead_BxP, behind_BxP = (tf.pad(encoded.ids_BxP, pad, constant_values=self.vocab.start_id) for pad in start_B)
        ids_BxP = tf.where(fresh_B[:, None], ahead_BxP, behind_BxP)
        return encoded._replace(ids_BxP=ids_BxP, length_B=encoded.length_B + tf.cast(fresh_B, tf.int32))

    def _encode_bytes(self, text_B: tf.Tensor) -> tuple[tf.Tensor, ...]:
        ids = {symbol[0]: index for index, symbol in enumerate(self._written)}
        length_B = tf.strings.length(text_B)
        longest = tf.maximum(tf.reduce_max(length_B), 1)
        bytes_BxP = tf.cast(tf.io.decode_raw(text_B, tf.uint8, fixed_length=longest), tf.int32)
        ids_BxP = tf.gather(tf.constant([ids.get(byte, -1) for byte in range(256)]), bytes_BxP)
        outside_BxP = (ids_BxP < 0) & tf.sequence_mask(length_B, longest)
        first_B = tf.gather(bytes_BxP, tf.argmax(outside_BxP, axis=1), batch_dims=1)
        symbol_B = tf.strings.join(["byte ", tf.strings.as_string(first_B)])
        return tf.maximum(ids_BxP, 0), length_B, tf.zeros_like(length_B, tf.bool), _any(outside_BxP), symbol_B

    def _encode_characters(self, text_B: tf.Tensor) -> tuple[tf.Tensor, ...]:
        malformed_B = (
            tf.strings.unicode_transcode(text_B, "UTF-8", "UTF-8") != text_B
        )  # replaces invalid UTF-8 by U+FFFD
        codes = tf.strings.unicode_decode(tf.where(malformed_B, "", text_B), "UTF-8")
        length_B = tf.cast(codes.row_lengths(), tf.int32)
        codes_BxP = codes.to_tensor(-1, shape=[-1, tf.maximum(tf.reduce_max(length_B), 1)])
        codes_BxP = tf.ensure_shape(codes_BxP, [text_B.shape[0], None])
        known_V = tf.constant([ord(symbol.decode()) for symbol in self._written])  # sorted, like the ids
        flat_N = tf.reshape(codes_BxP, [-1])
        ids_N = tf.minimum(tf.searchsorted(known_V, flat_N), len(self._written) - 1)
        outside_BxP = tf.reshape((tf.gather(known_V, ids_N) != flat_N) & (flat_N >= 0), tf.shape(codes_BxP))
        ids_BxP = tf.reshape(ids_N, tf.shape(codes_BxP))
        if self.vocab.unknown_id is not None:
            ids_BxP = tf.where(outside_BxP, self.vocab.unknown_id, ids_BxP)
        first_B = tf.gather(codes_BxP, tf.argmax(outside_BxP, axis=1), batch_dims=1)
        symbol_B = tf.strings.join(["'", tf.strings.unicode_encode(tf.maximum(first_B, 0)[:, None], "UTF-8"), "'"])
        return ids_BxP, length_B, malformed_B, _any(outside_BxP), symbol_B

    def decode(self, ids_BxN: tf.Tensor, length_B: tf.Tensor) -> tf.Tensor:
        """Decode the first `length` ids of each row to byte strings."""
        real_BxN = tf.sequence_mask(length_B, tf.shape(ids_BxN)[1])
        symbols_BxN = tf.gather(tf.constant(self.vocab.symbols), ids_BxN)
        return tf.strings.reduce_join(tf.where(real_BxN, symbols_BxN, ""), axis=1)


def _any(mask_BxP: tf.Tensor) -> tf.Tensor:
    return tf.reduce_any(mask_BxP, axis=1)
