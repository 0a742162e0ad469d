"""Find the files of a folder or a pattern, in one walk with one rule for links.

A linked file or folder is read once, and only if no path without links leads to it. A link to a folder that contains it
is a loop and never followed. Whatever is left out is counted and named.
"""

import fnmatch
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.errors import StageError
from common.files import read_json

EVERYTHING = ("**",)
# Files that mark a folder as this project's own output, and keys that no other file of the name would have.
OUTPUTS = {
    "manifest.json": ("a data set", {"format_version", "data_sha256", "splits"}),
    "run.json": ("a run", {"format_version", "data_sha256", "config"}),
}

Inode = tuple[int, int]  # device and inode
States = frozenset[int]  # positions in a pattern: of the parts that the next part of a path may match
_Folder = tuple[Path, Inode, States, bool]  # the last: reached through a link


class _File(NamedTuple):
    linked: bool
    name: Path
    path: Path
    key: Inode


class Walk(NamedTuple):
    """Files below a folder by their path in it, sorted; and the paths left out, by reason."""

    files: dict[Path, Path]
    left_out: dict[str, list[str]]


def walk(top: Path, pattern: tuple[str, ...] = EVERYTHING, out: Path | None = None) -> Walk:
    """Find the files below `top` whose path there matches the parts of `pattern`, as in a shell; ** is any folders.

    * and ** match no hidden names. Folders that this project wrote are left out, and so is `out`.
    Raises StageError if `top` is such a folder, and if a folder cannot be listed.
    """
    if not top.is_dir():
        return Walk({}, {})
    if kind := output_kind(top, out):
        raise StageError(f"{top} is {kind} that this program wrote, not a source: name the files it was made from")
    files: list[_File] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    seen: set[tuple[Inode, States]] = set()
    links: list[_Folder] = []
    folders: list[_Folder] = [(top, _key(top.stat()), _closure(frozenset({0}), pattern), False)]
    while folders or links:
        folder, key, states, linked = folders.pop() if folders else links.pop(0)
        if (key, states) in seen:
            left_out["links to folders already read"].append(_name(folder, top))
            continue
        seen.add((key, states))
        for entry in _entries(folder):
            path, name = folder / entry.name, _name(folder / entry.name, top)
            after = _after(states, entry.name, pattern)
            if not after:
                if entry.name.startswith(".") and _after(states, entry.name.lstrip(".") or "x", pattern):
                    left_out["hidden"].append(name)
                continue
            is_link = entry.is_symlink()
            try:
                status = path.stat()
            except OSError:
                left_out["broken links" if is_link else "unreadable"].append(name)
                continue
            if stat.S_ISDIR(status.st_mode):
                if after == {len(pattern)}:
                    continue  # the pattern ends here, and names files
                if is_link and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path)):
                    left_out["links to a folder that contains them"].append(name)
                elif output_kind(path, out):
                    left_out["data sets and runs"].append(name)
                else:
                    (links if is_link else folders).append((path, _key(status), after, linked or is_link))
            elif len(pattern) in after:
                if stat.S_ISREG(status.st_mode):
                    files.append(_File(linked or is_link, path.relative_to(top), path, _key(status)))
                else:
                    left_out["pipes and devices"].append(name)
    kept: dict[Path, Path] = {}
    read: set[Inode] = set()
    for file in sorted(files):
        if file.linked and file.key in read:
            left_out["links to files already read"].append(_name(file.path, top))
        else:
            kept[file.name] = file.path
        read.add(file.key)
    return Walk(dict(sorted(kept.items())), dict(left_out))


def output_kind(folder: Path, out: Path | None = None) -> str | None:
    """Kind of output that this program wrote to a folder, or None. out: the folder that it is about to write."""
    if out and folder.exists() and out.exists() and folder.samefile(out):
        return "the folder of the output"
    for marker, (kind, keys) in OUTPUTS.items():
        if keys <= read_json(folder / marker).keys():
            return kind
    return None


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise StageError(f"{folder} cannot be read: {error.strerror}") from None


def _key(status: os.stat_result) -> Inode:
    return status.st_dev, status.st_ino


def _name(path: Path, top: Path) -> str:
    return path.relative_to(top).as_posix()


def _after(states: States, name: str, pattern: tuple[str, ...]) -> States:
    """Advance the states by one part of a path; empty if the pattern does not match."""
    after = set()
    for state in states - {len(pattern)}:
        part = pattern[state]
        if name.startswith(".") and not part.startswith("."):
            continue
        if part == "**":
            after.add(state)
        elif fnmatch.fnmatchcase(name, part):
            after.add(state + 1)
    return _closure(frozenset(after), pattern)


def _closure(states: States, pattern: tuple[str, ...]) -> States:
    """Add the states after a ** that matches no folder."""
    for state in sorted(states):
        while state < len(pattern) and pattern[state] == "**":
            state += 1
            states |= {state}
    return states
