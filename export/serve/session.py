"""Answer a SavedModel's warm-up requests from its files alone: python -m export.serve.session FOLDER ANSWERS.json

export.serve.saved_model runs this in a fresh process. It loads the graph into a Session and replays the requests, as TF
Serving's C++ does, so that neither the state of the exporting process nor the project's Python can mask an error.
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
    """Run one signature of a loaded SavedModel."""
    return session.run(
        {name: tensor.name for name, tensor in signature.outputs.items()},
        {signature.inputs[name].name: values for name, values in inputs.items()},
    )


def main(folder: str, answers: str) -> None:
    """Answer every request of the warm-up file, in order."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def
        replies = []
        for record in tf.compat.v1.io.tf_record_iterator(str(Path(folder) / WARM_UP)):
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            outputs = answer(session, signatures[request.model_spec.signature_name], inputs)
            replies.append({name: encode_output(value) for name, value in outputs.items()})
    with open(answers, "w", encoding="utf-8") as file:
        json.dump(replies, file)


def encode_output(value: np.ndarray) -> dict[str, Any]:
    """Encode an output as JSON, with its bytes in base64."""
    if value.dtype.kind == "O":
        return {"bytes": [base64.b64encode(row).decode() for row in value]}
    return {"dtype": value.dtype.name, "shape": value.shape, "data": base64.b64encode(value.tobytes()).decode()}


def decode_output(value: dict[str, Any]) -> np.ndarray:
    """Undo `encode_output`."""
    if "bytes" in value:
        return np.array([base64.b64decode(row) for row in value["bytes"]] + [None], object)[:-1]
    return np.frombuffer(base64.b64decode(value["data"]), value["dtype"]).reshape(value["shape"])


if __name__ == "__main__":
    main(*sys.argv[1:])
