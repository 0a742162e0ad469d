import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result
from crash import damaged

from common.errors import StageError
from export import keras_model
from export.__main__ import cli
from export.keras_model import LOAD, export_keras, prove, stock_model
from trainers import checkpoint
from trainers.config import ModelConfig
from trainers.model.char_rnn import CharRNN
from trainers.run import read_run

BATCH = 3


def load(run: Path) -> checkpoint.CharRNN:
    return checkpoint.load_model(read_run(run))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported") / "tiny"


@pytest.fixture(scope="module")
def command(run: Path, out: Path) -> Result:
    """Result of the command."""
    arguments = ["keras", str(run), "--out", str(out), "--batch", str(BATCH)]
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def exported(command: Result, out: Path) -> Path:
    return out


def test_export_prints_one_line(command: Result) -> None:
    assert re.fullmatch(r".*/tiny/model.keras: step 12 of .*, 0\.\d MB, stock layers only.*\n", command.stdout)
    assert command.stderr == ""


def test_file_has_stock_layers_and_matches_the_checkpoint(run: Path, exported: Path) -> None:
    loaded, model = keras.models.load_model(exported / "model.keras"), load(run)
    assert {type(operation).__module__.split(".")[0] for operation in loaded.operations} == {"keras"}
    names = [operation.name for operation in loaded.operations]
    assert names == ["ids", "column", "one_hot", "lstm_0", "lstm_1", "logits"]
    ids = np.random.default_rng(1).integers(0, 256, (BATCH, 20))
    expected, _ = model(ids, model.initial_carry(BATCH))
    for _ in range(2):
        pieces = [loaded(part) for part in (ids[:, :13], ids[:, 13:14], ids[:, 14:])]
        np.testing.assert_allclose(np.concatenate(pieces, 1), expected, atol=1e-5)
        for layer in loaded.layers:  # as documented in --help
            if hasattr(layer, "reset_states"):
                layer.reset_states()


def test_all_cells_are_exported(other_run: Path, tmp_path: Path) -> None:
    model = load(other_run)
    stock_model(model, 2).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    ids = np.random.default_rng(1).integers(0, model.vocab_size, (2, 12))
    expected, _ = model(ids, model.initial_carry(2))
    pieces = [loaded(part) for part in (ids[:, :11], ids[:, 11:])]
    np.testing.assert_allclose(np.concatenate(pieces, 1), expected, atol=1e-5)


OLDEST = "keras==3.8.0"


def installed(folder: Path, *packages: str, alone: bool = False) -> None:
    """Install packages in a folder. alone: omit their dependencies."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *packages]
    subprocess.run([*command, *["--no-deps"] * alone], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("version", [OLDEST, "keras"])
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_oldest_and_newest_keras_load_the_file(version: str, backend: str, tmp_path: Path) -> None:
    """Use this environment's TensorFlow, or JAX, which is installed together with Keras."""
    installed(tmp_path / "packages", version, *["jax"] * (backend == "jax"), alone=backend == "tensorflow")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "packages"), "KERAS_BACKEND": backend}
    configs = (
        {"units": 9},
        {"cell": "gru", "units": 5, "embedding": 4, "layer_norm": True},
        {"cell": "rnn", "units": 6},
    )
    for index, settings in enumerate(configs):
        model = CharRNN(ModelConfig(layers=2, **settings), vocab_size=11)
        path, answer = tmp_path / f"{index}.keras", tmp_path / "logits.npy"
        stock_model(model, BATCH).save(path)
        ids = np.random.default_rng(index).integers(0, 11, (BATCH, 20))
        np.save(tmp_path / "ids.npy", ids)
        program = f"{LOAD}\nprint(keras.__version__, keras.backend.backend())"
        arguments = [str(path), str(tmp_path / "ids.npy"), str(answer), "13", "1", "6"]
        command = [sys.executable, "-c", program, *arguments]
        output = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert output.returncode == 0, output.stderr
        loaded_by, loaded_on = output.stdout.split()
        assert loaded_on == backend
        assert (loaded_by == "3.8.0") == (version == OLDEST)
        expected, _ = model(ids, model.initial_carry(BATCH))
        np.testing.assert_allclose(np.load(answer), expected, atol=1e-5)


def test_proof_cannot_import_this_project(tmp_path: Path) -> None:
    program = "import trainers" + LOAD
    process = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.stderr.strip().endswith("No module named 'trainers'")


@pytest.mark.slow
def test_proof_rejects_file_of_another_model(run: Path, exported: Path) -> None:
    other = load(run)
    other.dense.bias.assign_add(0.001 * tf.one_hot(7, 256))
    with pytest.raises(StageError, match=r"the exported \.keras's logits differ by 0\.001"):
        prove(exported, other, BATCH)


@pytest.mark.slow
def test_file_that_needs_custom_classes_is_not_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_model, "stock_model", lambda model, batch: model)  # a custom class
    with pytest.raises(StageError, match=r"the exported \.keras does not load in a fresh process: .*CharRNN"):
        export_keras(run, tmp_path / "tiny", BATCH, force=False)
    assert list(tmp_path.iterdir()) == []


def test_same_model_is_kept_and_different_model_is_rejected(
    run: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_keras(run, exported, BATCH, force=False)
    assert "is up to date with" in capsys.readouterr().err
    assert json.loads((exported / "model.json").read_text())["vocab"]["unit"] == "byte"
    for path in damaged(exported):
        with pytest.raises(
            StageError, match=rf"{path.name} is (corrupted|missing): rebuild all with|has no {path.name}\)"
        ):
            export_keras(run, exported, BATCH, force=False)
    with pytest.raises(StageError, match=r"tiny already holds a different model: pass another --out or --force$"):
        export_keras(run, exported, BATCH + 1, force=False)
