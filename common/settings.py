"""Settings: frozen dataclasses, filled from the sections of one TOML file an experiment, checked when they are made.

A section of the file is one dataclass, owned by the package that uses it:

    [data]      pipeline.config.IngestSettings
    [validate]  pipeline.config.ValidateSettings
    [model]     trainers.config.ModelConfig
    [train]     trainers.config.TrainConfig

Types and bounds are pydantic's; rules that join two fields stand in `__post_init__` and raise ValueError.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic

from common.errors import UsageError

SECTIONS = ("data", "validate", "model", "train")

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(pydantic.Field,))
def settings(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass whose fields are checked at construction: no unknown name, no silent conversion
    of types."""
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=config)  # type: ignore[return-value]


def make(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Makes `cls(**values)`; `where` names the source in messages ("configs/a.toml [train]").

    Raises UsageError with the first broken rule: the setting, what was expected, what came.
    """
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise UsageError(f"{where}: no setting is called {_unknown(name, field_names(cls))}") from None
        if first["type"] == "missing":
            raise UsageError(f"{where}: the setting '{name}' is missing") from None
        rule = first["msg"].removeprefix("Value error, ")
        subject = f"'{name}': " if name else ""
        got = f", got {first['input']!r}" if name else ""
        raise UsageError(f"{where}: {subject}{rule[0].lower()}{rule[1:]}{got}") from None


def field_names(cls: type) -> list[str]:
    """The settings that a dataclass knows."""
    return [field.name for field in dataclasses.fields(cls)]


def read_config(path: Path, overrides: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Reads a TOML config into {section: {setting: value}}, every known section present, with `section.setting=value`
    overrides laid over it (the value in TOML's own notation; a bare word is a string).

    Raises UsageError for a file that is missing, is not TOML, or has an unknown section.
    """
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no config file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from None
    for name, table in config.items():
        _check_section(name, str(path))
        if not isinstance(table, dict):
            raise UsageError(f"{path}: [{name}] must be a section, got {table!r}")
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and name):
            raise UsageError(f"--set wants section.setting=value (such as train.epochs=3), got '{override}'")
        _check_section(section, "--set")
        config.setdefault(section, {})[name] = _toml_value(text.strip())
    return {section: config.get(section, {}) for section in SECTIONS}


def _check_section(name: str, where: str) -> None:
    if name not in SECTIONS:
        raise UsageError(f"{where}: no section is called {_unknown(name, SECTIONS)}")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _unknown(name: str, known: Iterable[str]) -> str:
    """An unknown name, the nearest known one where there is one, and all the known ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"'{name}'{hint}; there are: {', '.join(known)}"
