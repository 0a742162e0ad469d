"""Answers a SavedModel's warm-up requests from its files alone: python -m export.serve.session FOLDER ANSWERS.json

Run as a process of its own by export.serve.saved_model. It loads the graph into a Session and replays the requests, as
TF Serving's C++ does, so that nothing of the process that wrote the model, nor any of its Python, can help.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

WARM_UP = "assets.extra/tf_serving_warmup_requests"


def answer(session: tf.compat.v1.Session, signature: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Runs one signature of a loaded SavedModel."""
    return session.run(
        {name: tensor.name for name, tensor in signature.outputs.items()},
        {signature.inputs[name].name: values for name, values in inputs.items()},
    )


def main(folder: str, answers: str) -> None:
    """Answers every request of the warm-up file, in order."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def
        found = []
        for record in tf.compat.v1.io.tf_record_iterator(str(Path(folder) / WARM_UP)):
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            got = answer(session, signatures[request.model_spec.signature_name], inputs)
            found.append({name: packed(value) for name, value in got.items()})
    with open(answers, "w", encoding="utf-8") as file:
        json.dump(found, file)


def packed(value: np.ndarray) -> dict[str, Any]:
    """An output as JSON, which holds no bytes."""
    if value.dtype.kind == "O":
        return {"bytes": [base64.b64encode(row).decode() for row in value]}
    return {"dtype": value.dtype.name, "shape": value.shape, "data": base64.b64encode(value.tobytes()).decode()}


def unpacked(value: dict[str, Any]) -> np.ndarray:
    """The inverse of `packed`."""
    if "bytes" in value:
        return np.array([base64.b64decode(row) for row in value["bytes"]] + [None], object)[:-1]
    return np.frombuffer(base64.b64decode(value["data"]), value["dtype"]).reshape(value["shape"])


if __name__ == "__main__":
    main(*sys.argv[1:])
