"""What stands beside every figure: the machine, and the commit. Light: whoever imports it may be measured."""

import os
import platform
import subprocess
from pathlib import Path

from common.errors import StageError
from common.machine import processor

ROOT = Path(__file__).parent.parent
CODE = ("common", "pipeline", "trainers", "export", "bench", "configs", "requirements.lock")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> str:
    """The processor, its cores, and the instructions that matter here."""
    name, flags = processor()
    known = ", ".join(flag for flag in CPU_FLAGS if flag in flags)
    return f"{len(os.sched_getaffinity(0))} cores of {name or platform.machine()} ({known})"


def commit() -> str:
    """The commit that the code stands at. Raises StageError where code and configs are not as they are committed."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StageError(f"a figure belongs to a commit, and git does not know one: {done.stderr.strip()}")
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", *CODE)
    if changed:
        raise StageError(f"a figure belongs to a commit, and there are changes that are not committed: {changed}")
    return git("rev-parse", "HEAD")
