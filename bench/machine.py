"""Provenance of every figure: machine, commit and date. Light, since processes that are measured import it."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

from common.errors import StageError
from common.machine import processor

ROOT = Path(__file__).parent.parent
CODE = ("common", "pipeline", "trainers", "export", "bench", "configs", "requirements.lock")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def provenance() -> dict[str, str]:
    """Return machine, commit and date. Raises StageError for uncommitted changes."""
    return {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}


def machine() -> str:
    """Return the processor, its cores, and its relevant instruction sets."""
    name, flags = processor()
    known = ", ".join(flag for flag in CPU_FLAGS if flag in flags)
    return f"{len(os.sched_getaffinity(0))} cores of {name or platform.machine()} ({known})"


def commit() -> str:
    """Return the current commit. Raises StageError for uncommitted changes to code or configs."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StageError(f"results name their commit, but git reports none: {done.stderr.strip()}")
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", *CODE)
    if changed:
        raise StageError(f"results name their commit: commit these changes first: {changed}")
    return git("rev-parse", "HEAD")
