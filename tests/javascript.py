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
    """Return the path of Node.js after installing the test packages, or skip the test and say why."""
    path = shutil.which("node")
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    if not path or int(version.removeprefix("v").split(".")[0]) < NODE:
        pytest.skip(f"Node.js {NODE} or later is missing, the page is not tested (apt install nodejs npm)")
    if not (page.PACKAGES / "playwright-core").is_dir():
        npm = shutil.which("npm")
        done = subprocess.run([npm, "ci"], cwd=page.WEB, capture_output=True, text=True) if npm else None
        if not done or done.returncode:
            pytest.skip(f"npm ci in {page.WEB} {'failed' if done else 'needs npm'}, the page is not tested")
    return path


def names(script: Path) -> list[Any]:
    """Return the names of a script's tests, in order, as parameters; those declared by `slow` are marked so."""
    tests = re.findall(r'^(test|slow)\("(.+?)"', script.read_text(), re.MULTILINE)
    return [pytest.param(name, marks=[pytest.mark.slow] if kind == "slow" else []) for kind, name in tests]


def settle(outcomes: dict[str, str], name: str) -> None:
    """Fail as the script's test did."""
    if outcomes.get(name, outcomes[""]):
        pytest.fail(outcomes.get(name) or outcomes[""], pytrace=False)


def results(script: Path, cases: Path, out: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """Run a script and return its tests by name: empty if passed, else the failure; "" has the whole output.

    cases: the JSON file that the script reads. out: the folder for its pictures.
    """
    slow = any(item.get_closest_marker("slow") for item in request.session.items)
    settings = {"CASES": str(cases), "OUT": str(out), "CHROMIUM": CHROMIUM or "", "SLOW": "1" if slow else ""}
    command = [node(), "--test", "--test-reporter=tap", str(script)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=900)
    outcomes: dict[str, str] = {}
    for block in done.stdout.split("# Subtest: ")[1:]:
        name, _, outcome = block.partition("\n")
        outcomes.setdefault(name, "" if outcome.lstrip().startswith("ok ") else outcome)
    return outcomes | {"": done.stdout + done.stderr}  # for a test that was never reached
