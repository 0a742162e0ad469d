"""Keras callbacks in our own loop: called as `fit` would, with what the run reports."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TEXT, interrupted, tiny_config, tiny_training

from common.errors import Stopped, UsageError
from pipeline.manifest import Manifest
from trainers import checkpoint, metrics
from trainers.training.callbacks import make_callbacks
from trainers.training.devices import Devices
from trainers.training.loop import Options, Training
from trainers.training.loop import train as train_command

On = Callable[..., Devices]
Call = tuple[Any, ...]


@pytest.fixture
def data(tmp_path: Path, make_data: Callable[..., Manifest]) -> Path:
    make_data(tmp_path / "data", 1000, train=TEXT, val=TEXT[:101], test=TEXT[:70])
    return tmp_path / "data"


class Recorder(keras.callbacks.Callback):
    """Keeps every call of every hook."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []


def _kept(hook: str) -> Callable[..., None]:
    def keep(self: Recorder, *arguments: Any, **named: Any) -> None:
        self.calls.append((hook, *arguments, *named.values()))

    return keep


for hook in dir(keras.callbacks.Callback):
    if hook.startswith("on_"):
        setattr(Recorder, hook, _kept(hook))


def losses(one: Training) -> dict[int, float]:
    """Where the loss of each step will stand, by the number of steps before it."""
    found: dict[int, float] = {}
    train = one.steps.train

    def spy(batches: Any, carry: Any, first: tf.Tensor, count: tf.Tensor) -> Any:
        totals, carry = train(batches, carry, first, count)
        each = enumerate(zip(totals.nats.numpy(), totals.targets.numpy(), strict=True), start=int(first))
        found.update({step: float(nats) / int(targets) for step, (nats, targets) in each})
        return totals, carry

    one.steps.train = spy  # type: ignore[method-assign]
    return found


def logs(rows: list[dict[str, Any]], step: int) -> dict[str, float]:
    """What a stretch that ends at `step` ends with, by metrics.jsonl."""
    train, val = (next(row for row in rows if row["step"] == step and key in row) for key in ("train_nats", "val_nats"))
    names = {"loss": "train_nats", "bits": "train_bits"} | {
        n: n for n in ("gradient_norm", "learning_rate", "per_second")
    }
    return {log: train[name] for log, name in names.items()} | {
        "val_loss": val["val_nats"],
        "val_bits": val["val_bits"],
    }


def test_every_hook_is_called_in_order_and_across_a_stop(tmp_path: Path, data: Path, on: On) -> None:
    first, then = Recorder(), Recorder()
    one = tiny_training(tmp_path / "run", data, on(), 7, [first])
    each = losses(one)
    with pytest.raises(Stopped):
        interrupted(one, 4).go()
    one = tiny_training(tmp_path / "run", data, on(), 7, [then])
    each = each, losses(one)
    one.go()
    rows = metrics.read(one.run.folder)

    def batches(first: int, last: int, losses: dict[int, float]) -> list[Call]:
        return [
            call
            for step in range(first, last)
            for call in (
                ("on_train_batch_begin", step % 5, {}),
                ("on_train_batch_end", step % 5, {"loss": losses[step]}),
            )
        ]

    def end(stretch: int, step: int) -> list[Call]:
        found = logs(rows, step)
        test = {"loss": found["val_loss"], "bits": found["val_bits"]}
        return [("on_test_begin", {}), ("on_test_end", test), ("on_epoch_end", stretch, found)]

    begin, done = [("on_train_begin", {})], [("on_train_end", {})]
    assert first.calls == [*begin, ("on_epoch_begin", 0, {}), *batches(0, 4, each[0]), *done]
    assert then.calls == [
        *begin,
        *(("on_epoch_begin", 0, {}), *batches(4, 5, each[1]), *end(0, 5)),
        *(("on_epoch_begin", 1, {}), *batches(5, 7, each[1]), *end(1, 7)),
        *done,
    ]
    assert first.params == {"epochs": 2, "steps": 5, "verbose": 0}
    assert first.model.optimizer is not None


def test_a_stretch_ends_once_where_the_stop_came_before_its_validation(tmp_path: Path, data: Path, on: On) -> None:
    first, then = Recorder(), Recorder()
    with pytest.raises(Stopped):
        interrupted(tiny_training(tmp_path / "run", data, on(), 7, [first]), 5).go()
    one = tiny_training(tmp_path / "run", data, on(), 5, [then])
    one.go()
    names = [hook for hook, *_ in first.calls]
    assert "on_epoch_end" not in names
    assert [call[:2] for call in then.calls] == [
        ("on_train_begin", {}),
        ("on_epoch_begin", 0),
        ("on_test_begin", {}),
        ("on_test_end", {"loss": then.calls[4][2]["val_loss"], "bits": then.calls[4][2]["val_bits"]}),
        ("on_epoch_end", 0),
        ("on_train_end", {}),
    ]
    assert then.calls[4][2] == logs(metrics.read(one.run.folder), 5)


