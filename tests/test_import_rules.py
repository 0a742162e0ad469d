"""The import rules between packages and folders, read from the sources and proven in fresh interpreters."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "pipeline", "trainers", "export")

# The modules of other packages that a package may import; a trailing dot stands for all modules of a folder.
ALLOWED = {
    "common": (),
    "pipeline": ("common.",),
    "trainers": ("common.", "pipeline.vocab", "pipeline.manifest", "pipeline.shards", "pipeline.lanes"),
    "export": (
        *("common.", "pipeline.vocab", "pipeline.manifest", "pipeline.shards"),
        *("trainers.config", "trainers.run", "trainers.metrics", "trainers.checkpoint"),
        *("trainers.model.", "trainers.sampling."),
    ),
}

# A module may import from lower ranks, and from its own folder. Modules directly in trainers/ are named one by one.
RANKS = {
    "trainers.config": 0,
    "trainers.metrics": 0,
    "trainers.model": 1,
    "trainers.run": 2,
    "trainers.checkpoint": 3,
    "trainers.sampling": 4,
    "trainers.training": 5,
    "trainers.judging": 6,
    "trainers.neurons": 6,
    "trainers.info": 7,
    "trainers.__main__": 8,
}
WINGS = ("export.serve", "export.client", "export.front", "export.lite", "export.web")


@functools.cache
def modules() -> dict[str, Path]:
    """The project's modules by name; a package's __init__.py is the package."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@functools.cache
def imports(name: str) -> set[str]:
    """The modules that a module imports anywhere in its source, those of the project by their full names."""
    names = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{name}: relative imports are not resolved here"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = members & modules().keys()
            names |= submodules | ({node.module} if members - submodules else set())
    return names


def ours(name: str) -> set[str]:
    """The project's modules that a module imports."""
    return {other for other in imports(name) if other.split(".")[0] in PACKAGES}


def room(name: str) -> str:
    """The package, folder or top-level module that the rules name."""
    return ".".join(name.split(".")[:2])


def test_every_folder_is_read() -> None:
    assert {room(name) for name in modules() if name.startswith("trainers.")} == RANKS.keys()
    assert set(WINGS) <= {room(name) for name in modules()}
    assert {"trainers.sampling.rows", "trainers.run"} <= ours("trainers.sampling.sampler")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    for name in modules():
        for other in ours(name):
            if name.split(".")[0] == package != other.split(".")[0]:
                allowed = any(
                    other == rule or (rule[-1] == "." and other.startswith(rule)) for rule in ALLOWED[package]
                )
                assert allowed or other == "common", f"{name} must not import {other}"


def test_trainers_import_in_one_direction() -> None:
    for name in modules():
        if name == "trainers" or not name.startswith("trainers."):
            continue
        for other in ours(name):
            if room(other) in RANKS and room(other) != room(name):
                assert RANKS[room(other)] < RANKS[room(name)], f"{name} must not import {other}"


def test_the_wings_of_export_do_not_import_each_other() -> None:
    for name in modules():
        for other in ours(name):
            if room(name) in WINGS and room(other) in WINGS:
                may = room(name) == room(other) or (room(name), room(other)) == ("export.front", "export.client")
                assert may, f"{name} must not import {other}"


def test_modules_form_no_cycle() -> None:
    graphlib.TopologicalSorter({name: ours(name) - {name} for name in modules()}).prepare()


def test_the_savedmodel_session_imports_nothing_of_the_project() -> None:
    assert not {name.split(".")[0] for name in imports("export.serve.session")} & {*PACKAGES, "keras"}


def test_beam_and_tfdv_stay_in_their_stages() -> None:
    allowed = {
        "apache_beam": {"pipeline.ingest", "pipeline.validate", "pipeline.beam"},
        "tensorflow_data_validation": {"pipeline.validate"},
    }
    for name in modules():
        for package in {other.split(".")[0] for other in imports(name)} & allowed.keys():
            assert name in allowed[package], f"{name} must not import {package}"


HEAVY = ("apache_beam", "tensorflow_data_validation", "tensorflow", "keras", "ai_edge_litert", "tensorflow_serving")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("common.console common.files common.settings pipeline.vocab pipeline.manifest pipeline.shards", set()),
        ("pipeline.__main__ trainers.__main__ export.__main__", set()),  # --help is quick
        ("pipeline.ingest", {"apache_beam"}),
        ("trainers.judging.plot trainers.judging.ngram trainers.judging.breakdown trainers.judging.report", set()),
        ("trainers.judging.coherence trainers.judging.copied", set()),
        ("trainers.config trainers.metrics", set()),
        ("trainers.neurons.labels trainers.neurons.search trainers.neurons.activations trainers.neurons.page", set()),
        ("export.lite.runner export.lite.probe", {"ai_edge_litert"}),
        ("export.serve.package", {"tensorflow_serving"}),
        ("trainers.training.loop trainers.judging.evaluate trainers.info", {"tensorflow", "keras"}),
        ("export.client.client export.front.server", {"tensorflow_serving"}),
        ("export.serve.saved_model export.serve.session", {"tensorflow", "keras", "tensorflow_serving"}),
    ],
)
def test_a_fresh_interpreter_loads_no_more_than_it_needs(names: str, expected: set[str]) -> None:
    program = (
        f"import importlib, sys\nfor name in {names.split()!r}: importlib.import_module(name)\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected
