"""Reports read back from metrics.jsonl."""

from pathlib import Path

import pytest

from trainers import metrics


def test_corrupted_reports_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = (
        f'{{"step": {step}, "epoch": 0.5, "{kind}_nats": 2.0, "{kind}_bits": 2.9}}'.encode()
        for step, kind in ((1, "train"), (5, "val"))
    )
    others = [b'{"step": \xff}', b"[" * 100_000, b"2", b'{"step": 3}', last.replace(b"2.0", b"null")]
    lines = [first, *others, last, last[:9]]
    (tmp_path / metrics.METRICS).write_bytes(b"\n".join(lines))
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 5]
    notes = capsys.readouterr().err
    assert [f"metrics.jsonl:{number} is corrupted" in notes for number in range(1, 9)] == [
        False,
        *[True] * 5,
        *[False] * 2,
    ]
