"""Benchmark of the largest calls: their sizes, and a run with a tiny model."""

import json
from pathlib import Path

import pytest

from bench import limits, pages
from bench.peers import Size
from export.serve.signatures import INPUTS

LIMITS = {"length": 4096, "prompt": 4096, "rows": 64, "pictured": 512}


@pytest.mark.parametrize(
    ("signature", "front", "graph"),
    [
        ("generate", (8, 4096, 4096), (64, 4096, 4096)),  # 8 x 8,192 characters
        ("continue", (8, 4096, 4096), (64, 4096, 4096)),
        ("score", (16, 4096, 0), (64, 4096, 0)),
        ("neurons", (3, 512, 0), (64, 512, 0)),  # 4 rows of 512 KB, and the counts, are more than 2 MB
        ("info", (64, 0, 0), (64, 0, 0)),
    ],
)
def test_largest_calls(signature: str, front: tuple[int, ...], graph: tuple[int, ...]) -> None:
    calls = limits.largest(signature, LIMITS, states_bytes=2 * 4 * 128)
    assert [call["limits"] for call in calls] == ["front", "graph"]
    assert [(call["rows"], call["read"], call["written"]) for call in calls] == [front, graph]


@pytest.mark.slow
def test_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.machine.commit", lambda: "a commit")
    limits.compare(Size(1, 4), tmp_path)
    result = json.loads((tmp_path / "bench-serve-limits-1x4.json").read_text())
    assert list(result["calls"]) == list(INPUTS)
    for signature, calls in result["calls"].items():
        for call in calls:
            assert call["seconds"] > 0
            assert 0 < call["answer_bytes"] < call["json_bytes"], signature
    for _, graph in (result["calls"][name] for name in ("serving_default", "generate", "continue")):
        assert graph["answer_bytes"] > 64 * 4096  # every row was written to its end
    assert result["calls"]["score_chars"][1]["answer_bytes"] > 4 * 64 * 4096
    assert "| neurons | graph | 64 | 1,024 | 0 |" in pages.markdown(limits.table(result))
