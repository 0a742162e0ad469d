"""Export a .keras file of stock layers, which Keras 3.8 and later loads without this project, on TensorFlow or JAX.

exported/NAME/model.keras      ids (int, [batch, any length]) -> logits (float32, [batch, length, V]); the recurrent
                               layers are stateful: each call resumes from the previous one
exported/NAME/model.json       the vocabulary, and the origin of the file
exported/NAME/SHA256SUMS       the checksums of both (export.checksums)

A stock layer cannot reset its state inside a window. For data made of documents, start a new window at the end of each
document, and reset the layers before it.
"""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from common import console, processes
from common.files import check_replaceable, whole_folder, write_json
from export import checksums
from export.origin import LOGITS_TOLERANCE, check_logits, is_current, origin_of
from trainers import checkpoint
from trainers.model.char_rnn import CharRNN
from trainers.run import read_run

WINDOWS = (7, 1, 5)  # lengths of the consecutive windows that are compared

# The program of the fresh process, as a user of the file would write it.
LOAD = """
import sys
import keras
import numpy as np

path, ids_path, logits_path, *lengths = sys.argv[1:]
model, ids = keras.models.load_model(path), np.load(ids_path)
windows = np.split(ids, np.cumsum([int(length) for length in lengths])[:-1], axis=1)
np.save(logits_path, np.concatenate([np.asarray(model(window)) for window in windows], axis=1))
"""


def stock_model(model: CharRNN, batch: int) -> keras.Model:
    """Build a stateful functional model with the same weights: ids [batch, T] -> logits [batch, T, V]."""
    ids = keras.Input((None,), batch_size=batch, dtype="int32", name="ids")
    if model.embedding:
        y = _copy(model.embedding, ids)
    else:
        # Not ops.one_hot: older versions cannot read a newer one's. CategoryEncoding needs an axis of length one.
        y = keras.layers.Reshape((-1, 1), name="column")(ids)
        y = keras.layers.CategoryEncoding(model.vocab_size, "one_hot", name="one_hot")(y)
    for index, layer in enumerate(model.rnns):
        y = _copy(layer, y, return_state=False, stateful=True)
        y = _copy(model.norms[index], y) if model.norms else y
    return keras.Model(ids, _copy(model.dense, y), name="char_rnn")


def _copy(layer: keras.Layer, inputs: keras.KerasTensor, **settings: bool) -> keras.KerasTensor:
    """Apply a copy of a layer, with its weights, but without settings that older versions of Keras cannot read.

    Initializers gained arguments in 3.15; Dense and Embedding gained quantization_config, which is None.
    """
    config = layer.get_config() | settings
    config |= {name: "zeros" for name in config if name.endswith("_initializer")}
    copy = type(layer).from_config(config)
    readable = {name: value for name, value in copy.get_config().items() if value is not None}
    copy.get_config = lambda: readable
    outputs = copy(inputs)
    copy.set_weights(layer.get_weights())
    return outputs


def export_keras(folder: Path, out: Path, batch: int, force: bool) -> None:
    """Export a run's best checkpoint to out/model.keras, and verify it in a fresh process, which has Keras but not this
    project, before moving it into place.

    batch: rows of every call, which stateful layers fix.
    Raises StageError if `out` exists with another origin (unless `force`), or if the file does not load or its logits
    differ from the checkpoint's.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    origin = {**origin_of(run, chosen), "batch": batch}
    check_replaceable(out, "model.keras", "a Keras model")
    if not force and is_current(out, "model.json", origin, "another --out"):
        return
    model = checkpoint.load_model(run, chosen)
    with console.err.status(f"writing {out}"), whole_folder(out, replace=force) as partial:
        stock_model(model, batch).save(partial / "model.keras")
        write_json(partial / "model.json", origin)
        prove(partial, model, batch)
        checksums.write(partial)
    size = (out / "model.keras").stat().st_size
    console.out.print(
        f"{out / 'model.keras'}: step {chosen.step} of {folder}, {size / 1e6:.1f} MB, stock layers only; its logits in "
        f"a fresh process match the checkpoint's to {LOGITS_TOLERANCE:g}",
    )


def prove(folder: Path, model: CharRNN, batch: int) -> None:
    """Load the file with Keras alone, and compare its logits with the model's over consecutive windows, which carry the
    state. Raises StageError if it does not load or they differ."""
    ids_BxT = np.random.default_rng(0).integers(0, model.vocab_size, (batch, sum(WINDOWS)))
    with tempfile.TemporaryDirectory() as scratch:
        ids, logits = Path(scratch) / "ids.npy", Path(scratch) / "logits.npy"
        np.save(ids, ids_BxT)
        arguments = [str(path) for path in ((folder / "model.keras").absolute(), ids, logits, *WINDOWS)]
        # -I: ignore this folder and PYTHONPATH, so that the project cannot be imported.
        command = [sys.executable, "-I", "-c", LOAD, *arguments]
        processes.run(command, "the exported .keras does not load in a fresh process", cwd=scratch)
        actual_BxTxV = np.load(logits)
    expected_BxTxV, _ = model(ids_BxT, model.initial_carry(batch))
    check_logits(float(np.max(np.abs(actual_BxTxV - expected_BxTxV))), "the exported .keras")
