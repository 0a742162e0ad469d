"""Predictable model with the signatures of a real export: python tests/export/fake_model.py BASE

It repeats BOOK, one byte per character, starting at byte `seed` plus the length of the prompt. Sampling options change
only log_prob. With a negative seed, lines are documents: the text stops at the end of a line. A carry is
read:drawn:version, where `drawn` counts the bytes in which a stop may begin.
"""

import json
import sys
from pathlib import Path

import tensorflow as tf

BOOK = "Älter als 'Zoë' — naïve あい words; THE END of one.\n".encode()
LONGEST = 4096
CELLS, WIDTH = 4, 3


def text_of(seed: int, prompt: bytes, length: int) -> bytes:
    """Compute the model's text in Python, without stop strings."""
    start = (seed + len(prompt)) % len(BOOK)
    return (BOOK * (1 + (start + length) // len(BOOK)))[start : start + length]


def spec(dtype: tf.DType, *names: str) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec([None], dtype, name) for name in names}


PROMPT = spec(tf.string, "prompt")
SETTINGS = {**spec(tf.int32, "length"), **spec(tf.float32, "temperature"), **spec(tf.int64, "seed")}
FURTHER = {**spec(tf.int32, "top_k"), **spec(tf.float32, "top_p", "repetition_penalty"), **spec(tf.string, "stop")}


def length_of(text):
    return tf.strings.length(text)


def zeros(text):
    return tf.zeros_like(length_of(text))


def nothing(text):
    return tf.fill(tf.shape(text), "")


def draw(read, drawn, length, temperature, seed, top_k, top_p, repetition_penalty, stop):
    """Return the text after `read` and `drawn` bytes, n_back, and the count of bytes passed."""
    stop = tf.where(seed < 0, "\n", stop)
    back = tf.minimum(drawn, tf.maximum(length_of(stop) - 1, 0))
    start = tf.math.floormod(tf.cast(seed, tf.int32) + read + drawn - back, len(BOOK))
    pages = tf.fill(tf.shape(start), BOOK * (3 + LONGEST // len(BOOK)))
    text = tf.strings.substr(pages, start, back + tf.clip_by_value(length, 0, LONGEST))

    def ahead(row):
        text, stop = row
        parts = tf.strings.split([text], stop).flat_values  # no parts if the text is empty
        return tf.where(stop == "", text, tf.concat([parts, [""]], 0)[0])

    cut = tf.map_fn(ahead, (text, stop), fn_output_signature=tf.string)
    stopped = length_of(cut) < length_of(text)
    passed = length_of(cut) + tf.where(stopped, length_of(stop), 0) - back
    n_back = tf.where(stopped, tf.maximum(back - length_of(cut), 0), 0)
    cut = tf.strings.substr(cut, tf.minimum(back, length_of(cut)), length_of(cut))
    reason = tf.where(stopped, "stop", "length")
    bad = "error: the length must be 0 to 4096, got " + tf.strings.as_string(length)
    reason = tf.where((length < 0) | (length > LONGEST), bad, reason)
    cut = tf.where(tf.strings.substr(reason, 0, 5) == "error", "", cut)
    log_prob = -(temperature + 10 * tf.cast(top_k, tf.float32) + 100 * top_p + 1000 * repetition_penalty)
    outputs = {
        "text": tf.strings.unicode_transcode(cut, "UTF-8", "UTF-8"),
        "text_bytes": cut,
        "n_chars": length_of(cut),
        "log_prob": log_prob,
        "finish_reason": reason,
    }
    return outputs, n_back, passed


def scored(text):
    """Score any text with two bits per byte."""
    nats = 2 * tf.math.log(2.0) * tf.cast(length_of(text), tf.float32)
    empty = tf.where(text == "", "error: nothing to score", "")
    bits = tf.where(text == "", 0.0, 2.0)
    return {"nats": nats, "n_chars": length_of(text), "bits_per_char": bits, "error": empty}


class Fake(tf.Module):
    """Predictable model. version: reported by info and stored in carries."""

    def __init__(self, version: int):
        super().__init__()
        self.version = version
        names = ["generate", "start", "score", "score_chars", "neurons", "info", "total"]
        self.functions = {name: getattr(self, name) for name in ("serving_default", *names)}
        self.functions["continue"] = self.continue_

    def state(self, read, drawn):
        return tf.strings.join([tf.strings.as_string(read), tf.strings.as_string(drawn), str(self.version)], ":")

    @tf.function(input_signature=list({**PROMPT, **SETTINGS}.values()))
    def serving_default(self, prompt, length, temperature, seed):
        more = (zeros(prompt), tf.ones_like(temperature), tf.ones_like(temperature), nothing(prompt))
        return draw(length_of(prompt), zeros(prompt), length, temperature, seed, *more)[0]

    @tf.function(input_signature=list({**PROMPT, **SETTINGS, **FURTHER}.values()))
    def generate(self, prompt, *settings):
        return draw(length_of(prompt), zeros(prompt), *settings)[0]

    @tf.function(input_signature=list(PROMPT.values()))
    def start(self, prompt):
        long = tf.where(length_of(prompt) > LONGEST, "error: the prompt is too long", "")
        logits = tf.one_hot(length_of(prompt) % CELLS, CELLS)
        return {"carry_bytes": self.state(length_of(prompt), zeros(prompt)), "logits": logits, "error": long}

    @tf.function(
        input_signature=[*spec(tf.string, "carry_bytes").values(), *{**PROMPT, **SETTINGS, **FURTHER}.values()]
    )
    def continue_(self, carry_bytes, prompt, *settings):
        fresh = tf.where(carry_bytes == "", f"0:0:{self.version}", carry_bytes)
        parts = tf.strings.split(fresh, ":").to_tensor(shape=[None, 3])
        read, drawn = (tf.strings.to_number(parts[:, n], tf.int32) for n in (0, 1))
        read = tf.where(prompt == "", read, read + drawn + length_of(prompt))
        drawn = tf.where(prompt == "", drawn, 0)
        outputs, n_back, passed = draw(read, drawn, *settings)
        foreign = "error: the carry is another version's: " + parts[:, 2]
        outputs["finish_reason"] = tf.where(parts[:, 2] == str(self.version), outputs["finish_reason"], foreign)
        return {**outputs, "carry_bytes": self.state(read, drawn + passed), "n_back": n_back}

    @tf.function(input_signature=list(spec(tf.string, "text").values()))
    def score(self, text):
        return scored(text)

    @tf.function(input_signature=list(spec(tf.string, "text").values()))
    def score_chars(self, text):
        real = tf.sequence_mask(length_of(text))
        return {**scored(text), "log_probs": tf.where(real, -2 * tf.math.log(2.0), 0.0)}

    @tf.function(input_signature=[*spec(tf.string, "text").values(), *spec(tf.int32, "layer").values()])
    def neurons(self, text, layer):
        """Return the state 100 l + 10 p + u of unit u in layer l after p bytes."""
        real = tf.sequence_mask(length_of(text), dtype=tf.float32)
        p = tf.range(1, 1 + tf.cast(tf.shape(real)[1], tf.float32))
        place = 100 * tf.cast(layer, tf.float32)[:, None] + 10 * p
        h = (place[:, :, None] + tf.range(WIDTH, dtype=tf.float32)) * real[:, :, None]
        error = tf.where(layer < 2, "", "error: there are layers 0 and 1")
        return {"h": h, "c": -h, "n_chars": length_of(text), "error": error}

    @tf.function(input_signature=list(spec(tf.string, "ignored").values()))
    def info(self, ignored):
        about = {"format_version": 1, "unit": "byte", "version": self.version, "limits": {"length": LONGEST}}
        return {"info": tf.fill(tf.shape(ignored), json.dumps(about))}

    @tf.function(input_signature=list(spec(tf.string, "text").values()))
    def total(self, text):
        """Return one number for all rows: a signature that cannot be batched."""
        return {"bytes": tf.reduce_sum(length_of(text))[None]}


def write(base: Path, *versions: int) -> Path:
    """Save versions of the model below a base path."""
    for version in versions:
        fake = Fake(version)
        tf.saved_model.save(fake, str(base / str(version)), signatures=fake.functions)
    return base


if __name__ == "__main__":
    write(Path(sys.argv[1]), 1, 2)
