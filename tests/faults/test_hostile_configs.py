"""Hostile configs: each is a one-line error, and runs no code."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.conftest import Trials

from common.errors import UsageError
from common.printable import visible
from common.settings import make, read_config
from pipeline.config import IngestSettings, ValidateSettings
from trainers.config import RunConfig


def configs() -> Iterator[str]:
    """Yield invalid configs, as TOML."""
    yield from ("[model", "model = 1", "= 1", "[model]\nunits = ", "[model]\nunits = 1\nunits = 2", "\0", "[[model]]")
    yield from ("a = " + "[" * 10_000, "[" + "a." * 5000 + "b]", "a = " + "{b = " * 3000)  # deeply nested
    yield f"[model]\nunits = {'9' * 5000}"
    yield f"[model]\nunits = {10**15}"
    yield from (f"[model]\nunits = {value}" for value in ("-1", "0", "1.5", "true", '"128"', "[128]", "nan"))
    yield from (f"[model]\nlayers = {value}" for value in (10**15, 0))
    yield '[model]\ncell = "transformer"'
    yield from (f"[train]\nepochs = {value}" for value in ("1e308", "inf", "nan", "-1", "1e400"))
    yield from (f"[train]\nlearning_rate = {value}" for value in ("inf", "0", "-0.1"))
    yield from ("[train]\nlanes = 1_000_000_000_000", "[train]\nwindow = 0", '[train]\nprecision = "int8"')
    yield '[train]\nno_such_setting = "\x1b]0;title\x07"'.replace("\x1b", "\\u001b").replace("\x07", "\\u0007")
    yield from ('[data]\nencoding = "no-such-encoding"', "[secrets]\nkey = 1")


def load(path: Path) -> None:
    config = read_config(path)
    make(IngestSettings, config["data"], f"{path} [data]")
    make(ValidateSettings, config["validate"], f"{path} [validate]")
    RunConfig.read(path)


@pytest.mark.faults("Hostile input", "configs")
def test_configs_are_one_line_errors(trials: Trials, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for text in configs():
        path.write_text(text, encoding="utf-8")
        with trials.trial(text[:60]):
            with pytest.raises(UsageError) as error:
                load(path)
            message = str(error.value)
            assert (visible(message), len(message) < 1000) == (message, True), message[:1000]
    assert trials.tried == 36


@pytest.mark.processes
@pytest.mark.faults("Hostile input", "callbacks that are code")
def test_callbacks_are_not_imported(trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.training import callbacks

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n\n\nclass Planted: pass\n")
    for name in ("os:system", "planted:Planted", "planted.Planted", "builtins:exec", "subprocess:Popen"):
        (tmp_path / "config.toml").write_text(f'[[train.callbacks]]\nname = "{name}"\n')
        with trials.trial(name):
            with pytest.raises(UsageError):
                callbacks.make_callbacks(RunConfig.read(tmp_path / "config.toml").train, allow_code=False)
            assert "planted" not in sys.modules
            assert not (tmp_path / "ran").exists()
