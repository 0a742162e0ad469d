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
from pipeline.lanes import batches as batches_of
from pipeline.lanes import reading, windows_per_epoch
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


def _pass(
    step: Callable[[Any, Any], tuple[Any, Any]],
    steps: Steps,
    data: Path,
    manifest: Manifest,
    split: str,
    lanes: int,
    window: int,
    bar: Progress,
) -> Iterator[Any]:
    """Yield the result of `step` on each window of a split in turn, with its own task on the progress bar.

    lanes, window: from `lanes_and_window`. Changes no state but its own carry.
    """
    batches = steps.distribute(lambda rows: batches_of(data, manifest, split, lanes, window, rows=rows), lanes)
    carry = steps.scatter(steps.model.initial_carry(lanes))
    windows = windows_per_epoch(manifest.split(split).tokens, lanes, window)
    task = bar.add_task(f"evaluating {split}", total=windows)
    for _ in range(windows):
        with reading(data):
            result, carry = step(next(batches), carry)
        bar.advance(task)
        yield result
    bar.remove_task(task)


def evaluate(
    steps: Steps,
    data: Path,
    manifest: Manifest,
    split: str,
    lanes: int,
    window: int,
    bar: Progress,
    poll: Callable[[], object] = lambda: None,
) -> Score:
    """Score a split.

    poll: called after each batch; an exception from it ends the evaluation.
    """
    B, T = lanes_and_window(manifest.split(split).tokens - 1, lanes, window, steps.devices.replicas)
    nats, targets = 0.0, 0
    for totals in _pass(steps.evaluate, steps, data, manifest, split, B, T, bar):
        nats, targets = nats + float(totals.nats), targets + int(totals.targets)
        poll()
    return Score(nats / targets, targets)


def losses(
    steps: Steps, data: Path, manifest: Manifest, split: str, lanes: int, window: int, bar: Progress
) -> tuple[Array, int]:
    """Compute the loss of every target of a split in nats (float32), in text order; also return the lanes used."""
    N = manifest.split(split).tokens - 1
    B, T = lanes_and_window(N, lanes, window, steps.devices.replicas)
    nats_N = np.empty(N, np.float32)
    rows = [nats_N[lane * N // B : (lane + 1) * N // B] for lane in range(B)]
    for k, nats_BxT in enumerate(_pass(steps.losses, steps, data, manifest, split, B, T, bar)):
        for row, nats_T in zip(rows, nats_BxT.numpy(), strict=True):
            part = row[k * T : (k + 1) * T]
            part[:] = nats_T[: len(part)]
    return nats_N, B
