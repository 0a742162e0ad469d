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

import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from common import console
from common.errors import StageError
from export.lite_prefill import add_prefill
from trainers.model import CharRNN, States, join_carry
from trainers.stepper import Stepper, lay_out

Samples = list[dict[str, npt.NDArray[Any]]]  # inputs of `step`, as real text brings them

PRECISIONS = ("float32", "float16", "int8-dynamic", "int8-full")
PRODUCTS = {"FULLY_CONNECTED", "GATHER"}  # what int8-full has in bytes
STATEFUL = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")


class Step(tf.Module):
    """One step of a model with weights of its own, laid out for a runtime that cuts up matrices by itself."""

    def __init__(self, model: CharRNN, end_id: int | None):
        super().__init__()
        laid = lay_out(model)
        layers = [
            layer._replace(kernel=_whole(layer.kernel), recurrent=_whole(layer.recurrent)) for layer in laid.layers
        ]
        laid = laid._replace(layers=tuple(layers), dense=_whole(laid.dense))
        self.laid = tf.nest.map_structure(tf.Variable, laid)
        self._model, self._end_id, self._shape = model, end_id, model.initial_carry(1).shape

    def function(self) -> Any:
        """(token int32 [1], carry float32 [1, L, S, H]) -> logits float32 [1, V], carry: a fixed batch, which browsers'
        runtimes ask for."""

        def step(token: tf.Tensor, carry: tf.Tensor) -> dict[str, tf.Tensor]:
            stepper = Stepper(self._model, self._end_id, tf.nest.map_structure(tf.convert_to_tensor, self.laid))
            _, L, S, _ = self._shape
            states = stepper.read(token, _apart([tuple(carry[:, i, s] for s in range(S)) for i in range(L)]))
            return {"logits": stepper.logits(states), "carry": join_carry(_apart(states))}

        token, carry = tf.TensorSpec([1], tf.int32, "token"), tf.TensorSpec(self._shape, tf.float32, "carry")
        return tf.function(step, autograph=False).get_concrete_function(token=token, carry=carry)


def convert(model: CharRNN, end_id: int | None, precision: str, samples: Samples) -> bytes:
    """The flatbuffer. end_id: the id that is read from an empty carry; None: none is. samples: for int8-full.

    Raises StageError for ops that a runtime may not have.
    """
    with tempfile.TemporaryDirectory() as scratch, console.hushed():
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


def _whole(panels: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    return (tf.concat(panels, axis=1),) if panels else ()


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
