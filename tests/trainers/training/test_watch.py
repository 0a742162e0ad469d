"""Progress of a run in TensorBoard and in the terminal."""

import io
import math
import re
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorflow as tf
from rich.console import Console
from rich.progress import Progress
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TEXT, tiny_config, tiny_training

from common import console
from pipeline.manifest import Manifest
from pipeline.vocab import byte_vocab
from trainers import checkpoint, metrics
from trainers.run import Run
from trainers.training import watch
from trainers.training.devices import Devices
from trainers.training.watch import BOARD, Watch

On = Callable[..., Devices]
SCALARS = ("train_nats", "train_bits", "gradient_norm", "learning_rate", "per_second", "memory", "val_nats", "val_bits")


@pytest.fixture
def data(tmp_path: Path, make_data: Callable[..., Manifest]) -> Path:
    make_data(tmp_path / "data", 1000, train=TEXT, val=TEXT[:101], test=TEXT[:70])
    return tmp_path / "data"


def board(run: Run) -> EventAccumulator:
    return EventAccumulator(str(run.folder / BOARD), size_guidance={"tensors": 0}).Reload()


def values(board: EventAccumulator, tag: str) -> list[tuple[int, Any]]:
    """Return step and value of each event, in file order."""
    return [(event.step, tf.make_ndarray(event.tensor_proto)) for event in board.Tensors(tag)]


def reported(run: Run, tag: str) -> list[tuple[int, np.float32]]:
    return [(row["step"], np.float32(row[tag])) for row in metrics.read(run.folder) if tag in row]


def test_tensorboard_matches_metrics(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(2, 1), 10, sample=20, histograms=True)
    training.go()
    events = board(training.run)
    assert {tag: values(events, tag) for tag in SCALARS} == {tag: reported(training.run, tag) for tag in SCALARS}
    texts = {step: value.item().decode() for step, value in values(events, "sample")}
    assert list(texts) == [5, 10]
    assert all(line.startswith("    ") for text in texts.values() for line in text.split("\n"))
    gates = {f"gate/lstm_{layer}/{gate}" for layer in (0, 1) for gate in ("input", "forget", "output", "candidate")}
    weights = {f"gradient/{weight.path}": weight for weight in training.steps.model.trainable_variables}
    assert set(events.Tags()["tensors"]) == {*SCALARS, "sample", *gates, *weights}
    for name in {*gates, *weights}:
        histograms = values(events, name)  # rows of (left edge, right edge, count)
        assert [step for step, _ in histograms] == [0, 5, 10], name
        numbers = math.prod(weights[name].shape) if name in weights else 4 * 3 * 8  # lanes x window x units
        lowest = -1 if name.endswith("candidate") or name in weights else 0
        for _, rows in histograms:
            assert (rows[:, 2].sum(), lowest <= rows[0, 0] < rows[-1, 1] <= 1) == (numbers, True), name


