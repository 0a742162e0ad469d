"""REST requests in the docs, checked against the signatures and run on the model.

The stand-in has no REST, so these tests convert requests and responses themselves, as documented by TensorFlow Serving
("instances" for rows, "inputs" for columns, {"b64": ...} for bytes).
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_models

from export.serve.signatures import DTYPES, INPUTS

ROOT = Path(__file__).parents[3]
BODY = re.compile(r"-d '(\{.*?\})'(?:\n|$)", re.S)
JSON_TYPES = {"string": (str, dict), "int32": int, "int64": int, "float32": (float, int)}


def bodies(text: str) -> list[dict[str, Any]]:
    """Extract the JSON after curl's -d, without the shell's variable; completions are tested separately."""
    parsed = [json.loads(body.replace("'\"$CARRY\"'", "")) for body in BODY.findall(text)]
    return [body for body in parsed if "model" not in body]


DOCS_BODIES = bodies((ROOT / "docs" / "serving.md").read_text(encoding="utf-8"))


def columns(body: dict[str, Any]) -> dict[str, list[Any]]:
    """Convert a body to inputs by name. Raises AssertionError if it has neither form."""
    assert len(body.keys() & {"instances", "inputs"}) == 1
    assert body.keys() <= {"signature_name", "instances", "inputs"}
    if "inputs" in body:
        assert len({len(values) for values in body["inputs"].values()}) == 1, "all columns must have equal length"
        return body["inputs"]
    assert len({tuple(sorted(row)) for row in body["instances"]}) == 1, "all rows must have the same inputs"
    return {name: [row[name] for row in body["instances"]] for name in body["instances"][0]}


def value(encoded: Any) -> Any:
    """Decode a JSON value: strings and base64 to bytes, numbers unchanged."""
    if isinstance(encoded, dict):
        assert encoded.keys() == {"b64"}
        return base64.b64decode(encoded["b64"], validate=True)
    return encoded.encode() if isinstance(encoded, str) else encoded


def to_json(row: served_models.Row) -> dict[str, Any]:
    """Encode a row of a response like a server: bytes as text, or in base64 if the name ends in _bytes."""

    def encode(name: str, cell: Any) -> Any:
        if not isinstance(cell, bytes):
            return np.asarray(cell).tolist()
        return {"b64": base64.b64encode(cell).decode()} if name.endswith("_bytes") else cell.decode()

    return {name: encode(name, cell) for name, cell in row.items()}


def test_docs_show_both_forms_and_a_carry() -> None:
    assert [sorted(body.keys() - {"signature_name"}) for body in DOCS_BODIES] == [
        ["instances"],
        ["inputs"],
        ["instances"],
    ]
    assert [body["signature_name"] for body in DOCS_BODIES] == ["serving_default", "generate", "continue"]


@pytest.mark.parametrize("body", DOCS_BODIES, ids=[body["signature_name"] for body in DOCS_BODIES])
def test_request_in_the_docs_is_answered(run: Path, body: dict[str, Any]) -> None:
    check(served_models.exported(run), body)


def test_request_in_the_model_card_is_answered(run: Path) -> None:
    model = served_models.exported(run)
    (body,) = bodies((model.base / "MODEL_CARD.md").read_text(encoding="utf-8"))
    check(model, body)


def check(model: served_models.ExportedModel, body: dict[str, Any]) -> None:
    signature = body.get("signature_name", "serving_default")
    inputs = columns(body)
    assert inputs.keys() == set(INPUTS[signature])
    for name, values in inputs.items():
        assert all(isinstance(cell, JSON_TYPES[DTYPES[name].name]) for cell in values), name
    rows = [dict(zip(inputs, map(value, row), strict=True)) for row in zip(*inputs.values(), strict=True)]
    for request, row in zip(rows, model.query(signature, rows), strict=True):
        assert (row["finish_reason"], row["n_chars"]) == (
            b"length",
            min(request["length"], served_models.LIMITS.length),
        )
        back = json.loads(json.dumps(to_json(row)))
        encoded = {name for name, cell in back.items() if isinstance(cell, dict)}
        assert encoded == {name for name in row if name.endswith("_bytes")}
        texts = {name: cell for name, cell in row.items() if isinstance(cell, bytes)}
        assert {name: value(back[name]) for name in texts} == texts
