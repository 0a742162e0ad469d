"""Child processes whose failure is reported by the last line of their standard error."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from common.errors import StageError


def run(command: Sequence[str], failure: str, cwd: Path | str | None = None) -> str:
    """Run a command and return its standard output.

    Raises StageError ("{failure}: {last line of standard error}") if its exit status is not 0.
    """
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if process.returncode:
        raise StageError(f"{failure}: {last_line(process.stderr)}")
    return process.stdout


def last_line(output: str) -> str:
    """Last line of a process's output: for a Python traceback, the exception."""
    return (output.strip().splitlines() or ["no message"])[-1]
