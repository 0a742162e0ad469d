"""Answers the standard requests from a SavedModel's files alone: python -m export.session FOLDER ANSWERS.json

Run as a process of its own by export.saved_model. It loads the graph into a Session, as TF Serving's C++ loader does,
so that nothing of the process that wrote the model, nor any of its Python, can help.
"""

import json
import sys
from typing import Any

import tensorflow as tf

from export.saved_model import REQUESTS, Inputs


def answer(session: tf.compat.v1.Session, signature: Any, inputs: Inputs) -> dict[str, Any]:
    """Runs one signature of a loaded SavedModel."""
    return session.run(
        {name: tensor.name for name, tensor in signature.outputs.items()},
        {signature.inputs[name].name: values for name, values in inputs.items()},
    )


def main(folder: str, answers: str) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def
        got = {name: answer(session, signatures[name], inputs) for name, inputs in REQUESTS.items()}
    value = {
        "text_bytes": [row.hex() for row in got["serving_default"]["text_bytes"]],
        "logits": got["logits"]["logits"].tolist(),
    }
    with open(answers, "w", encoding="utf-8") as file:
        json.dump(value, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
