"""Results of a tiny run recorded as results/NAME.json, and the pages generated from such files."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf
import tiny_run
from click.testing import CliRunner

from bench import pages, results
from bench.__main__ import cli
from common.errors import StageError
from common.files import write_json
from pipeline.manifest import Manifest
from trainers import checkpoint, metrics
from trainers.run import read_run
from trainers.training.devices import Devices


@pytest.fixture
def run(tmp_path: Path, make_data: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch) -> Path:
    settings = {"split": "char-rnn"}
    text = tiny_run.TEXT
    make_data(tmp_path / "data", 1000, settings=settings, train=text, val=text[:20], test=text[:20])
    monkeypatch.setattr("bench.machine.describe", lambda gpu: "2 cores of X")
    monkeypatch.setattr("bench.machine.commit", lambda: "0123456789abcdef")
    return tmp_path / "run"


@pytest.fixture
def trained(run: Path) -> Path:
    devices = Devices(tf.distribute.MirroredStrategy(["CPU:0"]), replicas=1)
    tiny_run.tiny_training(run, run.parent / "data", devices, 10).go()
    return run


def evaluate(run: Path, **more: object) -> None:
    chosen = checkpoint.best(read_run(run))
    score = {"nats": 2.5, "nats_interval": [2.25, 2.75], "baselines": {"ngram": {"nats": 3.0, "ahead": 0.5}}}
    inputs = {"weights_sha256": checkpoint.weights_sha256(chosen)}
    write_json(run / "evaluation-test.json", {"inputs": inputs, **score, **more})


def test_record_keeps_figures_with_their_provenance(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has not been evaluated: run python -m trainers evaluate"):
        results.record(trained, tmp_path)
    evaluate(trained, inputs={"weights_sha256": "another"})
    with pytest.raises(StageError, match="evaluates another checkpoint than"):
        results.record(trained, tmp_path)
    evaluate(trained)
    results.record(trained, tmp_path)
    kept = json.loads((tmp_path / "run.json").read_text())
    chosen = checkpoint.best(read_run(trained))
    expected = {
        "split": "bytes, 82/9/9, as char-rnn",
        "tokens": {"train": 180, "val": 20, "test": 20},
        "seen": 120,  # ten steps of 4 lanes x 3
        "step": chosen.step,
        "steps": 10,
        "val_nats": chosen.val_nats,
        "judged": "test",
        "nats": 2.5,
        "interval": [2.25, 2.75],
        "ngram_nats": 3.0,
        "ngram_ahead": 0.5,
        "ngram_ahead_interval": None,
        "parameters": 4 * 8 * (256 + 8 + 1) + 4 * 8 * (8 + 8 + 1) + 8 * 256 + 256,
        "commit": "0123456789abcdef",
        "machine": "2 cores of X",
    }
    assert {key: kept[key] for key in expected} == expected
    about = json.loads((trained / "run.json").read_text())
    write_json(trained / "run.json", about | {"machine": "a GPU"})
    assert results.record(trained, tmp_path)["machine"] == "a GPU", "the machine that trained the run"
    assert kept["training_seconds"] == pytest.approx(sum(row.get("seconds", 0) for row in metrics.read(trained)))


def test_tables_are_rebuilt_between_markers(tmp_path: Path) -> None:
    config = {"model": {"cell": "gru", "layers": 1, "units": 64}, "train": {"precision": "float32", "seed": 7}}
    kept = {"config": config, "split": "chars, 80/10/10, as char-rnn", "parameters": 43_604, "seen": 130_326_350}
    kept |= {"val_nats": 1.4567, "judged": "test", "nats": math.log(4), "interval": None, "ngram_nats": None}
    kept |= {"training_seconds": 125.6, "machine": "2 cores", "date": "2026-11-25", "commit": "0123456789abcdef"}
    write_json(tmp_path / "b.json", kept | {"name": "b"})
    write_json(tmp_path / "a.json", kept | {"name": "warpeace-2x320", "interval": [1.0, 2.0], "ngram_nats": 1.25})
    write_json(
        tmp_path / "d.json",
        kept | {"name": "d", "ngram_nats": 1.5, "ngram_ahead": -0.0001, "ngram_ahead_interval": [-0.125, 0.125]},
    )
    write_json(tmp_path / "c.json", kept | {"name": "c", "judged": "val", "interval": [1.0, 2.0]})
    write_json(tmp_path / "bench-train.json", {"name": "no run"})
    rows = results.table(results.read(tmp_path)).splitlines()
    assert rows[2:] == [
        "| [warpeace-2x320](../configs/warpeace-2x320.toml) | chars, 80/10/10, as char-rnn | GRU 1 x 64, 43,604 | 130 "
        "| 1.457 | 1.386 (1.000 to 2.000) | 2.000 | 1.250 |  | 1.092 (2 x 512) | 2:06 min | 2 cores, float32 "
        "| 2026-11-25, 0123456, 7 |",
        "| [b](../configs/b.toml) | chars, 80/10/10, as char-rnn | GRU 1 x 64, 43,604 | 130 | 1.457 | 1.386 | 2.000 |  "
        "|  |  | 2:06 min | 2 cores, float32 | 2026-11-25, 0123456, 7 |",
        "| [c](../configs/c.toml) | chars, 80/10/10, as char-rnn | GRU 1 x 64, 43,604 | 130 | 1.386 (1.000 to 2.000) "
        "|  | 2.000 |  |  |  | 2:06 min | 2 cores, float32 | 2026-11-25, 0123456, 7 |",
        "| [d](../configs/d.toml) | chars, 80/10/10, as char-rnn | GRU 1 x 64, 43,604 | 130 | 1.457 | 1.386 | 2.000 "
        "| 1.500 | 0.000 (-0.125 to 0.125) |  | 2:06 min | 2 cores, float32 | 2026-11-25, 0123456, 7 |",
    ]
    assert len({row.count("|") for row in rows}) == 1
    short = results.headlines(results.read(tmp_path)).splitlines()
    assert short[2:] == ["| War and Peace | GRU 1 x 64 | 2.00 | 1.80 | 1.58 (2 x 512) |"]
    readme = tmp_path / "README.md"
    readme.write_text(f"Before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    results.put(readme, "new\nrows")
    results.put(readme, "new\nrows")
    assert readme.read_text() == f"Before\n{results.BEGIN}\nnew\nrows\n{results.END}\nafter\n"
    readme.write_text(f"{results.END}\n{results.BEGIN}\n")
    with pytest.raises(StageError, match="has no markers for the table"):
        results.put(readme, "new")
    assert readme.read_text() == f"{results.END}\n{results.BEGIN}\n"


def test_percentages_below_one_have_a_decimal(tmp_path: Path, make_data: Callable[..., Manifest]) -> None:
    text = tiny_run.TEXT * 2
    data = make_data(tmp_path / "data", 1000, settings={"split": "contiguous"}, train=text, val=text[:2], test=text[:2])
    assert results._split(data) == "bytes, 99/0.5/0.5, the end is test"


def test_pages_stay_unchanged_without_results(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(before := f"{results.BEGIN}\nold\n{results.END}\n")
    write_json(tmp_path / "results/bench-train.json", {"name": "no run"})
    done = CliRunner().invoke(cli, ["results", "--root", str(tmp_path)])
    assert isinstance(done.exception, StageError)
    assert "contains no results of runs" in str(done.exception)
    assert readme.read_text() == before


def test_pages_are_up_to_date() -> None:
    root = Path(results.__file__).parent.parent
    kept = results.read(root / "results")
    assert results.headlines(kept) in (root / "README.md").read_text(encoding="utf-8")
    assert len(results.headlines(kept).splitlines()) <= 2 + 8
    assert results.table(kept) in (root / "docs/results.md").read_text(encoding="utf-8")
    assert pages.page(root / "results") == (root / "docs/benchmarks.md").read_text(encoding="utf-8")
