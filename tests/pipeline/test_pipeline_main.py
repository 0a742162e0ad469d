"""Command line, run in this process: settings, output and exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_data import make_data

from common import console
from common.files import sha256_file
from pipeline.__main__ import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    with pytest.raises(SystemExit) as exit:
        console.run(cli)
    return int(exit.value.code or 0)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be or not to be\n" * 20)
    return Path("text.txt")


def test_ingest_and_info(text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--train", "0.8", "--val", "0.2", "--test", "0"]
    assert run(monkeypatch, "ingest", str(text), "--out", "data/hamlet", *options) == 0
    assert capsys.readouterr().out.startswith("data/hamlet: tokens: train 304, val 76; data ")
    assert run(monkeypatch, "info", "data/hamlet") == 0
    words = capsys.readouterr().out.split()
    assert " ".join(words).startswith("sources text.txt bytes 380 vocabulary 256 symbols, unit byte data_sha256 ")
    assert " ".join(words[-15:]) == "split tokens share shards bytes train 304 80.0% 1 304 val 76 20.0% 1 76"


def test_verify_detects_corruption(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "ingest", str(text), "--out", "data/hamlet") == 0
    assert run(monkeypatch, "verify", "data/hamlet") == 0
    assert "data/hamlet is intact: 3 shards, 380 tokens, data " in capsys.readouterr().out
    shard = Path("data/hamlet/val-00000-of-00001.tokens")
    shard.write_bytes(b"x" * shard.stat().st_size)
    assert run(monkeypatch, "verify", "data/hamlet") == 1
    assert capsys.readouterr().err == f"error: the shard {shard} is corrupted: run ingest again with --force\n"


def test_options_override_the_config(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("hamlet.toml").write_text(f'[data]\nsource = ["{text}"]\ntrain = 0.5\nval = 0.25\ntest = 0.25\n')
    assert run(monkeypatch, "ingest", "--config", "hamlet.toml", "--train", "0.4", "--val", "0.35") == 0
    settings = json.loads(Path("data/hamlet/manifest.json").read_text())["settings"]
    assert (settings["train"], settings["val"], settings["test"]) == (0.4, 0.35, 0.25)


def test_bytes_of_a_corpus_of_characters(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data/raw/poems").mkdir(parents=True)
    text.rename("data/raw/poems/input.txt")
    recommended = {"unit": "char", "unknown": "replace", "max_vocab": 9, "min_count": 2, "documents": "line"}
    sha256 = sha256_file(Path("data/raw/poems/input.txt"))
    provenance = {"name": "poems", "text_sha256": sha256, "settings": recommended}
    Path("data/raw/poems/provenance.json").write_text(json.dumps(provenance))
    assert run(monkeypatch, "ingest", "data/raw/poems", "--unit", "byte", "--out", "data/poems") == 0
    settings = json.loads(Path("data/poems/manifest.json").read_text())["settings"]
    assert (settings["unit"], settings["max_vocab"], settings["documents"]) == ("byte", None, "line")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ingest", "no.txt", "--out", "data/x"], 2, "'no.txt' is not a file, a folder or a named corpus"),
        (["ingest", "--out", "data/x"], 2, "no source: name a file, a folder or a corpus"),
        (["ingest", "text.txt"], 2, "name the data set (--out data/NAME) or pass --config configs/NAME.toml"),
        (
            ["ingest", "text.txt", "--out", "x", "--train", "2"],
            2,
            "command line: train, val and test must be shares from 0 to 1,",
        ),
        (["ingest", "text.txt", "--out", "x", "--train", "a"], 2, "Invalid value for '--train': expected a share such"),
        (["ingest", "text.txt", "--out", "x", "--unit", "word"], 2, "Invalid value for '--unit': 'word' is not one of"),
        (["verify", "data/x"], 1, "data set data/x does not exist: create it with"),
        (["ingest", "text.txt", "--out", "x", "--wrong"], 2, "No such option"),
        (["ingest", "--config", "no.toml"], 2, "config file no.toml not found"),
        (["info", "data/x"], 1, "data set data/x does not exist: create it with"),
        (["info"], 2, "Missing argument"),
        (["ingest", "text.txt", "--out", "."], 1, ". exists and is not a data set (it has no manifest.json)"),
    ],
)
def test_errors_print_one_line_and_set_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("command", ["ingest", "validate", "info"])
def test_help_shows_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    assert f"python -m pipeline {command} " in capsys.readouterr().out


@pytest.mark.processes
def test_process_prints_only_the_result(folder: Path) -> None:
    make_data(folder, 1000, train=b"to be or not to be\n" * 20)
    process = subprocess.run(
        [sys.executable, "-m", "pipeline", "validate", str(folder)], capture_output=True, text=True, check=False
    )
    assert process.stderr == ""
    assert process.stdout == f"{folder} is valid; report: {folder}/validation/report.html\n"
    assert process.returncode == 0
