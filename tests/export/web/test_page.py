import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from crash import damaged, killed_at_each, tree
from page_packages import placeholder_packages

from common.errors import StageError, UsageError
from common.files import recover
from export import checksums
from export.__main__ import cli
from export.bundle import pack
from export.web import build as page
from export.web.build import export_page, read_model
from pipeline.vocab import byte_vocab

MODEL = b"a flatbuffer"


@pytest.fixture(autouse=True)
def node_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """node_modules with placeholder packages."""
    packages = placeholder_packages(tmp_path / "node_modules")
    (packages / "@litertjs/core/wasm/litert_wasm_threaded_internal.wasm").write_text("not wanted")
    monkeypatch.setattr(page, "PACKAGES", packages)
    return packages


def device(folder: Path, *precisions: str, step: int = 900) -> Path:
    """Write a device folder with placeholder models."""
    folder.mkdir(parents=True)
    about = {"format_version": 1, "step": step, "vocab": byte_vocab().to_json(), "weights_sha256": folder.name}
    for precision in precisions:
        (folder / f"{precision}.tflite").write_bytes(pack(MODEL, {**about, "precision": precision}))
    listed = {precision: {"file": f"{precision}.tflite", "bits": 1.5} for precision in precisions}
    (folder / "model.json").write_text(json.dumps({**about, "files": listed}))
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_site_contains_page_runtime_and_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = device(tmp_path / "one", "float32", "int8-dynamic"), device(tmp_path / "two", "float16")
    (first / "neurons.json").write_text('{"neurons": [{"layer": 2, "unit": 7, "about": "quotes", "score": 0.9}]}')
    card = "# one\n\n| | |\n|---|---|\n| trained on | a book |\n| config | [configs/one.toml](../one.toml), here |\n"
    (first / "MODEL_CARD.md").write_text(card)
    export_page([first, second], out := tmp_path / "site", force=False)
    sources = {path.name for path in page.PAGE.iterdir() if path.is_file()}
    runtime = {"core.js", "wasm-utils.js", *(name + kind for name in page.RUNTIME for kind in (".js", ".wasm"))}
    models = {"models/one/float32.tflite", "models/one/int8-dynamic.tflite", "models/two/float16.tflite"}
    generated = {"models.json", "build.js", "SHA256SUMS"}
    assert files(out) == sources | {f"litert/{name}" for name in runtime} | models | generated
    assert (out / "litert" / "core.js").read_text() == 'import { createWasmLib } from "./wasm-utils.js";\n'
    listed = json.loads((out / "models.json").read_text())["models"]
    assert [(m["name"], [(f["precision"], f["bits"]) for f in m["files"]]) for m in listed] == [
        ("one", [("float32", 1.5), ("int8-dynamic", 1.5)]),
        ("two", [("float16", 1.5)]),
    ]
    assert listed[0]["neurons"] == [{"layer": 2, "unit": 7, "about": "quotes"}]
    assert [model["card"] for model in listed] == [[["trained on", "a book"], ["config", "configs/one.toml, here"]], []]
    assert listed[0]["vocab"] == byte_vocab().to_json()
    for file in (file for model in listed for file in model["files"]):
        assert len((out / file["url"]).read_bytes()) == file["size"]
        assert page.sha256_file(out / file["url"]) == file["sha256"]
    build = json.loads((out / "build.js").read_text().removeprefix("self.BUILD = ").removesuffix(";\n"))
    assert set(build["shell"]) == {"./", "models.json", "litert/core.js", "litert/wasm-utils.js"} | sources
    summary = (
        "one (float32, int8-dynamic); two (float16); 0.1 MB, of which a browser loads 0.1 MB before the first text"
    )
    assert summary in capsys.readouterr().out


