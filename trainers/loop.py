"""The outer loop on the host: batches in, steps on the devices, now and then a validation and a checkpoint.

Where a run stands is its step alone: epoch and position follow from it, so going on is arithmetic.

    epoch  = step // windows of an epoch          the carry starts empty at each epoch
    window = step %  windows of an epoch          batch `window` of the epoch's lanes comes next
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.progress import Progress

from common import console
from common.errors import StageError, UsageError
from common.files import only_one
from pipeline.lanes import batches, check_fits, windows_per_epoch
from pipeline.manifest import Manifest, check_hashes, read_manifest
from trainers import checkpoint
from trainers.checkpoint import Run, State
from trainers.config import RunConfig, TrainConfig
from trainers.devices import Devices, plan, prepare
from trainers.evaluate import Score, evaluate
from trainers.step import Steps, Totals

SHOW_EVERY = 10  # steps from one showing of the loss to the next: to read it is to wait for the device


def train(
    config: RunConfig, data: Path, folder: Path, replicas: int | None, unvalidated: bool, verify: bool = False
) -> None:
    """Trains a run to its last step, or goes on with it from its last checkpoint. Says so where it is done already.

    Raises StageError for data that is not validated (unless `unvalidated`), damaged (where asked to `verify` it), too
    short for the lanes and window, or other than what the run was begun with.
    """
    manifest = read_manifest(data)
    if manifest.validation is None and not unvalidated:
        raise StageError(
            f"{data} has not been validated: run python -m pipeline validate {data}, or train with --unvalidated"
        )
    if verify:
        check_hashes(data, manifest)
    train = config.train
    manifest.split("val")
    tokens = manifest.split("train").tokens
    check_fits(tokens, train.lanes, train.window, "train")
    # All that can be refused is refused before the run's folder is made: else a mended setting would be another run's.
    count = plan(train.lanes, replicas)
    if tf.config.list_physical_devices("GPU") and train.precision != "float32":
        raise UsageError(f"precision {train.precision} is for the CPU; a GPU trains in float32: leave it out")
    run = checkpoint.open_run(folder, config, data, manifest)
    an_epoch = windows_per_epoch(tokens, train.lanes, train.window)
    # Rounded first: 1.1 epochs of 10 windows are 11, not the 12 above 11.000000000000002.
    total = max(1, math.ceil(round(train.epochs * an_epoch, 6)))
    found = checkpoint.checkpoints(run)
    if found and found[-1].step >= total:
        console.note(f"{folder} is already trained to step {found[-1].step:,} of {total:,}")
        return
    with only_one(folder):
        checkpoint.sweep(run)
        Training(run, manifest, prepare(count), an_epoch, total).go()


class Training:
    """One run in progress."""

    def __init__(self, run: Run, manifest: Manifest, devices: Devices, an_epoch: int, total: int):
        self.run, self.manifest, self.devices = run, manifest, devices
        self.config = run.config.train
        self.an_epoch, self.total = an_epoch, total
        with devices.strategy.scope():
            model = run.build()
            # Named: checkpoints hold the name, and Keras would number a second optimizer of a process.
            optimizer = keras.optimizers.Adam(schedule(self.config, total), name="adam")
            optimizer.build(model.trainable_variables)
        self.steps = Steps(devices, model, optimizer, self.config.clip, self.config.seed)
        self.state = State(model, optimizer, self.config.lanes)

    def go(self) -> None:
        """Steps from the last checkpoint, or from the first weights, to the last step."""
        run, config = self.run, self.config
        console.note(
            f"{run.folder}: LSTM of {run.config.model.layers} x {run.config.model.units} units, "
            f"{self.steps.model.count_params():,} parameters; {self.total:,} steps of {config.lanes} lanes x "
            f"{config.window} {run.vocab.unit}s; {self.devices.describe(config.lanes)}"
        )
        found = checkpoint.checkpoints(run)
        start = found[-1].step if found else 0
        # What was reported after the checkpoint that the run goes on from is taken back: those steps are made again.
        reported = [row for row in checkpoint.read_metrics(run) if found and row["step"] <= start]
        checkpoint.write_metrics(run, reported)
        with console.progress("steps") as bar:
            if found:
                self.state.restore(found[-1])
                console.note(f"going on from step {start:,}")
            else:
                self._look(0, [], 0.0, bar)
            try:
                self._run(start, bar)
            except KeyboardInterrupt:
                console.note(f"stopped; the same command goes on from step {checkpoint.checkpoints(run)[-1].step:,}")
                raise

    def _run(self, start: int, bar: Progress) -> None:
        carry = self.steps.scatter(self.state.carry_BxLx2xH)
        task = bar.add_task("training", total=self.total, completed=start)
        seen: list[Totals] = []
        since = time.monotonic()
        for step, batch in self._batches(start):
            if step % self.an_epoch == 0:
                carry = self.steps.scatter(self.steps.model.initial_carry(self.config.lanes))
            totals, carry = self.steps.train(batch, carry, tf.constant(step, tf.int64))
            seen.append(totals)
            done = step + 1
            if done % SHOW_EVERY == 0:
                nats = float(totals.nats) / int(totals.targets)
                bar.update(task, completed=done, description=f"training, {nats:.3f} nats")
            if done % self.config.evaluate_every == 0 or done == self.total:
                self.state.carry_BxLx2xH.assign(self.steps.gather(carry))
                self._look(done, seen, time.monotonic() - since, bar)
                seen, since = [], time.monotonic()

    def _batches(self, start: int) -> Iterator[tuple[int, Any]]:
        """Every step from `start` to the last, with its batch, epoch after epoch."""
        step, config = start, self.config
        while step < self.total:
            epoch = batches(self.run.data, self.manifest, "train", config.lanes, config.window, step % self.an_epoch)
            for batch in self.steps.distribute(epoch.take(self.total - step)):
                yield step, batch
                step += 1

    def _look(self, step: int, seen: list[Totals], seconds: float, bar: Progress) -> None:
        """Validates, reports to the terminal and to metrics.jsonl, and writes a checkpoint."""
        config, run = self.config, self.run
        val = evaluate(self.steps, run.data, self.manifest, "val", config.lanes, config.window, bar)
        if not math.isfinite(val.nats):
            raise StageError(
                f"{run.folder}: the loss at step {step:,} is {val.nats}; the last checkpoint is whole: "
                f"try a lower learning rate than {config.learning_rate} in another --out"
            )
        row: dict[str, Any] = {"step": step, "epoch": step / self.an_epoch, "val_nats": val.nats, "val_bits": val.bits}
        line = f"step {step:>6,}  epoch {step / self.an_epoch:5.2f}  val {val.nats:.3f} nats {val.bits:.3f} bits"
        if seen:
            targets = sum(int(totals.targets) for totals in seen)
            train = Score(sum(float(totals.nats) for totals in seen) / targets, targets)
            row |= {
                "train_nats": train.nats,
                "train_bits": train.bits,
                "gradient_norm": float(seen[-1].gradient_norm),
                "learning_rate": float(tf.convert_to_tensor(self.steps.optimizer.learning_rate)),
                "seconds": seconds,
                "per_second": targets / seconds,
            }
            line += f"  train {train.nats:.3f} nats  {targets / seconds:,.0f} {run.vocab.unit}s/s"
        console.note(line)
        checkpoint.write_metrics(run, [*checkpoint.read_metrics(run), row])
        self.state.save(run, step, val.nats)


def schedule(config: TrainConfig, total: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate at each step: constant, or falling exponentially to `decay` times the first at the end."""
    if config.decay == 1:
        return config.learning_rate
    return keras.optimizers.schedules.ExponentialDecay(config.learning_rate, decay_steps=total, decay_rate=config.decay)
