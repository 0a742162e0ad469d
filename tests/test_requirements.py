"""pyproject.toml and the lock files match requirements.txt."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEPENDENCIES = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
OTHER_SYSTEMS = {"appnope", "colorama", "httpx2-jsfetch"}  # macOS, Windows, browsers
PIN = re.compile(r"^([A-Za-z0-9_.-]+==[^ ;#\\\n]+)", re.MULTILINE)


def pins(name: str) -> list[str]:
    return PIN.findall((ROOT / name).read_text(encoding="utf-8"))


def test_pyproject_lists_all_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == pins("requirements.txt")


def test_lock_contains_every_requirement() -> None:
    assert set(pins("requirements.txt")) <= set(pins("requirements.lock"))


def test_table_of_dependencies_has_every_package() -> None:
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \| (?:the product|tests) \|$", DEPENDENCIES, re.MULTILINE)
    locked = {*pins("requirements.lock"), *pins("requirements-dev.lock")}
    assert {f"{name}=={version}" for name, version, _ in rows} <= locked
    assert {name for name, _, _ in rows} == {pin.partition("==")[0] for pin in locked} - OTHER_SYSTEMS, "run make audit"
    assert [name for name, _, licence in rows if licence == "not declared"] == ["namex"]


def test_table_of_dependencies_has_the_packages_of_the_page() -> None:
    lock = json.loads((ROOT / "export" / "web" / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    shipped = {name.removeprefix("node_modules/"): entry for name, entry in lock.items() if name and "dev" not in entry}
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \| the page \|$", DEPENDENCIES, re.MULTILINE)
    assert rows == [(name, entry["version"], entry["license"]) for name, entry in sorted(shipped.items())]


def test_lock_files_agree_on_versions() -> None:
    base = dict(pin.split("==") for pin in pins("requirements.lock"))
    dev = dict(pin.split("==") for pin in pins("requirements-dev.lock"))
    assert {name: dev[name] for name in base.keys() & dev.keys()} == {
        name: base[name] for name in base.keys() & dev.keys()
    }
    assert set(pins("requirements-site.lock")) < set(pins("requirements.lock"))


def test_site_imports_only_its_own_packages() -> None:
    program = (
        "import sys; before = set(sys.modules); import export.__main__, export.web.build; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    imported = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^\w+$", (ROOT / "requirements-site.txt").read_text(encoding="utf-8"), re.MULTILINE)
    third_party = {name for name in imported.stdout.split() if not (ROOT / name).is_dir()}
    assert {name for name in third_party if name[0] != "_"} == set(listed)
