"""TF Serving's REST bodies: JSON to arrays that match a signature, and answers to JSON.

Some calls must not reach a batching server: without rows, they hang; with inputs of another rank, they fail the calls
that share their batch.
"""

import base64
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


STRICT = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
LARGEST = float(np.finfo(np.float32).max)
TYPES: dict[str, Any] = {
    "string": Annotated[bytes, pydantic.BeforeValidator(_bytes)],
    "int32": Annotated[int, pydantic.Field(ge=-(1 << 31), lt=1 << 31)],
    "int64": Annotated[int, pydantic.Field(ge=-(1 << 63), lt=1 << 63)],
    "float32": Annotated[float, pydantic.Field(ge=-LARGEST, le=LARGEST)],
}


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
    name, forms = body.get("signature_name", "serving_default"), body.keys() - {"signature_name"}
    if len(forms) != 1 or not forms <= {"instances", "inputs"}:
        raise UsageError("a body has 'signature_name' and either 'instances' (rows) or 'inputs' (columns)")
    if not isinstance(name, str) or name not in signatures:
        raise UsageError(f"unknown signature; choose from: {', '.join(signatures)}")
    inputs, (form, content) = signatures[name].inputs, *((form, body[form]) for form in forms)
    if any(len(info.shape or ()) != 1 or info.dtype not in TYPES for info in inputs.values()):
        raise UsageError(f"'{name}' has inputs that are not lists of text or numbers")
    if len(inputs) == 1:  # a single input may be given without its name
        (only,) = inputs
        if form == "inputs":
            content = content if isinstance(content, dict) else {only: content}
        elif isinstance(content, list):
            content = [row if isinstance(row, dict) and row.keys() != {"b64"} else {only: row} for row in content]
    types = {column: TYPES[info.dtype] for column, info in inputs.items()}
    if form == "instances":
        rows = _validated(list[_closed(types)], content, form)  # type: ignore[misc]
        columns = {column: [row[column] for row in rows] for column in inputs}
    else:
        lists: dict[str, Any] = {column: list[kind] for column, kind in types.items()}  # type: ignore[valid-type]
        columns = _validated(_closed(lists), content, form)
    counts = {column: len(values) for column, values in columns.items()}
    if len(set(counts.values())) > 1:
        raise UsageError("unequal rows: " + ", ".join(f"{column} has {count}" for column, count in counts.items()))
    dtypes = {column: object if info.dtype == "string" else info.dtype for column, info in inputs.items()}
    return name, {column: np.array(columns[column], dtypes[column]) for column in inputs}


def _closed(types: dict[str, Any]) -> Any:
    """Make the type of an object with exactly these names."""
    kind: Any = TypedDict("kind", types)  # type: ignore[misc]
    kind.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
    return kind


def _validated(kind: Any, content: Any, form: str) -> Any:
    try:
        return pydantic.TypeAdapter(kind).validate_python(content, strict=True)
    except (pydantic.ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, pydantic.ValidationError) else {"loc": (), "msg": "too deep"}
        raise UsageError(f"'{'.'.join(map(str, (form, *first['loc'])))}': {first['msg']}") from None


def size(inputs: Mapping[str, Array]) -> tuple[int, int]:
    """Rows of a call, and the characters that it reads and writes; a carry is not read."""
    texts = [array for name, array in inputs.items() if array.dtype == object and not name.endswith("_bytes")]
    read = sum(len(text.decode(errors="replace")) for array in texts for text in array)
    lengths = inputs.get("length", np.zeros(0, np.int64)).astype(np.int64)
    return len(next(iter(inputs.values()))), read + int(lengths.clip(0).sum())


def to_json(outputs: Mapping[str, Array], by_rows: bool) -> bytes:
    """Convert an answer to the form of its request. Outputs named ..._bytes are base64."""
    columns = {name: [_cell(name, value) for value in array.tolist()] for name, array in outputs.items()}
    single = next(iter(columns.values())) if len(columns) == 1 else None
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    answer = {"predictions": single or rows} if by_rows else {"outputs": single or columns}
    return json.dumps(answer).encode()


def _cell(name: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    return {"b64": base64.b64encode(value).decode()} if name.endswith("_bytes") else value.decode(errors="replace")
