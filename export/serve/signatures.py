"""Signatures of a served model. Every input has one entry per row [B], every output B rows.

    serving_default   prompt, length, temperature, seed
                      -> text (valid UTF-8), text_bytes (as drawn), n_chars, log_prob, finish_reason
    generate          as serving_default, and top_k, top_p, repetition_penalty, stop
    score             text -> nats, n_chars, bits_per_char, error
    score_chars       text -> log_probs [B, longest], and the outputs of score
    start             prompt -> carry_bytes, logits [B, vocabulary], error
    continue          carry_bytes, and the inputs of generate
                      -> the outputs of generate, carry_bytes, n_back (bytes of the stop at the end of earlier pieces)
    neurons           text, layer -> h [B, longest, units], c of an LSTM, n_chars, error
    info              ignored (a batching server rejects a call without inputs) -> info (JSON)

finish_reason is length, stop (also at the end of a document), or "error: …"; error is "error: …", or empty. In a row
with an error, texts are empty and numbers 0. docs/serving.md documents the inputs.
"""

import math
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainers.sampling.rows import Generation, Request
from trainers.sampling.sampler import Sampler

DTYPES = {
    "prompt": tf.string,
    "length": tf.int32,
    "temperature": tf.float32,
    "seed": tf.int64,
    "top_k": tf.int32,
    "top_p": tf.float32,
    "repetition_penalty": tf.float32,
    "stop": tf.string,
    "carry_bytes": tf.string,
    "text": tf.string,
    "layer": tf.int32,
    "ignored": tf.string,
}
BASIC = ("prompt", "length", "temperature", "seed")
OPTIONS = ("top_k", "top_p", "repetition_penalty", "stop")
INPUTS = {
    "serving_default": BASIC,
    "generate": (*BASIC, *OPTIONS),
    "score": ("text",),
    "score_chars": ("text",),
    "start": ("prompt",),
    "continue": ("carry_bytes", *BASIC, *OPTIONS),
    "neurons": ("text", "layer"),
    "info": ("ignored",),
}

Answer = dict[str, tf.Tensor]


class Served:
    """Signatures of a sampler, to run here or to save.

    info: the JSON that the signature `info` returns.
    """

    def __init__(self, sampler: Sampler, info: str):
        self.sampler, self.info = sampler, info
        self.functions = {name: self._traced(name) for name in INPUTS}

    def answer(self, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run a signature on lists, in this process. Returns NumPy arrays."""
        columns = (tf.constant(inputs[name], DTYPES[name]) for name in INPUTS[signature])
        return {name: value.numpy() for name, value in self.functions[signature](*columns).items()}

    def save(self, folder: Path) -> None:
        """Write a SavedModel with the signatures. The sampler must be frozen: variables/ has its packed weights."""
        # `save` would trace tf.functions once more, and write those that are attributes of a module a second time.
        signatures = {name: function.get_concrete_function() for name, function in self.functions.items()}
        weights = tf.train.Checkpoint(weights=tf.nest.flatten(self.sampler.weights))
        tf.saved_model.save(weights, str(folder), signatures=signatures)

    def _traced(self, name: str) -> tf.types.experimental.PolymorphicFunction:
        specs = [tf.TensorSpec([None], DTYPES[column], column) for column in INPUTS[name]]
        return tf.function(getattr(self, f"_{name}"), input_signature=specs, autograph=False)

    def _serving_default(self, *basic: tf.Tensor) -> Answer:
        return _written(self.sampler.generate(Request(*basic)))

    def _generate(self, *columns: tf.Tensor) -> Answer:
        return _written(self.sampler.generate(Request(*columns)))

    def _continue(self, carry_B: tf.Tensor, *columns: tf.Tensor) -> Answer:
        written, carry_B = self.sampler.resume(carry_B, Request(*columns))
        return {**_written(written), "carry_bytes": carry_B, "n_back": written.n_back}

    def _start(self, prompt_B: tf.Tensor) -> Answer:
        carry_B, logits_BxV, error_B = self.sampler.start(prompt_B)
        return {"carry_bytes": carry_B, "logits": logits_BxV, "error": error_B}

    def _score(self, text_B: tf.Tensor) -> Answer:
        answer = self._score_chars(text_B)
        del answer["log_probs"]
        return answer

    def _score_chars(self, text_B: tf.Tensor) -> Answer:
        log_prob_BxP, count_B, error_B = self.sampler.score(text_B)
        nats_B = tf.abs(tf.reduce_sum(log_prob_BxP, axis=1))  # log-probabilities are at most 0; abs avoids -0
        bits_B = tf.math.divide_no_nan(nats_B, math.log(2) * tf.cast(count_B, tf.float32))
        return {
            "log_probs": log_prob_BxP,
            "nats": nats_B,
            "n_chars": count_B,
            "bits_per_char": bits_B,
            "error": error_B,
        }

    def _neurons(self, text_B: tf.Tensor, layer_B: tf.Tensor) -> Answer:
        states, count_B, error_B = self.sampler.neurons(text_B, layer_B)
        return {**dict(zip("hc", states, strict=False)), "n_chars": count_B, "error": error_B}

    def _info(self, ignored_B: tf.Tensor) -> Answer:
        # Rows beyond the limit are empty, because copies of the JSON could take gigabytes.
        row_B = tf.range(tf.shape(ignored_B)[0])
        return {"info": tf.where(row_B < self.sampler.limits.rows, self.info, "")}


def _written(written: Generation) -> Answer:
    # A cut character becomes U+FFFD: a prompt may end within one, and `text` must be valid UTF-8.
    text_B = tf.strings.unicode_transcode(written.text_bytes, "UTF-8", "UTF-8")
    answer = {"text": text_B, **written._asdict()}
    del answer["n_back"]
    return answer
