"""Import rules between packages and folders, checked in the sources and in fresh interpreters."""

import ast
import functools
import graphlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "pipeline", "trainers", "export", "bench")

# Modules of other packages that each package may import; a trailing dot allows a whole folder.
ALLOWED = {
    "common": (),
    "pipeline": ("common.",),
    "trainers": ("common.", "pipeline.vocab", "pipeline.manifest", "pipeline.shards", "pipeline.lanes"),
    "export": (
        *("common.", "pipeline.vocab", "pipeline.manifest", "pipeline.shards"),
        *("trainers.config", "trainers.run", "trainers.metrics", "trainers.checkpoint"),
        *("trainers.model.", "trainers.sampling."),
    ),
    "bench": ("common.", "pipeline.", "trainers.", "export."),
}

# Modules may import from lower ranks and from their own folder. Top-level modules of trainers/ are listed individually.
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
EXPORT_FOLDERS = ("export.serve", "export.client", "export.front", "export.lite", "export.web")


@functools.cache
def modules() -> dict[str, Path]:
    """Return the files of the project's modules by name; __init__.py counts as its package."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@functools.cache
def imports(name: str) -> set[str]:
    """Return all modules that a module imports, also inside functions; those of the project by full name."""
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


def project_imports(name: str) -> set[str]:
    """Return the project's modules that a module imports."""
    return {other for other in imports(name) if other.split(".")[0] in PACKAGES}


def folder_of(name: str) -> str:
    """Return the folder or top-level module that the rules apply to."""
    return ".".join(name.split(".")[:2])


def test_rules_cover_every_folder() -> None:
    assert {folder_of(name) for name in modules() if name.startswith("trainers.")} == RANKS.keys()
    assert set(EXPORT_FOLDERS) <= {folder_of(name) for name in modules()}
    assert {"trainers.sampling.rows", "trainers.run"} <= project_imports("trainers.sampling.sampler")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_allowed_modules(package: str) -> None:
    for name in modules():
        for other in project_imports(name):
            if name.split(".")[0] == package != other.split(".")[0]:
                allowed = any(
                    other == rule or (rule[-1] == "." and other.startswith(rule)) for rule in ALLOWED[package]
                )
                assert allowed or other == "common", f"{name} must not import {other}"


def test_trainers_import_only_lower_ranks() -> None:
    for name in modules():
        if name == "trainers" or not name.startswith("trainers."):
            continue
        for other in project_imports(name):
            if folder_of(other) in RANKS and folder_of(other) != folder_of(name):
                assert RANKS[folder_of(other)] < RANKS[folder_of(name)], f"{name} must not import {other}"


def test_export_folders_do_not_import_each_other() -> None:
    for name in modules():
        for other in project_imports(name):
            if folder_of(name) in EXPORT_FOLDERS and folder_of(other) in EXPORT_FOLDERS:
                allowed = folder_of(name) == folder_of(other) or (folder_of(name), folder_of(other)) == (
                    "export.front",
                    "export.client",
                )
                assert allowed, f"{name} must not import {other}"


def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter({name: project_imports(name) - {name} for name in modules()}).prepare()


def test_no_two_classes_share_a_name() -> None:
    trees = [ast.parse(file.read_text()) for file in modules().values()]
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert not [name for name, count in names.items() if count > 1]


def test_savedmodel_session_imports_no_project_module() -> None:
    assert not {name.split(".")[0] for name in imports("export.serve.session")} & {*PACKAGES, "keras"}


def test_only_data_stages_import_beam_and_tfdv() -> None:
    allowed = {
        "apache_beam": {"pipeline.ingest", "pipeline.validate", "pipeline.traffic", "pipeline.beam"},
        "tensorflow_data_validation": {"pipeline.validate", "pipeline.traffic"},
    }
    for name in modules():
        for package in {other.split(".")[0] for other in imports(name)} & allowed.keys():
            assert name in allowed[package], f"{name} must not import {package}"


processes = pytest.mark.processes
HEAVY = ("apache_beam", "tensorflow_data_validation", "tensorflow", "keras", "ai_edge_litert", "tensorflow_serving")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("common.console common.files common.settings pipeline.vocab pipeline.manifest pipeline.shards", set()),
        ("pipeline.__main__ trainers.__main__ export.__main__", set()),  # keeps --help fast
        pytest.param("pipeline.ingest", {"apache_beam"}, marks=processes),
        ("trainers.judging.plot trainers.judging.ngram trainers.judging.breakdown trainers.judging.report", set()),
        ("trainers.judging.coherence trainers.judging.copied", set()),
        ("trainers.config trainers.metrics", set()),
        ("trainers.neurons.labels trainers.neurons.search trainers.neurons.activations trainers.neurons.page", set()),
        ("export.lite.runner export.lite.probe", {"ai_edge_litert"}),
        ("export.serve.package", {"tensorflow_serving"}),
        pytest.param(
            "trainers.training.loop trainers.judging.evaluate trainers.info",
            {"tensorflow", "keras"},
            marks=[processes, pytest.mark.slow],
        ),
        ("export.client.client export.front.app", {"tensorflow_serving"}),
        pytest.param(
            "export.serve.saved_model export.serve.session",
            {"tensorflow", "keras", "tensorflow_serving"},
            marks=[processes, pytest.mark.slow],
        ),
    ],
)
def test_modules_load_only_the_heavy_packages_they_need(names: str, expected: set[str]) -> None:
    program = (
        f"import importlib, sys\nfor name in {names.split()!r}: importlib.import_module(name)\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(process.stdout.split()) == expected
