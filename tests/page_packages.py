"""Placeholders for the npm packages that a page is built from."""

import json
from pathlib import Path

from export.web import build


def placeholder_packages(folder: Path) -> Path:
    """Fill a folder like `npm ci` fills node_modules, but with one-line files, and return it."""
    version = json.loads((build.WEB / "package.json").read_text())["dependencies"]["@litertjs/core"]
    files = {
        "core/package.json": json.dumps({"version": version}),
        "core/dist/index.js": 'import { createWasmLib } from "@litertjs/wasm-utils";\n',
        "wasm-utils/dist/index.js": "export {};\n",
        **{f"core/wasm/{name}{kind}": name + kind for name in build.RUNTIME for kind in (".js", ".wasm")},
    }
    for name, content in files.items():
        path = folder / "@litertjs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder
