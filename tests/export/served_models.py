"""Small served models, queried by rows, and a slow reference implementation."""

import fcntl
import functools
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from export.serve import saved_model
from export.serve.signatures import DTYPES, INPUTS, Served
from export.serve.stand_in import LoadedVersion
from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.config import ModelConfig
from trainers.model.char_rnn import CharRNN
from trainers.run import read_run
from trainers.sampling import draw
from trainers.sampling.carry_bytes import MEMORY
from trainers.sampling.rows import Limits
from trainers.sampling.sampler import Sampler

Row = dict[str, Any]
Columns = dict[str, npt.NDArray[Any]]

LIMITS = Limits(length=200, prompt=300, rows=64, pictured=64)
TIMEOUT = 60.0  # seconds
DEFAULTS: Row = {
    "prompt": b"",
    "length": 20,
    "temperature": 1.0,
    "seed": 1,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "stop": b"",
    "carry_bytes": b"",
    "text": b"",
    "layer": 0,
    "ignored": b"",
}


def columns(signature: str, rows: list[Row]) -> Columns:
    """Convert rows to the inputs of a signature, with DEFAULTS for missing values."""
    inputs: Columns = {}
    for name in INPUTS[signature]:
        inputs[name] = np.empty(len(rows), DTYPES[name].as_numpy_dtype)
        inputs[name][:] = [row.get(name, DEFAULTS[name]) for row in rows]
    return inputs


class ServedModel:
    """Model whose signatures run in this process."""

    def __init__(self, sampler: Sampler):
        self.sampler, self.vocab, self.net, self.served = sampler, sampler.vocab, sampler.model, Served(sampler, "")

    def run(self, signature: str, inputs: Columns) -> Columns:
        return self.served.answer(signature, inputs)

    def query(self, signature: str, rows: list[Row]) -> list[Row]:
        """Run a signature. Returns one dictionary of outputs per row."""
        outputs = self.run(signature, columns(signature, rows))
        assert {len(column) for column in outputs.values()} == {len(rows)}
        return [{name: column[index] for name, column in outputs.items()} for index in range(len(rows))]

    def query_row(self, signature: str, **row: Any) -> Row:
        return self.query(signature, [row])[0]

    def text(self, rng: np.random.Generator, most: int) -> bytes:
        """Return random text of at most `most` characters."""
        return self.vocab.decode(rng.integers(0, self.vocab.size, rng.integers(0, most + 1)))

    def row(self, rng: np.random.Generator, longest: int = LIMITS.length) -> Row:
        """Return a random request of `generate`."""
        return {
            "prompt": self.text(rng, LIMITS.prompt if rng.random() < 0.1 else 20),
            "length": rng.integers(0, longest + 1),
            "temperature": rng.choice([0.0, 0.3, 1.0, 1.0, 2.0]),
            "seed": rng.integers(-(2**63), 2**63 - 1),
            "top_k": rng.choice([0, 0, 1, 5, 40]),
            "top_p": rng.choice([1.0, 1.0, 0.9, 0.4]),
            "repetition_penalty": rng.choice([1.0, 1.0, 1.3, 0.8]),
            "stop": self.text(rng, 2) if rng.random() < 0.5 else b"",
        }


class ExportedModel(ServedModel):
    """Files of an export, run in a Session like on a server."""

    def __init__(self, sampler: Sampler, base: Path):
        super().__init__(sampler)
        self.base, self.files = base, LoadedVersion(base / "1")

    def run(self, signature: str, inputs: Columns) -> Columns:
        definition = self.files.signatures[signature]
        names = sorted(definition.outputs)
        feeds = {definition.inputs[name].name: column for name, column in inputs.items()}
        arrays = self.files.run(feeds, [definition.outputs[name].name for name in names], TIMEOUT)
        return dict(zip(names, arrays, strict=True))


