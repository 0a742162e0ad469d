"""Messages of TF Serving's gRPC API, and conversion between its tensors and NumPy arrays.

Works without importing TensorFlow, which takes seconds.
"""

import contextlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from common.errors import StageError
from common.printable import brief
from common.types import Array


@contextlib.contextmanager
def _folder_of_tensorflow() -> Iterator[None]:
    """Make `tensorflow` an empty package at TensorFlow's folder for the block, unless it is imported already.

    The generated modules only need tensorflow.core.*_pb2: plain messages below that folder. Afterwards the name is free
    again: a later import of TensorFlow is complete, and shares these messages.
    """
    spec = None if "tensorflow" in sys.modules else importlib.util.find_spec("tensorflow")
    if spec is None:  # already imported, or not installed: then the import below fails
        yield
        return
    sys.modules["tensorflow"] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


# prediction_service_pb2 and model_service_pb2 fail to import under protobuf 6; they contain no messages.
with _folder_of_tensorflow():
    from tensorflow.core.framework import tensor_pb2, types_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

__all__ = [
    "dtype_name",
    "enum_name",
    "from_tensor",
    "get_model_metadata_pb2",
    "get_model_status_pb2",
    "model_pb2",
    "model_service_pb2_grpc",
    "predict_pb2",
    "prediction_service_pb2_grpc",
    "to_tensor",
]

# Tensor type: the field that lists its values one by one, and NumPy's type.
TYPES: dict[int, tuple[str, np.dtype[Any]]] = {
    types_pb2.DT_STRING: ("string_val", np.dtype(object)),  # of bytes
    types_pb2.DT_INT32: ("int_val", np.dtype("<i4")),
    types_pb2.DT_INT64: ("int64_val", np.dtype("<i8")),
    types_pb2.DT_FLOAT: ("float_val", np.dtype("<f4")),
}
NAMES = {
    types_pb2.DT_STRING: "string",
    types_pb2.DT_INT32: "int32",
    types_pb2.DT_INT64: "int64",
    types_pb2.DT_FLOAT: "float32",
}

MOST_RANK, MOST_VALUES = 8, 1 << 24  # twice those of the largest answer, of `neurons`


def dtype_name(number: int) -> str:
    """NumPy's name of a tensor type; TensorFlow's for types that the client does not support."""
    return NAMES.get(number) or enum_name(types_pb2.DataType, number)


def enum_name(enum: Any, number: int) -> str:
    """Name of a value of an enum, which a later server may have extended."""
    return next((str(name) for name, value in enum.items() if value == number), f"unknown ({number})")


def to_tensor(array: Array) -> Any:
    """Convert an array of int32, int64, float32 or bytes (dtype object) to a TensorProto. Raises StageError."""
    number = next((number for number, (_, dtype) in TYPES.items() if dtype == array.dtype), None)
    if number is None:
        raise StageError(f"a tensor must be one of {', '.join(NAMES.values())}, got {array.dtype}")
    proto = tensor_pb2.TensorProto(dtype=number)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if number == types_pb2.DT_STRING:
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = array.astype(TYPES[number][1]).tobytes()
    return proto


def from_tensor(proto: Any) -> Array:
    """Convert a TensorProto to an array. Its values may be packed or listed one by one. Raises StageError."""
    if proto.dtype not in TYPES:
        raise StageError(f"a tensor must be one of {', '.join(NAMES.values())}, got {dtype_name(proto.dtype)}")
    field, dtype = TYPES[proto.dtype]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    count = math.prod(shape)
    if min(shape, default=0) < 0 or len(shape) > MOST_RANK or count > MOST_VALUES:
        rule = f"a tensor must have at most {MOST_RANK} dimensions and {MOST_VALUES:,} values"
        raise StageError(f"{rule}, got shape {brief(str(shape))}")
    listed = list(getattr(proto, field))
    if len(proto.tensor_content) not in (0, count * dtype.itemsize * (not dtype.hasobject)) or len(listed) > count:
        raise StageError(f"a tensor of shape {shape} must have {count:,} values, got other bytes")
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    # A list may be shorter than the tensor: its last value fills the rest, or zero if it is empty.
    fill = listed[-1] if listed else b"" if dtype.hasobject else 0
    flat = np.full(count, fill, dtype)
    flat[: len(listed)] = listed
    return flat.reshape(shape)
