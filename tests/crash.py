"""Simulated kills, damaged files and full disks.

A kill is simulated in process: either every write to the file system raises after a given number of writes, so that
nothing is cleaned up; or the folder is copied before each write, which is the state that a kill would leave.
"""

import contextlib
import itertools
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}

Tree = dict[str, bytes | None]  # contents of files by path; None for folders


class Killed(BaseException):
    """Simulated end of the process. Not an OSError, so that the code under test cannot catch it."""


_left: int | None = None  # writes until the kill
_before_write: Callable[[], None] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _left
    if event not in EVENTS or (_left is None and _before_write is None):
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if _before_write is not None:
        _before_write()
    if _left is None:
        return
    if _left == 0:
        raise Killed
    _left -= 1


sys.addaudithook(_hook)  # cannot be removed: idle outside `killed_at_each`


def killed_at_each(prepare: Callable[[], None], act: Callable[[], object]) -> Iterator[int]:
    """Run `act` repeatedly, killed before each of its writes in turn. Yield the number of writes after each kill, and
    once more after a run that was not killed."""
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


def states(act: Callable[[], object], folder: Path) -> list[Tree]:
    """Run `act`. Return the contents of a folder before each of its writes, and at the end."""
    global _before_write
    recorded: list[Tree] = []
    contents: dict[tuple[int, int, int], bytes] = {}  # unchanged files are the same object in all states
    lock = threading.Lock()

    def content(path: Path) -> bytes | None:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return None
        key = (status.st_ino, status.st_mtime_ns, status.st_size)
        if key not in contents:
            contents[key] = path.read_bytes()
        return contents[key]

    def record() -> None:
        with lock:
            state = {}
            for path in sorted(folder.rglob("*")):
                with contextlib.suppress(FileNotFoundError):  # another thread has deleted it
                    state[path.relative_to(folder).as_posix()] = content(path)
            recorded.append(state)

    _before_write = record
    try:
        act()
    finally:
        _before_write = None
    record()
    return recorded


def restore(state: Tree, folder: Path) -> None:
    """Restore a folder's contents to a state."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in state.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


@contextlib.contextmanager
def disk_of(size: int, folder: Path) -> Iterator[None]:
    """Mount an empty disk of `size` bytes. Skips the test if that is not permitted."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # logs of TensorBoard may still be open


def tree(folder: Path) -> Tree:
    """Read all files below a folder, by path; None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def damaged(folder: Path, *leave_out: str) -> Iterator[Path]:
    """Damage each file below a folder in three ways: flip a bit, cut off the second half, remove it. Yield the path
    after each, and restore the file before damaging the next."""
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
