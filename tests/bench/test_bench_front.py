"""Benchmark of the front: medians and the table of made-up loads, and a run with a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import front, pages
from bench.load import Load
from bench.peers import Size


def test_summary_has_medians_over_rounds() -> None:
    loads = [Load(8, 10, median, 2 * median, rate, 0) for median, rate in ((0.1, 50.0), (0.3, 20.0), (0.2, 40.0))]
    assert front.summary(loads) == {"callers": 8, "median": 0.2, "p95": 0.4, "rate": 40.0}


def test_turns_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def way(name: str) -> Any:
        return lambda: order.append(name)

    monkeypatch.setattr(front, "CALLERS", (1, 2))
    monkeypatch.setattr(front, "measure", lambda callers, seconds: len(callers))
    assert front.take_turns({"a": way("a"), "b": way("b")}, 2, 1) == {"a": [[1, 1], [2, 2]], "b": [[1, 1], [2, 2]]}
    assert "".join(order) == "abaabb" + "babbaa"


@pytest.mark.slow
def test_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.machine.commit", lambda: "a commit")
    monkeypatch.setattr(front, "CALLERS", (1, 4))
    monkeypatch.setattr(front, "LONG", 40)
    front.compare(Size(1, 4), 20, 1, 0.5, tmp_path)
    result = json.loads((tmp_path / "bench-serve-front-1x4.json").read_text())
    assert list(result["loads"]) == [front.DIRECT, front.FRONT, front.UNBATCHED]
    for loads in result["loads"].values():
        assert [load["callers"] for load in loads] == [1, 4]
        assert all(0 < load["median"] <= load["p95"] and load["rate"] > 0 for load in loads)
    assert result["overload"]["empty"]["codes"] == {"400": front.EMPTY}
    assert result["overload"]["long"]["codes"] == {"200": 40}
    assert 0 < result["overload"]["health_seconds"] < 5
    assert "| HTTP, front | 4 |" in pages.markdown(front.table(result))
    assert "on the Python stand-in" in str(front.table(result | {"stand_in": True}).title)
    assert "carries over" not in str(front.table(result | {"stand_in": False}).caption)
