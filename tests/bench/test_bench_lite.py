"""Lite benchmark: its ratios, its table, and its check of weights."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import browser, lite
from bench.lite_loops import PEERS, PRECISIONS
from bench.peers import Size
from bench.train import ratios

US = {"float32": 400.0, "float16": 450.0, "int8-dynamic": 100.0, "SavedModel": 500.0} | {
    "torch nn.LSTM": 5000.0,
    "torch LSTMCell": 1200.0,
    "torch LSTMCell, 1 thread": 1300.0,
    "torch int8 nn.LSTM": 300.0,
    "torch int8 LSTMCell": 350.0,
    "torch int8 LSTMCell, 1 thread": 250.0,
}


@pytest.fixture
def result() -> dict:
    assert list(US) == list(PEERS)
    rates = {name: [1 / us, 1 / us] for name, us in US.items()}
    cost = {"bytes": 3_000_000, "us_a_step": 80.0, "peak_bytes": 9_000_000}
    return {
        "work": {"layers": 2, "units": 512, "vocabulary": 100, "length": 500},
        "files": dict.fromkeys(PRECISIONS, cost),
        "peers": {name: {"us_a_step": us} for name, us in US.items()},
        "ratios": {own: ratios(rates, own) for own in PRECISIONS},
    }


def shown(result: dict, browser: dict | None) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(lite.table(result, browser))
    return " ".join(captured.get().split())


def test_ours_is_compared_with_torchs_fastest_loops(result: dict) -> None:
    text = shown(result, None)
    assert "12.00 x as fast as torch's fastest eager loop (target: 5 x)" in text
    assert "2.50 x as fast as its fastest int8 loop" in text
    assert "browser" not in text
    assert "…" not in text


def test_rows_of_torch_are_omitted_without_torch(result: dict) -> None:
    for speedups in result["ratios"].values():
        for name in list(speedups):
            if name.startswith("torch"):
                del speedups[name]
    assert "torch" not in shown({**result, "peers": {"float32": {"us_a_step": 400.0}}}, None)


def test_table_includes_the_browser(result: dict, tmp_path: Path) -> None:
    assert lite.browser(tmp_path, Size(2, 512)) is None
    measured = {"us_a_step": 800.0, "precision": "int8-dynamic"}
    (tmp_path / "bench-lite-browser-2x512.json").write_text(json.dumps(measured))
    in_browser = lite.browser(tmp_path, Size(2, 512))
    assert in_browser == measured
    assert "browser, int8-dynamic 800.0 1,250" in shown(result, in_browser)


def test_every_precision_is_written_and_measured(tmp_path: Path) -> None:
    costs = lite.write_files(Size(1, 8), tmp_path)
    assert {name: cost["bytes"] for name, cost in costs.items()} == {
        name: (tmp_path / f"{name}.tflite").stat().st_size for name in PRECISIONS
    }
    assert all(cost["us_a_step"] > 0 and cost["peak_bytes"] > 0 for cost in costs.values())


def test_the_script_that_drives_the_browser_is_found() -> None:
    assert browser.MEASURE.is_file()
