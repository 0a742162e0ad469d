"""Keras callbacks in the training loop: called in the same way as by `fit`, with the metrics of the run."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TEXT, interrupted, tiny_config, tiny_training

from common.errors import StageError, Stopped, UsageError
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
    """Callback that records the calls of all hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []


def _recording_hook(hook: str) -> Callable[..., None]:
    def record(self: Recorder, *arguments: Any, **named: Any) -> None:
        self.calls.append((hook, *arguments, *named.values()))

    return record


for hook in dir(keras.callbacks.Callback):
    if hook.startswith("on_"):
        setattr(Recorder, hook, _recording_hook(hook))


def losses(training: Training) -> dict[int, float]:
    """Return a dict that training fills with the loss of each step, by step number from 0."""
    losses_by_step: dict[int, float] = {}
    train = training.steps.train

    def spy(batches: Any, carry: Any, first: tf.Tensor, count: tf.Tensor) -> Any:
        totals, carry = train(batches, carry, first, count)
        each = enumerate(zip(totals.nats.numpy(), totals.targets.numpy(), strict=True), start=int(first))
        losses_by_step.update({step: float(nats) / int(targets) for step, (nats, targets) in each})
        return totals, carry

    training.steps.train = spy  # type: ignore[method-assign]
    return losses_by_step


def logs(rows: list[dict[str, Any]], step: int) -> dict[str, float]:
    """Return the logs expected at the end of the Keras epoch that ends at `step`, from metrics.jsonl."""
    train, val = (next(row for row in rows if row["step"] == step and key in row) for key in ("train_nats", "val_nats"))
    names = {"loss": "train_nats", "bits": "train_bits"} | {
        n: n for n in ("gradient_norm", "learning_rate", "per_second")
    }
    return {log: train[name] for log, name in names.items()} | {
        "val_loss": val["val_nats"],
        "val_bits": val["val_bits"],
    }


def test_hooks_are_called_in_order_across_a_stop(tmp_path: Path, data: Path, on: On) -> None:
    first, second = Recorder(), Recorder()
    training = tiny_training(tmp_path / "run", data, on(), 7, [first])
    step_losses = losses(training)
    with pytest.raises(Stopped):
        interrupted(training, 4).go()
    training = tiny_training(tmp_path / "run", data, on(), 7, [second])
    step_losses = step_losses, losses(training)
    training.go()
    rows = metrics.read(training.run.folder)

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
        expected = logs(rows, step)
        test = {"loss": expected["val_loss"], "bits": expected["val_bits"]}
        return [("on_test_begin", {}), ("on_test_end", test), ("on_epoch_end", stretch, expected)]

    begin, done = [("on_train_begin", {})], [("on_train_end", {})]
    assert first.calls == [*begin, ("on_epoch_begin", 0, {}), *batches(0, 4, step_losses[0]), *done]
    assert second.calls == [
        *begin,
        *(("on_epoch_begin", 0, {}), *batches(4, 5, step_losses[1]), *end(0, 5)),
        *(("on_epoch_begin", 1, {}), *batches(5, 7, step_losses[1]), *end(1, 7)),
        *done,
    ]
    assert first.params == {"epochs": 2, "steps": 5, "verbose": 0}
    assert first.model.optimizer is not None


@pytest.mark.slow
def test_epoch_ends_once_if_stopped_before_validation(tmp_path: Path, data: Path, on: On) -> None:
    first, second = Recorder(), Recorder()
    with pytest.raises(Stopped):
        interrupted(tiny_training(tmp_path / "run", data, on(), 7, [first]), 5).go()
    training = tiny_training(tmp_path / "run", data, on(), 5, [second])
    training.go()
    names = [hook for hook, *_ in first.calls]
    assert "on_epoch_end" not in names
    assert [call[:2] for call in second.calls] == [
        ("on_train_begin", {}),
        ("on_epoch_begin", 0),
        ("on_test_begin", {}),
        ("on_test_end", {"loss": second.calls[4][2]["val_loss"], "bits": second.calls[4][2]["val_bits"]}),
        ("on_epoch_end", 0),
        ("on_train_end", {}),
    ]
    assert second.calls[4][2] == logs(metrics.read(training.run.folder), 5)


