"""`export serve`: from an exported folder to an answer, with each kind of server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig
from test_serving import ABOUT, FACTS

from common.errors import StageError
from common.files import write_json
from export.__main__ import cli
from export.client.client import Client
from export.serve import labels, package, saved_model, start

ROOT = Path(__file__).parents[3]


@pytest.fixture
def base(fake: Path, tmp_path: Path) -> Path:
    """Exported folder of the fake model."""
    base = tmp_path / "served" / "plays"
    shutil.copytree(fake / "1", base / "1")
    write_json(base / "1" / labels.ORIGIN, ABOUT)
    package.write_package(base, 1, FACTS)
    return base


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Only folder on the PATH. Its programs record their arguments in tmp_path/calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(path: Path, body: str) -> None:
    record = f"open({str(path.parent.parent / 'calls')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
    path.write_text(f"#!{sys.executable} -S\nimport json, os, sys\n{record}\n{body}\n")
    path.chmod(0o755)


def calls(tmp_path: Path) -> list[list[str]]:
    return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


@pytest.fixture
def serving(base: Path, programs: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Process that runs `export serve`, with a docker on its PATH that has no daemon."""
    program(programs / "docker", "sys.exit(1)")
    (tmp_path / "index.html").write_text("<html>")
    command = [sys.executable, "-m", "export", "serve", str(base), "--port", "0", "--page", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def server_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 10
    while not children.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    (child,) = children.read_text().split()
    return int(child)


def ended(pid: int) -> bool:
    """Wait until a process has ended."""
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


def test_one_command_starts_a_server_that_answers(serving: subprocess.Popen[str]) -> None:
    assert serving.stderr
    assert serving.stderr.readline() == f"{start.STAND_IN}\n"
    match = re.fullmatch(r"serving plays at (http://127.0.0.1:\d+) \(Ctrl-C to stop\)\n", serving.stderr.readline())
    assert match
    url = match[1]
    tried = re.fullmatch(r"try: curl -s (\S+) -d '(.+)'\n", serving.stderr.readline())
    assert tried
    answer = requests.post(tried[1], data=tried[2], timeout=30).json()
    assert (tried[1], len(answer["choices"][0]["text"].encode()) >= 200) == (f"{url}/v1/completions", True)
    assert requests.get(url, timeout=30).text == "<html>"
    server = server_of(serving)
    serving.send_signal(signal.SIGINT)
    assert (serving.wait(30), ended(server), serving.stderr.read()) == (0, True, "")


def test_damaged_canary_delays_the_port_only_by_seconds(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cover the flags without which a server would retry for five minutes before opening its port."""
    monkeypatch.setattr(start, "_docker_runs", lambda: False)
    shutil.copytree(base / "1", base / "2", ignore=shutil.ignore_patterns("facts.json"))
    package.write_package(base, 2, FACTS)
    (base / "2" / "saved_model.pb").write_bytes(b"damaged")
    begin = time.monotonic()
    with (
        start.started(base) as server,
        Client(server.target, server.model, label="stable", timeout=1, retries=0) as client,
    ):
        opened = Path(server.target.removeprefix("unix:")).exists
        assert not opened()
        server.wait(opened)
        assert time.monotonic() - begin < 60
        assert client.score("ab").n_chars == 2
        assert {status.version: status.state for status in client.status()} == {1: "AVAILABLE", 2: "END"}


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_server_that_is_still_loading_is_stopped_too(
    serving: subprocess.Popen[str], sent: signal.Signals, code: int
) -> None:
    assert serving.stderr
    serving.stderr.readline()
    server = server_of(serving)
    serving.send_signal(sent)
    assert (serving.wait(30), ended(server)) == (code, True)


def test_a_signal_while_the_server_starts_stops_it(base: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **settings: Any):
            super().__init__(*arguments, **settings)
            children.append(self.pid)
            signal.raise_signal(signal.SIGINT)

    program(programs / start.BINARY, "import time\ntime.sleep(60)")
    monkeypatch.setattr(start.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), start.started(base):
        pass
    assert ended(*children)


def test_a_run_is_exported_first(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported, served, run = list[Path](), list[Path](), tmp_path / "runs" / "book"
    write_json(run / "run.json", {})

    def export(run: Path, out: Path, version: int | None, force: bool) -> None:
        exported.append(run)
        shutil.copytree(base, out)

    def started(base: Path) -> None:
        served.append(base)
        raise StageError("not started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saved_model, "export_saved_model", export)
    monkeypatch.setattr(start, "started", started)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "link").symlink_to(run)
    for folder in (run, tmp_path / "link", base):
        with pytest.raises(StageError, match="not started"):
            cli.main(["serve", str(folder), "--port", "0"], standalone_mode=False)
    assert (exported, served) == ([run], [Path("served/book"), Path("served/book"), base])


def test_tensorflow_serving_on_the_path_is_preferred(base: Path, programs: Path, tmp_path: Path) -> None:
    program(programs / "docker", "")
    config = "next(arg for arg in sys.argv if arg.startswith('--model_config_file=/tmp'))"
    program(
        programs / start.BINARY, f"print(open({config}.partition('=')[2]).read()); print('cannot load'); sys.exit(1)"
    )
    with (
        pytest.raises(StageError, match=r"^the server of plays ended: cannot load$"),
        start.started(base) as server,
    ):
        server.wait(lambda: False)
    (flags,) = calls(tmp_path)
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)  # the last value of a repeated flag wins
    socket = values["grpc_socket_path"]
    assert (server.target, values["port"], values["rest_api_port"]) == (f"unix:{socket}", "0", "0")  # no open port
    assert values["batching_parameters_file"] == str(base / "batching_params.pbtxt")
    assert values["enable_per_model_batching_parameters"] == "true"
    assert values["model_config_file"].startswith(os.path.dirname(socket))
    assert not Path(socket).parent.exists()


def test_the_models_config_of_a_local_server_names_the_folder(base: Path) -> None:
    text = labels.to_text("plays", {"stable": 1}, [1], str(base))
    (model,) = text_format.Parse(text, ModelServerConfig()).model_config_list.config
    assert (model.base_path, dict(model.version_labels)) == (str(base), {"stable": 1})


def test_docker_is_the_second_choice(base: Path, programs: Path, tmp_path: Path) -> None:
    copy = f"import shutil; shutil.copy(sys.argv[-3][7:], {str(tmp_path / 'local.yaml')!r})"
    program(programs / "docker", f"if 'up' in sys.argv:\n    {copy}\n    print('no such image'); sys.exit(1)")
    (base / "compose.override.yaml").write_text("{}")
    with pytest.raises(StageError, match=r"^the server of plays ended: no such image$"), start.started(base) as server:
        server.wait(lambda: False)
    assert calls(tmp_path)[0] == ["compose", "ls", "--quiet"]
    compose, up, down = calls(tmp_path)[1][:-2], calls(tmp_path)[1], calls(tmp_path)[2]
    assert compose[:3] == ["compose", "--project-name", "char-rnn-plays-local"]  # not the package's own project
    assert compose[3:5] == [f"--file={base}/compose.yaml", f"--file={base}/compose.override.yaml"]
    assert (up, down) == ([*compose, "up", "serving"], [*compose, "down"])
    address = server.target
    local = json.loads((tmp_path / "local.yaml").read_text())
    assert local == {"services": {"serving": {"restart": "no", "ports": [f"{address}:8500"]}}}
    assert address.startswith("127.0.0.1:")


def test_a_folder_without_an_export_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StageError, match=r"has no models\.config: create it with python -m export savedmodel runs/NAME"),
        start.started(tmp_path),
    ):
        pass
