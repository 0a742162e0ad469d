"""Atomic files and folders: written beside their final name, then renamed into place."""

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
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_replaceable(folder: Path, marker: str, kind: str, option: str = "--out") -> None:
    """Raise StageError unless `folder` is missing, empty, or a `kind`, which contains a file `marker`.

    Anything else is the user's own and is not replaced, even with --force. option: the option that names the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise StageError(f"{folder} is a file, but {kind} is a folder: pass another {option}")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise StageError(f"{folder} exists and is not {kind} (it has no {marker}): remove it, or pass another {option}")


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder for the block. Raises StageError if another process holds the lock."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"another process is using {folder}: wait for it, or pass another --out") from None
        yield


@contextlib.contextmanager
def whole_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder beside `path`, and replace `path` and its contents with it if the block succeeds.

    Raises StageError if `replace` is False and another process has written to `path` in the meantime.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    # mkdtemp creates private folders; a stage's output gets the user's usual permissions.
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    os.umask(umask := os.umask(0))
    partial.chmod(0o777 & ~umask)
    handle = os.open(partial, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: leftovers are never cleared
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield partial
        if not replace and path.exists() and any(path.iterdir()):
            raise StageError(f"another process wrote {path} meanwhile: check it, then pass --force to overwrite it")
        if path.exists():
            # rename() cannot replace a folder with contents: move the old one aside, and delete it after the swap.
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
            os.rename(path, old / path.name)
            os.rename(partial, path)
            shutil.rmtree(old)
        else:
            os.rename(partial, path)
    finally:
        os.close(handle)
        shutil.rmtree(partial, ignore_errors=True)


def _clear(path: Path) -> None:
    """Remove leftovers of killed processes beside `path`, and restore a folder that was moved aside."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.old-*"):
        if not path.exists() and (old / path.name).exists():
            os.rename(old / path.name, path)
            shutil.rmtree(old)
    for partial in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        if partial.is_dir() and _unlocked(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _unlocked(folder: Path) -> bool:
    """Return whether no running process holds the lock on a folder."""
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
    """Write `value` as indented JSON, atomically."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Object in a JSON file; empty if the file is missing, invalid or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces): equal values have equal hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
