"""The page: a static folder in which a browser runs models of devices/, by LiteRT.js, with no server behind it.

site/NAME/index.html, *.js, …     the page, as it is in export/web/page/
site/NAME/litert/                 the runtime, from its npm package: a wasm for relaxed SIMD, one without
site/NAME/models/NAME/*.tflite    the models, as they are in devices/
site/NAME/models.json             what the page knows of them: vocabulary, precisions, sizes, checksums, neurons
site/NAME/build.js                a hash of all this, and the files that the page itself needs to work offline
"""

import contextlib
import functools
import hashlib
import http.server
import json
import shutil
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import console, processes
from common.errors import StageError, UsageError
from common.files import check_replaceable, sha256_file, whole_folder
from export.bundle import NEURONS, unpack
from pipeline.vocab import Vocab

WEB = Path(__file__).parent
PAGE, PACKAGES = WEB / "page", WEB / "node_modules"
MODELS, BUILD = "models.json", "build.js"
RUNTIME = ("litert_wasm_internal", "litert_wasm_compat_internal")  # one thread; the second without relaxed SIMD
TYPES = {".js": "text/javascript", ".wasm": "application/wasm", ".tflite": "application/octet-stream"}
HOST = "localhost"


def export_page(folders: Sequence[Path], out: Path, force: bool) -> None:
    """Writes a page (`write_page`), and says what is in it."""
    console.out.print(_told(out, *write_page(folders, out, force)))


def write_page(folders: Sequence[Path], out: Path, force: bool) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Writes the folder `out` for the models of `folders`. Gives what the page is told of them, and its files' sizes.

    A page of the same files that lies there is left as it is, with what a user has put beside them, unless `force` is
    set. Raises UsageError where two models have one name, StageError where one holds no model, where `out` is full of
    something else (another page gives way to `force`), and where there is no npm to fetch the runtime with.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError(f"models need names of their own on the page, got {', '.join(names)}: rename a folder")
    models = [read_model(folder) for folder in folders]
    check_replaceable(out, MODELS, "a page")
    files = _files(folders, models)
    sizes = {name: len(content) for name, content in files.items()}
    if not force and out.exists() and any(out.iterdir()):
        if not (out / BUILD).is_file() or (out / BUILD).read_bytes() != files[BUILD]:
            raise StageError(f"{out} is full: another page lies there; give another --out or --force")
        console.note(f"{out} is already made from the same files")
        return models, sizes
    with console.err.status(f"writing {out}"), whole_folder(out, replace=force) as partial:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
    return models, sizes


def read_model(folder: Path) -> dict[str, Any]:
    """What the page is told of a model. Raises StageError where `folder` holds none, or its files are not its own."""
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        Vocab.from_json(about["vocab"])
        listed = {name: (folder / file["file"], file["bits"]) for name, file in about["files"].items()}
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StageError(
            f"{folder} holds no model for devices: {error}; make it with python -m export tflite"
        ) from None
    name, files = folder.resolve().name, []
    for precision, (path, bits) in listed.items():
        sealed = unpack(path)[1]
        if any(sealed.get(field) != about.get(field) for field in ("weights_sha256", "vocab")):
            raise StageError(f"{path} is of another model than {folder / 'model.json'}: export it again")
        url, size = urllib.parse.quote(f"models/{name}/{path.name}"), path.stat().st_size
        files.append({"precision": precision, "bits": bits, "url": url, "size": size, "sha256": sha256_file(path)})
    return {"name": name, "vocab": about["vocab"], "files": files, "neurons": _neurons(folder)}


def packages() -> Path:
    """node_modules with what the page is made of, fetched where it is not there yet. Raises StageError without npm."""
    wanted = json.loads((WEB / "package.json").read_text(encoding="utf-8"))["dependencies"]["@litertjs/core"]
    about = PACKAGES / "@litertjs" / "core" / "package.json"
    if not about.is_file() or json.loads(about.read_text(encoding="utf-8"))["version"] != wanted:
        npm = shutil.which("npm")
        if npm is None:
            raise StageError(
                "LiteRT.js, which runs the page's models, comes by npm, and there is no npm: install Node.js"
            )
        console.note(f"fetching LiteRT.js {wanted}: npm ci in {WEB}")
        processes.run([npm, "ci", "--omit=dev", "--no-fund", "--no-audit"], f"npm ci in {WEB} failed", cwd=WEB)
    return PACKAGES