def test_snapshots_are_listed_by_step(tmp_path: Path) -> None:
    model = device(tmp_path / "50% of #1", "float32", "int8-dynamic")
    for step in (100, 0, 30):
        device(model / f"step-{step}", "int8-dynamic", step=step)
    (model / "step-by-step.txt").write_text("a file of the user")
    export_page([model], out := tmp_path / "site", force=False)
    (listed,) = json.loads((out / "models.json").read_text())["models"]
    assert [file["step"] for file in listed["files"]] == [900, 900]
    assert [file["step"] for file in listed["snapshots"]] == [0, 30, 100]
    for file in listed["snapshots"]:
        copy = out / urllib.parse.unquote(file["url"])
        assert copy.read_bytes() == (model / f"step-{file['step']}" / "int8-dynamic.tflite").read_bytes()
    about = json.loads((model / "step-30" / "model.json").read_text())
    (model / "step-30" / "model.json").write_text(json.dumps(about | {"config": {"train": {"seed": 2}}}))
    with pytest.raises(StageError, match=r"step-30 belongs to a different run than .*: export both again with --force"):
        read_model(model)


def test_same_page_is_kept_and_different_page_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = device(tmp_path / "one", "float32"), tmp_path / "site"
    export_page([model], out, force=False)
    first, output = (out / "build.js").read_bytes(), capsys.readouterr().out
    (out / "CNAME").write_text("a file of the user" * 100_000)
    export_page([model], out, force=False)
    assert (out / "CNAME").read_text() == "a file of the user" * 100_000
    again = capsys.readouterr()
    assert "is up to date with the same files" in again.err
    assert again.out == output, "only files of the page are counted"
    for path in damaged(out, "CNAME"):
        with pytest.raises(StageError):
            export_page([model], out, force=False)
        assert checksums.problems(out) == [f"{path} is {'corrupted' if path.exists() else 'missing'}"]
    about = {"format_version": 1, "vocab": byte_vocab().to_json(), "weights_sha256": "one"}
    (model / "float32.tflite").write_bytes(pack(b"other weights", about))
    with pytest.raises(StageError, match=r"site already holds a different page: pass another --out or --force$"):
        export_page([model], out, force=False)
    assert (out / "build.js").read_bytes() == first
    export_page([model], out, force=True)
    assert (out / "build.js").read_bytes() != first, "browsers must detect the new build"
    (foreign := tmp_path / "foreign").mkdir()
    (foreign / "letters.txt").write_text("not ours")
    with pytest.raises(StageError, match="exists and is not a page"):
        export_page([model], foreign, force=True)


def test_kill_at_any_write_leaves_the_old_or_the_new_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    (sources := tmp_path / "page").mkdir()
    (sources / "index.html").write_text("a page of one file")
    monkeypatch.setattr(page, "PAGE", sources)
    old, new, root = device(tmp_path / "old", "float32"), device(tmp_path / "new", "float32"), tmp_path / "root"

    def build(folder: Path) -> None:
        export_page([folder], root / "site", force=True)

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        build(old)

    states = []
    for folder in (new, old):
        build(folder)
        states.append(tree(root))
    for _ in killed_at_each(prepare, lambda: build(new)):
        recover(root)
        assert tree(root) in states


def test_invalid_models_raise(tmp_path: Path) -> None:
    first, second = device(tmp_path / "a" / "one", "float32"), device(tmp_path / "b" / "one", "float32")
    with pytest.raises(UsageError, match="need different names, got one, one"):
        export_page([first, second], tmp_path / "site", force=False)
    with pytest.raises(StageError, match="nowhere is not a device model"):
        read_model(tmp_path / "nowhere")
    (first / "model.json").write_text('{"vocab": {"unit": "byte", "symbols": "6161"}}')
    with pytest.raises(StageError, match="a/one is not a device model \\(a vocabulary needs"):
        read_model(first)
    (second / "neurons.json").write_text('{"neurons": [{"layer": 1}]}')
    with pytest.raises(StageError, match=r"neurons.json is not a list of neurons \('unit'\): see docs/web\.md"):
        read_model(second)


