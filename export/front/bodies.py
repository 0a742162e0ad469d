"""TF Serving's REST bodies: JSON to arrays that match a signature, and answers to JSON.

Some calls must not reach a batching server: without rows, they hang; with inputs of another rank, they fail the calls
that share their batch.
"""

import base64
import functools
import json
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pydantic
from typing_extensions import TypedDict  # Python 3.11's own lacks what pydantic reads

from common.errors import UsageError
from common.types import Array
from export.client.client import Signature


def _bytes(value: Any) -> bytes:
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        return base64.b64decode(value["b64"] + "=" * (-len(value["b64"]) % 4), validate=True)
    if not isinstance(value, str):
        raise ValueError('expected a string or {"b64": "..."}')
    return value.encode()


LARGEST = float(np.finfo(np.float32).max)
TYPES: dict[str, Any] = {
    "string": Annotated[bytes, pydantic.BeforeValidator(_bytes)],
    "int32": Annotated[int, pydantic.Field(ge=-(1 << 31), lt=1 << 31)],
    "int64": Annotated[int, pydantic.Field(ge=-(1 << 63), lt=1 << 63)],
    "float32": Annotated[float, pydantic.Field(ge=-LARGEST, le=LARGEST)],
}
closed = pydantic.with_config(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _bounded(kind: Any) -> Any:
    """Return the type of a list that is checked up to its first error: a body may have a million."""
    return Annotated[list[kind], pydantic.FailFast(), pydantic.Field(max_length=1 << 16)]


@functools.cache
def _checker(form: str, dtypes: tuple[tuple[str, str], ...]) -> pydantic.TypeAdapter[Any]:
    """Return the checker of a form's content: a list of rows, or an object of columns."""
    by_rows = form == "instances"
    types = {name: TYPES[dtype] if by_rows else _bounded(TYPES[dtype]) for name, dtype in dtypes}

    def named(value: Any) -> Any:  # a single input may be given without its name
        unnamed = len(types) == 1 and (not isinstance(value, dict) or value.keys() == {"b64"})
        return dict.fromkeys(types, value) if unnamed else value

    kind: Any = Annotated[closed(TypedDict("kind", types)), pydantic.BeforeValidator(named)]  # type: ignore[operator]
    return pydantic.TypeAdapter(_bounded(kind) if by_rows else kind)


def parse(body: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises UsageError."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise UsageError("the body must be a JSON object")
    return parsed


def read(body: dict[str, Any], signatures: Mapping[str, Signature]) -> tuple[str, dict[str, Array]]:
    """Convert a body in either form to a signature's name and its inputs, one value per row. Raises UsageError."""
    name, forms = body.get("signature_name", ""), body.keys() - {"signature_name"}
    if len(forms) != 1 or not forms <= {"instances", "inputs"}:
        raise UsageError("a body has 'signature_name' and either 'instances' (rows) or 'inputs' (columns)")
    name = "serving_default" if name == "" else name
    if not isinstance(name, str) or name not in signatures:
        raise UsageError(f"unknown signature; choose from: {', '.join(signatures)}")
    inputs, (form,) = signatures[name].inputs, forms
    if any(len(info.shape or ()) != 1 or info.dtype not in TYPES for info in inputs.values()):
        raise UsageError(f"'{name}' has inputs that are not lists of text or numbers")
    dtypes = tuple((column, info.dtype) for column, info in inputs.items())
    try:
        content = _checker(form, dtypes).validate_python(body[form], strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"'{'.'.join(map(str, (form, *first['loc'])))}': {first['msg']}") from None
    columns = content if form == "inputs" else {column: [row[column] for row in content] for column in inputs}
    return name, {column: np.array(columns[column], object if dtype == "string" else dtype) for column, dtype in dtypes}


def size(inputs: Mapping[str, Array]) -> tuple[int, int]:
    """Count the rows of a call, and the characters that it reads and writes; a carry is not read."""
    texts = [array for name, array in inputs.items() if array.dtype == object and not name.endswith("_bytes")]
    read = sum(len(text.decode(errors="replace")) for array in texts for text in array)
    lengths = inputs.get("length", np.zeros(0, np.int64)).astype(np.int64)
    return len(next(iter(inputs.values()))), read + int(lengths.clip(0).sum())


def answer(outputs: Mapping[str, Array], form: str) -> dict[str, Any]:
    """Convert outputs to rows ("predictions") or columns ("outputs"). Outputs named ..._bytes are base64."""
    columns = {name: [_cell(name, value) for value in array.tolist()] for name, array in outputs.items()}
    if len(columns) == 1:
        return {form: columns.popitem()[1]}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {form: rows if form == "predictions" else columns}


def _cell(name: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    return {"b64": base64.b64encode(value).decode()} if name.endswith("_bytes") else value.decode(errors="replace")
