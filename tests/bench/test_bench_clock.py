"""By the clock: who is given how long, a real run of ours, and torch's, where that is installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_data import TEXT, make_config

from bench import clock
from common.errors import StageError

CONFIG = """
[model]
units = 16
layers = 1
[train]
lanes = 4
window = 5
epochs = 2
learning_rate = 0.03
schedule = "cosine"
decay = 0.1
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny config, with a data set in `data` beside it."""
    monkeypatch.setattr(clock, "commit", lambda: "a commit")
    return make_config(tmp_path, CONFIG)


def test_torch_has_the_seconds_that_ours_took(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ours = {"val_nats": 1.5, "seen": 2_000_000, "training_seconds": 12.5, "parameters": 1234, "rate": 0.03}

    def measure(command: list[str]) -> tuple[None, str]:
        asked.append(command[1:])
        return None, json.dumps({"val_nats": 1.75, "seen": 1e6, "training_seconds": 12.6, "parameters": 1300})

    monkeypatch.setattr(clock, "has", lambda package: False)
    with pytest.raises(StageError, match="pip install torch"):
        clock.compare(config, config.parent / "data", config.parent / "out")
    monkeypatch.setattr(clock, "has", lambda package: True)
    monkeypatch.setattr(clock, "measure", measure)
    monkeypatch.setattr(clock, "_ours", lambda *_: ours)
    monkeypatch.setattr(clock.importlib.metadata, "version", lambda name: f"{name} 1")
    other = config.with_name("other.toml")
    other.write_text(CONFIG.replace("cosine", "exponential"))
    with pytest.raises(StageError, match="as an LSTM with a cosine and without output_dropout, not as"):
        clock.compare(other, config.parent / "data", config.parent / "out")
    clock.compare(config, config.parent / "data", config.parent / "out")
    what = ["-m", "bench.torch_clock", str(config), str(config.parent / "data"), "12.5"]
    assert asked == [[*what, "adam", "0.01"], [*what, "muon", "0.03"]]
    result = json.loads((config.parent / "out" / "bench-clock-tiny.json").read_text(encoding="utf-8"))
    assert result["found"]["ours"] == ours
    assert [one["rate"] for one in result["found"].values()] == [0.03, 0.01, 0.03]
    columns = [list(column.cells) for column in clock.table(result).columns]
    assert columns == [
        ["ours", "torch nn.LSTM, adam", "torch nn.LSTM, muon"],
        ["1.500", "1.750", "1.750"],
        ["2.0", "1.0", "1.0"],
        ["12", "13", "13"],
        ["1,234", "1,300", "1,300"],
    ]


@pytest.mark.slow
def test_ours_is_a_run_of_the_command_line(config: Path) -> None:
    found = clock._ours(config, config.parent / "data", config.parent / "run")
    assert found["seen"] == 2 * len(TEXT)
    assert found["parameters"] == 4 * 16 * (256 + 16 + 1) + 16 * 256 + 256
    assert 0 < found["training_seconds"] < 600
    assert found["val_nats"] < 2.5  # of 5.5 before


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_torch_learns_by_the_clock(config: Path, optimizer: str) -> None:
    command = [sys.executable, "-m", "bench.torch_clock", str(config), str(config.parent / "data"), "4", optimizer]
    done = subprocess.run([*command, "0.03"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["val_nats"] < 5.3  # of 5.6 before; busy cores make few steps of four seconds
    assert found["training_seconds"] >= 4
    assert found["seen"] % (4 * 5) == 0
    assert found["parameters"] == 256 * 16 + 4 * 16 * (16 + 16 + 2) + 16 * 256 + 256
