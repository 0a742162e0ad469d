"""Who may import whom, read from the sources and proven in fresh interpreters."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "pipeline", "trainers", "export")
ALLOWED = {
    "common": set(),
    "pipeline": {"common"},
    "trainers": {"common", "pipeline.vocab", "pipeline.manifest", "pipeline.shards", "pipeline.lanes"},
    "export": {
        "common",
        "pipeline.vocab",
        "pipeline.manifest",
        "pipeline.shards",
        "trainers.config",
        "trainers.model.char_rnn",
        "trainers.checkpoint",
        "trainers.sampling.sampler",
    },
}
BEAM = {"pipeline/ingest.py", "pipeline/validate.py", "pipeline/beam.py"}
TFDV = {"pipeline/validate.py"}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, `from package import module` as package.module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module in PACKAGES
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if inside else {node.module}
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_what_they_may(package: str) -> None:
    files = sorted((ROOT / package).glob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            owner = name.split(".")[0]
            if owner in PACKAGES and owner != package:
                allowed = ALLOWED[package]
                assert owner in allowed or name in allowed, f"{file.relative_to(ROOT)} must not import {name}"


def test_what_proves_a_savedmodel_has_nothing_of_the_project() -> None:
    assert not {name.split(".")[0] for name in imports(ROOT / "export/serve/session.py")} & {*PACKAGES, "keras"}


def test_beam_and_tfdv_stay_in_their_stages() -> None:
    for package in PACKAGES:
        for file in (ROOT / package).glob("*.py"):
            where, names = str(file.relative_to(ROOT)), {name.split(".")[0] for name in imports(file)}
            assert "apache_beam" not in names or where in BEAM, f"{where} must not import Beam"
            assert "tensorflow_data_validation" not in names or where in TFDV, f"{where} must not import TFDV"


HEAVY = ("apache_beam", "tensorflow_data_validation", "tensorflow", "keras", "ai_edge_litert", "tensorflow_serving")


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("common.console common.files common.settings pipeline.vocab pipeline.manifest pipeline.shards", set()),
        ("pipeline.__main__ trainers.__main__ export.__main__", set()),  # --help is quick
        ("pipeline.ingest", {"apache_beam"}),
        ("trainers.judging.plot trainers.judging.ngram trainers.judging.breakdown trainers.judging.report", set()),
        ("trainers.judging.coherence trainers.judging.copied", set()),
        ("trainers.neurons.labels trainers.neurons.search trainers.neurons.activations trainers.neurons.page", set()),
        ("export.lite.runner export.lite.probe", {"ai_edge_litert"}),
        ("export.serve.package", {"tensorflow_serving"}),
        ("trainers.training.loop trainers.judging.evaluate trainers.info", {"tensorflow", "keras"}),
        ("export.client.query", {"tensorflow_serving"}),  # and with it the client
        ("export.serve.saved_model export.serve.session", {"tensorflow", "keras", "tensorflow_serving"}),
    ],
)
def test_a_fresh_interpreter_loads_no_more_than_it_needs(modules: str, expected: set[str]) -> None:
    program = (
        f"import importlib, sys\nfor name in {modules.split()!r}: importlib.import_module(name)\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected
