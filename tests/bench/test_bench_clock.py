"""Equal training time: the seconds given to each peer, a real run of this project, and one of torch if installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_data import TEXT, make_config

from bench import clock, data
from bench.__main__ import clock as bench_clock
from common.errors import StageError

ROOT = Path(__file__).parents[2]
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
    """Return a tiny config next to a data set in `data`."""
    monkeypatch.setattr("bench.machine.commit", lambda: "a commit")
    return make_config(tmp_path, CONFIG)


def test_torch_trains_for_as_many_seconds_as_ours(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    ours = {"val_nats": 1.5, "seen": 2_000_000, "training_seconds": 12.5, "parameters": 1234}
    ours |= {"rate": 0.03, "precision": "bfloat16"}

    def measure(command: list[str]) -> tuple[None, str]:
        calls.append(command[1:])
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
    with pytest.raises(StageError, match=r"needs an LSTM, a cosine schedule and no layer_norm: change .*other.toml"):
        clock.compare(other, config.parent / "data", config.parent / "out")
    clock.compare(ROOT / bench_clock.params[0].default, config.parent / "data", config.parent / "out")
    calls.clear()
    clock.compare(config, config.parent / "data", config.parent / "out")
    command = ["-m", "bench.torch_clock", str(config), str(config.parent / "data"), "12.5"]
    assert calls == [[*command, "adam", "0.01", "bfloat16"], [*command, "muon", "0.03", "bfloat16"]]
    result = json.loads((config.parent / "out" / "bench-clock-tiny.json").read_text(encoding="utf-8"))
    assert result["found"]["ours"] == ours
    assert [entry["rate"] for entry in result["found"].values()] == [0.03, 0.01, 0.03]
    columns = [list(column.cells) for column in clock.table(result).columns]
    assert columns == [
        ["ours", "torch nn.LSTM, adam", "torch nn.LSTM, muon"],
        ["1.500", "1.750", "1.750"],
        ["2.0", "1.0", "1.0"],
        ["12", "13", "13"],
        ["1,234", "1,300", "1,300"],
    ]


@pytest.mark.slow
def test_ours_runs_the_train_command(config: Path) -> None:
    result = clock._ours(config, config.parent / "data", config.parent / "run")
    assert result["seen"] == 2 * len(TEXT)
    assert result["parameters"] == 4 * 16 * (256 + 16 + 1) + 16 * 256 + 256
    assert 0 < result["training_seconds"] < 600
    assert result["val_nats"] < 2.5  # 5.5 before training


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
@pytest.mark.parametrize(("optimizer", "precision"), [("adam", "float32"), ("muon", "bfloat16")])
def test_torch_learns(config: Path, optimizer: str, precision: str) -> None:
    command = [sys.executable, "-m", "bench.torch_clock", str(config), str(config.parent / "data"), "4", optimizer]
    done = subprocess.run([*command, "0.03", precision], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["val_nats"] < 5.3  # 5.6 before training; busy cores take few steps in four seconds
    assert result["training_seconds"] >= 4
    assert result["seen"] % (4 * 5) == 0
    assert result["parameters"] == 256 * 16 + 4 * 16 * (16 + 16 + 2) + 16 * 256 + 256


def test_a_command_with_many_notes_is_measured() -> None:
    noisy = "import sys; sys.stderr.write('x\\n' * 100_000); print('output'); sys.exit(int(sys.argv[1]))"
    usage, output = data.measure([sys.executable, "-c", noisy, "0"])
    assert (output, usage.seconds > 0, usage.peak > 1 << 20) == ("output\n", True, True)
    with pytest.raises(StageError, match=r"1 failed: x$"):
        data.measure([sys.executable, "-c", noisy, "1"])
