"""Conversion of a model to the flatbuffer of a .tflite.

float32        the weights as trained
float16        the weights in half precision; a CPU still computes in float32
int8-dynamic   the weights in 8 bits, one scale per column; activations are quantized at run time

Every file has one signature, `step`, which reads one token of one text.
"""

import tempfile
from typing import Any

import keras
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from common import console
from common.errors import StageError
from trainers.model.char_rnn import CharRNN, States, join_carry

PRECISIONS = ("float32", "float16", "int8-dynamic")
# The oldest runtime that tests have run each in. int8-dynamic has FULLY_CONNECTED in version 12.
RUNTIMES = {"float32": "TensorFlow Lite 2.14", "float16": "TensorFlow Lite 2.14", "int8-dynamic": "LiteRT 1.0"}
STATEFUL = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")


class Step(tf.Module):
    """One step of a model over unpacked weights, which the runtime packs for its processor.

    trainers.sampling.stepper has another graph: it packs the weights into blocks for TensorFlow's kernels.
    """

    def __init__(self, model: CharRNN, end_id: int | None):
        super().__init__()
        layers = [model.cell.fold(model.cell.weights(layer)) for layer in model.rnns]
        if model.embedding is None:  # a one-hot input selects a row of the first kernel
            rows, layers[0] = layers[0].kernel_IxG + layers[0].bias_G, layers[0]._replace(kernel_IxG=None, bias_G=None)
        else:
            rows = model.embedding.embeddings
        norms: list[tuple[Any, ...]] = [(norm.gamma, norm.beta) for norm in model.norms] or [()] * len(layers)
        weights = {"rows": rows, "layers": layers, "norms": norms, "dense": (model.dense.kernel, model.dense.bias)}
        self.weights = tf.nest.map_structure(lambda x: None if x is None else tf.Variable(x), weights)
        self._cell, self._shape, self._end_id = model.cell, model.initial_carry(1).shape, end_id
        self._epsilon = [norm.epsilon for norm in model.norms]

    def function(self) -> Any:
        """Trace (token int32 [1], carry float32 [1, L, S, H]) -> logits float32 [1, V], carry.

        The batch size is fixed because browser runtimes need static shapes.
        """

        def step(token: tf.Tensor, carry: tf.Tensor) -> dict[str, tf.Tensor]:
            _, L, S, _ = self._shape
            states = [tuple(carry[:, layer, state] for state in range(S)) for layer in range(L)]
            logits_1xV, after = self._read(token, states)
            return {"logits": logits_1xV, "carry": join_carry(after)}

        token, carry = tf.TensorSpec([1], tf.int32, "token"), tf.TensorSpec(self._shape, tf.float32, "carry")
        return tf.function(step, autograph=False).get_concrete_function(token=token, carry=carry)

    def _read(self, token: tf.Tensor, states: States) -> tuple[tf.Tensor, States]:
        """Return the logits after one more token, and the new states."""
        infer, after = self._cell.inference(self._shape[-1]), []
        if self._end_id is not None:
            keep_1x1 = tf.cast(token != self._end_id, tf.float32)[:, None]
            states = [tuple(x_1xH * keep_1x1 for x_1xH in state) for state in states]
        y = tf.gather(self.weights["rows"], token)
        for index, (state, w, norm) in enumerate(
            zip(states, self.weights["layers"], self.weights["norms"], strict=True)
        ):
            z_1xG = y if w.kernel_IxG is None else _times(y, w.kernel_IxG, w.bias_G)
            after.append(infer(z_1xG, _times(state[0], *w.recurrent), state))
            y = after[-1][0]
            if norm:
                y = keras.ops.layer_normalization(y, *norm, epsilon=self._epsilon[index])
        return _times(y, *self.weights["dense"]), after


def convert(model: CharRNN, end_id: int | None, precision: str) -> bytes:
    """Return the flatbuffer. end_id: the token before which the carry is reset to zeros, if any.

    Raises StageError for ops that some runtimes lack.
    """
    with tempfile.TemporaryDirectory() as scratch, console.quiet():
        step = Step(model, end_id)
        tf.saved_model.save(step, scratch, signatures={"step": step.function()})
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        flatbuffer = converter.convert()
    check_ops(flatbuffer, precision)
    return flatbuffer


def check_ops(flatbuffer: bytes, precision: str) -> None:
    """Raise StageError if a flatbuffer needs other than builtin ops, or keeps its weights in variables."""
    ops = op_names(flatbuffer)
    rejected = sorted(op for op in ops if op in STATEFUL or not hasattr(schema.BuiltinOperator, op))
    if rejected:
        raise StageError(f"the {precision} .tflite needs more than stateless builtin ops: {', '.join(rejected)}")


def op_names(flatbuffer: bytes) -> set[str]:
    """Return the names of the ops in a flatbuffer; custom ops keep their own names."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    model = schema.Model.GetRootAs(flatbuffer)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    return {
        (code.CustomCode() or b"custom").decode()
        if code.BuiltinCode() == schema.BuiltinOperator.CUSTOM
        else names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        for code in codes
    }


def _times(x_1xK: tf.Tensor, w_KxN: tf.Tensor, bias_N: tf.Tensor | None = None) -> tf.Tensor:
    product_1xN = tf.matmul(x_1xK, w_KxN)
    return product_1xN if bias_N is None else tf.nn.bias_add(product_1xN, bias_N)
