"""Sampling text: one loop of plain graph ops, used by the command line and by the exported SavedModel alike.

No XLA, no Python in the loop, no custom op: a stock TF Serving binary runs it. Every input has one entry a row, and a
row's text depends on its own inputs alone, its seed included, never on the rows beside it. Where the vocabulary has an
end of documents, a text ends before the first one that is drawn.

Legend: B rows, P characters of the longest prompt, N characters asked for at most, S steps of the loop, V vocabulary.
"""

from pathlib import Path
from typing import Any

import tensorflow as tf

from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.model import CharRNN, split_carry

GREEDY = 1e-3  # temperatures below this take the likeliest character, with nothing left to chance
LONGEST = 1 << 20  # characters that one call writes at most; part of the graph, so that no caller can ask for more


def choose(logits_BxV: tf.Tensor, temperature_B: tf.Tensor, uniform_B: tf.Tensor) -> tf.Tensor:
    """Draws ids_B from softmax(logits / temperature): where `uniform` (0 to 1) falls in the cumulated probabilities."""
    warm_B = temperature_B >= GREEDY  # false for NaN as well
    divisor_B = tf.where(warm_B, temperature_B, 1)
    cumulated_BxV = tf.cumsum(tf.nn.softmax(logits_BxV / divisor_B[:, None]), axis=1)
    # Scaled by the sum as it was rounded, so that the last character is reached and none beyond it.
    below_BxV = cumulated_BxV <= uniform_B[:, None] * cumulated_BxV[:, -1:]
    last = logits_BxV.shape[1] - 1
    drawn_B = tf.minimum(tf.reduce_sum(tf.cast(below_BxV, tf.int32), axis=1), last)
    return tf.where(warm_B, drawn_B, tf.argmax(logits_BxV, axis=1, output_type=tf.int32))


