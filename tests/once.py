"""Trained runs and exports, made once per test run and shared by its workers."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder `name` that `make` fills; the first caller of any worker makes it, the others wait.

    Tests must not change what is in it: they copy it first.
    """
    base = factory.getbasetemp()
    if base.name.startswith("popen-"):  # of a worker of pytest-xdist; the folder above is of the whole test run
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
