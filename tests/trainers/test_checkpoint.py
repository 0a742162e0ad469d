"""Run folders, checkpoints and resuming."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tensorflow as tf
from crash import killed_at_each
from tiny_run import EPOCH_STEPS, TEXT, interrupted, tiny_config, tiny_training

from common.errors import StageError, Stopped, UsageError
from common.files import exclusive, load_json, write_json
from pipeline.manifest import Manifest, read_manifest
from pipeline.vocab import Vocab, byte_vocab
from trainers import checkpoint, metrics
from trainers.__main__ import cli
from trainers.checkpoint import ReportSums, TrainState
from trainers.config import ModelConfig, RunConfig
from trainers.model.char_rnn import CharRNN
from trainers.run import Run, data_of, hold, open_run, read_run
from trainers.training import loop
from trainers.training.devices import Devices
from trainers.training.loop import Options, Training
from trainers.training.loop import train as train_command
from trainers.training.optimizer import make_optimizer
from trainers.training.score import Score
from trainers.training.step import Totals

On = Callable[..., Devices]


@pytest.fixture
def data(tmp_path: Path, make_data: Callable[..., Manifest]) -> Path:
    make_data(tmp_path / "data", 1000, train=TEXT, val=TEXT[:101], test=TEXT[:70])
    return tmp_path / "data"


def open_tiny_run(folder: Path, data: Path, config: RunConfig, *allow: str, init_from: str = "") -> Run:
    manifest = read_manifest(data)
    return open_run(Run(folder, config, manifest.vocab, data, manifest.data_sha256, init_from), allow)


def untrained(training: Training) -> Training:
    """Replace the training step by constant losses, to test only the loop around it."""

    def train(_: object, carry: object, first: object, count: tf.Tensor) -> tuple[Totals, object]:
        return Totals(tf.fill([int(count)], 30.0), tf.fill([int(count)], 12), tf.ones([int(count)])), carry

    training.steps.train = train  # type: ignore[method-assign]
    return training


def training_state(training: Training) -> list[np.ndarray]:
    """Return weights, optimizer variables and carry: all state that training changes."""
    return [
        *training.steps.model.get_weights(),
        *(v.numpy() for v in training.steps.optimizer.variables),
        training.state.carry_BxLxSxH.numpy(),
    ]


@pytest.mark.parametrize(
    ("before", "after", "end", "optimizer", "precision"),
    [
        ((1, 2), (1, 2), "newline", "adam", "float32"),
        ((1, 2), (1, 2), None, "muon", "bfloat16"),
        pytest.param((2, 1), (1, 1), "newline", "muon", "float32", marks=pytest.mark.slow),
        pytest.param((2, 1), (2, 1), None, "muon", "float32", marks=pytest.mark.slow),
        pytest.param((1, 1), (2, 1), None, "adam", "float32", marks=pytest.mark.slow),
    ],
)
def test_resumed_run_matches_uninterrupted_run(
    tmp_path: Path,
    make_data: Callable[..., Manifest],
    on: On,
    before: tuple[int, int],
    after: tuple[int, int],
    end: Literal["newline"] | None,
    optimizer: str,
    precision: str,
) -> None:
    data = tmp_path / "data"
    make_data(data, 1000, byte_vocab(end), train=TEXT, val=TEXT[:101])
    settings = {"optimizer": optimizer, "precision": precision}
    # 20 steps cross the end of epoch 1 (15 steps). The stop at step 7 is inside it, between two reports.
    whole = tiny_training(tmp_path / "whole", data, on(*before), total=20, **settings)
    assert getattr(whole.steps.optimizer, "matmul_dtype", precision) == precision
    whole.go()
    part = tiny_training(tmp_path / "parts", data, on(*before), total=20, **settings)
    with pytest.raises(Stopped, match="stopped at step 7, and saved"):
        interrupted(part, 7).go()
    rest = tiny_training(tmp_path / "parts", data, on(*after), total=20, **settings)
    rest.go()
    exact = before == after
    for a, b in zip(training_state(rest), training_state(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0 if exact else 1e-5)
    rows = [metrics.read(training.run.folder) for training in (whole, rest)]
    assert [row["step"] for row in rows[0]] == [0, 3, 5, 5, 6, 9, 10, 10, 12, 15, 15, 18, 20, 20]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds", "per_second", "memory"}:
            assert a[name] == pytest.approx(b[name], abs=1e-5, rel=0 if exact else 1e-5), name
    assert rows[0][-1]["val_nats"] < rows[0][0]["val_nats"]


def test_load_model_returns_trained_weights(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10)
    training.go()
    run = read_run(tmp_path / "run")
    assert run == training.run
    last = checkpoint.checkpoints(run)[-1]
    for a, b in zip(checkpoint.load_model(run, last).get_weights(), training.steps.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(run.build().get_weights()[0] - training.steps.model.get_weights()[0]).max() > 0, (
        "training must change the weights"
    )


def test_last_and_best_checkpoints_are_kept(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10, keep=2)
    for step, nats in ((1, 3.0), (2, 2.0), (3, 2.5), (4, 2.4), (5, 2.3)):
        training.state.save(training.run, step, nats)
    assert [(c.step, c.val_nats) for c in checkpoint.checkpoints(training.run)] == [(2, 2.0), (4, 2.4), (5, 2.3)]
    assert checkpoint.best(training.run).step == 2


@pytest.mark.slow
def test_snapshots_are_written_and_kept_without_changing_the_run(tmp_path: Path, data: Path, on: On) -> None:
    plain = tiny_training(tmp_path / "plain", data, on(), total=12, keep=1)
    training = tiny_training(tmp_path / "run", data, on(), total=12, keep=1, snapshots=[0, 2, 7, 99])
    for each in (plain, training):
        each.go()
    steps = [saved.step for saved in checkpoint.checkpoints(training.run)]
    best = checkpoint.best(plain.run).step
    assert steps == sorted({0, 2, 7, best, 12})
    for a, b in zip(plain.steps.model.get_weights(), training.steps.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    half = tiny_training(tmp_path / "half", data, on(), total=7)
    half.go()
    snapshot = checkpoint.load_model(training.run, checkpoint.choose(training.run, "7"))
    for a, b in zip(snapshot.get_weights(), half.steps.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_is_pruned(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=EPOCH_STEPS, keep=1)
    training.state.save(training.run, EPOCH_STEPS - 1, 3.0)
    old = checkpoint.checkpoints(training.run)[0].folder
    shutil.copytree(old, tmp_path / "old")
    training.state.save(training.run, EPOCH_STEPS, 2.0)
    shutil.copytree(tmp_path / "old", old)  # as if killed before removing it; on the next line, while removing it
    shutil.copytree(tmp_path / "old", old.parent / ".step-00000005.partial-abcdefgh" / "step-00000005.old")
    train_command(tiny_config(keep=1), data, tmp_path / "run", Options(unvalidated=True))
    assert [path.name for path in old.parent.iterdir()] == [f"step-{EPOCH_STEPS:08d}"]


def test_incomplete_checkpoint_is_ignored(tmp_path: Path, data: Path, on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10)
    training.state.save(training.run, 1, 3.0)

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "write_record", fail)
    with pytest.raises(OSError, match="no space left"):
        training.state.save(training.run, 2, 2.0)
    assert [c.step for c in checkpoint.checkpoints(training.run)] == [1]
    assert [path.name for path in (training.run.folder / "checkpoints").iterdir()] == ["step-00000001"]


def test_partial_checkpoints_of_a_killed_process_are_removed(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10)
    training.state.save(training.run, 1, 3.0)
    (training.run.folder / "checkpoints" / ".step-00000002.partial-x").mkdir()
    with hold(training.run, chief=True):
        assert [path.name for path in (training.run.folder / "checkpoints").iterdir()] == ["step-00000001"]


def test_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "run"

    def start() -> None:
        with hold(open_tiny_run(folder, data, tiny_config()), chief=True):
            pass

    for _ in killed_at_each(lambda: shutil.rmtree(folder, ignore_errors=True), start):
        start()
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "run.json"]


def test_folders_of_the_user_among_the_checkpoints_are_left_alone(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10, keep=1)
    own = [training.run.folder / "checkpoints" / name for name in ("step-00000001.bak", "step-16-exported")]
    for folder in own:
        folder.mkdir(parents=True)
    for step in (99_999_999, 100_000_000):
        training.state.save(training.run, step, 3.0)
    with hold(training.run, chief=True):
        assert [saved.step for saved in checkpoint.checkpoints(training.run)] == [99_999_999, 100_000_000]
        checkpoint.prune(training.run)
    assert checkpoint.last_step(training.run) == 100_000_000
    assert all(folder.exists() for folder in own)


def test_a_checkpoint_that_a_training_replaced_is_not_called_corrupted(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10)
    saved = training.state.save(training.run, 1, 3.0)
    shutil.rmtree(saved.folder)
    with pytest.raises(StageError, match=rf"^{saved.folder} is gone, replaced by a later one of a running training"):
        checkpoint.load_model(training.run, saved)


def test_a_kill_while_saving_leaves_whole_checkpoints(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10, keep=1)
    run, state = training.run, training.state

    def prepare() -> None:
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        for step, nats in ((1, 2.0), (2, 2.5)):
            state.save(run, step, nats)

    kept = set()
    for _ in killed_at_each(prepare, lambda: state.save(run, 3, 2.6)):
        with hold(run, chief=True):
            names = {path.name for path in (run.folder / "checkpoints").iterdir()}
        steps = [saved.step for saved in checkpoint.checkpoints(run)]
        assert names == {f"step-{step:08d}" for step in steps}
        last = state.restore_last(run)
        assert last is not None
        assert last.step == steps[-1]
        kept.add(tuple(steps))
    assert kept == {(1, 2), (1, 2, 3), (1, 3)}


def test_corrupted_checkpoint_is_reported(
    tmp_path: Path, data: Path, on: On, capsys: pytest.CaptureFixture[str]
) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10)
    saved = training.state.save(training.run, 1, 3.0)
    path = saved.folder / "state.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StageError, match=r"step-00000001 is corrupted"):
        checkpoint.load_model(training.run)
    about = (saved.folder / "checkpoint.json").read_text()
    for broken in ("", "{}", about.replace('"format_version": 4', '"format_version": 9')):
        (saved.folder / "checkpoint.json").write_text(broken)
        with pytest.raises(StageError, match=r"step-00000001 is corrupted \(.*\): remove it to use another"):
            checkpoint.best(training.run)
        assert checkpoint.checkpoints(training.run) == []
        assert "step-00000001 is corrupted" in capsys.readouterr().err
    shutil.rmtree(saved.folder)
    with pytest.raises(StageError, match=r"has no checkpoint yet: train it with"):
        checkpoint.load_model(training.run)


def test_checkpoint_of_another_model_is_rejected(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10)
    saved = training.state.save(training.run, 1, 3.0)
    deeper = RunConfig.from_tables({"units": 8, "layers": 3}, {"lanes": 4, "window": 3, "precision": "float32"}, "test")
    other = Training(dataclasses.replace(training.run, config=deeper), read_manifest(data), on(), EPOCH_STEPS, 10)
    with pytest.raises(StageError, match=r"step-00000001 is corrupted"):
        other.state.restore(saved)


def test_checkpoint_of_another_vocabulary_is_rejected(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10)
    saved = training.state.save(training.run, 1, 3.0)
    with pytest.raises(
        StageError, match=r"have another vocabulary \(256 bytes\) than .*data \(2 bytes\): pass its training data"
    ):
        open_run(dataclasses.replace(training.run, vocab=Vocab("byte", (b"a", b"b"))))
    about = load_json(saved.folder / "checkpoint.json")
    (saved.folder / "checkpoint.json").write_text(json.dumps({**about, "vocab_sha256": "0"}))
    with pytest.raises(StageError, match="step-00000001 was saved with a different vocabulary than its run's"):
        checkpoint.load_model(training.run)


def test_carry_is_reset_only_at_epochs(tmp_path: Path, data: Path, on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    training, carries = tiny_training(tmp_path / "run", data, on(), total=32), []
    train = training.steps.train

    def spy(batches: object, carry: object, first: object, count: object) -> object:
        carries.append((int(first), not np.any(training.steps.gather(carry))))
        return train(batches, carry, first, count)

    monkeypatch.setattr(training.steps, "train", spy)
    training.go()
    assert [step for step, is_empty in carries if is_empty] == [0, 15, 30]
    assert len(carries) > 3, "each epoch takes several calls"


def test_resuming_drops_reports_after_the_last_checkpoint(tmp_path: Path, data: Path, on: On) -> None:
    untrained(tiny_training(tmp_path / "run", data, on(), total=10)).go()
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(
        whole + '{"step": 15, "val_nats": 1.0}\n{"step": 2'
    )  # killed before checkpoint 15, while writing a line
    rest = untrained(tiny_training(tmp_path / "run", data, on(), total=15))
    rest.go()
    assert [row["step"] for row in metrics.read(rest.run.folder) if "val_nats" in row] == [0, 5, 10, 15]
    assert path.read_text().startswith(whole)


def test_nan_loss_stops_the_run(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=20)
    training.state.save(training.run, 5, 3.0)
    training.steps.model.dense.bias.assign(np.full(256, np.nan, np.float32))
    training.state.save(training.run, 10, 2.0)
    with pytest.raises(
        StageError, match=r"the loss or its gradient is nan before step 1\d; the checkpoint of step 10 is intact. Try a"
    ):
        tiny_training(tmp_path / "run", data, on(), total=20).go()
    assert [c.step for c in checkpoint.checkpoints(training.run)] == [5, 10]


def test_diverging_loss_stops_the_run(tmp_path: Path, data: Path, on: On) -> None:
    training = untrained(tiny_training(tmp_path / "run", data, on(), total=20))
    constant = training.steps.train

    def train(batches: object, carry: object, first: tf.Tensor, count: tf.Tensor) -> tuple[Totals, object]:
        totals, carry = constant(batches, carry, first, count)
        return totals._replace(nats=totals.nats * (1 if int(first) < 3 else 4)), carry

    training.steps.train = train  # type: ignore[method-assign]
    with pytest.raises(
        StageError, match=r"the loss rose to 10\.000 nats from 2\.500 before step 5; the checkpoint of step 0 is intact"
    ):
        training.go()
    assert checkpoint.best(training.run).val_nats < 6, "the kept checkpoint predates the divergence"


@pytest.mark.parametrize("dtype", [tf.float16, tf.float32])
def test_only_in_float16_gradients_that_stay_zero_stop_the_run(
    tmp_path: Path, data: Path, on: On, monkeypatch: pytest.MonkeyPatch, dtype: tf.DType
) -> None:
    monkeypatch.setattr("trainers.training.loop.MOST_SKIPPED", 5)
    training = untrained(tiny_training(tmp_path / "run", data, on(), total=20))
    training.steps.model.matmul_dtype = dtype
    used, nonzero = training.steps.train, iter([False, True])

    def train(*arguments: object) -> tuple[Totals, object]:
        totals, carry = used(*arguments)
        return totals._replace(gradient_norm=totals.gradient_norm * next(nonzero, False)), carry

    training.steps.train = train  # type: ignore[method-assign]
    if dtype == tf.float32:
        training.go()
        assert checkpoint.last_step(training.run) == 20
        return
    with pytest.raises(StageError, match=r"the gradients of the last \d+ steps were beyond float16's range: use train"):
        training.go()
    assert training.skipped >= 5
    training.skipped = 2
    training._check(1, 1.0, [], np.array([0, 1, 0, 0, 0, 0]))
    assert training.skipped == 4, "those before the last gradient do not count"
    with pytest.raises(StageError, match="the gradients of the last 5 steps"):
        training._check(2, 1.0, [], np.array([0]))


def test_patience_ends_the_run(
    tmp_path: Path, data: Path, on: On, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_: Score(next(losses), 1))
    parts = [untrained(tiny_training(tmp_path / "run", data, on(), total=60, patience=2))]
    with pytest.raises(Stopped):
        interrupted(parts[0], 12).go()  # after losses 5, 3 and 4, which must still count on resume
    parts.append(untrained(tiny_training(tmp_path / "run", data, on(), total=60, patience=2)))
    parts[1].go()
    assert [row["val_nats"] for row in metrics.evaluations(parts[1].run.folder)] == [5.0, 3.0, 4.0, 2.0, 2.5, 2.0]
    assert "ended at step 25 of 60 by 2 evaluations without improvement" in capsys.readouterr().err
    assert loop.done(parts[1].run, 60) == "25: 2 evaluations without improvement"
    assert checkpoint.best(parts[1].run).step == 15


def test_init_from_copies_the_weights_of_another_run(
    tmp_path: Path, data: Path, on: On, make_data: Callable[..., Manifest]
) -> None:
    before = tiny_training(tmp_path / "before", data, on(), total=5)
    before.state.save(before.run, 5, 3.0)
    source = checkpoint.Pretrained.read(tmp_path / "before")
    assert source.name.startswith("before at step 5 (")
    # A vocabulary with three known symbols at new ids, and a new one.
    vocab = Vocab("char", (b"\n", b"a", b"x", "é".encode()))
    for embedding in (0, 5):
        model = CharRNN(ModelConfig(units=8, layers=2, embedding=embedding), 256, seed=4)
        source_run = dataclasses.replace(before.run, config=dataclasses.replace(before.run.config, model=model.config))
        optimizer = make_optimizer(source_run.config.train, 1, 1, model.trainable_variables, model.inner_kernels)
        initial = dataclasses.replace(
            source, run=source_run, chosen=TrainState(model, optimizer, 4).save(source_run, 7, 2.0)
        )
        target, fresh = (CharRNN(model.config, 4, seed=9) for _ in range(2))
        initial.copy_to(target, vocab)
        kept = [ord("\n"), ord("a"), ord("x")]
        for weight, source_weight, fresh_weight in zip(target.weights, model.weights, fresh.weights, strict=True):
            value, source_value, initial_value = (x.numpy() for x in (weight, source_weight, fresh_weight))
            if value.shape == source_value.shape:
                np.testing.assert_array_equal(value, source_value)
                continue
            axis = [a == b for a, b in zip(value.shape, source_value.shape, strict=True)].index(False)
            value, source_value, initial_value = (np.moveaxis(x, axis, 0) for x in (value, source_value, initial_value))
            np.testing.assert_array_equal(value[:3], source_value[kept])
            np.testing.assert_array_equal(value[3], initial_value[3])
    with pytest.raises(StageError, match=r"before has model.units=8, this run 6: they must be equal"):
        source.check(ModelConfig(units=6, layers=2, dropout=0.2))


def test_second_process_cannot_train_the_same_run(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(StageError, match="another process is using"), exclusive(tmp_path):
        pass


def test_changed_data_or_settings_are_rejected_unless_allowed(
    tmp_path: Path, data: Path, make_data: Callable[..., Manifest]
) -> None:
    def begin(name: str, config: RunConfig) -> Path:
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", open_tiny_run(tmp_path / name, data, config).to_json())
        return tmp_path / name

    folder = begin("run", tiny_config())
    assert open_tiny_run(folder, data, longer := tiny_config(epochs=9.0, keep=7)).config == longer
    make_data(tmp_path / "other", 1000, train=TEXT[1:], val=TEXT[:101])
    with pytest.raises(StageError, match=r"other settings \(data \w{12} -> \w{12}\): pass another --out, or --allow"):
        open_tiny_run(folder, tmp_path / "other", tiny_config())
    assert open_tiny_run(folder, tmp_path / "other", tiny_config(), "data").data == tmp_path / "other"
    changed = tiny_config(clip=1.0, seed=2)
    both = r"\(train.clip 5.0 -> 1.0; train.seed 1 -> 2\): .*or --allow train.clip --allow train.seed$"
    with pytest.raises(StageError, match=both):
        open_tiny_run(folder, data, changed)
    with pytest.raises(StageError, match=r"\(train.seed 1 -> 2\)"):
        open_tiny_run(folder, data, changed, "train.clip")
    assert open_tiny_run(folder, data, changed, "train.clip", "train.seed").config == changed
    with pytest.raises(UsageError, match=r"--allow train.clap: unknown setting; train.clip, train.seed differs"):
        open_tiny_run(folder, data, changed, "train.clap")
    with pytest.raises(StageError, match=r"cannot resume with another train.lanes \(train.lanes 4 -> 2\): pass"):
        open_tiny_run(folder, data, tiny_config(lanes=2), "train.lanes")
    with pytest.raises(StageError, match=r"from new weights, not from x at step 3: omit --init-from to resume it, or"):
        open_tiny_run(folder, data, tiny_config(), init_from="x at step 3")
    # A decaying learning rate depends on the total number of steps.
    decay = begin("decay", tiny_config(schedule="cosine", decay=0.5))
    with pytest.raises(StageError, match=r"\(train.epochs 1.0 -> 2.0\)"):
        open_tiny_run(decay, data, tiny_config(schedule="cosine", decay=0.5, epochs=2.0))


def test_allowed_learning_rate_change_takes_effect(tmp_path: Path, data: Path, on: On) -> None:
    training = untrained(tiny_training(tmp_path / "run", data, on(), total=5))
    with hold(training.run, chief=True):
        training.go()
    run = open_tiny_run(tmp_path / "run", data, tiny_config(learning_rate=0.25), "train.learning_rate")
    untrained(Training(run, read_manifest(data), on(), EPOCH_STEPS, 8)).go()
    rates = [row["learning_rate"] for row in metrics.read(run.folder) if "learning_rate" in row]
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.25, 0.25])  # after steps 3, 5, 6 and 8


@pytest.mark.slow
def test_run_stopped_before_last_validation_is_not_done(tmp_path: Path, data: Path, on: On) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=7)
    with pytest.raises(Stopped):
        interrupted(training, 7).go()
    assert checkpoint.checkpoints(training.run)[-1].val_nats is None
    assert loop.done(training.run, 7) == ""
    untrained(tiny_training(tmp_path / "run", data, on(), total=7)).go()
    last = checkpoint.checkpoints(training.run)[-1]
    assert last.step == 7
    assert last.val_nats is not None
    assert loop.done(training.run, 7) == "7 of 7"


def test_nan_gradient_is_not_saved(tmp_path: Path, data: Path, on: On) -> None:
    training = untrained(tiny_training(tmp_path / "run", data, on(), total=20))
    train = training.steps.train

    def spy(batches: object, carry: object, first: object, count: object) -> object:
        totals, carry = train(batches, carry, first, count)
        return totals._replace(gradient_norm=totals.gradient_norm * (np.nan if int(first) >= 6 else 1)), carry

    training.steps.train = spy  # type: ignore[method-assign]
    with pytest.raises(StageError, match="the loss or its gradient is nan before step"):
        training.go()
    assert checkpoint.checkpoints(training.run)[-1].step == 5


def test_overfitting_is_not_divergence(tmp_path: Path, data: Path, on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "evaluate", lambda *_: Score(50.0, 1))  # far above the training loss
    training = untrained(tiny_training(tmp_path / "run", data, on(), total=10))
    training.go()
    assert [row["val_nats"] for row in metrics.evaluations(training.run.folder)] == [50.0] * 3


def test_auto_precision_is_resolved_once(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.run.default_precision", lambda: "bfloat16")
    run = open_tiny_run(tmp_path / "run", data, tiny_config(precision="auto"))
    assert run.config.train.precision == "bfloat16"
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "run.json", run.to_json())
    monkeypatch.setattr("trainers.run.default_precision", lambda: "float32")  # as on a different processor
    assert open_tiny_run(tmp_path / "run", data, tiny_config(precision="auto")).config.train.precision == "bfloat16"


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_gpu_precisions_are_rejected_on_a_cpu(tmp_path: Path, data: Path, precision: str) -> None:
    with pytest.raises(UsageError, match=f"^precision {precision} is for GPUs: set train.precision=float32 on a CPU$"):
        train_command(tiny_config(precision=precision), data, tmp_path / "run", Options(unvalidated=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "json", "gone"])
def test_corrupted_last_checkpoint_is_skipped_on_restore(
    tmp_path: Path, data: Path, on: On, damage: str, capsys: pytest.CaptureFixture[str], rng: np.random.Generator
) -> None:
    training = tiny_training(tmp_path / "run", data, on(), total=10)
    first = [weight.copy() for weight in training.steps.model.get_weights()]
    training.state.save(training.run, 5, 3.0, ReportSums(1.5, 3, 0.25))
    training.steps.model.dense.bias.assign(np.ones(256))
    last = training.state.save(training.run, 10, 2.0)
    file = last.folder / ("checkpoint.json" if damage == "json" else "state.data-00000-of-00001")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content[: len(content) // 2] if damage in ("cut", "json") else content)
    if damage == "gone":
        file.unlink()
    restored = training.state.restore_last(training.run)
    assert restored
    assert (restored.step, restored.since) == (5, ReportSums(1.5, 3, 0.25))
    for a, b in zip(training.steps.model.get_weights(), first, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "step-00000010 is corrupted (" in capsys.readouterr().err
    names = [path.name for path in (training.run.folder / "checkpoints").iterdir()]
    assert sorted(names) == ["damaged-step-00000010", "step-00000005"]
    (restored.folder / "checkpoint.json").write_text("")
    for _ in range(2):  # the second time, after they were moved aside
        with pytest.raises(
            StageError, match=r"all checkpoints of .*run are corrupted: remove the run, or pass another --out"
        ):
            training.state.restore_last(training.run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run in"),
        ("{", "is corrupted"),
        ('{"format_version": 9}', "has format_version 9"),
        ("{}", "is corrupted"),
    ],
)
def test_invalid_run_is_rejected(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(StageError, match=message):
        read_run(tmp_path)


def test_unusable_data_is_rejected_before_creating_the_run(tmp_path: Path, data: Path) -> None:
    with pytest.raises(StageError, match=r"has not been validated: run python -m pipeline validate .*--unvalidated$"):
        train_command(tiny_config(), data, tmp_path / "run")
    with pytest.raises(
        StageError, match=r"too short for 50 lanes and a window of 20: .*with windows of 20, use at most 8 lanes"
    ):
        train_command(tiny_config(lanes=50, window=20), data, tmp_path / "run", Options(unvalidated=True))
    assert not (tmp_path / "run").exists()


def test_text_of_2000_characters_needs_fewer_lanes_than_the_default(
    tmp_path: Path, make_data: Callable[..., Manifest]
) -> None:
    text, default = (TEXT * 20)[:2000], RunConfig.from_tables({}, {}, "test")
    make_data(tmp_path / "data", 1000, train=text[:1800], val=text[1800:])
    with pytest.raises(StageError, match=r"needs 2501 tokens, but has 1800; with windows of 50, use at most 35 lanes"):
        train_command(default, tmp_path / "data", tmp_path / "run", Options(unvalidated=True))


def test_damaged_data_is_detected_at_the_start(tmp_path: Path, data: Path) -> None:
    run = open_tiny_run(tmp_path / "run", data, tiny_config())
    shard = data / "val-00000-of-00001.tokens"
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(StageError, match=r"val-00000-of-00001\.tokens is corrupted: run ingest again with --force"):
        data_of(run, None)
    with pytest.raises(StageError, match=r"val-00000-of-00001\.tokens is corrupted"):
        train_command(tiny_config(), data, tmp_path / "run", Options(unvalidated=True))


@pytest.mark.parametrize(
    "command",
    ["train tiny.toml --data data --out other --unvalidated", "evaluate run", "judge run", "neurons run"],
)
def test_verify_reads_shards_that_look_unchanged(
    tmp_path: Path, saved_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text("[train]\nlanes = 4\nwindow = 3\n")
    run = read_run(saved_run(tmp_path, train=TEXT, val=TEXT[:101], test=TEXT[:70]))
    data_of(run, None)
    shard = Path("data/val-00000-of-00001.tokens")
    status = shard.stat()
    shard.write_bytes(shard.read_bytes()[::-1])
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    data_of(run, None)  # trusts the shard's size, time and inode
    with pytest.raises(StageError, match=r"val-00000-of-00001\.tokens is corrupted: run ingest again with --force"):
        cli.main([*command.split(), "--verify"], standalone_mode=False)
