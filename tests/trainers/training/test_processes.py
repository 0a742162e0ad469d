"""Training processes: resuming after kill -9, signals and lost workers."""

import json
import os
import re
import shutil
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
STEPS = 100
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
    """Folder with a data set and a config."""
    home = tmp_path_factory.mktemp("processes")
    make_data(home / "data" / "tiny", 1000, train=TEXT, val=TEXT[:61])
    (home / "tiny.toml").write_text(CONFIG)
    return home


def start(home: Path, name: str, *options: str, cluster: list[str] | None = None, worker: int = 0) -> subprocess.Popen:
    """Train runs/NAME in its own process, as a worker if there is a cluster."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if cluster:
        task = {"cluster": {"worker": cluster}, "task": {"type": "worker", "index": worker}}
        environment["TF_CONFIG"] = json.dumps(task)
    command = ["-m", "trainers", "train", "tiny.toml", "--unvalidated", "--out", f"runs/{name}", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], cwd=home, env=environment, stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for a process that must exit with `code`, and return its standard error."""
    _, message = process.communicate(timeout=600)
    assert process.returncode == code, message
    return message


def reach(home: Path, name: str, step: int, *processes: subprocess.Popen) -> None:
    """Wait until a run has a checkpoint of this step or a later one."""
    run = home / "runs" / name
    while not any(int(path.name[5:]) >= step for path in run.glob("checkpoints/step-*")):
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def run(home: Path, name: str) -> Run:
    return read_run(home / "runs" / name)


def curve(home: Path, name: str) -> list[tuple[int, str, float]]:
    """Return all reported losses of a run."""
    rows = metrics.read(run(home, name).folder)
    return [(row["step"], key, row[key]) for row in rows for key in ("train_nats", "val_nats") if key in row]


def weights(home: Path, name: str) -> list[np.ndarray]:
    last = checkpoint.checkpoints(run(home, name))[-1]
    assert last.step == STEPS
    return checkpoint.load_model(run(home, name), last).get_weights()


@pytest.fixture(scope="module")
def whole(home: Path) -> str:
    """Uninterrupted run on one device."""
    message = end(start(home, "whole"))
    assert not re.search("WARNING|I0000|E0000|Traceback", message), message
    return "whole"


def kill(home: Path, name: str, *options: str) -> None:
    """Resume a run and kill it at a random moment."""
    rng = np.random.default_rng()
    process = start(home, name, *options)
    step, delay = int(rng.integers(4, STEPS * 3 // 4)), float(rng.random() * 0.03)
    print(f"kill {delay:.4f} s after step {step}")
    reach(home, name, step, process)
    time.sleep(delay)  # evaluations and checkpoints are frequent, so kills often hit one
    process.kill()
    process.communicate()


def terminate(home: Path, name: str, number: signal.Signals) -> None:
    """Start a run, and stop it with a signal."""
    process = start(home, name)
    reach(home, name, 8, process)
    process.send_signal(number)
    message = end(process, 128 + number)
    step = checkpoint.checkpoints(run(home, name))[-1].step
    assert message.endswith(f"stopped at step {step:,}, and saved; the same command resumes from there\n")
    assert 8 <= step < STEPS


def check_equal(home: Path, name: str, whole: str) -> None:
    """Check that two runs are bit-identical: losses, weights, optimizer slots and carry."""
    assert curve(home, name) == curve(home, whole)
    last, uninterrupted = (checkpoint.checkpoints(run(home, each))[-1] for each in (name, whole))
    assert last.step == uninterrupted.step == STEPS
    assert checkpoint.weights_sha256(last) == checkpoint.weights_sha256(uninterrupted)  # hash of all tensors
    assert checkpoint.best(run(home, name)).val_nats == checkpoint.best(run(home, whole)).val_nats


def test_killed_run_resumes_bit_identically(home: Path, whole: str) -> None:
    kill(home, "killed")
    end(start(home, "killed"))
    check_equal(home, "killed", whole)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", ["1", "2"])
def test_run_killed_eight_times_resumes_bit_identically(home: Path, replicas: str) -> None:
    whole, killed, options = f"whole-{replicas}", f"killed-{replicas}", ("--replicas", replicas)
    end(start(home, whole, *options))
    for _ in range(8):
        kill(home, killed, *options)
    end(start(home, killed, *options))
    check_equal(home, killed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_saves_and_stops_the_run(home: Path, whole: str, number: signal.Signals) -> None:
    terminate(home, number.name, number)
    kill(home, number.name)
    end(start(home, number.name))
    check_equal(home, number.name, whole)


def check_close(home: Path, name: str, whole: str) -> None:
    """Check that the losses and final weights of two runs agree to within 1e-5."""
    for a, b in zip(curve(home, name), curve(home, whole), strict=True):
        assert a[:2] == b[:2]
        assert a[2] == pytest.approx(b[2], abs=1e-5)
    for a, b in zip(weights(home, name), weights(home, whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def start_workers(home: Path) -> list[subprocess.Popen]:
    cluster = addresses(2)
    return [start(home, "workers", cluster=cluster, worker=index) for index in range(2)]


@pytest.fixture(scope="module")
def orphaned(home: Path) -> None:
    """Run of two workers, one of which was killed."""
    workers = start_workers(home)
    reach(home, "workers", STEPS // 4, *workers)
    workers[1].kill()
    killed = time.monotonic()
    message = end(workers[0], 1)
    assert time.monotonic() - killed < 60
    assert "2 CPU replicas on 2 workers" in message
    assert "worker 0 lost the others" in message
    assert "resumes from step" in message
    assert "steps of" not in workers[1].communicate()[1], "only the chief reports"


@pytest.mark.usefixtures("orphaned")
@pytest.mark.slow
def test_two_worker_run_resumes_on_two_replicas(home: Path, whole: str) -> None:
    shutil.copytree(home / "runs" / "workers", home / "runs" / "moved")
    end(start(home, "moved", "--replicas", "2"))
    check_close(home, "moved", whole)


@pytest.mark.slow
@pytest.mark.usefixtures("orphaned")
def test_two_workers_match_one_device_and_resume(home: Path, whole: str) -> None:
    messages = [end(worker) for worker in start_workers(home)]
    assert "2 CPU replicas on 2 workers" in messages[0]
    assert "steps of" not in messages[1], "only the chief reports"
    check_close(home, "workers", whole)


@pytest.mark.slow
def test_two_replicas_match_one_device(home: Path, whole: str) -> None:
    end(start(home, "replicas", "--replicas", "2"))
    check_close(home, "replicas", whole)
