"""Atomic files and folders: built in a scratch folder beside their final name, flushed, and renamed into place.

.NAME.partial-XXXXXXXX/NAME         the new file or folder, until it is moved to NAME
.NAME.partial-XXXXXXXX/NAME.old     the folder that it replaces, until it is deleted

The process that owns a scratch folder holds a lock on it, so `recover` recognises the scratch folder of a killed
process, which leaves nothing else. If it holds both a new and an old folder, their swap stopped halfway.
"""

import base64
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from common import console
from common.errors import FULL, StageError, tensorflow_cause

LOCK = ".lock"
CHECKSUM = "checksum"  # in a JSON object: the hash of everything else in it
WRONG_SHAPE = (ArithmeticError, AttributeError, KeyError, TypeError, ValueError)  # errors of reading JSON of any shape
# Limits of a JSON file: the manifest of a million source files has 150 MB; a 64-bit integer has 20 characters.
MOST_BYTES, MOST_DEPTH, MOST_DIGITS = 1 << 28, 50, 20
_SCRATCH = re.compile(r"\..*\.partial-.{8}")
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a private folder beside `path`, deleted after the block or, after a kill, by the next `recover`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path.parent, glob.escape(path.name))
    with naming(path), _locked_new(path) as folder:
        try:
            yield folder
        finally:
            _settle(folder)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in the error of a full disk, which may name a file in a scratch folder, or none."""
    try:
        yield
    except OSError as error:
        if error.errno in _NOT_WRITTEN:
            error.filename, error.strerror = os.fspath(path), os.strerror(error.errno)
        raise
    except Exception as error:
        if code := FULL.get(tensorflow_cause(error)):
            raise OSError(code, os.strerror(code), os.fspath(path)) from error
        raise


def recover(folder: Path, pattern: str = "*") -> None:
    """Clean up after killed processes in `folder`: restore the folders they moved aside, delete their scratch folders.

    pattern: names of the files and folders to clean up after.
    """
    for leftover in folder.glob(f".{pattern}.partial-*"):
        with contextlib.suppress(OSError), _locked(leftover):  # unless a running process holds the lock
            _settle(leftover)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a scratch folder for the block. Raises OSError if it is locked, or gone."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked_new(path: Path) -> Iterator[Path]:
    """Create a scratch folder for `path`, locked for the block."""
    with contextlib.ExitStack() as lock:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
            try:
                lock.enter_context(_locked(folder))
            except (BlockingIOError, FileNotFoundError):
                continue  # another process's `recover` came between
            except OSError:
                pass  # a file system without locks: leftovers are never recovered
            if folder.exists():
                break
        yield folder


def _settle(folder: Path) -> None:
    """Delete a scratch folder, after restoring the old folder in it if the swap stopped halfway."""
    name = folder.name[1:].rpartition(".partial-")[0]
    if name in ("", ".", ".."):  # not made by `scratch`: the paths below would be outside of it
        return
    path, new, old = folder.with_name(name), folder / name, folder / f"{name}.old"
    if old.exists() and new.exists() and not path.exists():
        os.rename(old, path)
    shutil.rmtree(new, ignore_errors=True)  # before `old`, which must be whole as long as both exist
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` if the block succeeds. A device or a pipe is written directly.

    Raises StageError for a folder.
    """
    path = _place(path)
    if path.is_dir():
        raise StageError(f"{path} is a folder: pass the name of a file")
    if path.exists() and not path.is_file():
        yield path
        return
    with scratch(path) as folder:
        yield folder / path.name
        _flush(path, folder / path.name)
        os.replace(folder / path.name, path)
        _flush(path, path.parent)


