"""Settings: frozen dataclasses, read from the sections of an experiment's TOML file and checked at construction.

Each section is one dataclass, in the package that uses it:

    [data]      pipeline.config.IngestSettings
    [validate]  pipeline.config.ValidateSettings
    [model]     trainers.config.ModelConfig
    [train]     trainers.config.TrainConfig

Pydantic checks types and bounds; rules that relate two fields are in `__post_init__` and raise ValueError.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic

from common.errors import UsageError
from common.printable import brief

SECTIONS = ("data", "validate", "model", "train")

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(pydantic.Field,))
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that rejects unknown fields and wrong types at construction."""
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=config)  # type: ignore[return-value]


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that rejects wrong types at construction: the content of a file of ours."""
    config = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True)
    return pydantic.dataclasses.dataclass(cls, frozen=True, config=config)  # type: ignore[return-value]


def make(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Construct `cls(**values)`. where: the source, for messages ("configs/a.toml [train]").

    Raises UsageError for the first invalid setting: its name, what was expected, what was given.
    """
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise UsageError(f"{where}: {_unknown('setting', name, field_names(cls))}") from None
        if first["type"] == "missing":
            raise UsageError(f"{where}: the setting '{name}' is missing") from None
        rule = first["msg"].removeprefix("Value error, ")
        subject = f"'{brief(name)}': " if name else ""
        got = f", got {brief(repr(first['input']))}" if name else ""
        raise UsageError(f"{where}: {subject}{rule[0].lower()}{rule[1:]}{got}") from None


def field_names(cls: type) -> list[str]:
    """Names of a dataclass's settings."""
    return [field.name for field in dataclasses.fields(cls) if field.init]


def read_config(path: Path, overrides: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Read a TOML config as {section: {setting: value}}, with every known section present.

    overrides: `section.setting=value`, the value in TOML notation; a bare word is a string.
    Raises UsageError if the file is missing, is not TOML, or has an unknown section.
    """
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"config file {path} not found") from None
    except (OSError, RecursionError, ValueError) as error:
        raise UsageError(f"{path} is not valid TOML: {brief(str(error))}") from None
    for name, table in config.items():
        _check_section(name, str(path))
        if not isinstance(table, dict):
            raise UsageError(f"{path}: [{name}] must be a section, got {brief(repr(table))}")
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and name):
            raise UsageError(f"--set expects section.setting=value, such as train.epochs=3, got '{brief(override)}'")
        _check_section(section, "--set")
        config.setdefault(section, {})[name] = _toml_value(text.strip())
    return {section: config.get(section, {}) for section in SECTIONS}


def _check_section(name: str, where: str) -> None:
    if name not in SECTIONS:
        raise UsageError(f"{where}: {_unknown('section', name, SECTIONS)}")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (RecursionError, ValueError):
        return text


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Error message for an unknown name, with the closest known one and the list of all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"unknown {kind} '{brief(name)}'{hint}; choose from: {', '.join(known)}"
