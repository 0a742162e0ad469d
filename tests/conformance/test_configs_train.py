"""Every config of configs/ from a text to a .tflite: a few steps on a slice of Python's own source."""

import argparse
import json
from pathlib import Path

import pytest
from test_end_to_end import Result, prepared, run_here

from common.settings import make, read_config
from pipeline.config import IngestSettings

pytestmark = [pytest.mark.processes, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/*.toml")), ids=lambda path: path.stem)
def test_config_trains_evaluates_and_exports(config: Path, tmp_path: Path) -> None:
    def command(line: str) -> Result:
        result = run_here(tmp_path, line)
        assert result.status == 0, result
        return result

    text = Path(argparse.__file__).read_bytes()[:10_000] * 8  # repeated, so that each split has each character
    (tmp_path / "text.py").write_bytes(text)
    settings = make(IngestSettings, read_config(config)["data"], str(config))
    shares = "--train 0.8 --val 0.1 --test 0.1" if settings.train > 1 else ""  # instead of the first 90 MB
    command(f"pipeline ingest text.py --config {config} --out data {shares}")
    with prepared():
        command(f"trainers train {config} --data data --out run --unvalidated --set train.epochs=0.5")
        command("trainers evaluate run --split val")
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluation = tmp_path / "run" / "evaluation-val.json"
    assert rows[-1]["val_nats"] < rows[0]["val_nats"]
    assert json.loads(evaluation.read_text())["nats"] == pytest.approx(rows[-1]["val_nats"], abs=0.2)
    assert "builtin ops only" in command("export tflite run --out devices --precision float32").out