@contextlib.contextmanager
def whole_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder, and replace `path` and its contents with it if the block succeeds.

    Raises StageError as `check_movable` does; and, if `replace` is False, if another process has written to `path` in
    the meantime.
    """
    path = _place(path)
    check_movable(path)
    with scratch(path) as folder:
        (new := folder / path.name).mkdir()
        yield new
        _flush(path, *new.rglob("*"), new)
        if not replace and path.exists() and any(path.iterdir()):
            raise StageError(f"another process wrote {path} meanwhile: check it, then pass --force to overwrite it")
        if path.exists():
            os.rename(path, folder / f"{path.name}.old")  # rename() cannot replace a folder with contents
        os.rename(new, path)
        _flush(path, path.parent)


def check_movable(path: Path) -> None:
    """Raise StageError for a mount point and for a folder that contains the current one."""
    if Path.cwd().is_relative_to(path.resolve()):
        raise StageError(f"{path} contains the current folder, so it cannot be replaced: pass another folder")
    if os.path.ismount(path):
        raise StageError(f"{path} is a mount point, so it cannot be replaced: pass a new folder in it")


def remove_folder(path: Path) -> None:
    """Delete a folder atomically: after a kill it is whole, or gone."""
    path = _place(path)
    with scratch(path) as folder:
        os.rename(path, folder / f"{path.name}.old")


def _place(path: Path) -> Path:
    """Follow a link, which may lead to another disk, and name `.` and `..`."""
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def _flush(path: Path, *parts: Path) -> None:
    """Flush files and folders of `path` to disk, unless it is part of a folder that will be flushed as a whole."""
    if any(_SCRATCH.fullmatch(name) for name in path.absolute().parent.parts):
        return
    for part in parts:
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot flush folders
                raise
        finally:
            os.close(handle)


def check_replaceable(folder: Path, marker: str, kind: str, option: str = "--out") -> None:
    """Raise StageError unless `folder` is writable, and missing, empty, or a `kind`, which contains a file `marker`.

    Anything else is the user's own and is not replaced, even with --force. `recover` runs first, so leftovers of killed
    processes do not count. option: the option that names the folder.
    """
    place = _place(folder)
    recover(place.parent, glob.escape(place.name))
    if folder.exists() and not folder.is_dir():
        raise StageError(f"{folder} is a file, but {kind} is a folder: pass another {option}")
    theirs = (file.name != LOCK and not _SCRATCH.fullmatch(file.name) for file in folder.glob("*"))
    if not (folder / marker).is_file() and any(theirs):
        raise StageError(f"{folder} exists and is not {kind} (it has no {marker}): remove it, or pass another {option}")
    present = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    if not os.access(present, os.W_OK):
        raise StageError(f"{present} is read-only: make it writable, or pass another {option}")


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder for the block. Raises StageError if another process holds the lock."""
    with (folder / LOCK).open("w") as lock:
        hold(lock, f"another process is using {folder}: wait for it, or pass another --out")
        yield


def hold(file: IO[Any], busy: str) -> None:
    """Lock an open file until it is closed. Raises StageError, with the message `busy`, if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StageError(busy) from None
    except OSError as error:
        console.note(f"{file.name} cannot be locked ({error.strerror}): do not start a second process on it")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_record(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as `write_json` does, with a checksum by which `load_json` notices changes."""
    value = json.loads(json.dumps(value))
    write_json(path, {**value, CHECKSUM: sha256_json(value)})


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text. Raises ValueError, and nothing else, for text that is not UTF-8 or not JSON, is nested deeper
    than MOST_DEPTH, or has an integer of more than MOST_DIGITS."""

    def integer(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise ValueError(f"an integer of {len(digits):,} digits, at most {MOST_DIGITS} are allowed")
        return int(digits)

    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text, parse_int=integer)
    except RecursionError:
        value = ...
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        parents = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for parent in parents for child in parent]
    if level or value is ...:
        raise ValueError(f"nested deeper than {MOST_DEPTH} levels")
    return value


def bytes_to_json(text: bytes) -> str | dict[str, str]:
    """Convert a text to JSON: base64 if it is not UTF-8, as in TF Serving's REST API."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(text).decode()}


def bytes_from_json(value: Any) -> bytes:
    """Undo `bytes_to_json`. Raises KeyError, TypeError or ValueError for any other value."""
    return value.encode() if isinstance(value, str) else base64.b64decode(value["b64"], validate=True)


def load_json(path: Path) -> Any:
    """Load a JSON file of at most MOST_BYTES, without its checksum.

    Raises OSError, and ValueError as `parse_json` does, or if the value differs from its checksum.
    """
    with path.open("rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes")
    value = parse_json(text)
    if isinstance(value, dict) and CHECKSUM in value and value.pop(CHECKSUM) != sha256_json(value):
        raise ValueError(f"its content does not match its {CHECKSUM}; if you edited it, remove that line")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Load the object in a JSON file; empty if the file is missing, invalid or not an object."""
    try:
        value = load_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def reading(path: Path, fix: str) -> Iterator[None]:
    """Report `path` as corrupted, and how to fix it, if the block fails on the shape of what it holds."""
    try:
        yield
    except WRONG_SHAPE as error:
        raise StageError(f"{path} is corrupted ({type(error).__name__}: {error}): {fix}") from None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces): equal values have equal hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def open_private(path: Path, option: str) -> TextIO:
    """Open a file, readable by its owner alone, to append lines. Raises StageError, naming the option."""
    try:
        return open(path, "a", buffering=1, encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600))
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}: pass another {option}") from None
