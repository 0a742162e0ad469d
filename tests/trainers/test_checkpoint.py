"""A run's folder; and that a run that was stopped goes on as if it had not been."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from common.errors import StageError
from common.files import only_one
from pipeline.manifest import Manifest, read_manifest
from pipeline.vocab import Vocab, byte_vocab
from trainers import checkpoint
from trainers.config import RunConfig
from trainers.devices import Devices
from trainers.loop import Training
from trainers.loop import train as train_command

On = Callable[..., Devices]

TEXT = b"the quick brown fox jumps over the lazy dog.\n" * 12


def config(**train: object) -> RunConfig:
    settings = {"lanes": 4, "window": 9, "evaluate_every": 5, "learning_rate": 0.01, "epochs": 1.0, **train}
    return RunConfig.from_tables({"units": 8, "layers": 2, "dropout": 0.2}, settings, "test")


@pytest.fixture
def data(tmp_path: Path, make_data: Callable[..., Manifest]) -> Path:
    make_data(tmp_path / "data", 1000, train=TEXT, val=TEXT[:101], test=TEXT[:70])
    return tmp_path / "data"


def training(folder: Path, data: Path, devices: Devices, total: int, **settings: object) -> Training:
    manifest = read_manifest(data)
    run = checkpoint.open_run(folder, config(**settings), data, manifest)
    return Training(run, manifest, devices, an_epoch=15, total=total)


def result(one: Training) -> list[np.ndarray]:
    """Everything that training changes."""
    return [
        *one.steps.model.get_weights(),
        *(v.numpy() for v in one.steps.optimizer.variables),
        one.state.carry_BxLx2xH.numpy(),
    ]


@pytest.mark.parametrize("end", [None, "newline"])
@pytest.mark.parametrize(("before", "after"), [((1, 2), (1, 2)), ((1, 1), (2, 1)), ((2, 1), (1, 1))])
def test_a_run_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path,
    make_data: Callable[..., Manifest],
    on: On,
    before: tuple[int, int],
    after: tuple[int, int],
    end: Literal["newline"] | None,
) -> None:
    data = tmp_path / "data"
    make_data(data, 1000, byte_vocab(end), train=TEXT, val=TEXT[:101])
    # 20 steps cross the end of the first epoch (15), stopped at 10 inside it.
    whole = training(tmp_path / "whole", data, on(*before), total=20)
    whole.go()
    training(tmp_path / "parts", data, on(*before), total=10).go()
    rest = training(tmp_path / "parts", data, on(*after), total=20)
    rest.go()
    exact = before == after
    for a, b in zip(result(rest), result(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0 if exact else 1e-5)
    rows = [
        [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [0, 5, 10, 15, 20]
    for a, b in zip(*rows, strict=True):
        assert a["val_nats"] == pytest.approx(b["val_nats"], abs=1e-5)
    assert rows[0][-1]["val_nats"] < rows[0][0]["val_nats"]


def test_a_loaded_model_is_the_trained_one(tmp_path: Path, data: Path, on: On) -> None:
    one = training(tmp_path / "run", data, on(), total=10)
    one.go()
    run = checkpoint.read_run(tmp_path / "run")
    assert run == dataclasses.replace(one.run)
    last = checkpoint.checkpoints(run)[-1]
    for a, b in zip(checkpoint.load_model(run, last).get_weights(), one.steps.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(run.build().get_weights()[0] - one.steps.model.get_weights()[0]).max() > 0, "nothing was trained"


def test_the_last_and_the_best_are_kept(tmp_path: Path, data: Path, on: On) -> None:
    one = training(tmp_path / "run", data, on(), total=10, keep=2)
    for step, nats in ((1, 3.0), (2, 2.0), (3, 2.5), (4, 2.4), (5, 2.3)):
        one.state.save(one.run, step, nats)
    assert [(c.step, c.val_nats) for c in checkpoint.checkpoints(one.run)] == [(2, 2.0), (4, 2.4), (5, 2.3)]
    assert checkpoint.best(one.run).step == 2


def test_a_checkpoint_cut_short_in_writing_is_not_seen(
    tmp_path: Path, data: Path, on: On, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = training(tmp_path / "run", data, on(), total=10)
    one.state.save(one.run, 1, 3.0)

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "write_json", fail)
    with pytest.raises(OSError, match="no space left"):
        one.state.save(one.run, 2, 2.0)
    assert [c.step for c in checkpoint.checkpoints(one.run)] == [1]
    assert [path.name for path in (one.run.folder / "checkpoints").iterdir()] == ["step-00000001"]


def test_what_a_kill_left_behind_is_swept_away(tmp_path: Path, data: Path, on: On) -> None:
    one = training(tmp_path / "run", data, on(), total=10)
    one.state.save(one.run, 1, 3.0)
    (one.run.folder / "checkpoints" / ".step-00000002.partial-x").mkdir()
    checkpoint.sweep(one.run)
    assert [path.name for path in (one.run.folder / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path, data: Path, on: On) -> None:
    one = training(tmp_path / "run", data, on(), total=10)
    saved = one.state.save(one.run, 1, 3.0)
    path = saved.folder / "state.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StageError, match=r"step-00000001 is damaged"):
        checkpoint.load_model(one.run)
    about = (saved.folder / "checkpoint.json").read_text()
    for broken in ("", "{}", about.replace('"format_version": 1', '"format_version": 9')):
        (saved.folder / "checkpoint.json").write_text(broken)
        with pytest.raises(StageError, match=r"step-00000001 is damaged"):
            checkpoint.best(one.run)
    shutil.rmtree(saved.folder)
    with pytest.raises(StageError, match=r"has no checkpoint yet: train it with"):
        checkpoint.load_model(one.run)


def test_a_checkpoint_of_another_structure_is_damage(tmp_path: Path, data: Path, on: On) -> None:
    one = training(tmp_path / "run", data, on(), total=10)
    saved = one.state.save(one.run, 1, 3.0)
    deeper = RunConfig.from_tables({"units": 8, "layers": 3}, {"lanes": 4, "window": 9}, "test")
    other = Training(dataclasses.replace(one.run, config=deeper), read_manifest(data), on(), an_epoch=15, total=10)
    with pytest.raises(StageError, match=r"step-00000001 is damaged"):
        other.state.restore(saved)


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path: Path, data: Path, on: On) -> None:
    one = training(tmp_path / "run", data, on(), total=10)
    saved = one.state.save(one.run, 1, 3.0)
    manifest = dataclasses.replace(read_manifest(data), vocab=Vocab("byte", (b"a", b"b")))
    with pytest.raises(
        StageError, match=r"are of another vocabulary \(256 bytes\) than .*data \(2 bytes\); give the data"
    ):
        checkpoint.open_run(tmp_path / "run", config(), data, manifest)
    about = json.loads((saved.folder / "checkpoint.json").read_text())
    (saved.folder / "checkpoint.json").write_text(json.dumps({**about, "vocab_sha256": "0"}))
    with pytest.raises(StageError, match="step-00000001 is a checkpoint of another vocabulary than its run's"):
        checkpoint.load_model(one.run)


def test_the_carry_starts_empty_at_each_epoch_and_goes_on_within(
    tmp_path: Path, data: Path, on: On, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, empty = training(tmp_path / "run", data, on(), total=32), []
    step = one.steps.train

    def spy(batch: object, carry: object, count: object) -> object:
        empty.append(not np.any(one.steps.gather(carry)))
        return step(batch, carry, count)

    monkeypatch.setattr(one.steps, "train", spy)
    one.go()
    assert [step for step, was in enumerate(empty) if was] == [0, 15, 30]


def test_what_was_reported_after_the_last_checkpoint_is_taken_back(tmp_path: Path, data: Path, on: On) -> None:
    training(tmp_path / "run", data, on(), total=10).go()
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(
        whole + '{"step": 15, "val_nats": 1.0}\n{"step": 2'
    )  # killed before checkpoint 15, and in a line
    rest = training(tmp_path / "run", data, on(), total=15)
    rest.go()
    assert [row["step"] for row in checkpoint.read_metrics(rest.run)] == [0, 5, 10, 15]
    assert metrics.read_text().startswith(whole)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, data: Path, on: On) -> None:
    one = training(tmp_path / "run", data, on(), total=20)
    one.state.save(one.run, 5, 3.0)
    one.steps.model.dense.bias.assign(np.full(256, np.nan, np.float32))
    one.state.save(one.run, 10, 2.0)
    with pytest.raises(StageError, match=r"the loss at step 15 is nan; the last checkpoint is whole: try a lower"):
        training(tmp_path / "run", data, on(), total=20).go()
    assert [c.step for c in checkpoint.checkpoints(one.run)] == [5, 10]


def test_one_process_trains_a_run(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(StageError, match="another process is at work in"), only_one(tmp_path):
        pass


def test_other_data_or_settings_are_refused(tmp_path: Path, data: Path, make_data: Callable[..., Manifest]) -> None:
    manifest = read_manifest(data)
    run = checkpoint.open_run(tmp_path / "run", config(), data, manifest)
    longer = config(epochs=9.0, keep=7)
    assert checkpoint.open_run(tmp_path / "run", longer, data, manifest).config == longer
    assert checkpoint.read_run(tmp_path / "run").config == longer, "what the run is now is what run.json says"
    other = make_data(tmp_path / "other", 1000, train=TEXT[1:], val=TEXT[:101])
    with pytest.raises(StageError, match=r"was begun on other data than .*other now holds; give another --out"):
        checkpoint.open_run(run.folder, config(), tmp_path / "other", other)
    with pytest.raises(StageError, match=r"was begun with train.clip=5.0, not 1.0; give another --out"):
        checkpoint.open_run(run.folder, config(clip=1.0), data, manifest)
    # With a falling learning rate the number of steps is part of the schedule.
    checkpoint.open_run(tmp_path / "decay", config(decay=0.5), data, manifest)
    with pytest.raises(StageError, match=r"was begun with train.epochs=1.0, not 2.0"):
        checkpoint.open_run(tmp_path / "decay", config(decay=0.5, epochs=2.0), data, manifest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no run in"),
        ("{", "is broken"),
        ('{"format_version": 9}', "has format_version 9"),
        ("{}", "is broken"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(StageError, match=message):
        checkpoint.read_run(tmp_path)


def test_data_that_cannot_be_trained_on_is_refused_before_a_run_is_made(tmp_path: Path, data: Path) -> None:
    with pytest.raises(StageError, match=r"has not been validated: run python -m pipeline validate .*--unvalidated$"):
        train_command(config(), data, tmp_path / "run", replicas=None, unvalidated=False)
    with pytest.raises(
        StageError, match=r"too short for 50 lanes and a window of 20: .*windows of 20 fit 26 lanes at most"
    ):
        train_command(config(lanes=50, window=20), data, tmp_path / "run", replicas=None, unvalidated=True)
    assert not (tmp_path / "run").exists()
