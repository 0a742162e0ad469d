"""Notebooks of docs/learn: they run, and their pages are up to date."""

import json
import os
from pathlib import Path

import nbformat
import pytest

from pipeline.fetch import fetch
from pipeline.sources import RAW
from scripts import notebooks

ROOT = Path(__file__).parents[2]
CORPUS = Path(os.environ.get("CORPORA", ROOT.parent / "shared" / "corpora")) / "tinyshakespeare" / "input.txt"
NOTEBOOKS = [pytest.param(path, id=path.stem) for path in sorted(notebooks.LEARN.glob("*.ipynb"))]


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_page_and_pictures_match_the_notebook(path: Path) -> None:
    files = notebooks.page(nbformat.read(path, as_version=4), path.stem)
    kept = {path.with_suffix(".md"), *notebooks.LEARN.glob(f"pictures/{path.stem}-*")}
    assert {notebooks.LEARN / name for name in files} == kept
    for name, content in files.items():
        assert (notebooks.LEARN / name).read_bytes() == content, f"{name} is out of date: scripts/notebooks.py --render"


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_has_the_outputs_of_one_run_in_order(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_recorded_runs_name_their_machine_commit_and_date() -> None:
    for command, record in json.loads((notebooks.LEARN / "runs.json").read_text()).items():
        assert record.keys() == {"machine", "commit", "date", "reports"}, command
        assert record["reports"][-1]["val_nats"] > 1, command


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_runs(path: Path) -> None:
    """Run the notebook, which asserts its own figures. Without a network, CORPORA names the folder with the corpus."""
    if CORPUS.exists():
        fetch("tinyshakespeare", str(CORPUS), ROOT / RAW / "tinyshakespeare")
    notebooks.execute(nbformat.read(path, as_version=4))
