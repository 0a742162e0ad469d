"""Fixtures on disk, built once per test session and shared by pytest-xdist workers."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder `name`, filled by `make` in the first worker that asks; the others wait.

    Tests that change it must copy it first.
    """
    base = factory.getbasetemp()
    if base.name.startswith("popen-"):  # a pytest-xdist worker's folder; its parent is shared
        base = base.parent
    folder, done = base / "once" / name, base / "once" / f"{name}.done"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