def server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """What serves a page to this machine alone. port: 0 takes any that is free. Raises StageError where it is not."""
    # The page's policy goes along as a header too: only so does it hold for its workers.
    html = (folder / "index.html").read_text(encoding="utf-8")
    policy = " ".join(html.split('http-equiv="Content-Security-Policy"')[1].split('"')[1].split())

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | TYPES

        def end_headers(self) -> None:
            self.send_header("Content-Security-Policy", f"{policy}; frame-ancestors 'none'")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cache-Control", "no-cache")
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        return http.server.ThreadingHTTPServer((HOST, port), functools.partial(Handler, directory=str(folder)))
    except OSError as error:
        raise StageError(f"port {port} cannot be had ({error.strerror}): give another --port, or 0 for any") from None


def address(of: http.server.ThreadingHTTPServer) -> str:
    """Where a browser finds it."""
    return f"http://{HOST}:{of.server_port}/"


def serve(folder: Path, port: int) -> None:
    """Serves a page until Ctrl-C. Raises as `server` does."""
    with server(folder, port) as serving, contextlib.suppress(KeyboardInterrupt):
        console.out.print(f"{address(serving)} (Ctrl-C ends it)")
        serving.serve_forever()


def _files(folders: Sequence[Path], models: list[dict[str, Any]]) -> dict[str, bytes]:
    """All files of the page, by their paths in it."""
    litert = packages() / "@litertjs"
    sources = [path for path in PAGE.rglob("*") if path.is_file() and not path.name.endswith(".d.ts")]
    files = {path.relative_to(PAGE).as_posix(): path.read_bytes() for path in sources} | _glue(litert)
    shell = sorted(files)
    for name in (name + kind for name in RUNTIME for kind in (".js", ".wasm")):  # a browser keeps the one that it takes
        files[f"litert/{name}"] = (litert / "core" / "wasm" / name).read_bytes()
    for folder, model in zip(folders, models, strict=True):
        paths = [Path(urllib.parse.unquote(file["url"])) for file in model["files"]]
        files |= {path.as_posix(): (folder / path.name).read_bytes() for path in paths}
    listed = json.dumps({"format_version": 1, "models": models}, indent=2, ensure_ascii=False)
    files[MODELS] = f"{listed}\n".encode()
    build = {"id": _hash(files), "shell": ["./", *shell, MODELS]}
    return files | {BUILD: f"self.BUILD = {json.dumps(build, indent=2)};\n".encode()}


def _glue(litert: Path) -> dict[str, bytes]:
    """What of the runtime is JavaScript for whichever wasm."""
    core = (litert / "core" / "dist" / "index.js").read_bytes()
    # A browser finds no package by its name: import maps must stand in the page itself, which its policy forbids.
    here = core.replace(b'"@litertjs/wasm-utils"', b'"./wasm-utils.js"')
    utils = (litert / "wasm-utils" / "dist" / "index.js").read_bytes()
    return {"litert/core.js": here, "litert/wasm-utils.js": utils}


def _neurons(folder: Path) -> list[dict[str, Any]]:
    """Of neurons.json, where somebody has looked for neurons that mean something: layer and unit, from 1, and about."""
    path = folder / NEURONS
    if not path.is_file():
        return []
    try:
        neurons = json.loads(path.read_text(encoding="utf-8"))["neurons"]
        return [{"layer": int(n["layer"]), "unit": int(n["unit"]), "about": str(n["about"])} for n in neurons]
    except (KeyError, TypeError, ValueError) as error:
        raise StageError(f"{path} is no list of neurons: {error}; see docs/web.md, or remove it") from None


def _hash(files: dict[str, bytes]) -> str:
    """A hash of files, with their names."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _told(out: Path, models: list[dict[str, Any]], sizes: dict[str, int]) -> str:
    every = sum(sizes.values())
    spare = sum(sizes[f"litert/{RUNTIME[1]}{kind}"] for kind in (".js", ".wasm"))
    of_models = [file["size"] for model in models for file in model["files"]]
    shown = "; ".join(f"{m['name']} ({', '.join(f['precision'] for f in m['files'])})" for m in models)
    least = every - spare - sum(of_models) + min(of_models)
    return (
        f"{out}: {shown}; {every / 1e6:.1f} MB, of which a browser fetches {least / 1e6:.1f} MB before the first text"
    )
