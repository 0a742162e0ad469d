"""What stands beside every figure: the machine, and the commit. Light: whoever imports it may be measured."""

import os
import platform
import subprocess
from pathlib import Path

from common.errors import StageError

ROOT = Path(__file__).parent.parent
CODE = ("common", "pipeline", "trainers", "export", "bench", "configs", "requirements.lock")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> str:
    """The processor, its cores, and the instructions that matter here."""
    name = _cpu().get("model name", platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores of {name} ({', '.join(cpu_flags())})"


def cpu_flags() -> list[str]:
    """The instructions that matter here, those that the processor has."""
    return [flag for flag in CPU_FLAGS if flag in _cpu().get("flags", "").split()]


def _cpu() -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in fields.items()}


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
