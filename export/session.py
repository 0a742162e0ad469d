"""Answers the standard requests from a SavedModel's files alone: python -m export.session FOLDER ANSWERS.json

Run as a process of its own by export.saved_model. It loads the graph into a Session, as TF Serving's C++ loader does,
so that nothing of the process that wrote the model, nor any of its Python, can help.
"""

import json
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

from common.errors import StageError
from export.made import read_made_from
from export.saved_model import MADE_FROM, Inputs, requests
from pipeline.vocab import Vocab


def answer(session: tf.compat.v1.Session, signature: Any, inputs: Inputs) -> dict[str, Any]:
    """Runs one signature of a loaded SavedModel."""
    return session.run(
        {name: tensor.name for name, tensor in signature.outputs.items()},
        {signature.inputs[name].name: values for name, values in inputs.items()},
    )


def main(folder: str, answers: str) -> None:
    made_from = read_made_from(Path(folder) / MADE_FROM)
    if made_from is None:
        raise StageError(f"{folder} does not say what it was made from: {MADE_FROM} is missing")
    asked = requests(Vocab.from_json(made_from["vocab"]))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def
        got = {name: answer(session, signatures[name], inputs) for name, inputs in asked.items()}
    value = {
        "text_bytes": [row.hex() for row in got["serving_default"]["text_bytes"]],
        "logits": got["logits"]["logits"].tolist(),
    }
    with open(answers, "w", encoding="utf-8") as file:
        json.dump(value, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
