"""Provenance of every figure: machine, commit and date. Light, since processes that are measured import it."""

import datetime
import subprocess
from pathlib import Path

from common.errors import StageError
from common.machine import describe

ROOT = Path(__file__).parent.parent
CODE = ("common", "pipeline", "trainers", "export", "bench", "configs", "requirements.lock")


def provenance(known: str = "", gpu: bool = False) -> dict[str, str]:
    """Return machine, commit and date.

    known: the commit, for a copy of the project without its repository.
    gpu: whether to name the GPUs.
    Raises StageError for uncommitted changes.
    """
    return {"machine": describe(gpu), "commit": known or commit(), "date": datetime.date.today().isoformat()}


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
