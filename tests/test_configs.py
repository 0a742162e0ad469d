"""The configs: known corpora, valid settings, and a comment with the command and the cost of each run."""

from pathlib import Path

import pytest

from common.settings import make, read_config
from pipeline.config import IngestSettings, ValidateSettings
from pipeline.corpora import CORPORA
from trainers.config import RunConfig

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.toml")), ids=lambda path: path.stem)
def test_config_is_valid_and_explains_how_to_run_it(path: Path) -> None:
    tables = read_config(path)
    (source,) = make(IngestSettings, tables["data"], str(path)).source
    make(ValidateSettings, tables["validate"], str(path))
    RunConfig.read(path)
    comment = path.read_text().partition("[data]")[0]
    name = path.relative_to(ROOT)
    assert source == "stdlib" or (source in CORPORA and f"python -m pipeline fetch {source}" in comment)
    assert f"make run CONFIG={name}" in comment
    assert "# Cost: " in comment
    assert "# Expected: " in comment
