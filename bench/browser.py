"""How fast a browser writes, on the page of a model: Chromium, driven from outside."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from bench.machine import ROOT
from common.errors import StageError
from export.page import PACKAGES, WEB, address, server, write_page

MEASURE = ROOT / "tests" / "web" / "measure.mjs"
CHROMIUM = "chromium"  # Debian's name for it


def measure(devices: Path, precision: str, characters: int = 3000) -> dict[str, Any]:
    """Characters a second of a text of so many, with all of the page at work, and the browser's name.

    Raises StageError where Node.js, its packages or Chromium are missing.
    """
    node, npm, chromium = (shutil.which(name) for name in ("node", "npm", CHROMIUM))
    if not node or not npm or not chromium:
        raise StageError("a browser is measured with Node.js, npm and Chromium: apt install nodejs npm chromium")
    if not (PACKAGES / "playwright-core").is_dir():
        subprocess.run([npm, "ci"], cwd=WEB, check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_page([devices], site := Path(scratch) / "site", force=False)
        with server(site, 0) as serving:
            threading.Thread(target=serving.serve_forever, daemon=True).start()
            name = devices.resolve().name
            command = [node, str(MEASURE), address(serving), name, precision, str(characters)]
            environment = os.environ | {"CHROMIUM": chromium}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            serving.shutdown()
    if done.returncode:
        raise StageError(
            f"the browser could not be measured: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return json.loads(done.stdout)