def test_callbacks_of_a_config_do_their_work(
    tmp_path: Path, data: Path, on: On, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = [
        # Nothing is better by a hundred nats: the first stretch stays the best, the third ends it.
        {"name": "EarlyStopping", "patience": 2, "min_delta": 100.0, "restore_best_weights": True},
        {"name": "CSVLogger", "filename": str(tmp_path / "log.csv")},
        {"name": "TensorBoard", "log_dir": str(tmp_path / "board")},
        {"name": "ModelCheckpoint", "filepath": str(tmp_path / "{epoch}.weights.h5"), "save_weights_only": True},
        {"name": "ModelCheckpoint", "filepath": str(tmp_path / "{epoch}.keras")},
    ]
    one = tiny_training(tmp_path / "run", data, on(), 30, make_callbacks(tiny_config(callbacks=tables).train), keep=9)
    one.go()
    assert "ended at step 15 of 30 by a callback" in capsys.readouterr().err
    rows = metrics.read(one.run.folder)
    ends = [logs(rows, step) for step in (5, 10, 15)]
    with (tmp_path / "log.csv").open() as file:
        written = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert written == [{"epoch": stretch, **end} for stretch, end in enumerate(ends)]
    for split, scalars in (
        ("train", {"epoch_loss": "loss", "epoch_learning_rate": "learning_rate"}),
        ("validation", {"epoch_loss": "val_loss"}),
    ):
        board = EventAccumulator(str(tmp_path / "board" / split)).Reload()
        for tag, name in scalars.items():
            values = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in board.Tensors(tag)]
            assert values == [(stretch, np.float32(end[name])) for stretch, end in enumerate(ends)], (split, tag)
    kept = {
        found.step: checkpoint.load_model(one.run, found).get_weights() for found in checkpoint.checkpoints(one.run)
    }
    assert list(kept) == [0, 5, 10, 15]
    equal(one.steps.model.get_weights(), kept[5])  # EarlyStopping put it back; the checkpoints are as they were trained
    for stretch, step in enumerate((5, 10, 15), start=1):
        model = one.run.build()
        model.load_weights(tmp_path / f"{stretch}.weights.h5")
        equal(model.get_weights(), kept[step])
        equal(keras.models.load_model(tmp_path / f"{stretch}.keras").get_weights(), kept[step])


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_learning_rate_that_a_callback_lowers_stays_so_when_the_run_goes_on(
    tmp_path: Path, data: Path, on: On
) -> None:
    plateau = [{"name": "ReduceLROnPlateau", "factor": 0.5, "patience": 1, "min_delta": 100.0}]
    callbacks = make_callbacks(tiny_config(callbacks=plateau).train)
    tiny_training(tmp_path / "run", data, on(), 10, callbacks).go()
    one = tiny_training(tmp_path / "run", data, on(), 15)
    one.go()
    rates = [(row["step"], row["learning_rate"]) for row in metrics.read(one.run.folder) if "learning_rate" in row]
    full, half = float(np.float32(0.01)), float(np.float32(0.005))
    assert rates == [*((step, full) for step in (3, 5, 6, 9, 10)), (12, half), (15, half)]


def test_a_callback_of_the_caller_may_end_a_run_within_a_stretch(tmp_path: Path, data: Path, on: On) -> None:
    def end(batch: int, logs: dict[str, float]) -> None:
        one.steps.model.stop_training = batch == 2

    one = tiny_training(tmp_path / "run", data, on(), 10, [keras.callbacks.LambdaCallback(on_train_batch_end=end)])
    one._count = lambda step: 1  # type: ignore[method-assign]
    one.go()
    assert [(found.step, found.val_nats is None) for found in checkpoint.checkpoints(one.run)] == [
        (0, False),
        (3, True),
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"name": "EarlyStoping"},
            "no 'EarlyStoping' in keras.callbacks, which has BackupAndRestore, CSVLogger, ",
        ),
        ({"name": "csv:Logger"}, "no 'Logger' in csv$"),
        (
            {"name": "no_such_module:Logger"},
            r"'no_such_module:Logger' cannot be created \(ModuleNotFoundError: No module ",
        ),
        ({"name": "CSVLogger"}, r"'CSVLogger' cannot be created \(TypeError: .*'filename'\)$"),
        ({"name": "ReduceLROnPlateau", "factor": 2.0}, r"'ReduceLROnPlateau' cannot be created \(ValueError: "),
        (
            {"name": "collections:OrderedDict"},
            "'collections:OrderedDict' must create a keras.callbacks.Callback, got Ordered",
        ),
    ],
)
def test_what_is_no_callback_is_refused_before_a_run_is_made(
    tmp_path: Path, data: Path, table: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=rf"^\[train\] callbacks: {message}") as refusal:
        train_command(tiny_config(callbacks=[table]), data, tmp_path / "run", Options(unvalidated=True))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rate", [{"schedule": "cosine", "decay": 0.1}, {"warmup": 3}])
def test_two_hands_on_the_learning_rate_are_refused(rate: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="ReduceLROnPlateau sets the learning rate, so it needs a constant one, got s"):
        make_callbacks(tiny_config(callbacks=[{"name": "ReduceLROnPlateau"}], **rate).train)