@pytest.mark.slow
def test_tensorboard_lists_the_run(tmp_path: Path, data: Path, on: On) -> None:
    tiny_training(tmp_path / "runs" / "tiny", data, on(), 5).go()
    program = [str(Path(sys.executable).with_name("tensorboard")), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen([*program, "--logdir", str(tmp_path / "runs")], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        url = next(re.findall(r"http://[\d.:]+", line)[0] for line in process.stderr if " at http" in line)
        until = time.monotonic() + 60
        while not (runs := requests.get(f"{url}/data/runs", timeout=30).json()) and time.monotonic() < until:
            time.sleep(0.5)
        process.kill()
    assert runs == [f"tiny/{BOARD}"]


@pytest.mark.slow
def test_repeated_steps_supersede_earlier_events(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), 10)
    training.go()
    before = reported(training.run, "train_nats")
    shutil.rmtree(checkpoint.checkpoints(training.run)[-1].folder)  # as if killed before writing it
    resumed = tiny_training(tmp_path / "run", data, on(), 12)
    resumed.go()
    events = values(board(training.run), "train_nats")
    assert [step for step, _ in events] == [3, 5, 6, 9, 10, 6, 9, 10, 12]
    # In TensorBoard, an event replaces all earlier events of the same or later steps.
    assert list(dict(events).items()) == reported(resumed.run, "train_nats")
    assert events[: len(before)] == before


class Terminal:
    """Terminal of `width` columns that shows an untrained run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, width: int, chief: bool = True, sample: int = 9):
        self.file, self.clock = io.StringIO(), 100.0
        settings: dict[str, Any] = {"force_terminal": True, "color_system": None, "soft_wrap": True, "markup": False}
        monkeypatch.setattr(console, "err", Console(file=self.file, width=width, highlight=False, **settings))
        monkeypatch.setattr(watch, "time", types.SimpleNamespace(monotonic=lambda: self.clock))
        folder.mkdir()
        run = Run(folder, tiny_config(sample=sample), byte_vocab(), folder, "")
        self.watch = Watch(run, run.build(), 0, 20_000, Progress(disable=True), chief)
        self.watch._sample = lambda step, length: f"{length} characters at {step}"  # type: ignore[method-assign]
        self.folder = folder

    def train(self, step: int, nats: float, seconds: float) -> None:
        """Advance the clock by `seconds`, and report training up to `step`."""
        self.clock += seconds
        row = {"train_nats": nats, "train_bits": nats / math.log(2), "gradient_norm": 0.123456, "learning_rate": 0.002}
        row |= {"step": step, "epoch": step / 8000, "per_second": 98_765.4, "memory": 1_234e6}
        self.watch.move(row)
        self.watch.report(row)

    def validate(self, step: int, nats: float, text: str = "", best: bool = False) -> None:
        self.watch._sample = lambda step, length: text  # type: ignore[method-assign]
        self.watch.evaluated(watch.val_row(step, 8000, nats), best)

    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.file.getvalue().splitlines()]


def test_early_samples_are_written_to_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, tmp_path / "run", 80)
    for step in (100, 200, 300, 600):
        terminal.train(step, 3.0, 1.0)
    terminal.validate(600, 2.5, "as it is then")
    rows = [(row["step"], "val_nats" in row, row.get("sample")) for row in metrics.read(tmp_path / "run")]
    early = [(step, False, f"9 characters at {step}" if step in (100, 300) else None) for step in (100, 200, 300, 600)]
    assert rows == [*early, (600, True, "as it is then")]
    assert "characters at" not in terminal.file.getvalue(), "only samples of validations are shown"


def test_terminal_shows_table_and_framed_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, tmp_path / "run", 80)
    terminal.validate(0, 5.545, best=True)
    terminal.train(100, 3.0, 7.0)
    terminal.train(200, 2.5, 2.0)
    terminal.validate(200, 2.75, "To be,\n\tor\x1b[31m not\r to be" + "!" * 70, best=True)
    terminal.train(10_000, 1.5, 196.0)
    terminal.validate(10_000, 2.875)
    assert terminal.shown() == [
        "     step   epoch    nats    bits     left    bytes/s gradient     rate      MB",
        "        0    0.00   5.545   8.000  validation, the best so far",
        "      100    0.01   3.000   4.328              98,765    0.123    0.002   1,234",
        "      200    0.03   2.500   3.607  0:06:36     98,765    0.123    0.002   1,234",
        "      200    0.03   2.750   3.967  validation, the best so far",
        "╭─ written at step 200, temperature 0.8 ───────────────────────────────────────╮",
        "│ To be,                                                                       │",
        "│         or\ufffd[31m not\ufffd to" + 54 * " " + "│",
        f"│ {'be' + '!' * 70:76} │",
        "╰──────────────────────────────────────────────────────────────────────────────╯",
        "     step   epoch    nats    bits     left    bytes/s gradient     rate      MB",
        "   10,000    1.25   1.500   2.164  0:03:20     98,765    0.123    0.002   1,234",
        "   10,000    1.25   2.875   4.148  validation",
        "╭─ written at step 10,000, temperature 0.8 ────────────────────────────────────╮",
        "│                                                                              │",
        "╰──────────────────────────────────────────────────────────────────────────────╯",
    ]


def test_narrow_terminal_drops_last_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, tmp_path / "run", 45, sample=0)
    terminal.train(100, 3.0, 1.0)
    terminal.train(200, 2.5, 2.0)
    assert terminal.shown() == [
        "     step   epoch    nats    bits     left",
        "      100    0.01   3.000   4.328",
        "      200    0.03   2.500   3.607  0:06:36",
    ]


def test_only_the_chief_shows_and_writes_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, tmp_path / "run", 80, chief=False)
    terminal.train(100, 3.0, 1.0)
    terminal.validate(100, 2.75, "To be")
    terminal.watch.histograms(100, {"gate": tf.zeros([2])})
    terminal.watch.close()
    assert (terminal.shown(), list(terminal.folder.iterdir())) == ([], [])


@pytest.mark.slow
def test_resumed_run_remembers_its_best_loss(
    tmp_path: Path, data: Path, on: On, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = tiny_training(tmp_path / "run", data, on(), 10)
    training.go()
    rows = metrics.read(training.run.folder)
    rows[-1]["val_nats"] = 0.5  # lower than this small model can reach
    metrics.write(training.run.folder, rows)
    file = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=file, width=80, color_system=None))
    tiny_training(tmp_path / "run", data, on(), 12).go()
    assert [line.split("  ")[-1] for line in file.getvalue().splitlines() if "validation" in line] == ["validation"]
