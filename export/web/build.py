"""Build of the page: a static folder in which a browser runs the models of devices/ with LiteRT.js, without a backend.

site/NAME/index.html, *.js, …     the page, copied from export/web/page/
site/NAME/litert/                 the runtime, from its npm package: one wasm with relaxed SIMD, one without
site/NAME/models/NAME/            the models and their snapshots, copied from devices/
site/NAME/models.json             vocabulary, precisions, sizes, checksums, neurons and card of each model
site/NAME/build.js                a hash of all files, and the list of those needed offline
site/NAME/SHA256SUMS              the checksums of all files (export.checksums)
"""

import contextlib
import functools
import hashlib
import http.server
import json
import re
import shutil
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import console, processes
from common.errors import StageError, UsageError
from common.files import check_replaceable, load_json, sha256_file, whole_folder
from common.headers import page_headers
from export import checksums
from export.bundle import CARD, NEURONS, unpack
from pipeline.vocab import Vocab

WEB = Path(__file__).parent
PAGE, PACKAGES = WEB / "page", WEB / "node_modules"
MODELS, BUILD = "models.json", "build.js"
RUNTIME = ("litert_wasm_internal", "litert_wasm_compat_internal")  # single-threaded; the second lacks relaxed SIMD
TYPES = {".js": "text/javascript", ".wasm": "application/wasm", ".tflite": "application/octet-stream"}
HOST = "localhost"


def export_page(folders: Sequence[Path], out: Path, force: bool) -> None:
    """Write a page (`write_page`) and print a summary."""
    console.out.print(_summary(out, *write_page(folders, out, force)))


def write_page(folders: Sequence[Path], out: Path, force: bool) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Write the folder `out` for the models of `folders`. Returns the entries of models.json and the size of each file.

    An existing page with the same files is kept, including files that you added, unless `force` is set. Raises
    UsageError for two models of one name, and StageError for an invalid model, for an `out` with other contents (of
    which `force` replaces only a page) or a corrupted file, and without npm to fetch the runtime.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError(f"the models on a page need different names, got {', '.join(names)}: rename a folder")
    models = [read_model(folder) for folder in folders]
    check_replaceable(out, MODELS, "a page")
    files = _files(folders, models)
    sizes = {name: len(content) for name, content in files.items()}
    if not force and out.exists() and any(out.iterdir()):
        if not (out / BUILD).is_file() or (out / BUILD).read_bytes() != files[BUILD]:
            raise StageError(f"{out} already holds a different page: pass another --out or --force")
        checksums.check(out)
        console.note(f"{out} is up to date with the same files")
        return models, sizes
    with console.err.status(f"writing {out}"), whole_folder(out, replace=force) as partial:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        checksums.write(partial)
    return models, sizes


def read_model(folder: Path) -> dict[str, Any]:
    """Return a model's entry of models.json. Raises StageError for an invalid folder and for files of another model."""
    name = folder.resolve().name
    about, files = _read_files(folder, f"models/{name}")
    snapshots = []
    for snapshot in (path.parent for path in folder.glob("step-*/model.json")):
        other, (file, *_) = _read_files(snapshot, f"models/{name}/{snapshot.name}")
        if any(other.get(field) != about.get(field) for field in ("config", "data_sha256", "vocab")):
            raise StageError(f"{snapshot} belongs to a different run than {folder}: export both again with --force")
        snapshots.append(file)
    return {
        "name": name,
        "vocab": about["vocab"],
        "files": files,
        "snapshots": sorted(snapshots, key=lambda file: file["step"]),
        "neurons": _neurons(folder),
        "card": _card(folder),
    }


