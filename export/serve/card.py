"""The table of a model card: what each version that is served is, how good it is, and what it was made from."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from pipeline.vocab import Vocab

ROWS = 64  # of a call, where export.json names no limit


@dataclasses.dataclass(frozen=True)
class Version:
    """A version that is served. about: its export.json; facts: its facts.json (export.serve.facts), or {}."""

    number: int
    labels: list[str]
    about: dict[str, Any]
    facts: dict[str, Any]

    @property
    def vocab(self) -> Vocab:
        return Vocab.from_json(self.about["vocab"])

    @property
    def rows(self) -> int:
        """The most rows that a call may have."""
        return int((self.about.get("limits") or {}).get("rows", ROWS))


def _bits(version: Version, nats: float) -> str:
    return f"{nats / math.log(2):.3f} bits a {version.vocab.unit} ({nats:.3f} nats)"


def _test(version: Version) -> str:
    score = version.facts.get("test")
    return f"{_bits(version, score['nats'])}, over {score['targets']:,}" if score else "not evaluated"


def _architecture(version: Version) -> str:
    model = version.about["config"]["model"]
    embedding = f", embedding of {model['embedding']}" if model.get("embedding") else ""
    return f"{model.get('cell', 'lstm').upper()}, {model['layers']} x {model['units']} units{embedding}"


def _data(version: Version) -> str:
    data = version.facts.get("data")
    if not data:
        return "not at hand when this was exported"
    tokens = ", ".join(f"{name} {count:,}" for name, count in data["tokens"].items())
    return f"{data['name']}: {tokens} {version.vocab.unit}s; {'validated' if data['validated'] else 'not validated'}"


def _sources(version: Version) -> str:
    data = version.facts.get("data")
    if not data:
        return "not known"
    if data["corpora"]:
        return "; ".join(
            f"{one['name']}, from {one['from'] or one['address']}, {one['date']}" for one in data["corpora"]
        )
    shown = ", ".join(data["sources"][:5]) + (", ..." if len(data["sources"]) > 5 else "")
    files = f"{data['files']:,} file{'s' * (data['files'] != 1)}"
    return f"{shown} ({files}, {data['bytes']:,} bytes)"


def _licence(version: Version) -> str:
    corpora = (version.facts.get("data") or {}).get("corpora")
    return "; ".join(f"{one['name']}: {one['licence']}" for one in corpora) if corpora else "not recorded with the data"


def _limits(version: Version) -> str:
    limits = version.about.get("limits") or {"rows": version.rows}
    return ", ".join(f"{name} {value:,}" for name, value in limits.items())


TABLE: dict[str, Callable[[Version], str]] = {
    "run": lambda version: f"{version.about['run']}, step {version.about['step']:,}",
    "model": _architecture,
    "parameters": lambda version: f"{version.facts['parameters']:,}" if "parameters" in version.facts else "not known",
    "vocabulary": lambda version: f"{version.vocab.size} {version.vocab.unit}s",
    "on validation": lambda version: _bits(version, version.about["val_nats"]),
    "on test": _test,
    "data": _data,
    "sources": _sources,
    "licence of the sources": _licence,
    "limits": _limits,
    "made with": lambda version: ", ".join(f"{name} {v}" for name, v in version.facts.get("tools", {}).items()),
    "weights, SHA-256": lambda version: version.about["weights_sha256"],
    "data, SHA-256": lambda version: version.about["data_sha256"],
}


def table(versions: list[Version]) -> dict[str, list[str]]:
    """The rows of the table by name, a cell for each version."""
    return {what: [of(version) for version in versions] for what, of in TABLE.items()}


def cell(text: str) -> str:
    r"""A text as a cell of a Markdown table: nothing in it is mark-up, a link or a new line.

    >>> print(cell("a|b <i>*c*\n"))
    a&#124;b &#60;i&#62;&#42;c&#42;&#10;
    """
    allowed = r"[^\w ,.:;=/()+%-]|(?<![^\W_])_|_(?![^\W_])"  # an underscore within a word is none of mark-up
    return re.sub(allowed, lambda found: f"&#{ord(found[0])};", text)
