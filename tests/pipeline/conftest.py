from pathlib import Path

import hypothesis
import pytest

# The default deadline of 200 ms per example fails on a busy machine.
hypothesis.settings.register_profile("pipeline", deadline=None)
hypothesis.settings.load_profile("pipeline")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Path for a data set, which does not exist yet."""
    return tmp_path / "data"
