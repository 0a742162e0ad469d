"""Reports read back from metrics.jsonl."""

from pathlib import Path

import pytest

from trainers import metrics


def test_corrupted_reports_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [b'{"step": 1}', b'{"step": \xff}', b"[" * 100_000, b"2", b'{"step": 5}', b'{"st']
    (tmp_path / metrics.METRICS).write_bytes(b"\n".join(lines))
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 5]
    notes = capsys.readouterr().err
    assert [f"metrics.jsonl:{number} is corrupted" in notes for number in range(1, 7)] == [
        False,
        *[True] * 3,
        *[False] * 2,
    ]
