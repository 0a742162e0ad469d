"""Effect of bfloat16 on the loss: the arithmetic, and real runs of the train command."""

import json
from pathlib import Path

import pytest
from tiny_data import make_config

from bench import precision
from common.errors import StageError

CONFIG = "[model]\nunits = 8\nlayers = 1\n[train]\nlanes = 4\nwindow = 5\nlearning_rate = 0.01\n"


def test_differences_are_per_seed() -> None:
    differences = precision.differences({"float32": [2.0, 1.5, 1.0], "bfloat16": [2.5, 1.25, 1.5]})
    assert differences == {"bfloat16_adds": [0.5, -0.25, 0.5], "bfloat16_adds_mean": 0.25, "float32_seeds_range": 1.0}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a tiny config next to a data set in `data`."""
    monkeypatch.setattr("bench.machine.commit", lambda: "a commit")
    return make_config(tmp_path, CONFIG)


def test_every_seed_runs_in_both_precisions(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def curve(config: Path, data: Path, settings: tuple[str, ...], run: Path) -> precision.Curve:
        calls.append(settings)
        return [(0, 5.0), (7, 2.0 + 0.25 * ("train.precision=bfloat16" in settings))]

    monkeypatch.setattr(precision, "_curve", curve)
    precision.compare(config, config.parent / "data", 2, 7, ("model.units=4",), config.parent / "out")
    common = ("model.units=4", "train.sample=0", f"train.epochs={7 / 82!r}", "train.evaluate_every=2")
    each = [(f"train.seed={seed}", f"train.precision={p}") for seed in (1, 2) for p in precision.PRECISIONS]
    assert calls == [(*common, *own) for own in each]
    result = json.loads((config.parent / "out" / "bench-precision.json").read_text(encoding="utf-8"))
    assert result["val_nats"] == {"float32": [2.0, 2.0], "bfloat16": [2.25, 2.25]}
    assert (result["steps"], result["seeds"], result["bfloat16_adds_mean"]) == (7, [1, 2], 0.25)
    assert result["config"]["model"]["units"] == 4


@pytest.mark.slow
def test_real_runs_have_equal_steps(config: Path) -> None:
    precision.compare(config, config.parent / "data", 1, 7, (), config.parent / "out")
    result = json.loads((config.parent / "out" / "bench-precision.json").read_text(encoding="utf-8"))
    for name in precision.PRECISIONS:
        (curve,) = result["curves"][name]
        assert [step for step, _ in curve] == [0, 2, 4, 6, 7]
        assert curve[-1][1] < curve[0][1]
    assert result["val_nats"]["float32"] != result["val_nats"]["bfloat16"]


def test_a_run_that_ends_at_another_step_is_an_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_curve", lambda *arguments: [(0, 5.0), (6, 4.0)])
    with pytest.raises(StageError, match="expected a run to end at step 7, got 6"):
        precision.compare(config, config.parent / "data", 1, 7, (), config.parent / "out")
    assert not (config.parent / "out").exists()
