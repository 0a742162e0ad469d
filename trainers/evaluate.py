"""The loss over a whole split in one carried pass: every target once, none left out.

    nats a character = sum over targets of -ln p(target | all before it in its lane) / number of targets
    bits a character = nats / ln 2

Each lane starts from an empty carry, so more lanes mean a few more cold starts, and a far quicker pass. So does each
document, in a text of documents: that is part of what the model is.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

from common import console
from common.files import write_json
from pipeline.lanes import batches as batches_of
from pipeline.lanes import windows_per_epoch
from pipeline.manifest import Manifest
from trainers import checkpoint, devices
from trainers.step import Steps

LANES = 50  # that a finished run is scored in, where they fit: one number for all, so that figures compare


class Score(NamedTuple):
    """Mean loss in nats a target, and how many targets it is the mean of."""

    nats: float
    targets: int

    @property
    def bits(self) -> float:
        """Bits a target: bits per character, or per byte where the unit is the byte."""
        return self.nats / math.log(2)


def lanes_and_window(targets: int, lanes: int, window: int, replicas: int) -> tuple[int, int]:
    """The most lanes, up to those wanted, that fill one window each and divide over the replicas; a shorter window
    where even one lane a replica would not fill it."""
    B = max(replicas, min(lanes, targets // window) // replicas * replicas)
    return B, max(1, min(window, targets // B))


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
    """Scores a split, with a task of its own on the progress bar. Touches no state but its own carry.

    poll: called after each batch; what it raises ends the evaluation.
    """
    tokens = manifest.split(split).tokens
    B, T = lanes_and_window(tokens - 1, lanes, window, steps.devices.replicas)
    batches = steps.distribute(lambda rows: batches_of(data, manifest, split, B, T, rows=rows), B)
    carry = steps.scatter(steps.model.initial_carry(B))
    nats, targets = 0.0, 0
    windows = windows_per_epoch(tokens, B, T)
    task = bar.add_task(f"evaluating {split}", total=windows)
    for _ in range(windows):
        totals, carry = steps.evaluate(next(batches), carry)
        nats, targets = nats + float(totals.nats), targets + int(totals.targets)
        bar.advance(task)
        poll()
    bar.remove_task(task)
    return Score(nats / targets, targets)


def evaluate_run(folder: Path, split: str, data: Path | None, force: bool) -> None:
    """Scores a run's best checkpoint on a split and writes evaluation-SPLIT.json into the run's folder.

    Raises StageError where the data is not what the run was trained on.
    """
    run = checkpoint.read_run(folder)
    chosen = checkpoint.best(run)
    data, manifest = checkpoint.data_of(run, data)
    manifest.split(split)
    inputs = {
        "step": chosen.step,
        "weights_sha256": checkpoint.weights_sha256(chosen),
        "split": split,
        "data_sha256": run.data_sha256,
        "lanes": LANES,
    }
    report = folder / f"evaluation-{split}.json"
    done = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    if not force and done.get("inputs") == inputs:
        console.note(
            f"{report} is already made from checkpoint {chosen.step}: {done['bits']:.3f} bits per {run.vocab.unit}"
        )
        return
    # One replica: the lanes that fit, and with them the figure, must not depend on how many devices the host has.
    placed = devices.prepare(1)
    with placed.strategy.scope():
        model = checkpoint.load_model(run, chosen)
    with console.progress("windows") as bar:
        score = evaluate(Steps(placed, model), data, manifest, split, LANES, run.config.train.window, bar)
    console.out.print(
        f"{folder} at step {chosen.step} on {data}'s {split} split: {score.nats:.4f} nats = {score.bits:.4f} bits per "
        f"{run.vocab.unit} over {score.targets:,} {run.vocab.unit}s -> {report}",
    )
    write_json(
        report,
        {"format_version": 1, "inputs": inputs, "nats": score.nats, "bits": score.bits, "targets": score.targets},
    )
