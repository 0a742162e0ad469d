"""The outer loop on the host: calls of several steps on the devices, with reports, validations and checkpoints between.

The step alone determines the position in the data, so resuming is arithmetic:

    epoch  = step // windows per epoch          the carry starts empty at each epoch
    window = step %  windows per epoch          the next batch is `window` of the epoch's lanes

Several workers run this same loop, each on its own lanes. After each call they agree on events that only one of them
may have seen: a signal, or the time.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf
from rich.progress import Progress

from common import console, machine
from common.errors import StageError, Stopped, UsageError, tensorflow_cause
from common.files import exclusive
from pipeline.lanes import Batch, batches, check_fits, reading, windows_per_epoch
from pipeline.manifest import Manifest, check_hashes, read_manifest
from trainers import checkpoint, metrics
from trainers.checkpoint import Checkpoint, ReportSums, TrainState
from trainers.config import RunConfig
from trainers.run import Run, hold, open_run
from trainers.training.callbacks import Driver, make_callbacks
from trainers.training.devices import Cluster, Devices, plan, prepare
from trainers.training.optimizer import make_optimizer
from trainers.training.score import Passes, evaluate, lanes_and_window
from trainers.training.signals import StopRequest, deferred
from trainers.training.step import Steps, Totals
from trainers.training.watch import Watch, train_row, val_row

DIVERGED = 3.0  # train loss, as a multiple of its lowest, that ends the run in an error
PACE = 0.5  # seconds per call to the devices, and so the longest delay of Ctrl-C
MOST_STEPS_PER_CALL = 100
MOST_SKIPPED = 100  # steps in a row whose gradients are beyond float16's range
HISTOGRAM_LANES = 8  # enough values for a histogram


@dataclasses.dataclass(frozen=True)
class Options:
    """Command-line options that do not change what is trained."""

    replicas: int | None = None
    share_gpus: bool = False
    unvalidated: bool = False
    verify: bool = False
    init_from: Path | None = None
    allow: tuple[str, ...] = ()
    allow_code: bool = False


def train(
    config: RunConfig,
    data: Path,
    folder: Path,
    options: Options = Options(),
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Train a run to its last step, resuming from its last checkpoint if it has one.

    callbacks: Keras callbacks besides those of the config.
    Raises StageError if the data is not validated (unless options.unvalidated), corrupted or too short for the lanes
    and window, or if the run was started with other settings; Stopped after a signal.
    """
    manifest = read_manifest(data)
    if manifest.validation is None and not options.unvalidated:
        raise StageError(
            f"{data} has not been validated: run python -m pipeline validate {data}, or train with --unvalidated"
        )
    check_hashes(data, manifest, trust=not options.verify)
    train = config.train
    manifest.split("val")
    tokens = manifest.split("train").tokens
    check_fits(tokens, train.lanes, train.window, "train")
    # Check everything before creating the run's folder, so that fixing a setting does not look like changing a run.
    cluster = Cluster.from_environment()
    count = plan(train.lanes, options.replicas, cluster, options.share_gpus)
    callbacks = [*make_callbacks(train, options.allow_code), *callbacks]
    source = checkpoint.Pretrained.read(options.init_from) if options.init_from else None
    run = Run(folder, config, manifest.vocab, data, manifest.data_sha256, source.name if source else "")
    run = open_run(run, options.allow)
    if source:
        source.check(config.model)
    precision = run.config.train.precision
    if precision in ("tf32", "float16") and not tf.config.list_physical_devices("GPU"):
        raise UsageError(f"precision {precision} is for GPUs: set train.precision=float32 on a CPU")
    epoch_steps = windows_per_epoch(tokens, train.lanes, train.window)
    # Round first: 1.1 epochs of 10 windows are 11 steps, not 12 (11.000000000000002).
    total = max(1, math.ceil(round(train.epochs * epoch_steps, 6)))
    if completed := done(run, total):
        with contextlib.suppress(OSError, StageError), exclusive(folder):  # unless another process trains it
            checkpoint.prune(run)  # which a kill after the last checkpoint prevents
        console.note(f"{folder} is already trained to step {completed}")
        return
    try:
        devices = prepare(count, cluster, precision)
        run = dataclasses.replace(run, machine=machine.describe(devices.gpu))
        with reading(data), hold(run, devices.chief):
            Training(run, manifest, devices, epoch_steps, total, callbacks, source).go()
    except tf.errors.OpError as error:
        failure = f"worker {cluster.index} lost the others, or never found them" if cluster else "TensorFlow failed"
        fix = "restart all workers, in any number" if cluster else "run the command again"
        if isinstance(error, (tf.errors.OutOfRangeError, tf.errors.DataLossError)):
            failure, fix = f"{data} could not be read", f"check it with python -m pipeline verify {data}"
        step = checkpoint.last_step(run)
        raise StageError(f"{failure} ({tensorflow_cause(error)}): {fix}; {folder} resumes from step {step:,}") from None


