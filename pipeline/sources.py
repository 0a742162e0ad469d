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

from common import console
from common.errors import StageError, UsageError
from common.files import load_json, read_json
from common.files import scratch as temporary
from common.printable import visible
from pipeline.corpora import CORPORA
from pipeline.walk import EVERYTHING, walk

STANDARD_INPUT = ("-", "/dev/stdin")
RAW = Path("data/raw")  # where pipeline.fetch puts named corpora
PROVENANCE = "provenance.json"  # written by fetch beside each text
STDLIB_BYTES = 5_000_000
NAMED = 3  # paths named in a note


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """File to read, with a name that is the same on every machine."""

    name: str
    path: Path
    bytes: int


@dataclasses.dataclass(frozen=True)
class Sources:
    """Files to read, in order, and the provenance of those from named corpora."""

    files: list[SourceFile]
    provenance: list[dict[str, Any]]


@contextlib.contextmanager
def opened(sources: Iterable[str], include: list[str], exclude: list[str], out: Path) -> Iterator[Sources]:
    """Yield the files of all sources. A pipe can be read only once, so the block keeps its text in a file beside `out`.

    A source is a file; a folder: every file below it, sorted by path, without hidden ones; a pattern (*, ?, [a-z], and
    ** for any folders): every match, sorted; "-" or a pipe; or the name of a corpus. An existing path takes precedence.
    include, exclude: patterns for the path in a folder or for its last part. out: the data set, which is never read.
    Raises UsageError for an unknown source, StageError for a source without text or one that cannot be read.
    """
    files, provenance = [], []
    with contextlib.ExitStack() as stack:
        for source in sources:
            if source in STANDARD_INPUT or Path(source).is_fifo():
                matches = [stack.enter_context(_piped(source, out.parent))]
            else:
                matches = _files(source, include, exclude, out)
                provenance += _provenance(source)
            if not matches:
                raise StageError(f"{source} matches no files: check the pattern, --include and --exclude")
            if not sum(file.bytes for file in matches):
                raise StageError(f"{source} is empty: name a source that contains text")
            files += matches
        yield Sources(files, provenance)


def defaults(sources: object) -> dict[str, Any]:
    """Return the [data] settings recommended for a named corpus, if it is the only source."""
    names = list(sources) if isinstance(sources, list) else []
    if len(names) != 1 or not isinstance(names[0], str):
        return {}  # IngestSettings reports the error
    if not Path(names[0]).exists() and names[0] in CORPORA:
        return dict(CORPORA[names[0]].settings)
    return {name: value for origin in _provenance(names[0]) for name, value in origin["settings"].items()}


def _files(source: str, include: list[str], exclude: list[str], out: Path) -> list[SourceFile]:
    if not source:
        raise UsageError("a source must not be empty: name a file, a folder or a corpus, or '.' for this folder")
    path = _path_of(source)
    if path.is_file():
        return [_source_file(path, path.name)]
    if path.is_dir():
        # The folder's own name comes first, even for "." or "..".
        top = path.resolve().name
        names = _walked(source, path, EVERYTHING, out)
        prefix = f"{top}/" if top else ""  # the root has no name
        return [_source_file(names[name], prefix + name) for name in names if _included(name, include, exclude)]
    if source == "stdlib":
        return list(_standard_library())
    if glob.has_magic(source):
        parts = Path(source).parts
        fixed = tuple(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
        names = _walked(source, Path(*fixed), parts[len(fixed) :], out)
        return [_source_file(file, name) for name, file in names.items()]
    if source in CORPORA:
        raise UsageError(f"the corpus '{source}' has not been fetched: run python -m pipeline fetch {source}")
    if path.is_symlink():
        raise UsageError(f"'{source}' is a broken link")
    if path.exists():
        raise UsageError(f"'{source}' is neither a file, a folder nor a pipe")
    raise UsageError(f"'{source}' is not a file, a folder or a named corpus ({', '.join(CORPORA)})")


def _walked(source: str, top: Path, pattern: tuple[str, ...], out: Path) -> dict[str, Path]:
    """List files by their path below `top`, and note what is left out."""
    files, left_out = walk(top, pattern, out)
    for reason, paths in left_out.items():
        names = ", ".join(map(_printable, sorted(paths)[:NAMED])) + (", ..." if len(paths) > NAMED else "")
        console.note(f"{source}: left out {len(paths):,} ({reason}): {names}")
    return {name.as_posix(): path for name, path in files.items() if name.as_posix() != PROVENANCE or _foreign(path)}


def _path_of(source: str) -> Path:
    """Path of a source: its own, or that of the fetched corpus of this name."""
    fetched = RAW / source
    return fetched if not Path(source).exists() and source in CORPORA and fetched.is_dir() else Path(source)


def _provenance(source: str) -> list[dict[str, Any]]:
    """Provenance that fetch recorded beside a text. Raises StageError if it is invalid."""
    file = _path_of(source) / PROVENANCE
    if not file.is_file() or _foreign(file):
        return []
    try:
        return [_Provenance.model_validate(load_json(file)).model_dump()]
    except ValueError as error:
        reason = error.errors()[0]["msg"].lower() if isinstance(error, pydantic.ValidationError) else str(error)
        raise StageError(f"{file} is invalid ({reason}): fetch the corpus again, or delete this file") from None


def _foreign(file: Path) -> bool:
    """Check for another program's provenance.json, an object without our keys, which is text like any other."""
    return bool(value := read_json(file)) and not value.keys() & {"format_version", "text_sha256"}


class _Provenance(pydantic.BaseModel, extra="allow"):
    """Provenance, with the fields that are used here."""

    name: str
    text_sha256: str
    settings: dict[str, Any] = {}


def _included(name: str, include: list[str], exclude: list[str]) -> bool:
    def fits(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(part, pattern) for pattern in patterns for part in (name, Path(name).name))

    return (not include or fits(include)) and not fits(exclude)


def _source_file(path: Path, name: str) -> SourceFile:
    try:
        return SourceFile(_printable(name), path, path.stat().st_size)
    except OSError as error:
        raise StageError(f"{path} cannot be read: {error.strerror}") from None


def _printable(name: object) -> str:
    """Text of a file name, which may be any bytes."""
    return visible(os.fsencode(str(name)).decode(errors="replace"))


@contextlib.contextmanager
def _piped(source: str, scratch: Path) -> Iterator[SourceFile]:
    """Copy a pipe to a file for the block."""
    is_input = source in STANDARD_INPUT
    with temporary(scratch / "stdin") as folder:
        kept = folder / "stdin"
        with kept.open("wb") as file, contextlib.ExitStack() as stack:
            pipe = sys.stdin.buffer if is_input else stack.enter_context(open(source, "rb"))
            shutil.copyfileobj(pipe, file)
        yield _source_file(kept, "standard input" if is_input else "pipe")


def _standard_library() -> Iterator[SourceFile]:
    """Top-level modules of the standard library, up to the file that exceeds 5 MB in total."""
    total = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if total >= STDLIB_BYTES:
            return
        yield _source_file(path, f"stdlib/{path.name}")
        total += path.stat().st_size