def test_corrupted_missing_and_mismatched_files_raise(tmp_path: Path) -> None:
    first, second = device(tmp_path / "one", "float32"), device(tmp_path / "two", "float32")
    intact = (first / "float32.tflite").read_bytes()
    shutil.copyfile(second / "float32.tflite", first / "float32.tflite")
    with pytest.raises(
        StageError, match=r"one/float32\.tflite belongs to a different model than .*model\.json: export it again$"
    ):
        read_model(first)
    (first / "float32.tflite").write_bytes(intact)
    about = json.loads((first / "model.json").read_text())
    changed = {**about, "vocab": {**about["vocab"], "symbols": about["vocab"]["symbols"][::-1]}}
    (first / "model.json").write_text(json.dumps(changed))
    with pytest.raises(StageError, match=r"one/float32\.tflite belongs to a different model than .*model\.json"):
        read_model(first)
    (first / "model.json").write_text(json.dumps(about))
    for corrupted in (intact[:5] + b"?" + intact[6:], intact[:-5]):
        (first / "float32.tflite").write_bytes(corrupted)
        with pytest.raises(StageError, match=r"one/float32\.tflite is corrupted"):
            read_model(first)
    (first / "float32.tflite").unlink()
    with pytest.raises(StageError, match=r"cannot read .*one/float32\.tflite"):
        read_model(first)


def test_npm_installs_the_runtime(tmp_path: Path, node_modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.packages() == node_modules, "an installed runtime is kept"
    (node_modules / "@litertjs" / "core" / "package.json").write_text('{"version": "0.0.1"}')
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StageError, match=r"npm is missing: install Node\.js$"):
        page.packages()
    (npm := tmp_path / "npm").write_text("#!/bin/sh\necho notice >&2\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(StageError, match=r"npm ci in .*/export/web failed: no network$"):
        page.packages()
    npm.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    page.packages()
    assert (tmp_path / "asked").read_text().startswith("ci --omit=dev")


def test_folder_names_are_quoted_in_urls(tmp_path: Path) -> None:
    folders = [device(tmp_path / name, "float32") for name in ("one", "50% of #1, ä?")]
    export_page(folders, out := tmp_path / "site", force=False)
    listed = json.loads((out / "models.json").read_text())["models"]
    with page.server(out, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        for folder, model in zip(folders, listed, strict=True):
            with urllib.request.urlopen(
                urllib.parse.urljoin(page.address(serving), model["files"][0]["url"])
            ) as response:
                assert response.read() == (folder / "float32.tflite").read_bytes()
        serving.shutdown()


SERVE = "import sys; from pathlib import Path; from export.web.build import serve; serve(Path(sys.argv[1]), 0)"


def test_port_requires_serve(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["web", str(tmp_path / "one"), "--port", "8001"])
    assert (result.exit_code, result.output.splitlines()[-1]) == (2, "Error: --port requires --serve")


def test_aborted_downloads_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_page([device(tmp_path / "one", "float32")], out := tmp_path / "site", force=False)
    (out / "large").write_bytes(bytes(1 << 25))
    with page.server(out, 0) as serving:
        serving.daemon_threads = False  # so that server_close() waits for the handlers
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        for sent in (b"GET /large HTTP/1.0\r\n\r\n", b"GET /lar"):
            with socket.create_connection((page.HOST, serving.server_port)) as browser:
                browser.sendall(sent)
                browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset on close
        serving.shutdown()
    assert capfd.readouterr().err == ""


def test_serve_sends_the_policy_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    export_page([device(tmp_path / "one", "float32")], out := tmp_path / "site", force=False)
    command, pipe = [sys.executable, "-c", SERVE, str(out)], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as server, contextlib.ExitStack() as ending:
        ending.callback(server.kill)  # in case an assertion below fails
        assert server.stdout
        assert server.stderr
        address = server.stdout.readline().split()[0]
        types = {
            "": "text/html",
            "main.js": "text/javascript",
            "litert/litert_wasm_internal.wasm": "application/wasm",
            "models/one/float32.tflite": "application/octet-stream",
        }
        for name, kind in types.items():
            with urllib.request.urlopen(address + name) as response:
                assert response.headers["Content-Type"] == kind
                policy = response.headers["Content-Security-Policy"].split("; ")
        assert policy[:3] == ["default-src 'none'", "script-src 'self' 'wasm-unsafe-eval'", "style-src 'self'"]
        assert policy[-1] == "frame-ancestors 'none'"
        port = int(address.rstrip("/").rsplit(":", 1)[1])
        with pytest.raises(StageError, match=rf"port {port} is not available \(Address already in use\)"):
            page.serve(out, port)
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0
        assert server.stderr.read() == ""
    shutil.rmtree(out)
