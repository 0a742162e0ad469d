"""Sampling text: one loop of plain graph ops, used by the command line and by the exported SavedModel alike.

No XLA, no Python in the loop, no custom op: a stock TF Serving binary runs it. Every input has one entry a row, and a
row's text depends on its own inputs alone, its seed included, never on the rows beside it.

Legend: B rows, P characters of the longest prompt, N characters asked for at most, S steps of the loop, V vocabulary.
"""

from pathlib import Path
from typing import Any

import tensorflow as tf

from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.model import CharLSTM, split_carry

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

    def __init__(self, model: CharLSTM, vocab: Vocab):
        self.model, self.vocab = model, vocab
        ids = {symbol[0]: index for index, symbol in enumerate(vocab.symbols)}
        self._id_of_byte = [ids.get(byte, -1) for byte in range(256)]

    def encode(self, text_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Strings to ids_BxP, short rows padded, and their lengths. An empty text is the newline that one starts after.

        Fails with InvalidArgumentError on a byte outside the vocabulary.
        """
        length_B = tf.strings.length(text_B)
        longest = tf.maximum(tf.reduce_max(length_B), 1) if text_B.shape[0] != 0 else 1
        bytes_BxP = tf.io.decode_raw(text_B, tf.uint8, fixed_length=longest)
        ids_BxP = tf.gather(tf.constant(self._id_of_byte), tf.cast(bytes_BxP, tf.int32))
        real_BxP = tf.sequence_mask(length_B, longest)
        known = tf.debugging.assert_greater_equal(
            tf.where(real_BxP, ids_BxP, 0), 0, "the text holds a byte that is outside the model's vocabulary"
        )
        with tf.control_dependencies([known] if known is not None else []):
            return tf.where(real_BxP, ids_BxP, self.vocab.start_id), tf.maximum(length_B, 1)

    def decode(self, ids_BxN: tf.Tensor, length_B: tf.Tensor) -> tf.Tensor:
        """The first `length` ids of each row as strings of bytes."""
        real_BxN = tf.sequence_mask(length_B, tf.shape(ids_BxN)[1])
        return tf.strings.reduce_join(
            tf.where(real_BxN, tf.gather(tf.constant(self.vocab.symbols), ids_BxN), ""), axis=1
        )

    def generate(
        self, prompt_B: tf.Tensor, length_B: tf.Tensor, temperature_B: tf.Tensor, seed_B: tf.Tensor
    ) -> tf.Tensor:
        """Continues each prompt by `length` characters. Gives the new text alone, as bytes.

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
        step = self.model.stepper()

        def body(t: Any, ids_B: Any, states: Any, drawn: Any) -> tuple[Any, ...]:
            logits_BxV, states = step(ids_B, states)
            index_B = tf.clip_by_value(t - first_B, 0, tf.shape(uniform_BxN)[1] - 1)
            new_B = choose(logits_BxV, temperature_B, tf.gather(uniform_BxN, index_B, batch_dims=1))
            given_B = prompt_BxP[:, tf.minimum(t + 1, tf.shape(prompt_BxP)[1] - 1)]
            return t + 1, tf.where(t < first_B, given_B, new_B), states, drawn.write(t, new_B)

        states = split_carry(self.model.initial_carry(tf.shape(prompt_B)[0]))
        drawn = tf.TensorArray(tf.int32, size=steps, element_shape=[None])
        *_, drawn = tf.while_loop(
            lambda t, *_: t < steps,
            body,
            (0, prompt_BxP[:, 0], states, drawn),
            parallel_iterations=1,
            maximum_iterations=steps,
        )
        drawn_BxS = tf.transpose(drawn.stack())
        index_BxN = tf.minimum(first_B[:, None] + tf.range(longest)[None], steps - 1)
        return self.decode(tf.gather(drawn_BxS, index_BxN, batch_dims=1), length_B)

    def logits(self, text_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The model's logits_BxPxV after each character of each text, from an empty carry, and the texts' lengths."""
        ids_BxP, length_B = self.encode(text_B)
        step, size = self.model.stepper(), tf.shape(ids_BxP)[1]

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
