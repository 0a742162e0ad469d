"""Fault trials recorded in a results file, and the page generated from it."""

from pathlib import Path

from bench import reliability

ROWS = [
    {"kind": "Hostile input", "subject": "configs", "tried": 36, "survived": 36, "limits": {}},
    {"kind": "A full disk", "subject": "train", "tried": 10, "survived": 9, "limits": {}},
    {"kind": "A full disk", "subject": "ingest", "tried": 1010, "survived": 1010, "limits": {"Slow.": 2}},
]


def test_page_has_a_table_per_kind(tmp_path: Path) -> None:
    about = {"machine": "2 cores of X", "commit": "abcdefghij", "date": "2026-01-02"}
    reliability.record(ROWS, 600.4, about, tmp_path / "faults.json")
    page = reliability.page(tmp_path / "faults.json")
    assert "\nsession of 10 minutes." in page
    assert page.partition("## A full disk")[2].splitlines()[1:6] == [
        "",
        "| | tried | survived | known limit |",
        "|---|---:|---:|---:|",
        "| ingest | 1,010 | 1,008 | 2 |",
        "| train | 10 | 9 |  |",
    ]
    assert "## Hostile input\n\n| | tried" in page
    assert "## Known limits\n\n- Slow.\n" in page
    total = "1,056 trials: 1,053 survived, 2 hit a known limit, 1 failed. 2 cores of X, 2026-01-02, commit\nabcdefg.\n"
    assert page.endswith(total)
