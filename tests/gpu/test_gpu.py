"""Tests that need a GPU: cuDNN's op against the graph loop, replicas, and runs that repeat their bits.

Two logical GPUs share the first card (tests/conftest.py).
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from layer_cases import KINDS, RESETS, V, case, results

from pipeline.lanes import Batch
from pipeline.manifest import Manifest
from trainers import checkpoint, metrics
from trainers.config import ModelConfig, TrainConfig
from trainers.model.cells import CELLS
from trainers.model.char_rnn import CharRNN
from trainers.run import read_run
from trainers.training.devices import Devices
from trainers.training.optimizer import make_optimizer
from trainers.training.step import Steps

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]

# Distance from the loop in float32, relative in norm.
TOLERANCE = {"float32": 2e-5, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 1e-2}


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    assert tf.config.list_logical_devices("GPU"), "TensorFlow sees no GPU"
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(False)


def compare(model: CharRNN, rng: np.random.Generator, B: int, T: int, resets: str, precision: str) -> None:
    """Compare values and gradients through cuDNN in a precision with those of the loop in float32, as graphs."""
    assert model.use_cudnn, "a visible GPU must be used"
    ids, carry, weigh = case(rng, model, B, T)
    ids, reset = tf.constant(ids), RESETS[resets](rng, B, T)
    masks = model.dropout_masks(B, T, tf.constant([1, 2]))

    def run() -> list[np.ndarray]:
        return [x.numpy() for x in tf.function(lambda: results(model, ids, carry, masks, reset, weigh))()]

    tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")
    model.matmul_dtype = tf.as_dtype(precision.replace("tf32", "float32"))
    through_cudnn = run()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    model.use_cudnn, model.matmul_dtype = False, tf.float32
    for index, (actual, expected) in enumerate(zip(through_cudnn, run(), strict=True)):
        difference = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)
        assert difference < TOLERANCE[precision], f"result {index}: {difference:.1e} apart"


CASES = [(cell, kind, resets) for cell in CELLS for kind in KINDS for resets in ("no documents", "documents")]
CASES += [("lstm", "plain", resets) for resets in RESETS if resets not in ("no documents", "documents")]


@pytest.mark.parametrize(("cell", "kind", "resets"), CASES)
def test_cudnn_matches_the_loop_at_odd_sizes(rng: np.random.Generator, cell: Any, kind: str, resets: str) -> None:
    compare(CharRNN(ModelConfig(units=7, cell=cell, **KINDS[kind]), V), rng, 3, 23, resets, "float32")


@pytest.mark.parametrize("resets", ["no documents", "documents"])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("size", [(2, 128, 50, 50), (3, 512, 64, 100)])
def test_precisions_at_sizes_in_use(
    rng: np.random.Generator, size: tuple[int, ...], precision: str, resets: str
) -> None:
    layers, units, B, T = size
    compare(CharRNN(ModelConfig(units=units, layers=layers), V), rng, B, T, resets, precision)


def build(devices: Devices, **settings: Any) -> Steps:
    config = TrainConfig(learning_rate=0.01)
    with devices.strategy.scope():
        model = CharRNN(ModelConfig(units=32, layers=2, **settings), V, seed=3)
        model.use_cudnn = devices.gpu
        optimizer = make_optimizer(config, 100, 10, model.trainable_variables, model.inner_kernels)
    return Steps(devices, model, optimizer, config)


def train(steps: Steps, ids: np.ndarray, reset: np.ndarray | None, T: int) -> list[np.ndarray]:
    """Train on windows of T characters, and return losses, carry and weights."""
    N = (ids.shape[1] - 1) // T
    parts = [np.stack([x[:, k * T : (k + 1) * T] for k in range(N)]) for x in (ids, ids[:, 1:])]
    parts += [np.full((N, len(ids)), T, np.int32)]
    parts += [] if reset is None else [np.stack([reset[:, k * T : (k + 1) * T] for k in range(N)])]
    batches = iter(tf.data.Dataset.from_tensor_slices(Batch(*parts)))
    totals, carry = steps.train(
        batches, steps.scatter(steps.model.initial_carry(len(ids))), tf.constant(0, tf.int64), tf.constant(N)
    )
    return [totals.nats / tf.cast(totals.targets, tf.float32), steps.gather(carry), *steps.model.get_weights()]


@pytest.fixture(scope="module")
def on() -> dict[str, Devices]:
    """Devices: a CPU, a GPU, two GPUs. Strategies over the same devices share collective keys, so build each once."""
    return {
        "cpu": Devices(tf.distribute.MirroredStrategy(["CPU:0"]), 1),
        "gpu": Devices(tf.distribute.MirroredStrategy(["GPU:0"]), 1, gpu=True),
        "two": Devices(tf.distribute.MirroredStrategy(["GPU:0", "GPU:1"]), 2, gpu=True),
    }


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("settings", [{}, {"cell": "gru", "dropout": 0.2}])
def test_two_replicas_and_a_cpu_match_one_gpu(
    rng: np.random.Generator, on: dict[str, Devices], settings: dict[str, Any], documents: bool
) -> None:
    ids = rng.integers(0, V, (16, 20 * 10 + 1)).astype(np.uint8)
    reset = rng.random(ids.shape) < 0.1 if documents else None
    one, *others = (train(build(devices, **settings), ids, reset, 20) for devices in (on["gpu"], on["two"], on["cpu"]))
    for other in others:
        for actual, expected in zip(other, one, strict=True):
            np.testing.assert_allclose(actual, expected, atol=2e-3)


CONFIG = """[model]
units = 32
[train]
lanes = 8
window = 10
learning_rate = 0.01
evaluate_every = 25
report_every = 5
sample = 20
"""


@pytest.mark.parametrize("precision", ["float32", "tf32", "float16", "bfloat16"])
def test_resumed_runs_repeat_the_bits(tmp_path: Path, make_data: Callable[..., Manifest], precision: str) -> None:
    text = "".join(np.random.default_rng(1).choice(list("abc \n"), 4001)).encode()
    make_data(tmp_path / "data", 1000, train=text, val=text[:400])
    (tmp_path / "config.toml").write_text(CONFIG + f'precision = "{precision}"\n')

    def trained(name: str, *epochs: int) -> tuple[list[Any], str]:
        for each in epochs:
            command = [sys.executable, "-m", "trainers", "train", str(tmp_path / "config.toml"), "--unvalidated"]
            command += ["--data", str(tmp_path / "data"), "--out", str(tmp_path / name)]
            command += ["--set", f"train.epochs={each}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert "GPU replica" in done.stderr
        run = read_run(tmp_path / name)
        assert "driver" in run.machine, "run.json must name the GPU"
        rows = [(row["step"], row.get("train_nats"), row.get("val_nats")) for row in metrics.read(tmp_path / name)]
        return rows, checkpoint.weights_sha256(checkpoint.checkpoints(run)[-1])

    assert trained("whole", 4) == trained("resumed", 1, 4)