@functools.cache
def exported(run: Path) -> ExportedModel:
    """Export a run like `python -m export savedmodel`, but without the proof, which is tested separately.

    All pytest-xdist workers share the export.
    """
    base = run.parent / "served" / run.name
    with (run.parent / "export.lock").open("w") as lock, mock.patch.object(saved_model, "prove"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        saved_model.export_saved_model(run, base, version=1, force=False, limits=LIMITS)
    loaded_run = read_run(run)
    return ExportedModel(Sampler(checkpoint.load_model(loaded_run), loaded_run.vocab, LIMITS), base)


def random_model(vocab: Vocab, seed: int = 4, **config: Any) -> ServedModel:
    """Return a model whose random weights are large enough for varied text that depends on the whole prefix."""
    net = CharRNN(ModelConfig(**config), vocab.size, seed)
    random = np.random.default_rng(seed)
    net.set_weights([(2 if w.ndim > 1 else 1) * (w + 0.1 * random.normal(size=w.shape)) for w in net.get_weights()])
    return ServedModel(Sampler(net, vocab, LIMITS, frozen=True))


# The reference: direct calls of the model, one character at a time.


class ReferenceLoop:
    """Reference that calls the model for one character at a time."""

    def __init__(self, model: ServedModel):
        self.net, self.vocab = model.net, model.vocab
        self.call = tf.function(model.net.call)

    def read(self, ids: npt.ArrayLike, carry: Any = None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return logits_TxV and carry_TxLxSxH after each id. An id that ends a document resets the carry first."""
        empty = self.net.initial_carry(1)
        carry, logits, carries = empty if carry is None else carry, [], []
        for id_ in np.asarray(ids, np.int32):
            before = empty if id_ == self.vocab.end_id else carry
            (after,), carry = self.call(tf.constant([[id_]]), before)
            logits.append(after[0])
            carries.append(carry[0])
        return np.array(logits), np.array(carries)


class Continuation(NamedTuple):
    text: bytes
    log_prob: float
    reason: bytes


def reference_text(reference: ReferenceLoop, row: Row) -> Continuation:
    """Compute the text of `generate` in the order of Hugging Face's generate, with the same random numbers."""
    row, vocab = {**DEFAULTS, **row}, reference.vocab
    sharpness, stop = draw.sharpness(tf.constant([row["temperature"]], tf.float32)), vocab.encode(row["stop"]).tolist()
    seed, zero = tf.constant([row["seed"]], tf.int64), tf.constant([0], tf.int64)
    uniforms = draw.uniforms(seed, zero, sharpness, tf.constant(max(int(row["length"]), 1))).numpy()[:, 0]
    logits, carries = reference.read(vocab.prompt_ids(row["prompt"]))
    prompt_ids: list[int] = vocab.encode(row["prompt"]).tolist()
    ids: list[int] = []
    log_probs: list[float] = []
    kept, reason = 0, b"length"
    while len(ids) < row["length"]:
        now = logits[-1].astype(np.float64)
        drawn = reference_choice(now, [*prompt_ids, *ids][-MEMORY:], row, float(uniforms[len(ids)]))
        log_probs.append(now[drawn] - np.log(np.sum(np.exp(now - now.max()))) - now.max())
        ids.append(drawn)
        kept = len(ids)
        if stop and ids[-len(stop) :] == stop:
            kept, reason = kept - len(stop), b"stop"
            break
        if drawn == vocab.end_id:
            kept, reason = kept - 1, b"stop"
            break
        logits, carries = reference.read([drawn], tf.constant(carries[-1:]))
    return Continuation(vocab.decode(ids[:kept]), float(np.sum(log_probs[:kept])), reason)


def reference_choice(logits: npt.NDArray[Any], recent: list[int], row: Row, uniform: float) -> int:
    """Choose an id by penalty, temperature, top-k, top-p and a uniform random number."""
    penalty, top_p = row["repetition_penalty"], np.float32(row["top_p"])
    scaled = logits.copy()
    for id_ in set(recent):
        scaled[id_] = scaled[id_] / penalty if scaled[id_] > 0 else scaled[id_] * penalty
    if row["temperature"] == 0:
        return int(np.argmax(scaled))
    scaled /= row["temperature"]
    order = np.argsort(-scaled, kind="stable")
    if row["top_k"]:
        order = order[: row["top_k"]]
    p = np.exp(scaled[order] - scaled.max())
    p /= p.sum()
    if top_p < 1:
        order = order[np.cumsum(p) - p < top_p]
    left = np.sort(order)  # the distribution is over ids in ascending order
    weights = np.exp(scaled[left] - scaled.max())
    return int(left[np.searchsorted(np.cumsum(weights), uniform * weights.sum(), side="right")])
