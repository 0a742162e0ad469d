"""What only whole processes show: kill -9, signals, several workers, and that a run goes on from all of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.scale import addresses
from pipeline.manifest import Manifest
from trainers import checkpoint, metrics
from trainers.run import Run, read_run

ROOT = Path(__file__).parents[3]
TEXT = b"the quick brown fox jumps over the lazy dog.\n" * 8
STEPS = 200
CONFIG = f"""
[model]
units = 8
layers = 2
dropout = 0.2

[train]
lanes = 4
window = 3
epochs = {STEPS / 30}
learning_rate = 0.01
schedule = "cosine"
decay = 0.1
precision = "float32"
evaluate_every = 4
report_every = 2
sample = 0
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]) -> Path:
    """A data set and a config."""
    home = tmp_path_factory.mktemp("processes")
    make_data(home / "data" / "tiny", 1000, train=TEXT, val=TEXT[:61])
    (home / "tiny.toml").write_text(CONFIG)
    return home


def start(home: Path, name: str, *options: str, cluster: list[str] | None = None, worker: int = 0) -> subprocess.Popen:
    """Trains runs/NAME in a process of its own; as a worker of a cluster if there is one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if cluster:
        task = {"cluster": {"worker": cluster}, "task": {"type": "worker", "index": worker}}
        environment["TF_CONFIG"] = json.dumps(task)
    command = [
        sys.executable,
        "-m",
        "trainers",
        "train",
        "tiny.toml",
        "--unvalidated",
        "--out",
        f"runs/{name}",
        *options,
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=home, env=environment, stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for a process, which must end with this code, and gives what it said."""
    _, said = process.communicate(timeout=180)
    assert process.returncode == code, said
    return said


def reach(home: Path, name: str, step: int, *processes: subprocess.Popen) -> None:
    """Waits until a run has a checkpoint of this step or of a later one."""
    run = home / "runs" / name
    while not any(int(path.name[5:]) >= step for path in run.glob("checkpoints/step-*")):
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def run(home: Path, name: str) -> Run:
    return read_run(home / "runs" / name)


def curve(home: Path, name: str) -> list[tuple[int, str, float]]:
    """All losses that a run has reported."""
    rows = metrics.read(run(home, name).folder)
    return [(row["step"], key, row[key]) for row in rows for key in ("train_nats", "val_nats") if key in row]


def weights(home: Path, name: str) -> list[np.ndarray]:
    last = checkpoint.checkpoints(run(home, name))[-1]
    assert last.step == STEPS
    return checkpoint.load_model(run(home, name), last).get_weights()


@pytest.fixture(scope="module")
def whole(home: Path) -> str:
    """A run on one device that nothing disturbed."""
    end(start(home, "whole"))
    return "whole"


def check_killed(home: Path, whole: str, name: str, kills: int, *options: str) -> None:
    """Kills a run at random moments and lets it go on each time: it must end as if nothing had been."""
    rng = np.random.default_rng()
    for _ in range(kills):
        process = start(home, name, *options)
        at, after = int(rng.integers(4, STEPS * 3 // 4)), float(rng.random() * 0.03)
        print(f"kill {after:.4f} s after step {at}")
        reach(home, name, at, process)
        time.sleep(after)  # evaluations and checkpoints follow each other closely: many a kill comes inside one
        process.kill()
        process.communicate()
    end(start(home, name, *options))
    assert curve(home, name) == curve(home, whole)
    last, undisturbed = (checkpoint.checkpoints(run(home, each))[-1] for each in (name, whole))
    assert last.step == undisturbed.step == STEPS
    # The file of all tensors: weights, optimizer slots, carry.
    assert checkpoint.weights_sha256(last) == checkpoint.weights_sha256(undisturbed)
    assert checkpoint.best(run(home, name)).val_nats == checkpoint.best(run(home, whole)).val_nats


def test_a_killed_run_ends_as_if_it_had_not_been(home: Path, whole: str) -> None:
    check_killed(home, whole, "killed", 2)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", ["1", "2"])
def test_a_run_killed_often_ends_as_if_it_had_not_been(home: Path, replicas: str) -> None:
    end(start(home, f"whole-{replicas}", "--replicas", replicas))
    check_killed(home, f"whole-{replicas}", f"killed-{replicas}", 8, "--replicas", replicas)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_ends_the_run(home: Path, whole: str, number: signal.Signals) -> None:
    process = start(home, number.name)
    reach(home, number.name, 8, process)
    process.send_signal(number)
    said = end(process, 128 + number)
    step = checkpoint.checkpoints(run(home, number.name))[-1].step
    assert said.endswith(f"stopped at step {step:,}, and saved; the same command goes on from there\n")
    assert 8 <= step < STEPS
    end(start(home, number.name))
    assert curve(home, number.name) == curve(home, whole)


def check_alike(home: Path, name: str, whole: str) -> None:
    """All losses and the last weights, to 1e-5."""
    for a, b in zip(curve(home, name), curve(home, whole), strict=True):
        assert a[:2] == b[:2]
        assert a[2] == pytest.approx(b[2], abs=1e-5)
    for a, b in zip(weights(home, name), weights(home, whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_two_replicas_train_as_one(home: Path, whole: str) -> None:
    end(start(home, "replicas", "--replicas", "2"))
    check_alike(home, "replicas", whole)


def test_two_workers_train_as_one_and_outlive_each_other(home: Path, whole: str) -> None:
    cluster = addresses(2)
    workers = [start(home, "workers", cluster=cluster, worker=index) for index in range(2)]
    reach(home, "workers", STEPS // 4, *workers)
    workers[1].kill()
    since = time.monotonic()
    said = end(workers[0], 1)
    assert time.monotonic() - since < 60
    assert "worker 0 lost the others" in said
    assert "goes on from step" in said
    workers[1].communicate()
    cluster = addresses(2)
    workers = [start(home, "workers", cluster=cluster, worker=index) for index in range(2)]
    said = [end(worker) for worker in workers]
    assert "2 CPU replicas on 2 workers" in said[0]
    assert "steps of" not in said[1], "the chief alone reports"
    check_alike(home, "workers", whole)
