"""SHA256SUMS, the record of an export: the SHA-256 of each of its files, which `sha256sum -c` reads too.

The last line, a comment, is the hash of the lines before it, so that a truncated record is not valid.
"""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

from common.errors import StageError
from common.files import load_json, sha256_file, whole_file

FILE = "SHA256SUMS"


def write(folder: Path, names: Iterable[str] | None = None, leave_out: Collection[str] = ()) -> None:
    """Record the files of an export. names: by default all below `folder` except `leave_out`, files that may change."""
    if names is None:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    lines = "".join(
        f"{sha256_file(folder / name)}  {name}\n" for name in sorted(names) if name not in (FILE, *leave_out)
    )
    with whole_file(folder / FILE) as partial:
        partial.write_text(f"{lines}# {sha256_text(lines)}\n", encoding="utf-8")


def problems(folder: Path) -> list[str]:
    """Compare an export with its record. Returns one line per file that is missing or corrupted."""
    try:
        lines, _, own = (folder / FILE).read_bytes().decode().rpartition("# ")
        if own != f"{sha256_text(lines)}\n":
            raise ValueError
        listed = [line.split("  ", 1) for line in lines.splitlines()]
    except FileNotFoundError:
        return [f"{folder / FILE} is missing"]
    except ValueError:
        return [f"{folder / FILE} is corrupted"]
    states = [(folder / name, _state(folder / name, digest)) for digest, name in listed]
    # A JSON file that may change, such as a list of neurons, contains its own checksum.
    others = set(folder.glob("*.json")) - {path for path, _ in states}
    states += [(path, "is corrupted") for path in sorted(others) if not _readable(path)]
    return [f"{path} {state}" for path, state in states if state]


def check(folder: Path, fix: str = "export it again with --force") -> None:
    """Raise StageError, with the fix, unless every file of an export is as it was written."""
    for problem in problems(folder):
        raise StageError(f"{problem}: {fix}")


def verify(folder: Path) -> list[str]:
    """Compare an export and its snapshots, or a served model's versions, with their records. Returns the problems.

    Raises StageError if there is no export in `folder`.
    """
    parts = [folder, *sorted(path for path in folder.glob("*") if path.name.removeprefix("step-").isdigit())]
    if not folder.is_dir() or not any((part / FILE).exists() for part in parts):
        raise StageError(f"{folder} has no {FILE}: pass the folder of an export, or export it again with --force")
    return [problem for part in parts for problem in problems(part)]


def _state(path: Path, digest: str) -> str:
    """Describe what is wrong with a file; empty if it is intact."""
    try:
        return "" if sha256_file(path) == digest else "is corrupted"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _readable(path: Path) -> bool:
    try:
        load_json(path)
    except (OSError, ValueError):
        return False
    return True


def sha256_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
