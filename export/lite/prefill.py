"""The signature `prefill` of a .tflite: PREFILL steps in one call, as a loop over the file's own `step`.

It is added to a file that has been converted, and not by the converter: what that quantises outside a loop it leaves
alone inside one, and steps written out one after another take the runtime a copy of the weights each. Here the loop's
body is the very `step`, over the same buffers, whatever the precision.

Legend: S subgraphs are numbered step 0, prefill 1, condition 2, body 3. V vocabulary.
"""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

PREFILL = 16  # tokens that one call of `prefill` reads

ALIGNED = 16  # bytes: where a buffer may begin, as the schema has it and Python's flatbuffers has not

FLOAT32, INT32, BOOL = schema.TensorType.FLOAT32, schema.TensorType.INT32, schema.TensorType.BOOL


class Buffer(schema.BufferT):
    """A buffer that is written where the schema wants it."""

    def Pack(self, builder: Any) -> Any:
        data = None
        if self.data is not None:
            builder.StartVector(1, len(self.data), ALIGNED)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)

    @classmethod
    def of(cls, data: npt.NDArray[np.uint8] | None) -> "Buffer":
        """A buffer of these bytes."""
        buffer = cls()
        buffer.data = data
        return buffer


class Graph:
    """A subgraph of a model, to which tensors and ops are added."""

    def __init__(self, model: Any, name: str, start: Any = None):
        self.model, self.graph = model, start or schema.SubGraphT()
        self.graph.name = name
        if start is None:
            self.graph.tensors, self.graph.operators = [], []

    def tensor(self, name: str, shape: list[int], kind: int, value: npt.NDArray[Any] | None = None) -> int:
        """Adds a tensor, a constant where there is a value; its index."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.hasRank = name, shape, kind, True
        tensor.buffer = 0  # the empty one
        if value is not None:
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(Buffer.of(np.frombuffer(value.tobytes(), np.uint8)))
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def op(self, name: str, inputs: list[int], outputs: list[int], options: Any = None) -> None:
        """Adds a builtin op at the end. options: of the schema's table NAMEOptions."""
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        operator.opcodeIndex = len(self.model.operatorCodes)
        self.model.operatorCodes.append(code)
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            table = type(options).__name__.removesuffix("T")
            operator.builtinOptions, operator.builtinOptionsType = options, getattr(schema.BuiltinOptions, table)
        self.graph.operators.append(operator)

    def variables(self, carry: list[int], V: int) -> list[int]:
        """Adds what the loop takes from turn to turn: the turn, the tokens, the carry, the logits."""
        return [
            self.tensor("turn", [1], INT32),
            self.tensor("tokens", [PREFILL], INT32),
            self.tensor("carry", carry, FLOAT32),
            self.tensor("logits", [1, V], FLOAT32),
        ]

    def close(self, inputs: list[int], outputs: list[int]) -> None:
        """Says what goes in and out, and adds the subgraph to the model."""
        self.graph.inputs, self.graph.outputs = inputs, outputs
        self.model.subgraphs.append(self.graph)


def add_prefill(flatbuffer: bytes) -> bytes:
    """The file with the signature `prefill` behind `step`, which must be its only one."""
    model = flatbuffer_utils.read_model_from_bytearray(flatbuffer)
    model.buffers = [Buffer.of(buffer.data) for buffer in model.buffers]
    (step,), (signature,) = model.subgraphs, model.signatureDefs
    ins, outs = (
        {each.name.decode(): each.tensorIndex for each in side} for side in (signature.inputs, signature.outputs)
    )
    carry, (_, V) = list(step.tensors[ins["carry"]].shape), step.tensors[outs["logits"]].shape

    loop = Graph(model, "prefill")
    tokens, before = loop.tensor("tokens", [PREFILL], INT32), loop.tensor("carry", carry, FLOAT32)
    turn = loop.tensor("first", [1], INT32, np.zeros(1, np.int32))
    logits = loop.tensor("none", [1, V], FLOAT32, np.zeros(V, np.float32))
    after, options = loop.variables(carry, V), schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 2, 3
    loop.op("WHILE", [turn, tokens, before, logits], after, options)
    loop.close([tokens, before], after[2:])

    condition = Graph(model, "prefill_condition")
    variables, more = condition.variables(carry, V), condition.tensor("more", [1], BOOL)
    end = condition.tensor("end", [1], INT32, np.full(1, PREFILL, np.int32))
    condition.op("LESS", [variables[0], end], [more], schema.LessOptionsT())
    condition.close(variables, [more])

    body = Graph(model, "prefill_body", copy.deepcopy(step))
    turn, tokens, next_turn = (
        body.tensor("turn", [1], INT32),
        body.tensor("tokens", [PREFILL], INT32),
        body.tensor("next_turn", [1], INT32),
    )
    one = body.tensor("one", [1], INT32, np.ones(1, np.int32))
    unused = body.tensor("logits_before", [1, V], FLOAT32)
    body.op("GATHER", [tokens, turn], [ins["token"]], schema.GatherOptionsT())
    body.graph.operators.insert(0, body.graph.operators.pop())  # ahead of the step that reads it
    body.op("ADD", [turn, one], [next_turn], schema.AddOptionsT())
    body.close([turn, tokens, ins["carry"], unused], [next_turn, tokens, outs["carry"], outs["logits"]])

    model.signatureDefs.append(_signature({"tokens": 0, "carry": 1}, {"carry": after[2], "logits": after[3]}))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _signature(inputs: dict[str, int], outputs: dict[str, int]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "prefill", 1
    signature.inputs, signature.outputs = ([_named(*each) for each in side.items()] for side in (inputs, outputs))
    return signature


def _named(name: str, index: int) -> Any:
    tensor = schema.TensorMapT()
    tensor.name, tensor.tensorIndex = name, index
    return tensor
