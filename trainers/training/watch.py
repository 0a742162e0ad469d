"""What a person sees of a run while it trains: the terminal, metrics.jsonl, TensorBoard, samples of its text.

Each start writes an event file of its own into one folder. After a crash the steps that are made again are in two of
them; TensorBoard shows the later ones in place of the earlier.
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
GROWTH = (100, 300, 500, 700, 1200, 2000)  # the steps after which the essay shows what is written
BOARD = "tensorboard"  # the folder within the run's
WIDEST = 120  # characters of a sample's frame: beyond that, lines of text are hard to read


class Watch:
    """Shows and keeps what is reported, after a start at step `start` of `total`. On a worker that is not the chief:
    nothing."""

    def __init__(self, run: Run, model: CharRNN, start: int, total: int, bar: Progress, chief: bool):
        self.run, self.total, self.bar, self.chief = run, total, bar, chief
        self._task = bar.add_task("training", total=total, completed=start, visible=chief)
        self._board = (
            tf.summary.create_file_writer(str(run.folder / BOARD)) if chief else tf.summary.create_noop_writer()
        )
        self._generate = tf.function(Sampler(model, run.vocab).generate, autograph=False)
        self._pace: tuple[int, float] | None = None  # a step, and when it was made: time left is reckoned from there
        self._headed = False

    def move(self, row: dict[str, Any]) -> None:
        """Brings the bar on the terminal up to date, between reports."""
        if self.chief:
            self._pace = self._pace or (row["step"], time.monotonic())  # the first call, which compiles, is over
            now = f"{row['train_nats']:.3f} nats  {row['per_second']:,.0f} {self.run.vocab.unit}s/s"
            self.bar.update(self._task, completed=row["step"], description=now)

    def report(self, row: dict[str, Any]) -> None:
        """Keeps and shows what training has been like since the last report."""
        if not self.chief:
            return
        length = self.run.config.train.sample
        if length and row["step"] in GROWTH:
            row = row | {"sample": self._sample(row["step"], length)}
        self._keep(row, "train_nats", "train_bits", "gradient_norm", "learning_rate", "per_second", "memory")
        self._line(
            f"{_where(row, 'train')}{self._left(row['step']):>9}{row['per_second']:>11,.0f}"
            f"{row['gradient_norm']:>9.3g}{row['learning_rate']:>9.3g}{row['memory'] / 1e6:>8,.0f}"
        )

    def evaluated(self, row: dict[str, Any], best: bool) -> None:
        """Keeps and shows a validation, and what the model now writes."""
        if not self.chief:
            return
        length, text = self.run.config.train.sample, None
        if length and row["step"]:  # before the first step there is nothing to read
            text = self._sample(row["step"], length)
            row = row | {"sample": text}
        self._keep(row, "val_nats", "val_bits")
        self._line(f"{_where(row, 'val')}  validation{', the best so far' if best else ''}", style="bold")
        if text is not None:
            self._show(row["step"], text)
            with self._board.as_default(step=row["step"]):
                tf.summary.text("sample", textwrap.indent(text, "    ", lambda _: True))  # in Markdown: as it stands

    def histograms(self, step: int, values: dict[str, tf.Tensor]) -> None:
        """Keeps distributions for TensorBoard."""
        with self._board.as_default(step=step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def close(self) -> None:
        self._board.close()

    def _keep(self, row: dict[str, Any], *scalars: str) -> None:
        metrics.append(self.run.folder, row)
        with self._board.as_default(step=row["step"]):
            for name in scalars:
                tf.summary.scalar(name, row[name])

    def _sample(self, step: int, length: int) -> str:
        asked = Request(
            tf.constant([b""]), tf.constant([length]), tf.constant([TEMPERATURE]), tf.constant([step], tf.int64)
        )
        return self._generate(asked).text_bytes.numpy()[0].decode("utf-8", errors="replace")

    def _left(self, step: int) -> str:
        """The time left, at the pace since the start, validations and all; empty where there is no telling yet."""
        then, clock = self._pace or (step, 0.0)
        if step == then:
            return ""
        minutes, seconds = divmod(round((time.monotonic() - clock) / (step - then) * (self.total - step)), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    def _line(self, line: str, style: str = "") -> None:
        """A row of the table. What matters less stands further right, where a narrow terminal cuts it off."""
        if not self._headed:
            names = f"{'step':>9}{'epoch':>8}{'nats':>8}{'bits':>8}{'left':>9}{self.run.vocab.unit + 's/s':>11}"
            self._print(f"{names}{'gradient':>9}{'rate':>9}{'MB':>8}", "dim")
        self._headed = True
        self._print(line, style)

    def _print(self, line: str, style: str) -> None:
        console.err.print(line, style=style, soft_wrap=False, no_wrap=True)

    def _show(self, step: int, text: str) -> None:
        """A sample, in a frame. Below it the table has its head again."""
        shown = Text(visible(text, keep="\n\t"))
        title = f"written at step {step:,}, temperature {TEMPERATURE}"
        width = min(console.err.width, WIDEST)
        console.err.print(
            Panel(shown, title=title, title_align="left", border_style="dim", width=width), soft_wrap=False
        )
        self._headed = False


def _where(row: dict[str, Any], split: str) -> str:
    """The columns that reports on training and on validation have in common."""
    return f"{row['step']:>9,}{row['epoch']:>8.2f}{row[f'{split}_nats']:>8.3f}{row[f'{split}_bits']:>8.3f}"


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
