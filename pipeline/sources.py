"""What is ingested: files, folders, patterns, standard input and named corpora, as a list of files in a fixed order."""

import contextlib
import dataclasses
import fnmatch
import glob
import itertools
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pydantic

from common.errors import StageError, UsageError
from pipeline.corpora import CORPORA

STANDARD_INPUT = "-"
RAW = Path("data/raw")  # where pipeline.fetch puts named corpora
PROVENANCE = "provenance.json"  # what it leaves beside a text
STDLIB_BYTES = 5_000_000


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read, under a name that is the same on every machine."""

    name: str
    path: Path
    bytes: int


@dataclasses.dataclass(frozen=True)
class Sources:
    """The files, in order, and where those of named corpora came from."""

    files: list[SourceFile]
    provenance: list[dict[str, Any]]


@contextlib.contextmanager
def opened(sources: Iterable[str], include: list[str], exclude: list[str], scratch: Path) -> Iterator[Sources]:
    """The files of all the sources. Standard input, which can be read but once, is kept in `scratch` for the block.

    A source is a file; a folder: every file below it, sorted by path, hidden ones left out; a pattern (*, ?, [a-z], and
    ** for any folders): every file that fits, sorted; "-", standard input; or the name of a corpus. A path that exists
    wins over the others. include, exclude: patterns on the names of a folder's files, or on the last part of them.
    Raises UsageError for what is none of these, StageError where a source has no text.
    """
    files, provenance = [], []
    with contextlib.ExitStack() as stack:
        for source in sources:
            if source == STANDARD_INPUT:
                found = [stack.enter_context(_standard_input(scratch))]
            else:
                found = _files(source, include, exclude)
                provenance += _provenance(source)
            if not found:
                raise StageError(f"{source} has no file that fits: look at the pattern, --include and --exclude")
            if not sum(file.bytes for file in found):
                raise StageError(f"{source} is empty: there is nothing to learn from; name something that holds text")
            files += found
        yield Sources(files, provenance)


def defaults(sources: object) -> dict[str, Any]:
    """The [data] settings that a named corpus is meant to be read with, where it is the only source."""
    names = list(sources) if isinstance(sources, list) else []
    if len(names) != 1 or not isinstance(names[0], str):
        return {}  # what is wrong with it, the settings will say
    if not Path(names[0]).exists() and names[0] in CORPORA:
        return dict(CORPORA[names[0]].settings)
    return {name: value for found in _provenance(names[0]) for name, value in found["settings"].items()}


def _files(source: str, include: list[str], exclude: list[str]) -> list[SourceFile]:
    path = _place(source)
    if path.is_file():
        return [_source_file(path, path.name)]
    if path.is_dir():
        # The folder's own name leads, also where it was given as "." or "..".
        leading = path.resolve().name
        named = _below(path)
        return [_source_file(file, f"{leading}/{name}") for name, file in named if _wanted(name, include, exclude)]
    if source == "stdlib":
        return list(_standard_library())
    if glob.has_magic(source):
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(source).parts))
        # A folder may be come to by many ways; each file counts once.
        matched = {Path(name).resolve(): Path(name) for name in sorted(glob.glob(source, recursive=True), reverse=True)}
        files = sorted(file for file in matched.values() if file.is_file())
        return [_source_file(file, file.relative_to(fixed).as_posix()) for file in files]
    if source in CORPORA:
        raise UsageError(f"the corpus '{source}' is not here yet: python -m pipeline fetch {source}")
    if path.is_symlink():
        raise UsageError(f"'{source}' is a link that leads nowhere")
    if path.exists():
        raise UsageError(f"'{source}' is neither a file nor a folder: a pipe is read as - (standard input)")
    raise UsageError(f"'{source}' is neither a file, nor a folder, nor a named corpus ({', '.join(CORPORA)})")


def _place(source: str) -> Path:
    """The path that a source stands for: its own, or that of the corpus of its name, where it was fetched."""
    fetched = RAW / source
    return fetched if not Path(source).exists() and source in CORPORA and fetched.is_dir() else Path(source)


def _provenance(source: str) -> list[dict[str, Any]]:
    """What fetch left beside a text. Raises StageError where it is damaged."""
    file = _place(source) / PROVENANCE
    if not file.is_file():
        return []
    try:
        return [_Provenance.model_validate_json(file.read_bytes()).model_dump()]
    except pydantic.ValidationError as error:
        what = error.errors()[0]["msg"].lower()
        raise StageError(f"{file} does not say where a text came from ({what}): fetch it again, or remove it") from None


class _Provenance(pydantic.BaseModel, extra="allow"):
    """What is used of it here."""

    name: str
    text_sha256: str
    settings: dict[str, Any] = {}


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder and of those in it; links to folders are not followed. Raises OSError for what cannot be
    listed."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(root) / name for name in names if not name.startswith("."))
        found += [(path.relative_to(folder), path) for path in paths if path.is_file()]
    return ((name.as_posix(), path) for name, path in sorted(found) if name.as_posix() != PROVENANCE)


def _wanted(name: str, include: list[str], exclude: list[str]) -> bool:
    def fits(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(part, pattern) for pattern in patterns for part in (name, Path(name).name))

    return (not include or fits(include)) and not fits(exclude)


def _source_file(path: Path, name: str) -> SourceFile:
    # A file's name may be any bytes; what goes into the manifest must be text.
    return SourceFile(os.fsencode(name).decode(errors="replace"), path, path.stat().st_size)


@contextlib.contextmanager
def _standard_input(scratch: Path) -> Iterator[SourceFile]:
    with tempfile.NamedTemporaryFile(dir=scratch, prefix=".stdin-") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.flush()
        yield _source_file(Path(kept.name), "standard input")


def _standard_library() -> Iterator[SourceFile]:
    """The modules that lie directly in the standard library's folder, up to the file that takes them past 5 MB."""
    total = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if total >= STDLIB_BYTES:
            return
        yield _source_file(path, f"stdlib/{path.name}")
        total += path.stat().st_size
