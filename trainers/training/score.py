"""Scoring a split: its loss in one carried pass over every target.

    nats per target = sum over targets of -ln p(target | all before it in its lane) / number of targets
    bits per target = nats / ln 2

Each lane starts from an empty carry in the middle of the text, so more lanes make the pass faster but add cold starts
of about 2 nats each (judging/evaluate.py chooses their number). Each document starts from an empty carry too, as it
does in training.

Legend: B lanes, T time steps, N targets.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from common.types import Array
from pipeline.lanes import batches, reading, windows_per_epoch
from pipeline.manifest import Manifest
from trainers.training.step import Steps


class Score(NamedTuple):
    """Mean loss in nats per target, and the number of targets."""

    nats: float
    targets: int

    @property
    def bits(self) -> float:
        """Bits per target: per character, or per byte if the unit is the byte."""
        return self.nats / math.log(2)


def lanes_and_window(targets: int, lanes: int, window: int, replicas: int) -> tuple[int, int]:
    """Fit lanes and window to a split: at most `lanes` that each fill a window and divide over the replicas, and a
    shorter window if even one lane per replica would not fill it."""
    B = max(replicas, min(lanes, targets // window) // replicas * replicas)
    return B, max(1, min(window, targets // B))


class Passes:
    """Passes over a split on devices, one after another. They share one pipeline, because building it costs half a
    second of CPU.

    lanes, window: maximum of each; `lanes_and_window` fits them to the split.
    """

    def __init__(self, steps: Steps, data: Path, manifest: Manifest, split: str, lanes: int, window: int):
        self.steps, self.data, self.split = steps, data, split
        tokens = manifest.split(split).tokens
        self.targets = tokens - 1
        self.lanes, self.window = lanes_and_window(self.targets, lanes, window, steps.devices.replicas)
        self.windows = windows_per_epoch(tokens, self.lanes, self.window)
        rows = steps.devices.rows(self.lanes)
        self._batches = iter(batches(data, manifest, split, self.lanes, self.window, rows=rows).repeat())

    def each(self, step: Callable[[Any, Any], tuple[Any, Any]], bar: Progress) -> Iterator[Any]:
        """Yield the result of `step` on each window of one pass, which must be read to its end, with its own task on
        the progress bar. Changes no state but its own carry."""
        carry = self.steps.scatter(self.steps.model.initial_carry(self.lanes))
        task = bar.add_task(f"evaluating {self.split}", total=self.windows)
        for _ in range(self.windows):
            with reading(self.data):
                result, carry = step(next(self._batches), carry)
            bar.advance(task)
            yield result
        bar.remove_task(task)


def evaluate(passes: Passes, bar: Progress, poll: Callable[[], object] = lambda: None) -> Score:
    """Score a split in one pass.

    poll: called after each batch; an exception from it ends the evaluation.
    """
    nats, targets = 0.0, 0
    for totals in passes.each(passes.steps.evaluate, bar):
        nats, targets = nats + float(totals.nats), targets + int(totals.targets)
        poll()
    return Score(nats / targets, targets)


def losses(passes: Passes, bar: Progress) -> Array:
    """Compute the loss of every target of a split in nats (float32), in text order."""
    N, B, T = passes.targets, passes.lanes, passes.window
    nats_N = np.empty(N, np.float32)
    rows = [nats_N[lane * N // B : (lane + 1) * N // B] for lane in range(B)]
    for k, nats_BxT in enumerate(passes.each(passes.steps.losses, bar)):
        for row, nats_T in zip(rows, nats_BxT.numpy(), strict=True):
            part = row[k * T : (k + 1) * T]
            part[:] = nats_T[: len(part)]
    return nats_N