def test_configured_callbacks_take_effect(
    tmp_path: Path, data: Path, on: On, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = [
        # No evaluation improves by 100 nats, so the first stays the best and the third stops the run.
        {"name": "EarlyStopping", "patience": 2, "min_delta": 100.0, "restore_best_weights": True},
        {"name": "CSVLogger", "filename": str(tmp_path / "log.csv")},
        {"name": "TensorBoard", "log_dir": str(tmp_path / "board")},
        {"name": "ModelCheckpoint", "filepath": str(tmp_path / "{epoch}.weights.h5"), "save_weights_only": True},
        {"name": "ModelCheckpoint", "filepath": str(tmp_path / "{epoch}.keras")},
    ]
    training = tiny_training(
        tmp_path / "run", data, on(), 30, make_callbacks(tiny_config(callbacks=tables).train), keep=9
    )
    training.go()
    assert "ended at step 15 of 30 by a callback" in capsys.readouterr().err
    rows = metrics.read(training.run.folder)
    ends = [logs(rows, step) for step in (5, 10, 15)]
    with (tmp_path / "log.csv").open() as file:
        logged = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert logged == [{"epoch": stretch, **end} for stretch, end in enumerate(ends)]
    for split, scalars in (
        ("train", {"epoch_loss": "loss", "epoch_learning_rate": "learning_rate"}),
        ("validation", {"epoch_loss": "val_loss"}),
    ):
        board = EventAccumulator(str(tmp_path / "board" / split)).Reload()
        for tag, name in scalars.items():
            values = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in board.Tensors(tag)]
            assert values == [(stretch, np.float32(end[name])) for stretch, end in enumerate(ends)], (split, tag)
    kept = {
        saved.step: checkpoint.load_model(training.run, saved).get_weights()
        for saved in checkpoint.checkpoints(training.run)
    }
    assert list(kept) == [0, 5, 10, 15]
    assert_weights_equal(
        training.steps.model.get_weights(), kept[5]
    )  # restored by EarlyStopping; checkpoints keep the trained weights
    for stretch, step in enumerate((5, 10, 15), start=1):
        model = training.run.build()
        model.load_weights(tmp_path / f"{stretch}.weights.h5")
        assert_weights_equal(model.get_weights(), kept[step])
        assert_weights_equal(keras.models.load_model(tmp_path / f"{stretch}.keras").get_weights(), kept[step])


def assert_weights_equal(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_learning_rate_set_by_callback_survives_resume(tmp_path: Path, data: Path, on: On) -> None:
    plateau = [{"name": "ReduceLROnPlateau", "factor": 0.5, "patience": 1, "min_delta": 100.0}]
    callbacks = make_callbacks(tiny_config(callbacks=plateau).train)
    tiny_training(tmp_path / "run", data, on(), 10, callbacks).go()
    training = tiny_training(tmp_path / "run", data, on(), 15)
    training.go()
    rates = [(row["step"], row["learning_rate"]) for row in metrics.read(training.run.folder) if "learning_rate" in row]
    full, half = float(np.float32(0.01)), float(np.float32(0.005))
    assert rates == [*((step, full) for step in (3, 5, 6, 9, 10)), (12, half), (15, half)]


def test_the_error_of_a_callback_names_it(tmp_path: Path, data: Path, on: On) -> None:
    stopping = make_callbacks(tiny_config(callbacks=[{"name": "EarlyStopping", "monitor": "nope"}]).train)
    with pytest.raises(StageError, match=r"train\.callbacks \(EarlyStopping\) failed \(ValueError: .*monitor=nope"):
        tiny_training(tmp_path / "run", data, on(), 10, stopping).go()


def test_callback_can_stop_training_between_evaluations(tmp_path: Path, data: Path, on: On) -> None:
    def end(batch: int, logs: dict[str, float]) -> None:
        training.steps.model.stop_training = batch == 2

    training = tiny_training(tmp_path / "run", data, on(), 10, [keras.callbacks.LambdaCallback(on_train_batch_end=end)])
    training._count = lambda step: 1  # type: ignore[method-assign]
    training.go()
    assert [(saved.step, saved.val_nats is None) for saved in checkpoint.checkpoints(training.run)] == [
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
            "'collections:OrderedDict' must be a keras.callbacks.Callback class, got <class",
        ),
        (
            {"name": "os:system", "command": "false"},
            "'os:system' must be a keras.callbacks.Callback class, got <built",
        ),
    ],
)
def test_invalid_callback_is_rejected_before_creating_the_run(
    tmp_path: Path, data: Path, table: dict[str, Any], message: str
) -> None:
    options = Options(unvalidated=True, allow_code=True)
    with pytest.raises(UsageError, match=rf"^\[train\] callbacks: {message}") as error:
        train_command(tiny_config(callbacks=[table]), data, tmp_path / "run", options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("class Mine(", r"SyntaxError: '\(' was never closed \(broken.py, line 1\)"),
        ("import keras\nclass Mine(keras.callbacks.Callback):\n def __init__(self): raise KeyError(1)", "KeyError: 1"),
    ],
)
def test_an_error_in_the_users_code_is_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=rf"'broken:Mine' cannot be created \({reason}\)$"):
        make_callbacks(tiny_config(callbacks=[{"name": "broken:Mine"}]).train, allow_code=True)
    sys.modules.pop("broken", None)


def test_code_of_a_config_runs_only_if_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("import keras, os\nos.mkdir('ran')\nclass Mine(keras.callbacks.Callback): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny_config(callbacks=[{"name": "mine:Mine"}]).train
    with pytest.raises(UsageError, match=r"'mine:Mine' is not from keras\.callbacks: pass --allow-code to import"):
        make_callbacks(config)
    assert not Path("ran").exists()
    assert [type(callback).__name__ for callback in make_callbacks(config, allow_code=True)] == ["Mine"]


@pytest.mark.parametrize("rate", [{"schedule": "cosine", "decay": 0.1}, {"warmup": 3}])
def test_reduce_lr_on_plateau_rejects_schedules(rate: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="ReduceLROnPlateau sets the learning rate, so it needs a constant one, got s"):
        make_callbacks(tiny_config(callbacks=[{"name": "ReduceLROnPlateau"}], **rate).train)
