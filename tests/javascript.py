"""Tests written in JavaScript: Node.js, what it needs, and what became of them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from export.web import build as page

NODE = 18  # the oldest that playwright-core runs on
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def node() -> str:
    """Node.js with what the page's tests need beside it; skips the test, and says why, where that is not to be had."""
    found = shutil.which("node")
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else ""
    if not found or int(version.removeprefix("v").split(".")[0]) < NODE:
        pytest.skip(f"Node.js {NODE} or later is not there, the page is not tested (apt install nodejs npm)")
    if not (page.PACKAGES / "playwright-core").is_dir():
        npm = shutil.which("npm")
        done = subprocess.run([npm, "ci"], cwd=page.WEB, capture_output=True, text=True) if npm else None
        if not done or done.returncode:
            pytest.skip(f"npm ci in {page.WEB} {'failed' if done else 'needs npm'}, the page is not tested")
    return found


def names(script: Path) -> list[str]:
    """The tests of a script, in order."""
    return re.findall(r'^test\("(.+?)"', script.read_text(), re.MULTILINE)


def settle(found: dict[str, str], name: str) -> None:
    """Fails as the script's test did."""
    if found.get(name, found[""]):
        pytest.fail(found.get(name) or found[""], pytrace=False)


def results(script: Path, cases: Path, out: Path) -> dict[str, str]:
    """What became of the tests of a script: by name, an empty text, or what went wrong.

    cases: a JSON file for them; out: a folder for what they leave.
    """
    environment = os.environ | {"CASES": str(cases), "OUT": str(out), "CHROMIUM": CHROMIUM or ""}
    command = [node(), "--test", "--test-reporter=tap", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    found: dict[str, str] = {}
    for block in done.stdout.split("# Subtest: ")[1:]:
        name, _, told = block.partition("\n")
        found.setdefault(name, "" if told.lstrip().startswith("ok ") else told)
    return found | {"": done.stdout + done.stderr}  # for a test that never came to its turn
