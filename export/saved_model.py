"""A SavedModel that a stock TF Serving binary runs: plain graph ops, no XLA, no custom op, no Python.

served/NAME/1/                                              a version, as TF Serving's base path wants it
    saved_model.pb, variables/                              the graph and the weights
    assets.extra/tf_serving_warmup_requests                 a request of each signature, replayed when a server loads it
    assets.extra/export.json                                what it was made from

Signatures; every input has one entry a row [B], every output B rows:
    serving_default   prompt (string), length (int32), temperature (float32), seed (int64)
                      -> text (string, valid UTF-8), text_bytes (string, as drawn); the new text alone
    logits            text (string) -> logits (float32, [B, P, V]: after each id that is read), length (int32: how many)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from common import console
from common.errors import StageError
from common.files import check_replaceable, whole_folder, write_json
from export.facts import facts_of
from export.made import LOGITS_TOLERANCE, already_made, check_logits, known, made_from
from export.serving import write_package
from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.generate import Sampler

MADE_FROM = "assets.extra/export.json"

Inputs = dict[str, list[Any]]

DTYPES = {
    "prompt": tf.string,
    "length": tf.int32,
    "temperature": tf.float32,
    "seed": tf.int64,
    "text": tf.string,
}


class Served(tf.Module):
    """The signatures, over a model's weights."""

    def __init__(self, sampler: Sampler):
        super().__init__(name="served")
        self.vocab = sampler.vocab
        self.weights = [weight.value for weight in sampler.model.weights]  # tracked: what variables/ will hold

        def spec(name: str) -> tf.TensorSpec:
            return tf.TensorSpec([None], DTYPES[name], name)

        @tf.function(input_signature=[spec(name) for name in ("prompt", "length", "temperature", "seed")])
        def serving_default(
            prompt: tf.Tensor, length: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            drawn_B = sampler.generate(prompt, length, temperature, seed)
            return {"text": tf.strings.unicode_transcode(drawn_B, "UTF-8", "UTF-8"), "text_bytes": drawn_B}

        @tf.function(input_signature=[spec("text")])
        def logits(text: tf.Tensor) -> dict[str, tf.Tensor]:
            logits_BxPxV, length_B = sampler.logits(text)
            return {"logits": logits_BxPxV, "length": length_B}

        self.functions = {"serving_default": serving_default, "logits": logits}

    def answer(self, signature: str, inputs: Inputs) -> dict[str, np.ndarray]:
        """Runs a signature on Python lists, without the detour over a file."""
        outputs = self.functions[signature](**tensors(inputs))
        return {name: value.numpy() for name, value in outputs.items()}


def requests(vocab: Vocab) -> dict[str, Inputs]:
    """What the written model is asked, and a server is warmed up with, by signature.

    Prompts of different lengths, one of them empty, share a batch; hot and cold rows too.
    """
    return {
        "serving_default": {
            "prompt": [known(b"def ", vocab), b"", known(b"import os\nclass ", vocab)],
            "length": [40, 64, 16],
            "temperature": [0.8, 1.0, 0.0],
            "seed": [1, 2, 3],
        },
        "logits": {"text": [known(b"for line in lines:\n", vocab), known(b"return", vocab)]},
    }


def tensors(inputs: Inputs) -> dict[str, tf.Tensor]:
    """Lists as tensors of the types that the signatures take."""
    return {name: tf.constant(values, DTYPES[name]) for name, values in inputs.items()}


def export_saved_model(folder: Path, out: Path, version: int, force: bool) -> None:
    """Writes out/VERSION from a run's best checkpoint, proves it in a fresh process, and only then puts it in place.

    Raises StageError where that version is there already and was made from something else (unless `force`), or where
    what the written model answers differs from the checkpoint.
    """
    run = checkpoint.read_run(folder)
    chosen = checkpoint.best(run)
    target = out / str(version)
    origin = made_from(run, chosen)
    check_replaceable(target, "saved_model.pb", "a SavedModel")
    if not force and already_made(target, MADE_FROM, origin, f"--version {next_version(out)}"):
        write_package(out, version, facts_of(run, chosen))  # what a card tells may have come since
        return
    served = Served(Sampler(checkpoint.load_model(run, chosen), run.vocab))
    with console.err.status(f"writing {target}"), whole_folder(target, replace=force) as partial:
        tf.saved_model.save(served, str(partial), signatures=served.functions)
        write_warmup(partial / "assets.extra" / "tf_serving_warmup_requests", out.name, run.vocab)
        write_json(partial / MADE_FROM, origin)
        prove(served, partial)
    write_package(out, version, facts_of(run, chosen))
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    console.out.print(
        f"{target}: step {chosen.step} of {folder}, {size / 1e6:.1f} MB; a fresh process answers with the checkpoint's "
        f"text, and its logits to {LOGITS_TOLERANCE:g}",
    )


def next_version(out: Path) -> int:
    """The first number above every version that is there."""
    return 1 + max((int(path.name) for path in out.glob("*") if path.name.isdigit()), default=0)


def write_warmup(path: Path, model: str, vocab: Vocab) -> None:
    """Writes the requests that TF Serving replays when it loads the model, before the first caller waits for them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests(vocab).items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model, signature
            for name, value in tensors(inputs).items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def prove(served: Served, folder: Path) -> None:
    """Lets a fresh process answer `requests` from the files alone, and compares with the checkpoint.

    Raises StageError where a text differs at all, or a logit by more than LOGITS_TOLERANCE.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answers = Path(scratch) / "answers.json"
        command = [sys.executable, "-m", "export.session", str(folder), str(answers)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise StageError(f"the written SavedModel does not load in a fresh process: {last}")
        got = json.loads(answers.read_text(encoding="utf-8"))
    asked = requests(served.vocab)
    text = served.answer("serving_default", asked["serving_default"])["text_bytes"]
    expected = [row.hex() for row in text]
    if got["text_bytes"] != expected:
        raise StageError(
            f"the written SavedModel wrote {got['text_bytes']}, the checkpoint {expected} (as hexadecimal)"
        )
    logits = served.answer("logits", asked["logits"])["logits"]
    difference = float(np.max(np.abs(np.array(got["logits"]) - logits)))
    check_logits(difference, "the written SavedModel")