def _read_files(folder: Path, target: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return model.json, and the entry of each file in models.json. target: the files' folder in the page."""
    try:
        about = load_json(folder / "model.json")
        Vocab.from_json(about["vocab"])
        listed = {name: (folder / file["file"], file["bits"]) for name, file in about["files"].items()}
        step = int(about["step"])
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StageError(f"{folder} is not a device model ({error}): export it with python -m export tflite") from None
    files = []
    for precision, (path, bits) in listed.items():
        packed = unpack(path)[1]
        if any(packed.get(field) != about.get(field) for field in ("weights_sha256", "vocab")):
            raise StageError(f"{path} belongs to a different model than {folder / 'model.json'}: export it again")
        url, size = urllib.parse.quote(f"{target}/{path.name}"), path.stat().st_size
        file = {"precision": precision, "step": step, "bits": bits, "url": url, "size": size}
        files.append({**file, "sha256": sha256_file(path)})
    return about, files


def packages() -> Path:
    """Return node_modules, after installing the runtime if needed. Raises StageError without npm."""
    version = load_json(WEB / "package.json")["dependencies"]["@litertjs/core"]
    about = PACKAGES / "@litertjs" / "core" / "package.json"
    if not about.is_file() or load_json(about)["version"] != version:
        npm = shutil.which("npm")
        if npm is None:
            raise StageError("the page needs LiteRT.js from npm, and npm is missing: install Node.js")
        console.note(f"fetching LiteRT.js {version}: npm ci in {WEB}")
        processes.run([npm, "ci", "--omit=dev", "--no-fund", "--no-audit"], f"npm ci in {WEB} failed", cwd=WEB)
    return PACKAGES


def server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Create a local server of a page. port: 0 picks a free one. Raises StageError for a port in use."""
    headers = page_headers(folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | TYPES

        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # a browser ends the downloads of a page that it leaves
                super().handle()

    try:
        return http.server.ThreadingHTTPServer((HOST, port), functools.partial(Handler, directory=str(folder)))
    except OSError as error:
        raise StageError(
            f"port {port} is not available ({error.strerror}): pass another --port, or 0 for any free one"
        ) from None


def address(http_server: http.server.ThreadingHTTPServer) -> str:
    """Return the URL of a server."""
    return f"http://{HOST}:{http_server.server_port}/"


def serve(folder: Path, port: int) -> None:
    """Serve a page until Ctrl-C. Raises as `server` does."""
    with server(folder, port) as serving, contextlib.suppress(KeyboardInterrupt):
        console.out.print(f"{address(serving)} (Ctrl-C to stop)")
        serving.serve_forever()


def _files(folders: Sequence[Path], models: list[dict[str, Any]]) -> dict[str, bytes]:
    """Return the contents of all files by their paths in the page."""
    litert = packages() / "@litertjs"
    sources = [path for path in PAGE.rglob("*") if path.is_file() and not path.name.endswith(".d.ts")]
    files = {path.relative_to(PAGE).as_posix(): path.read_bytes() for path in sources} | _glue(litert)
    shell = sorted(files)
    for name in (name + kind for name in RUNTIME for kind in (".js", ".wasm")):  # a browser caches only the one it uses
        files[f"litert/{name}"] = (litert / "core" / "wasm" / name).read_bytes()
    for folder, model in zip(folders, models, strict=True):
        paths = [Path(urllib.parse.unquote(file["url"])) for file in model["files"] + model["snapshots"]]
        files |= {path.as_posix(): folder.joinpath(*path.parts[2:]).read_bytes() for path in paths}
    listed = json.dumps({"format_version": 1, "models": models}, indent=2, ensure_ascii=False)
    files[MODELS] = f"{listed}\n".encode()
    build = {"id": _hash(files), "shell": ["./", *shell, MODELS]}
    return files | {BUILD: f"self.BUILD = {json.dumps(build, indent=2)};\n".encode()}


def _glue(litert: Path) -> dict[str, bytes]:
    """Return the runtime's JavaScript."""
    core = (litert / "core" / "dist" / "index.js").read_bytes()
    # Browsers cannot resolve package names without an inline import map, which the page's policy forbids.
    patched = core.replace(b'"@litertjs/wasm-utils"', b'"./wasm-utils.js"')
    utils = (litert / "wasm-utils" / "dist" / "index.js").read_bytes()
    return {"litert/core.js": patched, "litert/wasm-utils.js": utils}


def _neurons(folder: Path) -> list[dict[str, Any]]:
    """Return layer and unit (from 1) and description of the neurons in neurons.json, if the file exists."""
    path = folder / NEURONS
    if not path.is_file():
        return []
    try:
        neurons = load_json(path)["neurons"]
        return [{"layer": int(n["layer"]), "unit": int(n["unit"]), "about": str(n["about"])} for n in neurons]
    except (KeyError, TypeError, ValueError) as error:
        raise StageError(f"{path} is not a list of neurons ({error}): see docs/web.md, or remove it") from None


def _card(folder: Path) -> list[list[str]]:
    """Return the rows of the table in MODEL_CARD.md, if the file exists, with links as plain text."""
    path = folder / CARD
    rows = re.findall(r"^\| (\w.*?) \| (.+) \|$", path.read_text(encoding="utf-8") if path.is_file() else "", re.M)
    return [[name, re.sub(r"\[(.+?)\]\(.+?\)", r"\1", value)] for name, value in rows]


def _hash(files: dict[str, bytes]) -> str:
    """Return a hash of files and their names."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _summary(out: Path, models: list[dict[str, Any]], sizes: dict[str, int]) -> str:
    total = sum(sizes.values())
    spare = sum(sizes[f"litert/{RUNTIME[1]}{kind}"] for kind in (".js", ".wasm"))
    of_models = [file["size"] for model in models for file in model["files"] + model["snapshots"]]
    names = "; ".join(f"{m['name']} ({', '.join(f['precision'] for f in m['files'])})" for m in models)
    least = total - spare - sum(of_models) + min(of_models)
    return f"{out}: {names}; {total / 1e6:.1f} MB, of which a browser loads {least / 1e6:.1f} MB before the first text"
