"""Files that are whole or not there at all: written beside their final name, renamed into place at the end."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import StageError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; it becomes `path` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_replaceable(folder: Path, marker: str, kind: str, option: str = "--out") -> None:
    """Raises StageError where `folder` is a file, or a folder of other things than the `kind` that has a file `marker`:
    neither is ours to take away, whatever was asked for. option: which gave it."""
    if folder.exists() and not folder.is_dir():
        raise StageError(f"{folder} is a file, {kind} is a folder: give another {option}")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise StageError(f"{folder} exists and is not {kind} (it has no {marker}): remove it, or give another {option}")


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder for the block. Raises StageError where another process holds it."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"another process is at work in {folder}: wait for it, or give another --out") from None
        yield


@contextlib.contextmanager
def whole_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """Gives an empty folder beside `path`; it replaces `path`, old content and all, if the block ends well.

    Raises StageError where `path` is full by then and `replace` is not set: another process was quicker.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    # mkdtemp makes private folders; what a stage hands on is as open as any other folder of the user's.
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    os.umask(umask := os.umask(0))
    partial.chmod(0o777 & ~umask)
    held = os.open(partial, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then nothing is ever cleared
            fcntl.flock(held, fcntl.LOCK_EX)
        yield partial
        if not replace and path.exists() and any(path.iterdir()):
            raise StageError(f"{path} was made by another process meanwhile: look at it before you make it again")
        if path.exists():
            # rename() cannot replace a full folder: the old one steps aside first, and is deleted only after the swap.
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
            os.rename(path, old / path.name)
            os.rename(partial, path)
            shutil.rmtree(old)
        else:
            os.rename(partial, path)
    finally:
        os.close(held)
        shutil.rmtree(partial, ignore_errors=True)


def _clear(path: Path) -> None:
    """Takes away what a process that was killed left beside `path`, and puts back what it was about to replace."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.old-*"):
        if not path.exists() and (old / path.name).exists():
            os.rename(old / path.name, path)
            shutil.rmtree(old)
    for partial in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        if partial.is_dir() and _unheld(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _unheld(folder: Path) -> bool:
    """Whether no living process holds the lock on a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; an empty one where there is no such file, or it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a JSON value in its canonical form (sorted keys, no spaces): equal values, equal hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