class Sampler:
    """A model and its vocabulary as functions from text to text."""

    def __init__(self, model: CharRNN, vocab: Vocab):
        self.model, self.vocab = model, vocab
        self._written = [symbol for symbol in vocab.symbols if symbol]

    def encode(self, text_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Strings to ids_BxP, short rows padded, and how many ids each row has.

        Where the vocabulary has an end of documents, a text is the beginning of one: its ids come after that end, as
        in training. Elsewhere an empty text is the newline, which one starts after. (Vocab.prompt_ids, in graph ops.)
        What is outside the vocabulary becomes its id for the unknown; without one, and for what is not UTF-8 where the
        unit is the character, it fails with InvalidArgumentError.
        """
        ids_BxP, length_B = self._encode_bytes(text_B) if self.vocab.unit == "byte" else self._encode_characters(text_B)
        if self.vocab.end_id is None:
            return ids_BxP, tf.maximum(length_B, 1)
        return tf.pad(ids_BxP, [[0, 0], [1, 0]], constant_values=self.vocab.end_id), length_B + 1

    def _encode_bytes(self, text_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        ids = {symbol[0]: index for index, symbol in enumerate(self._written)}
        id_of_byte = [ids.get(byte, -1) for byte in range(256)]
        length_B = tf.strings.length(text_B)
        longest = tf.maximum(tf.reduce_max(length_B), 1) if text_B.shape[0] != 0 else 1
        bytes_BxP = tf.io.decode_raw(text_B, tf.uint8, fixed_length=longest)
        ids_BxP = tf.gather(tf.constant(id_of_byte), tf.cast(bytes_BxP, tf.int32))
        real_BxP = tf.sequence_mask(length_B, longest)
        known = tf.debugging.assert_greater_equal(
            tf.where(real_BxP, ids_BxP, 0), 0, "the text holds a byte that is outside the model's vocabulary"
        )
        with tf.control_dependencies([known] if known is not None else []):
            return tf.where(real_BxP, ids_BxP, self.vocab.start_id), length_B

    def _encode_characters(self, text_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        codes = tf.strings.unicode_decode(text_B, "UTF-8", errors="strict")
        known_V = tf.constant([ord(symbol.decode()) for symbol in self._written])  # in order: so are the ids
        ids = tf.minimum(tf.searchsorted(known_V, codes.flat_values), len(self._written) - 1)
        found = tf.gather(known_V, ids) == codes.flat_values
        outside = tf.boolean_mask(codes.flat_values, ~found)[:1]
        checks = []
        if self.vocab.unknown_id is not None:
            ids = tf.where(found, ids, self.vocab.unknown_id)
        else:
            named = tf.strings.unicode_encode(outside, "UTF-8")
            checks = [tf.Assert(tf.reduce_all(found), ["a character is outside the vocabulary of the model:", named])]
        with tf.control_dependencies([check for check in checks if check is not None]):
            length_B = tf.cast(codes.row_lengths(), tf.int32)
            shape = [-1, tf.maximum(tf.reduce_max(length_B), 1)]
            ids_BxP = codes.with_flat_values(ids).to_tensor(self.vocab.start_id, shape=shape)
            return tf.ensure_shape(ids_BxP, [text_B.shape[0], None]), length_B

    def decode(self, ids_BxN: tf.Tensor, length_B: tf.Tensor) -> tf.Tensor:
        """The symbols of the first `length` ids of each row, as strings of bytes."""
        real_BxN = tf.sequence_mask(length_B, tf.shape(ids_BxN)[1])
        return tf.strings.reduce_join(
            tf.where(real_BxN, tf.gather(tf.constant(self.vocab.symbols), ids_BxN), ""), axis=1
        )

    def generate(
        self, prompt_B: tf.Tensor, length_B: tf.Tensor, temperature_B: tf.Tensor, seed_B: tf.Tensor
    ) -> tf.Tensor:
        """Continues each prompt by `length` characters, or to the end of its document. Gives the new text, as bytes.

        prompt: string; length: int32, 0 to LONGEST, outside them the nearer of the two; temperature: float32, greedy at
        0, below and at NaN; seed: int64.
        The first n characters are the same whatever length is asked for.
        """
        prompt_BxP, prompt_length_B = self.encode(prompt_B)
        length_B = tf.clip_by_value(length_B, 0, LONGEST)
        longest = tf.reduce_max(length_B)
        # All randomness is drawn ahead of the loop, from each row's own seed.
        uniform_BxN = tf.map_fn(
            lambda seed: tf.random.stateless_uniform([tf.maximum(longest, 1)], tf.stack([seed, 0])),
            seed_B,
            fn_output_signature=tf.TensorSpec([None], tf.float32),
        )
        first_B = prompt_length_B - 1  # the step that draws a row's first character
        steps = tf.maximum(tf.reduce_max(first_B + length_B), 1)
        end_id = self.vocab.end_id
        step = self.model.stepper(end_id)

        def body(t: Any, drawn: Any, ids_B: Any, states: Any, *going: Any) -> tuple[Any, ...]:
            logits_BxV, states = step(ids_B, states)
            index_B = tf.clip_by_value(t - first_B, 0, tf.shape(uniform_BxN)[1] - 1)
            new_B = choose(logits_BxV, temperature_B, tf.gather(uniform_BxN, index_B, batch_dims=1))
            given_B = prompt_BxP[:, tf.minimum(t + 1, tf.shape(prompt_BxP)[1] - 1)]
            still = [going_B & ((t < first_B) | (new_B != end_id)) for going_B in going]
            return t + 1, drawn.write(t, new_B), tf.where(t < first_B, given_B, new_B), states, *still

        def more(t: Any, drawn: Any, ids_B: Any, states: Any, *going: Any) -> Any:
            wanted = [tf.reduce_any(going_B & (t < first_B + length_B)) | (t == 0) for going_B in going]
            return wanted[0] if wanted else t < steps

        states = split_carry(self.model.initial_carry(tf.shape(prompt_B)[0]))
        drawn = tf.TensorArray(tf.int32, size=steps, element_shape=[None])
        going = [] if end_id is None else [length_B > 0]  # the rows that have not drawn the end of a document
        steps, drawn, *_ = tf.while_loop(
            more,
            body,
            (0, drawn, prompt_BxP[:, 0], states, *going),
            parallel_iterations=1,
            maximum_iterations=steps,
        )
        drawn_BxS = tf.transpose(drawn.stack() if end_id is None else drawn.gather(tf.range(steps)))
        index_BxN = tf.minimum(first_B[:, None] + tf.range(longest)[None], steps - 1)
        ids_BxN = tf.gather(drawn_BxS, index_BxN, batch_dims=1)
        if end_id is not None:
            before_BxN = tf.math.cumprod(tf.cast(ids_BxN != end_id, tf.int32), axis=1)
            length_B = tf.minimum(length_B, tf.reduce_sum(before_BxN, axis=1))
        return self.decode(ids_BxN, length_B)

    def logits(self, text_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The model's logits_BxPxV after each id of each text (`encode`), from an empty carry, and their number."""
        ids_BxP, length_B = self.encode(text_B)
        step, size = self.model.stepper(self.vocab.end_id), tf.shape(ids_BxP)[1]

        def body(t: Any, states: Any, logits: Any) -> tuple[Any, ...]:
            logits_BxV, states = step(ids_BxP[:, t], states)
            return t + 1, states, logits.write(t, logits_BxV)

        states = split_carry(self.model.initial_carry(tf.shape(text_B)[0]))
        logits = tf.TensorArray(tf.float32, size=size, element_shape=[None, self.vocab.size])
        *_, logits = tf.while_loop(
            lambda t, *_: t < size, body, (0, states, logits), parallel_iterations=1, maximum_iterations=size
        )
        return tf.transpose(logits.stack(), [1, 0, 2]), length_B


def sample_run(folder: Path, prompt: bytes, length: int, temperature: float, seed: int) -> bytes:
    """What a run's best checkpoint writes after `prompt`. Raises StageError for a prompt outside the vocabulary."""
    run = checkpoint.read_run(folder)
    run.vocab.encode(prompt)
    sampler = Sampler(checkpoint.load_model(run), run.vocab)
    drawn = tf.function(sampler.generate)(
        tf.constant([prompt]),
        tf.constant([length]),
        tf.constant([temperature], tf.float32),
        tf.constant([seed], tf.int64),
    )
    return drawn.numpy()[0]
