"""Examples in docstrings."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "pipeline", "trainers", "export", "bench")
PATHS = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", [path for path in PATHS if ">>> " in (ROOT / path).read_text()], ids=str)
def test_examples(path: Path) -> None:
    result = doctest.testmod(importlib.import_module(".".join(path.with_suffix("").parts)))
    assert result.failed == 0 < result.attempted
