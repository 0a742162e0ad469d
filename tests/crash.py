"""Kills, simulated in process: from the chosen write to the file system on, every one raises, and nothing is cleaned
up. Damaged files."""

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}


class Killed(BaseException):
    """The process has ended. Not an OSError: no handler of ours may catch it."""


_left: int | None = None  # writes until the kill


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _left
    if _left is None or event not in EVENTS:
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if _left == 0:
        raise Killed
    _left -= 1


sys.addaudithook(_hook)  # cannot be removed: idle outside `killed_at_each`


def killed_at_each(prepare: Callable[[], None], act: Callable[[], object]) -> Iterator[int]:
    """Run `act` again and again, killed before each of its writes in turn. Yield their count after each kill,
    and at the end once more, after a run that was not killed."""
    global _left
    for count in itertools.count():
        prepare()
        _left, whole = count, False
        try:
            with contextlib.suppress(Killed):
                act()
                whole = True
        finally:
            _left = None
        yield count
        if whole:
            return


def tree(folder: Path) -> dict[str, bytes | None]:
    """The contents of all files below a folder, by path; None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def damaged(folder: Path, *leave_out: str) -> Iterator[Path]:
    """Damage each file below a folder in turn: a bit flipped, the second half cut off, removed. Yield its path
    meanwhile."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.relative_to(folder).as_posix() in leave_out:
            continue
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for content in (bytes(flipped), whole[: len(whole) // 2], None):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            yield path
        path.write_bytes(whole)
