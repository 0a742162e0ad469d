"""A .tflite for devices: one step of the model, batch 1, the carry in and out, builtin ops only, the weights inside.

devices/NAME/model.tflite      signature `serving_default`: token (int32 [1]), carry (float32 [1, L, S, H])
                               -> logits (float32 [1, V]), carry; a token that ends a document is read from an empty
                               carry, whatever comes in
devices/NAME/model.json        the vocabulary and what the file was made from
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import console
from common.errors import StageError
from common.files import check_replaceable, whole_folder, write_json
from export.lite_runner import LiteModel
from export.made import LOGITS_TOLERANCE, already_made, check_logits, known, made_from
from trainers import checkpoint
from trainers.model import CharRNN

PROBE = b"def read(self, size=-1):\n    return self._buffer[:size]\n"


def step_model(model: CharRNN, end_id: int | None = None) -> keras.Model:
    """One step as a functional Keras model with the trained weights: (token, carry) -> (logits, carry), batch 1.

    end_id: the id that is read from an empty carry; None: none is.
    Built from cells because the converter turns them into plain matrix products; a layer with a time axis would need
    TensorList ops, which the runtime on devices does not have.
    """
    token = keras.Input((), batch_size=1, dtype="int32", name="token")
    carry_BxLxSxH = keras.Input(model.initial_carry(1).shape[1:], batch_size=1, name="carry")
    before = carry_BxLxSxH
    if end_id is not None:
        keep_B = keras.ops.cast(keras.ops.not_equal(token, end_id), "float32")
        before = before * keras.ops.reshape(keep_B, [1, 1, 1, 1])
    y = model.embedding(token) if model.embedding else keras.ops.one_hot(token, model.vocab_size)
    after = []
    for index, layer in enumerate(model.rnns):
        # A functional model wants a name of its own for each.
        cell = type(layer.cell).from_config({**layer.cell.get_config(), "name": layer.name})
        y, state = cell(y, [before[:, index, s] for s in range(model.cell.states)])
        cell.set_weights(layer.cell.get_weights())
        y = model.norms[index](y) if model.norms else y
        after.append(keras.ops.stack(state, 1))
    outputs = {"logits": model.dense(y), "carry": keras.ops.stack(after, 1)}
    return keras.Model({"token": token, "carry": carry_BxLxSxH}, outputs)


def convert(model: CharRNN, end_id: int | None = None) -> bytes:
    """The step model as the bytes of a .tflite, float32."""
    # A fixed batch in the signature: left open, the file says -1, which browsers' runtimes refuse.
    signature = {
        "token": keras.InputSpec(shape=(1,), dtype="int32", name="token"),
        "carry": keras.InputSpec(shape=model.initial_carry(1).shape, dtype="float32", name="carry"),
    }
    with tempfile.TemporaryDirectory() as scratch:
        step_model(model, end_id).export(scratch, verbose=False, input_signature=[signature])
        return tf.lite.TFLiteConverter.from_saved_model(scratch).convert()


def export_lite(folder: Path, out: Path, force: bool) -> None:
    """Writes out/model.tflite from a run's best checkpoint, proves it on its runtime, and only then puts it in place.

    Raises StageError where `out` is there already and was made from something else (unless `force`), or where the file
    needs more than builtin ops, or its logits differ from the checkpoint's.
    """
    run = checkpoint.read_run(folder)
    chosen = checkpoint.best(run)
    origin = made_from(run, chosen)
    check_replaceable(out, "model.json", "a device model")
    if not force and already_made(out, "model.json", origin, "another --out"):
        return
    model = checkpoint.load_model(run, chosen)
    with console.err.status(f"writing {out}"), whole_folder(out, replace=force) as partial:
        (partial / "model.tflite").write_bytes(convert(model, run.vocab.end_id))
        write_json(partial / "model.json", origin)
        prove(partial, model)
    size = (out / "model.tflite").stat().st_size
    console.out.print(
        f"{out / 'model.tflite'}: step {chosen.step} of {folder}, {size / 1e6:.1f} MB, builtin ops only; its runtime's "
        f"logits are the checkpoint's to {LOGITS_TOLERANCE:g}",
    )


def prove(folder: Path, model: CharRNN) -> None:
    """Raises StageError unless the file runs on ai_edge_litert with builtin ops and gives the model's logits."""
    lite = LiteModel(folder)
    foreign = sorted(op for op in lite.ops if op.startswith("Flex") or op in ("CUSTOM", "VAR_HANDLE"))
    if foreign:
        raise StageError(f"the written .tflite needs more than builtin ops: {', '.join(foreign)}")
    ids_1xT = lite.vocab.prompt_ids(known(PROBE, lite.vocab))[None]
    logits_1xTxV, _ = model(ids_1xT, model.initial_carry(1), reset_BxT=ids_1xT == lite.vocab.end_id)
    carry, difference = lite.initial_carry(), 0.0
    for token, expected_V in zip(ids_1xT[0], logits_1xTxV[0].numpy(), strict=True):
        logits_V, carry = lite.step(int(token), carry)
        difference = max(difference, float(np.max(np.abs(logits_V - expected_V))))
    check_logits(difference, "the written .tflite")
