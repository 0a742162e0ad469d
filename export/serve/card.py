"""The table of a model card: each served version's model, scores and sources."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from pipeline.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class ServedVersion:
    """Version of a model with its facts. origin: its export.json; facts: its facts.json (export.serve.facts), or {}."""

    number: int
    labels: list[str]
    origin: dict[str, Any]
    facts: dict[str, Any]

    @property
    def vocab(self) -> Vocab:
        return Vocab.from_json(self.origin["vocab"])

    @property
    def rows(self) -> int:
        return row_limit(self.origin)


def row_limit(origin: dict[str, Any]) -> int:
    """Row limit of a call, from a version's export.json."""
    return int(origin["limits"]["rows"])


def _bits(version: ServedVersion, nats: float) -> str:
    return f"{nats / math.log(2):.3f} bits per {version.vocab.unit} ({nats:.3f} nats)"


def _test(version: ServedVersion) -> str:
    score = version.facts.get("test")
    return f"{_bits(version, score['nats'])}, over {score['targets']:,}" if score else "not evaluated"


def _architecture(version: ServedVersion) -> str:
    model = version.origin["config"]["model"]
    embedding = f", embedding of {model['embedding']}" if model["embedding"] else ""
    return f"{model['cell'].upper()}, {model['layers']} x {model['units']} units{embedding}"


def _data(version: ServedVersion) -> str:
    data = version.facts.get("data")
    if not data:
        return "not available at export"
    tokens = ", ".join(f"{name} {count:,}" for name, count in data["tokens"].items())
    return f"{data['name']}: {tokens} {version.vocab.unit}s; {'validated' if data['validated'] else 'not validated'}"


def _sources(version: ServedVersion) -> str:
    data = version.facts.get("data")
    if not data:
        return "unknown"
    if data["corpora"]:
        return "; ".join(
            f"{corpus['name']}, from {corpus['from'] or corpus['address']}, {corpus['date']}"
            for corpus in data["corpora"]
        )
    names = ", ".join(data["sources"][:5]) + (", ..." if len(data["sources"]) > 5 else "")
    files = f"{data['files']:,} file{'s' * (data['files'] != 1)}"
    return f"{names} ({files}, {data['bytes']:,} bytes)"


def _licence(version: ServedVersion) -> str:
    corpora = (version.facts.get("data") or {}).get("corpora")
    if not corpora:
        return "not recorded with the data"
    return "; ".join(f"{corpus['name']}: {corpus['licence']}" for corpus in corpora)


def _limits(version: ServedVersion) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in version.origin["limits"].items())


TABLE: dict[str, Callable[[ServedVersion], str]] = {
    "run": lambda version: f"{version.origin['run']}, step {version.origin['step']:,}",
    "model": _architecture,
    "parameters": lambda version: f"{version.facts['parameters']:,}" if "parameters" in version.facts else "unknown",
    "vocabulary": lambda version: f"{version.vocab.size} {version.vocab.unit}s",
    "on validation": lambda version: _bits(version, version.origin["val_nats"]),
    "on test": _test,
    "data": _data,
    "sources": _sources,
    "licence of the sources": _licence,
    "limits": _limits,
    "made with": lambda version: ", ".join(f"{name} {v}" for name, v in version.facts.get("tools", {}).items()),
    "weights, SHA-256": lambda version: version.origin["weights_sha256"],
    "data, SHA-256": lambda version: version.origin["data_sha256"],
}


def table(versions: list[ServedVersion]) -> dict[str, list[str]]:
    """Rows of the table by name, with one cell per version."""
    return {name: [describe(version) for version in versions] for name, describe in TABLE.items()}


def cell(text: str) -> str:
    r"""Escape a text for a cell of a Markdown table: no mark-up, link or newline is left in it.

    >>> print(cell("a|b <i>*c*\n"))
    a&#124;b &#60;i&#62;&#42;c&#42;&#10;
    """
    special = r"[^\w ,.:;=/()+%-]|(?<![^\W_])_|_(?![^\W_])"  # an underscore within a word is not mark-up
    return re.sub(special, lambda match: f"&#{ord(match[0])};", text)
