"""Progress of a run while it trains: terminal, metrics.jsonl, TensorBoard, samples.

Each start of a run writes its own event file. After a crash, two files contain the repeated steps; TensorBoard shows
the later ones.
"""

import math
import textwrap
import time
from typing import Any

import tensorflow as tf
from rich.panel import Panel
from rich.progress import Progress
from rich.text import Text

from common import console
from common.machine import memory
from common.printable import visible
from trainers import checkpoint, metrics
from trainers.model.char_rnn import CharRNN
from trainers.run import Run
from trainers.sampling.rows import Request
from trainers.sampling.sampler import Sampler

TEMPERATURE = 0.8  # of the samples
GROWTH = (100, 300, 500, 700, 1200, 2000)  # the steps at which the essay shows samples
BOARD = "tensorboard"  # the folder within the run's
WIDEST = 120  # columns of a sample's frame; longer lines are hard to read


class Watch:
    """Display and log of the reports of a run that starts at step `start` of `total`. Active only in the chief."""

    def __init__(self, run: Run, model: CharRNN, start: int, total: int, bar: Progress, chief: bool):
        self.run, self.total, self.bar, self.chief = run, total, bar, chief
        self._task = bar.add_task("training", total=total, completed=start, visible=chief)
        self._board = (
            tf.summary.create_file_writer(str(run.folder / BOARD)) if chief else tf.summary.create_noop_writer()
        )
        self._generate = tf.function(Sampler(model, run.vocab).generate, autograph=False)
        self._pace: tuple[int, float] | None = None  # a step and its time, from which to estimate the time left
        self._has_header = False

    def move(self, row: dict[str, Any]) -> None:
        """Update the progress bar between reports."""
        if self.chief:
            self._pace = self._pace or (row["step"], time.monotonic())  # after the first call, which compiles
            now = f"{row['train_nats']:.3f} nats  {row['per_second']:,.0f} {self.run.vocab.unit}s/s"
            self.bar.update(self._task, completed=row["step"], description=now)

    def report(self, row: dict[str, Any]) -> None:
        """Record and show a train report."""
        if not self.chief:
            return
        length = self.run.config.train.sample
        if length and row["step"] in GROWTH:
            row = row | {"sample": self._sample(row["step"], length)}
        self._record(row, "train_nats", "train_bits", "gradient_norm", "learning_rate", "per_second", "memory")
        self._line(
            f"{_where(row, 'train')}{self._left(row['step']):>9}{row['per_second']:>11,.0f}"
            f"{row['gradient_norm']:>9.3g}{row['learning_rate']:>9.3g}{row['memory'] / 1e6:>8,.0f}"
        )

    def evaluated(self, row: dict[str, Any], best: bool) -> None:
        """Record and show a validation, with a sample."""
        if not self.chief:
            return
        length, text = self.run.config.train.sample, None
        if length and row["step"]:  # an untrained model writes noise
            text = self._sample(row["step"], length)
            row = row | {"sample": text}
        self._record(row, "val_nats", "val_bits")
        self._line(f"{_where(row, 'val')}  validation{', the best so far' if best else ''}", style="bold")
        if text is not None:
            self._show(row["step"], text)
            with self._board.as_default(step=row["step"]):
                tf.summary.text("sample", textwrap.indent(text, "    ", lambda _: True))  # verbatim in Markdown

    def histograms(self, step: int, values: dict[str, tf.Tensor]) -> None:
        """Write histograms to TensorBoard."""
        with self._board.as_default(step=step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def close(self) -> None:
        self._board.close()

    def _record(self, row: dict[str, Any], *scalars: str) -> None:
        metrics.append(self.run.folder, row)
        with self._board.as_default(step=row["step"]):
            for name in scalars:
                tf.summary.scalar(name, row[name])

    def _sample(self, step: int, length: int) -> str:
        request = Request(
            tf.constant([b""]), tf.constant([length]), tf.constant([TEMPERATURE]), tf.constant([step], tf.int64)
        )
        return self._generate(request).text_bytes.numpy()[0].decode("utf-8", errors="replace")

    def _left(self, step: int) -> str:
        """Time left at the pace since the start, including validations; empty until it can be estimated."""
        first, clock = self._pace or (step, 0.0)
        if step == first:
            return ""
        minutes, seconds = divmod(round((time.monotonic() - clock) / (step - first) * (self.total - step)), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    def _line(self, line: str, style: str = "") -> None:
        """Print a row of the table. Less important columns are further right, where a narrow terminal cuts them off."""
        if not self._has_header:
            names = f"{'step':>9}{'epoch':>8}{'nats':>8}{'bits':>8}{'left':>9}{self.run.vocab.unit + 's/s':>11}"
            self._print(f"{names}{'gradient':>9}{'rate':>9}{'MB':>8}", "dim")
        self._has_header = True
        self._print(line, style)

    def _print(self, line: str, style: str) -> None:
        console.err.print(line, style=style, soft_wrap=False, no_wrap=True)

    def _show(self, step: int, text: str) -> None:
        """Print a sample in a frame. The table repeats its header below it."""
        body = Text(visible(text, keep="\n\t"))
        title = f"written at step {step:,}, temperature {TEMPERATURE}"
        width = min(console.err.width, WIDEST)
        console.err.print(
            Panel(body, title=title, title_align="left", border_style="dim", width=width), soft_wrap=False
        )
        self._has_header = False


def _where(row: dict[str, Any], split: str) -> str:
    """Columns shared by train and validation reports."""
    return f"{row['step']:>9,}{row['epoch']:>8.2f}{row[f'{split}_nats']:>8.3f}{row[f'{split}_bits']:>8.3f}"


def train_row(step: int, epoch_steps: int, since: checkpoint.ReportSums, norm: float, rate: float) -> dict[str, Any]:
    """Build a train report since the last one. Losses are means per target; norm: of the last step's gradient."""
    nats = since.nats / since.targets
    return {
        "step": step,
        "epoch": step / epoch_steps,
        "train_nats": nats,
        "train_bits": nats / math.log(2),
        "gradient_norm": norm,
        "learning_rate": rate,
        "seconds": since.seconds,
        "per_second": since.targets / since.seconds,
        "memory": memory(),
    }


def val_row(step: int, epoch_steps: int, nats: float) -> dict[str, Any]:
    """Build a validation report."""
    return {"step": step, "epoch": step / epoch_steps, "val_nats": nats, "val_bits": nats / math.log(2)}
