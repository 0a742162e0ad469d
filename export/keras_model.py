"""A .keras file of stock layers alone: whoever has Keras loads it, without this project.

exported/NAME/model.keras      ids (int, [batch, any length]) -> logits (float32, [batch, length, V]); the recurrent
                               layers are stateful: a call goes on where the one before it ended
exported/NAME/model.json       the vocabulary and what the file was made from

A stock layer cannot start afresh inside a window. Where the data are documents, a window must begin at the end of each,
and the layers be reset ahead of it.
"""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from common import console, processes
from common.files import check_replaceable, whole_folder, write_json
from export.made import LOGITS_TOLERANCE, already_made, check_logits, made_from
from trainers import checkpoint
from trainers.model.char_rnn import CharRNN
from trainers.run import read_run

WINDOWS = (7, 1, 5)  # lengths of the windows that the proof reads one after the other

# A user's program, and all that the fresh process runs.
LOAD = """
import sys
import keras
import numpy as np

path, ids_path, logits_path, *lengths = sys.argv[1:]
model, ids = keras.models.load_model(path), np.load(ids_path)
windows = np.split(ids, np.cumsum([int(length) for length in lengths])[:-1], axis=1)
np.save(logits_path, np.concatenate([model.predict(window, verbose=0) for window in windows], axis=1))
"""


def stock_model(model: CharRNN, batch: int) -> keras.Model:
    """The model as a functional one with the same weights: ids [batch, T] -> logits [batch, T, V], stateful."""
    ids = keras.Input((None,), batch_size=batch, dtype="int32", name="ids")
    # Keras's own operation: its CategoryEncoding layer refuses a window of one.
    y = model.embedding(ids) if model.embedding else keras.ops.one_hot(ids, model.vocab_size)
    for index, layer in enumerate(model.rnns):
        stateful = type(layer).from_config({**layer.get_config(), "return_state": False, "stateful": True})
        y = stateful(y)
        stateful.set_weights(layer.get_weights())
        y = model.norms[index](y) if model.norms else y
    return keras.Model(ids, model.dense(y), name="char_rnn")


def export_keras(folder: Path, out: Path, batch: int, force: bool) -> None:
    """Writes out/model.keras from a run's best checkpoint, proves it in a fresh process that has Keras but not this
    project, and only then puts it in place.

    batch: the rows of every call; a stateful layer wants to know.
    Raises StageError where `out` is there already and was made from something else (unless `force`), or where the file
    does not load, or its logits differ from the checkpoint's.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    origin = {**made_from(run, chosen), "batch": batch}
    check_replaceable(out, "model.json", "a Keras model")
    if not force and already_made(out, "model.json", origin, "another --out"):
        return
    model = checkpoint.load_model(run, chosen)
    with console.err.status(f"writing {out}"), whole_folder(out, replace=force) as partial:
        stock_model(model, batch).save(partial / "model.keras")
        write_json(partial / "model.json", origin)
        prove(partial, model, batch)
    size = (out / "model.keras").stat().st_size
    console.out.print(
        f"{out / 'model.keras'}: step {chosen.step} of {folder}, {size / 1e6:.1f} MB, stock layers only; its logits in "
        f"a fresh process are the checkpoint's to {LOGITS_TOLERANCE:g}",
    )


def prove(folder: Path, model: CharRNN, batch: int) -> None:
    """Raises StageError unless Keras alone loads the file and gives the model's logits over windows one after the
    other, in which the state shows."""
    ids_BxT = np.random.default_rng(0).integers(0, model.vocab_size, (batch, sum(WINDOWS)))
    with tempfile.TemporaryDirectory() as scratch:
        ids, logits = Path(scratch) / "ids.npy", Path(scratch) / "logits.npy"
        np.save(ids, ids_BxT)
        arguments = [str(path) for path in ((folder / "model.keras").absolute(), ids, logits, *WINDOWS)]
        # -I: neither this folder nor PYTHONPATH, so that nothing of the project can help.
        command = [sys.executable, "-I", "-c", LOAD, *arguments]
        processes.run(command, "the written .keras does not load in a fresh process", cwd=scratch)
        got_BxTxV = np.load(logits)
    expected_BxTxV, _ = model(ids_BxT, model.initial_carry(batch))
    check_logits(float(np.max(np.abs(got_BxTxV - expected_BxTxV))), "the written .keras")