def done(run: Run, total: int) -> str:
    """Describe the end of a finished run: its step, and the reason if it ended early. Empty if it is not finished."""
    last = next(reversed(checkpoint.checkpoints(run)), None)
    if last is None or (last.step == total and last.val_nats is None):  # stopped before its last validation
        return ""
    if last.step >= total:
        return f"{last.step:,} of {total:,}"
    rows, patience = _reports_until(run, last), run.config.train.patience
    stale = since_best([row["val_nats"] for row in rows if "val_nats" in row])
    return f"{last.step:,}: {stale} evaluations without improvement" if 0 < patience <= stale else ""


def _reports_until(run: Run, last: Checkpoint | None) -> list[dict[str, Any]]:
    """Reports up to a checkpoint. One without val_nats was saved before the validation of its step."""
    return metrics.read_until(run.folder, last.step, last.val_nats is not None) if last else []


def since_best(losses: list[float]) -> int:
    """Evaluations since the best one."""
    return len(losses) - 1 - int(np.argmin(losses)) if losses else 0


class Training:
    """Run in progress."""

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        devices: Devices,
        epoch_steps: int,
        total: int,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        source: checkpoint.Pretrained | None = None,
    ):
        self.run, self.manifest, self.devices = run, manifest, devices
        self.config = run.config.train
        self.epoch_steps, self.total = epoch_steps, total
        with devices.strategy.scope():
            model = run.build()
            if source:
                source.copy_to(model, run.vocab)
            weights, inner = model.trainable_variables, model.inner_kernels
            optimizer = make_optimizer(self.config, total, epoch_steps, weights, inner, matmul_dtype=model.matmul_dtype)
            model.compile(optimizer, jit_compile=False)  # for Keras callbacks, which read model.optimizer
        self.steps = Steps(devices, model, optimizer, self.config)
        self.state = TrainState(model, optimizer, self.config.lanes)
        self.driver = Driver(callbacks, model, total, self.config.evaluate_every)
        self.lowest = math.inf  # the lowest reported train loss
        self.skipped = 0  # last steps in a row whose gradients were beyond float16's range
        self.vals: list[float] = []  # all validation losses
        self.stale = 0  # validations since the best one
        self.trained: dict[str, Any] | None = None  # the last train report
        self.since, self.saved_at, self.pace = ReportSums(), time.monotonic(), 1
        self.stop_request = StopRequest()

    def go(self) -> None:
        """Train to the last step, from the last checkpoint if there is one."""
        run, config = self.run, self.config
        last = self._restore()
        start = last.step if last else 0
        # Drop the reports after the checkpoint: their steps are repeated.
        rows = _reports_until(run, last)
        for row in rows:
            self._remember(row)
        if self.devices.chief:
            metrics.write(run.folder, rows)
            console.note(
                f"{run.config.model.cell} of {run.config.model.layers} x {run.config.model.units} units, "
                f"{self.steps.model.count_params():,} parameters, {config.precision}; {self.total:,} steps of "
                f"{config.lanes} lanes x {config.window} {run.vocab.unit}s; {self.devices.describe(config.lanes)}"
            )
            if last:
                console.note(f"resuming from step {start:,}")
        with deferred() as self.stop_request, console.progress("steps") as bar:
            self.watch = Watch(run, self.steps.model, start, self.total, bar, self.devices.chief)
            self.driver.begin()
            try:
                self._run(last, bar)
            finally:
                self.driver.end()
                self.watch.close()

    def _restore(self) -> Checkpoint | None:
        """Restore the last whole checkpoint; with several workers, the one that the chief restored."""
        if self.devices.workers == 1:
            return self.state.restore_last(self.run)
        last = self.state.restore_last(self.run) if self.devices.chief else None
        (step,) = self.steps.agree([last.step if last else -1])
        return last or self.state.restore_step(self.run, step) if step >= 0 else None

    def _run(self, last: Checkpoint | None, bar: Progress) -> None:
        step, config = last.step if last else 0, self.config
        self.since = last.since if last else ReportSums()
        carry = self.steps.scatter(self.state.carry_BxLxSxH)
        iterator = self._batches(step % self.epoch_steps)
        if last is None or (last.val_nats is None and self._evaluates(step)):
            self._evaluate(step, carry, self.trained, bar)
        while step < self.total and not self.driver.stop and not 0 < config.patience <= self.stale:
            if step % self.epoch_steps == 0:
                carry = self.steps.scatter(self.steps.model.initial_carry(config.lanes))
            count, clock = self._count(step), time.monotonic()
            totals, carry = self.steps.train(iterator, carry, tf.constant(step, tf.int64), tf.constant(count))
            totals = Totals(*(x.numpy() for x in totals))
            self._accumulate(totals, time.monotonic() - clock)
            step += count
            stop, save, self.pace = self._agreed(count, time.monotonic() - clock)
            self._after(step, totals, carry, stop, save, bar)
        if not self._evaluates(step):  # a callback ended training between two evaluations
            self._save(step, carry, None)
        if step < self.total and self.devices.chief:
            cause = "a callback" if self.driver.stop else f"{self.config.patience} evaluations without improvement"
            console.note(f"ended at step {step:,} of {self.total:,} by {cause}")

    def _after(self, step: int, totals: Totals, carry: Any, stop: int, save: bool, bar: Progress) -> None:
        """Run the tasks due after `step` steps: report, validate, save, or stop as requested."""
        rate = float(tf.convert_to_tensor(self.steps.optimizer.learning_rate))
        row = train_row(step, self.epoch_steps, self.since, float(totals.gradient_norm[-1]), rate)
        losses = [float(n) / int(t) for n, t in zip(totals.nats, totals.targets, strict=True)]
        self._check(step, row["train_nats"], losses, totals.gradient_norm)
        self.driver.steps(step, losses)
        self.watch.move(row)
        if step % self.config.report_every == 0 or self._evaluates(step):
            self.watch.report(row)
            self._remember(row)
            self.since = ReportSums()
        if stop:
            self._stop(step, carry, stop)
        if self._evaluates(step):
            self._evaluate(step, carry, row, bar)
        elif save or step in self.config.snapshots:
            self._save(step, carry, None)

    def _evaluate(self, step: int, carry: Any, train: dict[str, Any] | None, bar: Progress) -> None:
        """Validate and save. train: the last train report; None before the first step."""

        def poll() -> None:
            # Several workers must stop at the same batch, so they finish the pass.
            if self.stop_request.signal and self.devices.workers == 1:
                self._stop(step, carry, self.stop_request.signal)

        if train:
            self.driver.evaluating(step)
        score = evaluate(self._val, bar, poll)
        row = val_row(step, self.epoch_steps, score.nats)
        self._check_number(step, score.nats)
        self._remember(row)
        self.watch.evaluated(row, best=self.stale == 0)
        if self.config.histograms and self.devices.chief:
            self.watch.histograms(step, self._internals())
        if train:
            self.driver.evaluated(step, train, row)
        self._save(step, carry, score.nats)  # after the callbacks, which may change the learning rate

    def _internals(self) -> dict[str, tf.Tensor]:
        """Gradients and gates over the first windows of the val split."""
        return self.steps.internals(self._first)

    @functools.cached_property
    def _val(self) -> Passes:
        return Passes(self.steps, self.run.data, self.manifest, "val", self.config.lanes, self.config.window)

    @functools.cached_property
    def _first(self) -> Batch:
        tokens = self.manifest.split("val").tokens
        lanes, window = lanes_and_window(tokens - 1, min(self.config.lanes, HISTOGRAM_LANES), self.config.window, 1)
        return next(iter(batches(self.run.data, self.manifest, "val", lanes, window).take(1)))

    def _remember(self, row: dict[str, Any]) -> None:
        """Update the lowest loss and the patience from a report."""
        if "train_nats" in row:
            self.lowest, self.trained = min(self.lowest, row["train_nats"]), row
        else:
            self.vals.append(row["val_nats"])
            self.stale = since_best(self.vals)

    def _save(self, step: int, carry: Any, val_nats: float | None) -> None:
        """Write a checkpoint. All workers contribute their lanes' carry; the chief writes."""
        self.state.carry_BxLxSxH.assign(self.steps.gather(carry))
        if self.devices.chief:
            self.state.save(self.run, step, val_nats, self.since)
        self.saved_at = time.monotonic()

    def _stop(self, step: int, carry: Any, signal: int) -> None:
        """Save and raise Stopped."""
        self._save(step, carry, None)
        raise Stopped(f"stopped at step {step:,}, and saved; the same command resumes from there", signal)

    def _evaluates(self, step: int) -> bool:
        return step % self.config.evaluate_every == 0 or step == self.total

    def _count(self, step: int) -> int:
        """Steps of the next call: up to the next task, at most `pace`."""
        config = self.config
        due = [period - step % period for period in (config.report_every, config.evaluate_every, self.epoch_steps)]
        due += [snapshot - step for snapshot in config.snapshots if snapshot > step]
        return min(*due, self.total - step, self.pace)

    def _batches(self, window: int) -> Any:
        """Iterate over the batches from `window` of an epoch on, epoch after epoch."""
        config = self.config
        rows = self.devices.rows(config.lanes)

        def epoch(start: int) -> tf.data.Dataset:
            return batches(self.run.data, self.manifest, "train", config.lanes, config.window, start, rows)

        return iter(epoch(window).concatenate(epoch(0).repeat()) if window else epoch(0).repeat())

    def _accumulate(self, totals: Totals, seconds: float) -> None:
        since = self.since
        nats, targets = float(np.sum(totals.nats, dtype=np.float64)), int(np.sum(totals.targets))
        self.since = ReportSums(since.nats + nats, since.targets + targets, since.seconds + seconds)

    def _agreed(self, count: int, seconds: float) -> tuple[int, bool, int]:
        """Agree with all workers on the signal that requested a stop (0: none), whether a checkpoint is due, and the
        steps of the next call."""
        pace = max(1, min(MOST_STEPS_PER_CALL, 4 * count, int(PACE * count / seconds)))
        late = time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes
        stop, save, slow = self.steps.agree([int(self.stop_request.signal), int(late), -pace])
        return stop, bool(save), -slow

    def _check(self, step: int, nats: float, losses: list[float], norms: Any) -> None:
        """Raise StageError if a loss or gradient norm is not finite, or the recent loss is far above its lowest."""
        for number in (*losses, *norms):
            self._check_number(step, number)
        # In other types a gradient of 0 is a real one, such as that of a text of one symbol.
        if self.steps.model.matmul_dtype == tf.float16:
            for norm in norms:
                self.skipped = 0 if norm else self.skipped + 1
        if self.skipped >= MOST_SKIPPED:
            raise StageError(
                f"{self.run.folder}: the gradients of the last {self.skipped:,} steps were beyond float16's range: use "
                "train.precision=tf32, in another --out"
            )
        # Near 0 a multiple means little, so the loss must also have risen by one nat.
        if nats > max(DIVERGED * self.lowest, self.lowest + 1):
            self._fail(step, f"rose to {nats:.3f} nats from {self.lowest:.3f}")

    def _check_number(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            self._fail(step, f"or its gradient is {loss}")

    def _fail(self, step: int, failure: str) -> NoReturn:
        config, last = self.config, checkpoint.last_step(self.run)
        raise StageError(
            f"{self.run.folder}: the loss {failure} before step {step:,}; the checkpoint of step {last:,} is intact. "
            f"Try a lower learning_rate than {config.learning_rate}, a lower clip than {config.clip}, or a warmup, in "
            "another --out"
        )
