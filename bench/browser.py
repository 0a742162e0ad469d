"""Generation speed of the page in Chromium, driven by Playwright."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from bench.machine import ROOT, provenance
from common.errors import StageError
from common.files import write_json
from common.processes import last_line
from export.web.build import PACKAGES, WEB, address, server, write_page

MEASURE = ROOT / "tests" / "export" / "web" / "measure.mjs"
CHROMIUM = "chromium"  # Debian's name of the executable


def record(devices: Path, precision: str, out: Path) -> dict[str, Any]:
    """Measure the page and write out/bench-lite-browser-LxH.json, which `bench lite` includes in its table."""
    about = json.loads((devices / "model.json").read_text(encoding="utf-8"))["config"]["model"]
    origin = provenance()
    figures = measure(devices, precision)
    result = {**figures, "us_a_step": 1e6 / figures["characters_per_second"], **origin}
    write_json(out / f"bench-lite-browser-{about['layers']}x{about['units']}.json", result)
    return result


def measure(devices: Path, precision: str, characters: int = 3000) -> dict[str, Any]:
    """Return characters per second with the whole page active, and the browser's name and version.

    Raises StageError without Node.js, npm or Chromium.
    """
    node, npm, chromium = (shutil.which(name) for name in ("node", "npm", CHROMIUM))
    if not node or not npm or not chromium:
        raise StageError("measuring a browser needs Node.js, npm and Chromium: apt install nodejs npm chromium")
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
        raise StageError(f"the browser could not be measured: {last_line(done.stderr)}")
    return json.loads(done.stdout)
