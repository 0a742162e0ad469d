"""Tests written in JavaScript, run by Node.js and reported by pytest."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from export.web import build as page

NODE = 18  # the oldest version that playwright-core supports
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def node() -> str:
    """Return the path of Node.js after installing the test packages. Skips the test if that fails."""
    path = shutil.which("node")
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    if not path or int(version.removeprefix("v").split(".")[0]) < NODE:
        pytest.skip(f"Node.js {NODE} or later is missing, the page is not tested (apt install nodejs npm)")
    if not (page.PACKAGES / "playwright-core").is_dir():
        npm = shutil.which("npm")
        install = subprocess.run([npm, "ci"], cwd=page.WEB, capture_output=True, text=True) if npm else None
        if not install or install.returncode:
            pytest.skip(f"npm ci in {page.WEB} {'failed' if install else 'needs npm'}, the page is not tested")
    return path


def names(script: Path) -> list[Any]:
    """Return a script's test names, in order, as pytest parameters; `slow(...)` tests get the slow marker."""
    tests = re.findall(r'^(test|slow)\("(.+?)"', script.read_text(), re.MULTILINE)
    return [pytest.param(name, marks=[pytest.mark.slow] if kind == "slow" else []) for kind, name in tests]


def settle(outcomes: dict[str, str], name: str) -> None:
    """Fail with the output of the script's test, if it failed."""
    if outcomes.get(name, outcomes[""]):
        pytest.fail(outcomes.get(name) or outcomes[""], pytrace=False)


def results(script: Path, cases: Path, out: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """Run a script and return its failures by test name: empty if passed; "" has the whole output.

    cases: JSON file that the script reads. out: folder for its screenshots.
    """
    slow = any(item.get_closest_marker("slow") for item in request.session.items)
    settings = {"CASES": str(cases), "OUT": str(out), "CHROMIUM": CHROMIUM or "", "SLOW": "1" if slow else ""}
    command = [node(), "--test", "--test-reporter=tap", str(script)]
    process = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=900)
    outcomes: dict[str, str] = {}
    for block in process.stdout.split("# Subtest: ")[1:]:
        name, _, outcome = block.partition("\n")
        outcomes.setdefault(name, "" if outcome.lstrip().startswith("ok ") else outcome)
    return outcomes | {"": process.stdout + process.stderr}  # reported for tests that did not run
