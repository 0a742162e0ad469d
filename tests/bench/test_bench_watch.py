"""Overhead of watching: the arithmetic, the order of turns, and one real turn."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_data import make_data

from bench import watch
from common.errors import StageError

CONFIG = "[model]\nunits = 8\nlayers = 1\n[train]\nlanes = 4\nwindow = 5\nevaluate_every = 5\nprecision = 'float32'\n"
TEXT = b"to be or not to be, that is the question\n" * 40


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a tiny config next to a data set in `data`."""
    monkeypatch.setattr("bench.machine.commit", lambda: "a commit")
    make_data(tmp_path / "data", 1000, train=TEXT, val=TEXT[:200])
    (tmp_path / "tiny.toml").write_text(CONFIG)
    return tmp_path / "tiny.toml"


def test_overhead_is_a_ratio_within_a_round(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    # The machine slows down from turn to turn; within a round, watching adds a quarter, a half and a quarter.
    seconds = iter([4.0, 5.0, 12.0, 8.0, 16.0, 20.0])

    def turn(arm: str, *rest: Any) -> watch.Turn:
        calls.append((arm, *rest))
        stretch = next(seconds)
        return {"first": 3 * stretch, "stretches": [stretch, 99.0, 0.0]}

    monkeypatch.setattr(watch, "_turn", turn)
    data, out = config.parent / "data", config.parent / "out"
    watch.compare(config, data, 3, 20, ("model.units=4",), out)
    order = ["bare", "watched", "watched", "bare", "bare", "watched"]
    assert calls == [(arm, config, data, 20, ("model.units=4",)) for arm in order]
    result = json.loads((out / "bench-watch.json").read_text())
    assert {name: result[name] for name in watch.overhead(result["rounds"])} == {
        "stretch_seconds": {"bare": 8.0, "watched": 12.0},
        "extra_share": 0.25,
        "extra_share_of_rounds": [0.25, 0.5, 0.25],
        "extra_first_seconds": 12.0,
    }
    assert (result["config"]["model"]["units"], result["commit"], result["steps"]) == (4, "a commit", 20)


@pytest.mark.slow
def test_a_real_turn_reports_the_time_of_each_stretch(config: Path) -> None:
    turn = watch._turn("watched", config, config.parent / "data", 17, ())
    assert len(turn["stretches"]) == 3, "4 stretches of 5, 5, 5 and 2 steps; the first is separate"
    assert min(turn["first"], *turn["stretches"]) > 0


def test_errors(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="need at least 10 steps, got 9"):
        watch.compare(config, config.parent / "data", 1, 9, (), config.parent)
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(
        StageError, match=r"a turn exited with code 1: for its errors, run false -m bench.watch bare .*toml "
    ):
        watch._turn("bare", config, config.parent / "data", 9, ())
