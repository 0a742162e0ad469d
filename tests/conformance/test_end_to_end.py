"""Commands from a small text to its .tflite, as users type them, and the errors for common mistakes."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from tiny_data import make_data

from common import console
from export import show
from pipeline.manifest import write_manifest
from pipeline.vocab import Vocab
from trainers import metrics
from trainers.run import read_run

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parent.parent.parent

CONFIG = """
[data]
source = ["{text}"]

[validate]
max_divergence = 0.9   # the splits are a few hundred characters long

[model]
units = 32
layers = 1

[train]
lanes = 8
window = 20
epochs = 4
learning_rate = 0.03
evaluate_every = 100
"""


def text() -> str:
    lines = [f"def f{n}(x):\n    return x + {n}\n" for n in range(300)]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working folder with a text and a config, laid out like the project's."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.py").write_text(text())
    (home / "configs").mkdir()
    (home / "configs" / "tiny.toml").write_text(CONFIG.format(text="text.py"))
    return home


class Result(NamedTuple):
    """Exit status, standard output and standard error of a command."""

    status: int
    out: str
    err: str


def run_process(home: Path, line: str) -> Result:
    """Run `python -m LINE` in a folder outside the project."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    process = subprocess.run(
        [sys.executable, "-m", *line.split()],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return Result(process.returncode, process.stdout, process.stderr)


