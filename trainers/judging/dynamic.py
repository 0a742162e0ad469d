"""Dynamic evaluation: the model goes on learning from the text that it is judged by, each stretch after it was judged.

After B. Krause, E. Kahembwe, I. Murray and S. Renals, "Dynamic evaluation of neural sequence models" (arXiv
1709.07432): a step of gradient descent after each window, in which a weight moves by its gradient's usual size in
training, and is drawn back to where it came from.

    w <- w - rate * g / (r + mean r) + min(decay * r / mean r, 1) * (w_trained - w)

with r the root mean square of g in train. What is added to it keeps the weights of rare characters, which hardly move
in training, from leaping where one comes.

Legend: T characters of a window, N targets.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from rich.progress import Progress

from pipeline.lanes import Batch, batches, windows_per_epoch
from pipeline.manifest import Manifest
from trainers.judging.breakdown import Array, interval
from trainers.model.char_rnn import CharRNN
from trainers.training.step import target_nats

WINDOW = 20  # characters read between two steps
MEASURED = 500  # windows of train, in LANES lanes, that gradients are measured on
LANES = 16
TRIED = 40_000  # targets of val that rate and decay are chosen by
RATES = (0.0, 1e-4, 3e-4)
DECAYS = (0.001, 0.01)


class Learned(NamedTuple):
    """nats_N of each target as it was judged; unlearned_N: by the same reading without a step. The rate and decay that
    were best on val."""

    nats_N: Array
    unlearned_N: Array
    rate: float
    decay: float

    def figures(self) -> dict[str, Any]:
        """What evaluation-SPLIT.json says of it."""
        return {
            "nats": float(self.nats_N.mean(dtype=np.float64)),
            "nats_interval": interval(self.nats_N),
            "nats_unlearned": float(self.unlearned_N.mean(dtype=np.float64)),
            "gain_interval": interval(self.unlearned_N - self.nats_N),
            "rate": self.rate,
            "decay": self.decay,
        }


def evaluate(model: CharRNN, data: Path, manifest: Manifest, split: str, bar: Progress) -> Learned:
    """Judges a split, read as one text, and leaves the model as it was."""
    reader = Reader(model, data, manifest)
    reader.measure(bar)
    tried = {
        (rate, decay): reader.read("val", rate, decay, TRIED, bar).mean()
        for rate, decay in itertools.product(RATES, DECAYS)
        if rate or decay == DECAYS[0]
    }
    best, tokens = min(tried, key=lambda one: tried[one]), manifest.split(split).tokens
    nats_N, unlearned_N = (reader.read(split, *one, tokens, bar) for one in (best, (0.0, 0.0)))
    return Learned(nats_N, unlearned_N, *best)


class Reader:
    """A model that learns as it reads, from one lane, and is put back after each reading."""

    def __init__(self, model: CharRNN, data: Path, manifest: Manifest):
        self.model, self.data, self.manifest = model, data, manifest
        self.weights = model.trainable_variables
        self.trained = [tf.constant(weight) for weight in self.weights]
        self.squares = [tf.Variable(tf.zeros_like(weight)) for weight in self.weights]

    def measure(self, bar: Progress) -> None:
        """Measures how large gradients are on train, root mean squares."""
        windows = self._windows("train", LANES)
        count = min(MEASURED, windows_per_epoch(self.manifest.split("train").tokens, LANES, WINDOW))
        task, carry = bar.add_task("measuring gradients", total=count), self.model.initial_carry(LANES)
        for batch in itertools.islice(windows, count):
            carry = self._measure(batch, carry)
            bar.advance(task)
        roots = [tf.sqrt(square / count) for square in self.squares]
        mean = tf.reduce_mean(tf.concat([tf.reshape(root, [-1]) for root in roots], 0))
        self.scale = [1 / (root + mean) for root in roots]
        self.pull = [root / mean for root in roots]
        bar.remove_task(task)

    def read(self, split: str, rate: float, decay: float, most: int, bar: Progress) -> Array:
        """The loss of each target of a split, up to so many, in nats."""
        targets = min(self.manifest.split(split).tokens - 1, most)
        task, carry = bar.add_task(f"learning from {split}", total=targets), self.model.initial_carry(1)
        found, numbers = [], (tf.constant(rate), tf.constant(decay))
        for batch in itertools.islice(self._windows(split, 1), -(-targets // WINDOW)):
            nats_T, carry = self._read(batch, carry, *numbers)
            found.append(nats_T.numpy()[: int(batch.count_B[0])])
            bar.advance(task, len(found[-1]))
        for weight, value in zip(self.weights, self.trained, strict=True):
            weight.assign(value)
        bar.remove_task(task)
        return np.concatenate(found)

    def _windows(self, split: str, lanes: int) -> Any:
        return iter(batches(self.data, self.manifest, split, lanes, WINDOW))

    def _gradients(self, batch: Batch, carry_BxLxSxH: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            logits_BxTxV, carry_BxLxSxH = self.model(batch.ids_BxT, carry_BxLxSxH, reset_BxT=batch.reset_BxT)
            nats_BxT = target_nats(logits_BxTxV, batch.targets_BxT, batch.count_B)
            loss = tf.reduce_mean(nats_BxT)
        return nats_BxT, carry_BxLxSxH, tape.gradient(loss, self.weights)

    @tf.function(autograph=False, reduce_retracing=True)
    def _measure(self, batch: Batch, carry_BxLxSxH: tf.Tensor) -> tf.Tensor:
        _, carry_BxLxSxH, gradients = self._gradients(batch, carry_BxLxSxH)
        for square, gradient in zip(self.squares, gradients, strict=True):
            square.assign_add(tf.square(gradient))
        return carry_BxLxSxH

    @tf.function(autograph=False, reduce_retracing=True)
    def _read(
        self, batch: Batch, carry_BxLxSxH: tf.Tensor, rate: tf.Tensor, decay: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """nats_T of a window; then the step."""
        nats_BxT, carry_BxLxSxH, gradients = self._gradients(batch, carry_BxLxSxH)
        parts = zip(self.weights, gradients, self.trained, self.scale, self.pull, strict=True)
        for weight, gradient, trained, scale, pull in parts:
            back = tf.minimum(decay * pull, 1) * (trained - weight)
            weight.assign_add(back - rate * gradient * scale)
        return nats_BxT[0], carry_BxLxSxH
