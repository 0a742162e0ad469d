from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a data set may be made: not there yet."""
    return tmp_path / "data"