def run_here(home: Path, line: str) -> Result:
    """Run `python -m LINE` in this process, to import TensorFlow only once."""
    module, *arguments = line.split()
    written, err, status = io.BytesIO(), io.StringIO(), 0
    out = io.TextIOWrapper(written, "utf-8", write_through=True)  # texts are written as bytes
    with (
        contextlib.chdir(home),
        mock.patch.object(sys, "argv", [module, *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            console.run(importlib.import_module(f"{module}.__main__").cli)
        except SystemExit as exit:
            status = int(exit.code or 0)
    return Result(status, written.getvalue().decode(errors="replace"), err.getvalue())


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Run commands on one device, skipping the device set-up, which would affect all later tests in this process."""
    import tensorflow as tf

    from trainers.training.devices import Devices

    devices = Devices(tf.distribute.MirroredStrategy(["CPU:0"]), replicas=1)
    with (
        mock.patch("trainers.training.loop.prepare", return_value=devices),
        mock.patch("trainers.training.devices.prepare", return_value=devices),
    ):
        yield


# Commands in the order of the pipeline, with a pattern of their output.
STAGES = [
    (
        "pipeline ingest --config configs/tiny.toml",
        r"data/tiny: tokens: train 8,\d\d\d, val \d+, test \d+; data \w{12}\n",
    ),
    ("pipeline validate --config configs/tiny.toml", r"data/tiny is valid; report: data/tiny/validation/report.html\n"),
    ("pipeline info data/tiny", r"256 symbols, unit byte"),
    ("trainers train configs/tiny.toml", r""),
    (
        "trainers evaluate runs/tiny",
        r"runs/tiny at step \d+ on data/tiny's test split: \d\.\d+ nats = \d\.\d+ bits per byte",
    ),
    ("trainers sample runs/tiny --prompt def --length 60 --temperature 0.5", r"def[^\n]"),
    ("trainers info runs/tiny", r"parameters +│ 45,\d\d\d "),
    (
        "export savedmodel runs/tiny --out served/tiny",
        r"served/tiny/1: step \d+ of runs/tiny, \d\.\d MB; a fresh process",
    ),
    (
        "export tflite runs/tiny --out devices/tiny",
        r"devices/tiny: step \d+ of runs/tiny, float32, float16, int8-dynamic; builtin ops only",
    ),
    ("export run-lite devices/tiny/int8-dynamic.tflite --prompt def --length 60 --temperature 0.5", r"def[^\n]"),
    (
        "export show runs/tiny",
        r"(?s)Files.*SavedModel .*\.tflite .*Bits per byte.*before training.* is ahead in .*temperature 0\.2.*Next",
    ),
]


@pytest.fixture(scope="module")
def outputs(home: Path) -> dict[str, Result]:
    """Results by command; each stage runs once for all tests."""
    results = {}
    with prepared():
        for line, _ in STAGES:
            # Run one command in its own process, as users do. Other tests do so for `validate` (tests/pipeline) and
            # `train` (tests/trainers/training).
            results[line] = (run_process if "run-lite" in line else run_here)(home, line)
            assert results[line].status == 0, results[line]
    return results


@pytest.mark.parametrize(("line", "pattern"), STAGES)
def test_stage_reports_its_result(outputs: dict[str, Result], line: str, pattern: str) -> None:
    _, out, err = outputs[line]
    assert re.search(pattern, out), out
    for chatter in ("WARNING", "I0000", "E0000", "Traceback"):
        assert chatter not in out + err


def test_make_run_runs_the_stages_in_order() -> None:
    command_line = ["make", "-n", "run", "CONFIG=configs/tiny.toml"]
    process = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=True)
    stages = [
        line.partition(" -m ")[2].replace('"', "") for line in process.stdout.splitlines() if "/python -m " in line
    ]
    assert [" ".join(stage.split()[:2]) for stage in stages] == [
        "pipeline ingest",
        "pipeline validate",
        "trainers train",
        "trainers evaluate",
        "export savedmodel",
        "export tflite",
        "export show",
    ]
    lines = {line for line, _ in STAGES}
    for stage in stages:
        # make passes some defaults explicitly (served/tiny, devices/tiny, test); STAGES omits them.
        assert any(stage.startswith(line) for line in lines), stage


def test_training_lowers_the_loss_and_evaluation_counts_all_targets(home: Path, outputs: dict[str, Result]) -> None:
    rows = [json.loads(row) for row in (home / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    before, after = rows[0]["val_bits"], rows[-1]["val_bits"]
    assert 7.9 < before < 8.1, "to an untrained model, all 256 bytes are equally likely"
    assert after < 2
    test = json.loads((home / "runs/tiny/evaluation-test.json").read_text())
    manifest = json.loads((home / "data/tiny/manifest.json").read_text())
    assert test["targets"] == manifest["splits"]["test"]["tokens"] - 1
    assert test["bits"] < 2
    shown = outputs["export show runs/tiny"].out
    assert f"{before:.3f}" in shown
    assert f"{test['bits']:.3f}" in shown


@pytest.mark.usefixtures("outputs")
def test_a_screen_without_metrics_has_the_test_loss(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(metrics, "evaluations", lambda folder: [])
    step, ngram = show._bits(read_run(Path("runs/tiny"))).columns[0].cells
    assert (str(step)[:10], ngram) == ("after step", "an n-gram model, test")


def test_checkpoint_and_saved_model_generate_the_same_texts(outputs: dict[str, Result]) -> None:
    shown = outputs["export show runs/tiny"].out
    assert re.search(r"The checkpoint, served/tiny/1 and |these 4 texts; served/tiny/1 4 of them", shown), shown


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("pipeline ingest --config configs/tiny.toml", "is up to date: same sources, same settings"),
        ("pipeline validate data/tiny --config configs/tiny.toml", "is already valid"),
        ("trainers train configs/tiny.toml", "is already trained to step"),
        ("trainers evaluate runs/tiny", "is up to date with checkpoint"),
        ("export savedmodel runs/tiny", "is up to date with"),
        ("export tflite runs/tiny", "is up to date with"),
    ],
)
def test_finished_stage_is_not_repeated(home: Path, outputs: dict[str, Result], line: str, note: str) -> None:
    status, out, err = run_here(home, line)
    assert status == 0
    assert note in out + err


# Mistake, command, exit code, and part of the one-line error.
MISTAKES = [
    ("missing source", "pipeline ingest nothing.txt --out data/a", 2, "'nothing.txt' is not a file, a folder"),
    (
        "empty source",
        "pipeline ingest empty.txt --out data/a",
        1,
        "empty.txt is empty: name a source that contains text",
    ),
    (
        "text too short",
        "trainers train configs/tiny.toml --out runs/a --set train.lanes=500",
        1,
        "too short for 500 lanes and a window of 20",
    ),
    (
        "largest lanes that fit",
        "trainers train configs/tiny.toml --out runs/a --set train.lanes=500",
        1,
        "with windows of 20, use at most 4",
    ),
    (
        "unknown training setting",
        "trainers train configs/tiny.toml --set train.lane=5",
        2,
        "unknown setting 'lane' (did you mean",
    ),
    (
        "wrong type",
        "trainers train configs/tiny.toml --set train.lanes=many",
        2,
        "'lanes': input should be a valid integer",
    ),
    ("unknown data setting", "pipeline ingest --config configs/typo.toml", 2, "unknown setting 'sources'"),
    (
        "incomplete data folder",
        "trainers train configs/tiny.toml --data data/half",
        1,
        "data/half has no manifest.json",
    ),
    (
        "corrupted shard",
        "trainers train configs/tiny.toml --data data/damaged --out runs/a",
        1,
        "the shard data/damaged/val-00000-of-00001.tokens is corrupted",
    ),
    (
        "data not validated yet",
        "trainers train configs/tiny.toml --data data/raw --out runs/a",
        1,
        "has not been validated",
    ),
    (
        "different vocabulary",
        "trainers train configs/tiny.toml --data data/abc",
        1,
        "have another vocabulary",
    ),
    (
        "version already exists",
        "export savedmodel runs/tiny --out served/full --version 1",
        1,
        "served/full/1/SHA256SUMS is missing: rebuild all with --force, or pass --version 2",
    ),
    (
        "unrelated folder",
        "export tflite runs/tiny --out configs --force",
        1,
        "configs exists and is not a device",
    ),
    (
        "file instead of a folder",
        "trainers train configs/tiny.toml --out text.py",
        1,
        "text.py is a file, but a run is a folder",
    ),
    (
        "unknown precision",
        "export tflite runs/tiny --out devices/b --precision float64",
        2,
        "unknown precision 'float64': valid ones are float32, float16, int8-dynamic",
    ),
    (
        "--allow without a value",
        "export tflite runs/tiny --out devices/b --allow int8-dynamic",
        2,
        "--allow must be PRECISION=BITS (such as int8-dynamic=0.1), got 'int8-dynamic'",
    ),
    (
        "--allow without a limit",
        "export tflite runs/tiny --out devices/b --allow float32=nan",
        2,
        "--allow must be PRECISION=BITS (such as int8-dynamic=0.1), got 'float32=nan'",
    ),
    (
        "a page that is missing",
        "export serve runs/tiny --page site/none",
        2,
        "Directory 'site/none' does not exist",
    ),
    (
        "quality loss over the limit",
        "export tflite runs/tiny --out devices/b --precision int8-dynamic --allow int8-dynamic=-1",
        1,
        "bits per character on held-out text; the limit is -1",
    ),
    ("not a .tflite", "export run-lite text.py", 1, "text.py is corrupted or was not exported by this project"),
    ("device temperature NaN", "export run-lite text.py --temperature nan", 2, "--temperature must be a finite number"),
    ("temperature NaN", "trainers sample runs/tiny --temperature nan", 2, "--temperature must be a finite number"),
    ("moved data", "trainers evaluate runs/tiny --data data/gone", 1, "pass its folder with --data"),
    ("missing run", "trainers sample runs/none", 1, "no run in runs/none"),
    ("unknown command", "trainers tarin", 2, "No such command 'tarin'"),
    ("invalid option value", "trainers sample runs/tiny --temperature warm", 2, "'warm' is not a valid float"),
    (
        "unknown split",
        "trainers evaluate runs/tiny --split nowhere",
        2,
        "'nowhere' is not one of 'train', 'val', 'test'",
    ),
    (
        "lanes not divisible by replicas",
        "trainers train configs/tiny.toml --out runs/a --replicas 3",
        2,
        "numbers that do: 1, 2, 4",
    ),
]


@pytest.fixture(scope="module")
def invalid_home(home: Path, outputs: dict[str, Result]) -> Path:
    """Copy of `home` with invalid files and data sets added."""
    (home / "empty.txt").touch()
    (home / "configs/typo.toml").write_text("[data]\nsources = ['text.py']\n")
    (home / "served/full/1").mkdir(parents=True)
    (home / "served/full/1/saved_model.pb").write_bytes(b"another model")
    (home / "data/half").mkdir()
    (home / "data/half/train-00000-of-00001.tokens").write_bytes(b"def ")
    assert run_here(home, "pipeline ingest text.py --out data/raw").status == 0
    shutil.copytree(home / "data/tiny", home / "data/damaged")
    shard = home / "data/damaged/val-00000-of-00001.tokens"
    shard.write_bytes(bytes(shard.stat().st_size))
    # A complete, valid data set with a different vocabulary.
    text = b"abc" * 100
    vocab = Vocab("byte", (b"a", b"b", b"c"))
    manifest = make_data(home / "data/abc", 1000, vocab, train=text, val=text, test=text)
    stamp = {"result": "valid", "when": "now"}
    write_manifest(home / "data/abc", dataclasses.replace(manifest, validation=stamp))
    return home


@pytest.mark.parametrize(("mistake", "line", "code", "message"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_mistake_prints_one_line(invalid_home: Path, mistake: str, line: str, code: int, message: str) -> None:
    status, out, err = run_here(invalid_home, line)
    lines = err.splitlines()
    assert (status, len(lines)) == (code, 1), err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert out == ""
