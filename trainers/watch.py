"""What a person sees of a run while it trains: the terminal, metrics.jsonl, TensorBoard, samples of its text."""

import math
from typing import Any

import tensorflow as tf
from rich.progress import Progress

from common import console
from common.machine import memory
from trainers import checkpoint
from trainers.checkpoint import Run
from trainers.generate import Sampler
from trainers.model import CharRNN

TEMPERATURE = 0.8  # of the samples
BOARD = "tensorboard"  # the folder within the run's


class Watch:
    """Shows and keeps what is reported. On a worker that is not the chief: nothing."""

    def __init__(self, run: Run, model: CharRNN, total: int, bar: Progress, chief: bool):
        self.run, self.total, self.bar, self.chief = run, total, bar, chief
        self._task = bar.add_task("training", total=total)
        self._board = (
            tf.summary.create_file_writer(str(run.folder / BOARD)) if chief else tf.summary.create_noop_writer()
        )
        self._generate = tf.function(Sampler(model, run.vocab).generate)

    def move(self, row: dict[str, Any]) -> None:
        """Brings the bar on the terminal up to date, between reports."""
        if self.chief:
            self.bar.update(self._task, completed=row["step"], description=self._line(row))

    def report(self, row: dict[str, Any]) -> None:
        """Keeps what training has been like since the last report. Where there is no bar, it becomes a line."""
        if not self.chief:
            return
        self._keep(row, "train_nats", "train_bits", "gradient_norm", "learning_rate", "per_second", "memory")
        if self.bar.disable:
            console.note(f"step {row['step']:,} of {self.total:,}  {self._line(row)}")

    def evaluated(self, row: dict[str, Any]) -> None:
        """Keeps and shows a validation, and what the model now writes."""
        if not self.chief:
            return
        self._keep(row, "val_nats", "val_bits")
        epoch, nats, bits = row["epoch"], row["val_nats"], row["val_bits"]
        console.note(f"step {row['step']:>6,}  epoch {epoch:5.2f}  validation {nats:.3f} nats {bits:.3f} bits")
        length = self.run.config.train.sample
        if length and row["step"]:  # before the first step there is nothing to read
            text = self._sample(row["step"], length)
            console.err.print(console.visible(text, keep="\n\t"), style="dim")
            with self._board.as_default(step=row["step"]):
                tf.summary.text("sample", f"```\n{text}\n```")

    def histograms(self, step: int, values: dict[str, tf.Tensor]) -> None:
        """Keeps distributions for TensorBoard."""
        with self._board.as_default(step=step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def close(self) -> None:
        self._board.close()

    def _keep(self, row: dict[str, Any], *scalars: str) -> None:
        checkpoint.add_metrics(self.run, row)
        with self._board.as_default(step=row["step"]):
            for name in scalars:
                tf.summary.scalar(name, row[name])

    def _sample(self, step: int, length: int) -> str:
        drawn = self._generate(
            tf.constant([b""]), tf.constant([length]), tf.constant([TEMPERATURE]), tf.constant([step], tf.int64)
        )
        return drawn.numpy()[0].decode("utf-8", errors="replace")

    def _line(self, row: dict[str, Any]) -> str:
        """A report in a line; what it does not have yet is left out."""
        return (
            f"epoch {row['epoch']:.2f}  train {row['train_nats']:.3f} nats {row['train_bits']:.3f} bits  "
            f"gradient {row['gradient_norm']:.3g}  rate {row['learning_rate']:.3g}  "
            f"{row['per_second']:,.0f} {self.run.vocab.unit}s/s  {row['memory'] / 1e6:,.0f} MB"
        )


def train_row(step: int, an_epoch: int, since: checkpoint.Since, norm: float, rate: float) -> dict[str, Any]:
    """A report on training since the last one. Losses are means a target; norm: of the last step's gradient."""
    nats = since.nats / since.targets
    return {
        "step": step,
        "epoch": step / an_epoch,
        "train_nats": nats,
        "train_bits": nats / math.log(2),
        "gradient_norm": norm,
        "learning_rate": rate,
        "seconds": since.seconds,
        "per_second": since.targets / since.seconds,
        "memory": memory(),
    }


def val_row(step: int, an_epoch: int, nats: float) -> dict[str, Any]:
    """A report on a validation."""
    return {"step": step, "epoch": step / an_epoch, "val_nats": nats, "val_bits": nats / math.log(2)}
