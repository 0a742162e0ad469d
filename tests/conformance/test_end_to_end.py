"""The commands as a user types them, on a small text, from the text to the .tflite; and what a user may get wrong."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_data import make_data

from common import console
from pipeline.manifest import write_manifest
from pipeline.vocab import Vocab

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
    """A folder like the project's own, with a text and a config in it."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.py").write_text(text())
    (home / "configs").mkdir()
    (home / "configs" / "tiny.toml").write_text(CONFIG.format(text="text.py"))
    return home


def command(home: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Types `python -m LINE` in a folder of the user's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", *line.split()],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def succeed(home: Path, line: str) -> tuple[str, str]:
    """Standard output and error of a command that must end well."""
    done = command(home, line)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def run_here(line: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run `python -m LINE` in this process, which imports TensorFlow once. Returns the exit status."""
    module, *arguments = line.split()
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    try:
        console.run(importlib.import_module(f"{module}.__main__").cli)
    except SystemExit as exit:
        return exit.code or 0
    return 0


# The path, in order: each command, and what its output must match.
PATH = [
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
        "export keras runs/tiny",
        r"exported/tiny/model.keras: step \d+ of runs/tiny, 0\.\d MB, stock layers only",
    ),
    (
        "export show runs/tiny",
        r"(?s)What was made.*SavedModel .*\.tflite .*Bits per byte.*before training.*temperature 0\.2.*Next",
    ),
]


@pytest.fixture(scope="module")
def made(home: Path) -> dict[str, tuple[str, str]]:
    """Everything made once: output and notes by command."""
    return {line: succeed(home, line) for line, _ in PATH}


@pytest.mark.parametrize(("line", "pattern"), PATH)
def test_every_stage_does_its_work_and_says_so(made: dict[str, tuple[str, str]], line: str, pattern: str) -> None:
    out, notes = made[line]
    assert re.search(pattern, out), out
    for chatter in ("WARNING", "I0000", "E0000", "Traceback"):
        assert chatter not in out + notes


def test_make_run_types_these_commands_in_this_order() -> None:
    asked = ["make", "-n", "run", "CONFIG=configs/tiny.toml"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    stages = [line.partition(" -m ")[2].replace('"', "") for line in done.stdout.splitlines() if "/python -m " in line]
    assert [" ".join(stage.split()[:2]) for stage in stages] == [
        "pipeline ingest",
        "pipeline validate",
        "trainers train",
        "trainers evaluate",
        "export savedmodel",
        "export tflite",
        "export show",
    ]
    typed = {line for line, _ in PATH}
    for stage in stages:
        # A default that make writes out is left out here: served/tiny, devices/tiny, test.
        assert any(stage.startswith(line) for line in typed), stage


def test_it_learns_and_keeps_count(home: Path, made: dict[str, tuple[str, str]]) -> None:
    rows = [json.loads(row) for row in (home / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    before, after = rows[0]["val_bits"], rows[-1]["val_bits"]
    assert 7.9 < before < 8.1, "untrained, 256 bytes are equally likely"
    assert after < 2
    test = json.loads((home / "runs/tiny/evaluation-test.json").read_text())
    manifest = json.loads((home / "data/tiny/manifest.json").read_text())
    assert test["targets"] == manifest["splits"]["test"]["tokens"] - 1
    assert test["bits"] < 2
    shown, _ = made["export show runs/tiny"]
    assert f"{before:.3f}" in shown
    assert f"{test['bits']:.3f}" in shown


def test_checkpoint_and_saved_model_write_the_same(made: dict[str, tuple[str, str]]) -> None:
    shown, _ = made["export show runs/tiny"]
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
def test_a_stage_that_is_done_says_so(
    home: Path,
    made: dict[str, tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    line: str,
    note: str,
) -> None:
    assert run_here(line, home, monkeypatch) == 0
    captured = capfd.readouterr()
    assert note in captured.out + captured.err


# What is wrong, the command, its exit code, and what it says in one line.
MISTAKES = [
    ("a missing file", "pipeline ingest nothing.txt --out data/a", 2, "'nothing.txt' is not a file, a folder"),
    (
        "an empty file",
        "pipeline ingest empty.txt --out data/a",
        1,
        "empty.txt is empty: name a source that contains text",
    ),
    (
        "a text too short",
        "trainers train configs/tiny.toml --out runs/a --set train.lanes=500",
        1,
        "too short for 500 lanes and a window of 20",
    ),
    (
        "the largest that fit",
        "trainers train configs/tiny.toml --out runs/a --set train.lanes=500",
        1,
        "with windows of 20, use at most 4",
    ),
    (
        "an unknown key",
        "trainers train configs/tiny.toml --set train.lane=5",
        2,
        "unknown setting 'lane' (did you mean",
    ),
    (
        "a wrong type",
        "trainers train configs/tiny.toml --set train.lanes=many",
        2,
        "'lanes': input should be a valid integer",
    ),
    ("an unknown key of the data", "pipeline ingest --config configs/typo.toml", 2, "unknown setting 'sources'"),
    (
        "a half written data folder",
        "trainers train configs/tiny.toml --data data/half",
        1,
        "data/half has no manifest.json",
    ),
    (
        "damaged data",
        "trainers train configs/tiny.toml --data data/damaged --out runs/a --verify",
        1,
        "the shard data/damaged/val-00000-of-00001.tokens is corrupted",
    ),
    (
        "data not validated",
        "trainers train configs/tiny.toml --data data/raw --out runs/a",
        1,
        "has not been validated",
    ),
    (
        "a checkpoint of another vocabulary",
        "trainers train configs/tiny.toml --data data/abc",
        1,
        "have another vocabulary",
    ),
    (
        "a full version folder",
        "export savedmodel runs/tiny --out served/full --version 1",
        1,
        "served/full/1 already holds",
    ),
    (
        "a folder of other things",
        "export tflite runs/tiny --out configs --force",
        1,
        "configs exists and is not a device",
    ),
    (
        "a file for a folder",
        "trainers train configs/tiny.toml --out text.py",
        1,
        "text.py is a file, but a run is a folder",
    ),
    (
        "no such precision",
        "export tflite runs/tiny --out devices/b --precision float64",
        2,
        "unknown precision 'float64': valid ones are float32, float16, int8-dynamic",
    ),
    (
        "a loss that is no number",
        "export tflite runs/tiny --out devices/b --allow int8-dynamic",
        2,
        "--allow must be PRECISION=BITS (such as int8-dynamic=0.1), got 'int8-dynamic'",
    ),
    (
        "a precision that loses too much",
        "export tflite runs/tiny --out devices/b --precision int8-dynamic --allow int8-dynamic=-1",
        1,
        "bits per character on held-out text; the limit is -1",
    ),
    ("no device model", "export run-lite text.py", 1, "text.py is corrupted or was not exported by this project"),
    ("a device temperature", "export run-lite text.py --temperature nan", 2, "--temperature must be a finite number"),
    ("no number", "trainers sample runs/tiny --temperature nan", 2, "--temperature must be a finite number"),
    ("data that has moved", "trainers evaluate runs/tiny --data data/gone", 1, "pass its folder with --data"),
    ("no such run", "trainers sample runs/none", 1, "no run in runs/none"),
    ("no such command", "trainers tarin", 2, "No such command 'tarin'"),
    ("an option's value", "trainers sample runs/tiny --temperature warm", 2, "'warm' is not a valid float"),
    (
        "no such split",
        "trainers evaluate runs/tiny --split nowhere",
        2,
        "'nowhere' is not one of 'train', 'val', 'test'",
    ),
    (
        "replicas that do not divide",
        "trainers train configs/tiny.toml --out runs/a --replicas 3",
        2,
        "numbers that do: 1, 2, 4",
    ),
]


@pytest.fixture(scope="module")
def mistaken(home: Path, made: dict[str, tuple[str, str]]) -> Path:
    """The same folder, with things in it that are not as they should be."""
    (home / "empty.txt").touch()
    (home / "configs/typo.toml").write_text("[data]\nsources = ['text.py']\n")
    (home / "served/full/1").mkdir(parents=True)
    (home / "served/full/1/saved_model.pb").write_bytes(b"another model")
    (home / "data/half").mkdir()
    (home / "data/half/train-00000-of-00001.tokens").write_bytes(b"def ")
    succeed(home, "pipeline ingest text.py --out data/raw")
    shutil.copytree(home / "data/tiny", home / "data/damaged")
    shard = home / "data/damaged/val-00000-of-00001.tokens"
    shard.write_bytes(bytes(shard.stat().st_size))
    # A data set over another vocabulary, as whole and valid as any.
    text = b"abc" * 100
    vocab = Vocab("byte", (b"a", b"b", b"c"))
    manifest = make_data(home / "data/abc", 1000, vocab, train=text, val=text, test=text)
    stamp = {"result": "valid", "when": "now"}
    write_manifest(home / "data/abc", dataclasses.replace(manifest, validation=stamp))
    return home


@pytest.mark.parametrize(("what", "line", "code", "message"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_a_mistake_is_one_line(
    mistaken: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    what: str,
    line: str,
    code: int,
    message: str,
) -> None:
    status = run_here(line, mistaken, monkeypatch)
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert (status, len(lines)) == (code, 1), captured.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert captured.out == ""
