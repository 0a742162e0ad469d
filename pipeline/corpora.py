"""Where text comes from: files, folders, and corpora known by name."""

import dataclasses
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import StageError, UsageError


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file of a corpus, under a name that is the same on every machine."""

    name: str
    path: Path
    bytes: int


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text known by name. `about` says what it is and its licence; `files` gives its files in their fixed order."""

    about: str
    files: Callable[[], list[TextFile]]


def resolve(source: str) -> list[TextFile]:
    """The files of a source: a file, a folder (every file below it, sorted by path, hidden ones left out), or a corpus.

    A path that exists wins over a corpus of that name. Raises UsageError for neither, StageError if there is no text.
    """
    path = Path(source)
    if path.is_file():
        files = [_text_file(path, path.name)]
    elif path.is_dir():
        # The folder's own name leads, also where it was given as "." or "..".
        files = [_text_file(file, f"{path.resolve().name}/{name}") for name, file in _files_below(path)]
    elif source in CORPORA:
        files = CORPORA[source].files()
    else:
        raise UsageError(f"'{source}' is neither a file, nor a folder, nor a named corpus ({', '.join(CORPORA)})")
    if not sum(file.bytes for file in files):
        raise StageError(f"{source} is empty: there is nothing to learn from; name a file or folder that holds text")
    return files


def _files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    found = ((file.relative_to(folder), file) for file in folder.rglob("*") if file.is_file())
    return ((name.as_posix(), file) for name, file in sorted(found) if not any(part[0] == "." for part in name.parts))


def _text_file(path: Path, name: str) -> TextFile:
    # A file's name may be any bytes; what goes into the manifest must be text.
    return TextFile(os.fsencode(name).decode(errors="replace"), path, path.stat().st_size)


def _standard_library() -> list[TextFile]:
    """The modules that lie directly in the standard library's folder, up to the file that takes them past 5 MB."""
    files: list[TextFile] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if sum(file.bytes for file in files) >= 5_000_000:
            break
        files.append(_text_file(path, f"stdlib/{path.name}"))
    return files


CORPORA = {
    "stdlib": Corpus(
        about="some 5 MB of the Python standard library that runs this program (PSF licence); nothing is downloaded",
        files=_standard_library,
    ),
}
