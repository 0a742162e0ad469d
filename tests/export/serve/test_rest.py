"""The bodies of REST that the docs show, held against the signatures and asked of them.

No server with REST is at hand: what a server makes of a body, and of an answer, is done here by TensorFlow Serving's
documented forms ("instances" by rows, "inputs" by columns; {"b64": ...} for bytes).
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
    """What follows curl's -d, with a carry in the place of the shell's variable."""
    return [json.loads(body.replace("'\"$CARRY\"'", "")) for body in BODY.findall(text)]


DOCUMENTED = bodies((ROOT / "docs" / "serving.md").read_text(encoding="utf-8"))


def columns(body: dict[str, Any]) -> dict[str, list[Any]]:
    """A body's inputs by name. Raises AssertionError for a body of neither form."""
    assert len(body.keys() & {"instances", "inputs"}) == 1
    assert body.keys() <= {"signature_name", "instances", "inputs"}
    if "inputs" in body:
        assert len({len(values) for values in body["inputs"].values()}) == 1, "an entry a row in every column"
        return body["inputs"]
    assert len({tuple(sorted(row)) for row in body["instances"]}) == 1, "the same inputs in every row"
    return {name: [row[name] for row in body["instances"]] for name in body["instances"][0]}


def value(given: Any) -> Any:
    """A string of JSON as bytes, those in base64 decoded; a number as it is."""
    if isinstance(given, dict):
        assert given.keys() == {"b64"}
        return base64.b64decode(given["b64"], validate=True)
    return given.encode() if isinstance(given, str) else given


def told(row: served_models.Row) -> dict[str, Any]:
    """A row of an answer as a server puts it into JSON: bytes as text, or in base64 where the name ends in _bytes."""

    def put(name: str, one: Any) -> Any:
        if not isinstance(one, bytes):
            return np.asarray(one).tolist()
        return {"b64": base64.b64encode(one).decode()} if name.endswith("_bytes") else one.decode()

    return {name: put(name, one) for name, one in row.items()}


def test_the_docs_show_both_forms_and_a_carry() -> None:
    assert [sorted(body.keys() - {"signature_name"}) for body in DOCUMENTED] == [
        ["instances"],
        ["inputs"],
        ["instances"],
    ]
    assert [body["signature_name"] for body in DOCUMENTED] == ["serving_default", "generate", "continue"]


@pytest.mark.parametrize("body", DOCUMENTED, ids=[body["signature_name"] for body in DOCUMENTED])
def test_a_documented_body_is_answered(run: Path, body: dict[str, Any]) -> None:
    check(served_models.exported(run), body)


def test_the_card_shows_a_body_that_is_answered(run: Path) -> None:
    model = served_models.exported(run)
    (body,) = bodies((model.base / "MODEL_CARD.md").read_text(encoding="utf-8"))
    check(model, body)


def check(model: served_models.ExportedModel, body: dict[str, Any]) -> None:
    signature = body.get("signature_name", "serving_default")
    asked = columns(body)
    assert asked.keys() == set(INPUTS[signature])
    for name, values in asked.items():
        assert all(isinstance(one, JSON_TYPES[DTYPES[name].name]) for one in values), name
    rows = [dict(zip(asked, map(value, row), strict=True)) for row in zip(*asked.values(), strict=True)]
    found = model.query(signature, rows)
    for row, one in zip(rows, found, strict=True):
        assert (one["finish_reason"], one["n_chars"]) == (b"length", min(row["length"], served_models.LIMITS.length))
        back = json.loads(json.dumps(told(one)))
        assert {name for name, cell in back.items() if isinstance(cell, dict)} == {
            n for n in one if n.endswith("_bytes")
        }
        assert {name: value(back[name]) for name in one if isinstance(one[name], bytes)} == {
            name: cell for name, cell in one.items() if isinstance(cell, bytes)
        }
