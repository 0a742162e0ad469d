"""Resolve sources (files, folders, patterns, standard input, named corpora) into files in a fixed order."""

import contextlib
import dataclasses
import fnmatch
import glob
import itertools
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pydantic

from common.errors import StageError, UsageError
from common.files import scratch as temporary
from pipeline.corpora import CORPORA

STANDARD_INPUT = "-"
RAW = Path("data/raw")  # where pipeline.fetch puts named corpora
PROVENANCE = "provenance.json"  # written by fetch beside each text
STDLIB_BYTES = 5_000_000


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read, with a name that is the same on every machine."""

    name: str
    path: Path
    bytes: int


@dataclasses.dataclass(frozen=True)
class Sources:
    """The files, in order, and the provenance of those from named corpora."""

    files: list[SourceFile]
    provenance: list[dict[str, Any]]


@contextlib.contextmanager
def opened(sources: Iterable[str], include: list[str], exclude: list[str], scratch: Path) -> Iterator[Sources]:
    """Yield the files of all sources. Standard input can be read only once, so `scratch` keeps it for the block.

    A source is a file; a folder: every file below it, sorted by path, without hidden ones; a pattern (*, ?, [a-z], and
    ** for any folders): every match, sorted; "-", standard input; or the name of a corpus. An existing path takes
    precedence. include, exclude: patterns for the path in a folder or for its last part.
    Raises UsageError for an unknown source, StageError for a source without text.
    """
    files, provenance = [], []
    with contextlib.ExitStack() as stack:
        for source in sources:
            if source == STANDARD_INPUT:
                matches = [stack.enter_context(_standard_input(scratch))]
            else:
                matches = _files(source, include, exclude)
                provenance += _provenance(source)
            if not matches:
                raise StageError(f"{source} matches no files: check the pattern, --include and --exclude")
            if not sum(file.bytes for file in matches):
                raise StageError(f"{source} is empty: name a source that contains text")
            files += matches
        yield Sources(files, provenance)


def defaults(sources: object) -> dict[str, Any]:
    """[data] settings recommended for a named corpus, if it is the only source."""
    names = list(sources) if isinstance(sources, list) else []
    if len(names) != 1 or not isinstance(names[0], str):
        return {}  # IngestSettings reports the error
    if not Path(names[0]).exists() and names[0] in CORPORA:
        return dict(CORPORA[names[0]].settings)
    return {name: value for origin in _provenance(names[0]) for name, value in origin["settings"].items()}


def _files(source: str, include: list[str], exclude: list[str]) -> list[SourceFile]:
    path = _path_of(source)
    if path.is_file():
        return [_source_file(path, path.name)]
    if path.is_dir():
        # The folder's own name comes first, even for "." or "..".
        top = path.resolve().name
        return [
            _source_file(file, f"{top}/{name}")
            for name, file in _files_below(path)
            if _included(name, include, exclude)
        ]
    if source == "stdlib":
        return list(_standard_library())
    if glob.has_magic(source):
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(source).parts))
        # Links can lead to a file in several ways; it counts once.
        matched = {Path(name).resolve(): Path(name) for name in sorted(glob.glob(source, recursive=True), reverse=True)}
        files = sorted(file for file in matched.values() if file.is_file())
        return [_source_file(file, file.relative_to(fixed).as_posix()) for file in files]
    if source in CORPORA:
        raise UsageError(f"the corpus '{source}' has not been fetched: run python -m pipeline fetch {source}")
    if path.is_symlink():
        raise UsageError(f"'{source}' is a broken link")
    if path.exists():
        raise UsageError(f"'{source}' is neither a file nor a folder: to read a pipe, pass - (standard input)")
    raise UsageError(f"'{source}' is not a file, a folder or a named corpus ({', '.join(CORPORA)})")


def _path_of(source: str) -> Path:
    """Path of a source: its own, or that of the fetched corpus of this name."""
    fetched = RAW / source
    return fetched if not Path(source).exists() and source in CORPORA and fetched.is_dir() else Path(source)


def _provenance(source: str) -> list[dict[str, Any]]:
    """Provenance that fetch recorded beside a text. Raises StageError if it is invalid."""
    file = _path_of(source) / PROVENANCE
    if not file.is_file():
        return []
    try:
        return [_Provenance.model_validate_json(file.read_bytes()).model_dump()]
    except pydantic.ValidationError as error:
        reason = error.errors()[0]["msg"].lower()
        raise StageError(f"{file} is invalid ({reason}): fetch the corpus again, or delete this file") from None


class _Provenance(pydantic.BaseModel, extra="allow"):
    """The fields used here."""

    name: str
    text_sha256: str
    settings: dict[str, Any] = {}


def _files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files below a folder, not following links to folders. Raises OSError if a folder cannot be listed."""

    def fail(error: OSError) -> None:
        raise error

    files = []
    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(root) / name for name in names if not name.startswith("."))
        files += [(path.relative_to(folder), path) for path in paths if path.is_file()]
    return ((name.as_posix(), path) for name, path in sorted(files) if name.as_posix() != PROVENANCE)


def _included(name: str, include: list[str], exclude: list[str]) -> bool:
    def fits(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(part, pattern) for pattern in patterns for part in (name, Path(name).name))

    return (not include or fits(include)) and not fits(exclude)


def _source_file(path: Path, name: str) -> SourceFile:
    # A file name may be any bytes; the manifest needs text.
    return SourceFile(os.fsencode(name).decode(errors="replace"), path, path.stat().st_size)


@contextlib.contextmanager
def _standard_input(scratch: Path) -> Iterator[SourceFile]:
    with temporary(scratch / "stdin") as folder:
        kept = folder / "stdin"
        with kept.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield _source_file(kept, "standard input")


def _standard_library() -> Iterator[SourceFile]:
    """Top-level modules of the standard library, up to the file that exceeds 5 MB in total."""
    total = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if total >= STDLIB_BYTES:
            return
        yield _source_file(path, f"stdlib/{path.name}")
        total += path.stat().st_size
