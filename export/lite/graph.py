"""A model as the flatbuffer of a .tflite, in one of four precisions.

float32        as trained
float16        the weights are halves; the arithmetic is the runtime's, float32 on a CPU
int8-dynamic   the weights are bytes, a scale a column; what they are multiplied by becomes bytes as it comes
int8-full      so does the rest of every product, by scales that calibration has fixed; between the products it is
               float32, for an LSTM's c is unbounded (500 has been seen) and no 256 steps do for it

Every file has the signatures `step` and `prefill`, for one text at a time, the weights inside.
"""

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from common import console
from common.errors import StageError
from export.lite.prefill import add_prefill
from trainers.model.char_rnn import CharRNN, States, join_carry

Samples = list[dict[str, npt.NDArray[Any]]]  # inputs of `step`, as real text brings them

PRECISIONS = ("float32", "float16", "int8-dynamic", "int8-full")
PRODUCTS = {"FULLY_CONNECTED", "GATHER"}  # what int8-full has in bytes
STATEFUL = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")


class Step(tf.Module):
    """One step of a model, with weights of its own: whole matrices, which the runtime lays out as its processor likes.

    The graph of trainers.sampling.stepper, whose rows are summed alike in any company, is cut up for
    TensorFlow's kernels.
    """

    def __init__(self, model: CharRNN, end_id: int | None):
        super().__init__()
        layers = [model.cell.fold(model.cell.weights(layer)) for layer in model.rnns]
        if model.embedding is None:  # a one-hot row times the first kernel is a row of it
            rows, layers[0] = layers[0].kernel_IxG + layers[0].bias_G, layers[0]._replace(kernel_IxG=None, bias_G=None)
        else:
            rows = model.embedding.embeddings
        norms: list[tuple[Any, ...]] = [(norm.gamma, norm.beta) for norm in model.norms] or [()] * len(layers)
        weights = {"rows": rows, "layers": layers, "norms": norms, "dense": (model.dense.kernel, model.dense.bias)}
        self.weights = tf.nest.map_structure(lambda x: None if x is None else tf.Variable(x), weights)
        self._cell, self._shape, self._end_id = model.cell, model.initial_carry(1).shape, end_id
        self._epsilon = [norm.epsilon for norm in model.norms]

    def function(self) -> Any:
        """(token int32 [1], carry float32 [1, L, S, H]) -> logits float32 [1, V], carry: a fixed batch, which browsers'
        runtimes ask for."""

        def step(token: tf.Tensor, carry: tf.Tensor) -> dict[str, tf.Tensor]:
            _, L, S, _ = self._shape
            states = _apart([tuple(carry[:, index, s] for s in range(S)) for index in range(L)])
            logits_1xV, after = self._read(token, states)
            return {"logits": logits_1xV, "carry": join_carry(_apart(after))}

        token, carry = tf.TensorSpec([1], tf.int32, "token"), tf.TensorSpec(self._shape, tf.float32, "carry")
        return tf.function(step, autograph=False).get_concrete_function(token=token, carry=carry)

    def _read(self, token: tf.Tensor, states: States) -> tuple[tf.Tensor, States]:
        """The logits after one more character, and the states."""
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


def convert(model: CharRNN, end_id: int | None, precision: str, samples: Samples) -> bytes:
    """The flatbuffer. end_id: the id that is read from an empty carry; None: none is. samples: for int8-full.

    Raises StageError for ops that a runtime may not have.
    """
    with tempfile.TemporaryDirectory() as scratch, console.quiet():
        step = Step(model, end_id)
        tf.saved_model.save(step, scratch, signatures={"step": step.function()})
        flatbuffer = add_prefill(
            _QUANTISED[precision](lambda: tf.lite.TFLiteConverter.from_saved_model(scratch), samples)
        )
    check_ops(flatbuffer, precision)
    return flatbuffer


def check_ops(flatbuffer: bytes, what: str) -> None:
    """Raises StageError where a flatbuffer needs more than builtin ops, or keeps its weights outside itself."""
    ops = ops_of(flatbuffer)
    foreign = sorted(op for op in ops if op in STATEFUL or not hasattr(schema.BuiltinOperator, op))
    if foreign:
        raise StageError(f"the {what} .tflite needs more than stateless builtin ops: {', '.join(foreign)}")


def ops_of(flatbuffer: bytes) -> set[str]:
    """The names of the ops that a flatbuffer uses; a custom one has its own."""
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


def _apart(states: States) -> States:
    """The same states: h, of every cell, is between -1 and 1. But what is joined with c has c's scale, wherever it is
    used, and h is to have its own."""
    return [(tf.clip_by_value(h, -1, 1), *rest) for h, *rest in states]


def _float32(converter: Callable[[], Any], _: Samples) -> bytes:
    return converter().convert()


def _float16(converter: Callable[[], Any], _: Samples) -> bytes:
    one = _optimised(converter())
    one.target_spec.supported_types = [tf.float16]
    return one.convert()


def _dynamic(converter: Callable[[], Any], _: Samples) -> bytes:
    return _optimised(converter()).convert()


def _full(converter: Callable[[], Any], samples: Samples) -> bytes:
    one = _optimised(converter())
    one.representative_dataset = lambda: iter(samples)
    one.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    left = sorted(ops_of(_float32(converter, samples)) - PRODUCTS)
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=left)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an interpreter which the debugger makes is deprecated
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=one, debug_dataset=one.representative_dataset, debug_options=options
        )
    return debugger.get_nondebug_quantized_model()


def _optimised(converter: Any) -> Any:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter


_QUANTISED = dict(zip(PRECISIONS, (_float32, _float16, _dynamic, _full), strict=True))
