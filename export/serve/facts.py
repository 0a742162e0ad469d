"""Facts for the model card that only the run and its data record.

served/NAME/1/assets.extra/facts.json       kept with the version, so that the card can be regenerated anywhere
"""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from common.errors import StageError
from common.files import load_json
from pipeline.manifest import read_manifest
from trainers.checkpoint import Checkpoint, weights_sha256
from trainers.run import Run

TOOLS = ("tensorflow", "keras", "numpy")


def facts_of(run: Run, chosen: Checkpoint) -> dict[str, Any]:
    """Collect the facts about a run's checkpoint, as JSON. `test` and `data` are None if unknown."""
    return {
        "format_version": 1,
        "parameters": run.build().count_params(),
        "test": _test(run, chosen),
        "data": _data(run),
        "tools": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in TOOLS},
    }


def _test(run: Run, chosen: Checkpoint) -> dict[str, Any] | None:
    """Read the score on the test split, if these weights were evaluated on it."""
    try:
        report = load_json(run.folder / "evaluation-test.json")
        inputs = {name: report["inputs"][name] for name in ("weights_sha256", "data_sha256")}
        if inputs != {"weights_sha256": weights_sha256(chosen), "data_sha256": run.data_sha256}:
            return None
        return {name: report[name] for name in ("nats", "bits", "targets")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _data(run: Run) -> dict[str, Any] | None:
    """Describe the run's data set, if it is still at its path and unchanged."""
    try:
        manifest = read_manifest(run.data)
    except StageError:
        return None
    if manifest.data_sha256 != run.data_sha256:
        return None
    return {
        "name": run.data.resolve().name,
        "tokens": {name: split.tokens for name, split in manifest.splits.items()},
        "validated": manifest.validation is not None,
        "sources": sorted({Path(source.name).parts[0] for source in manifest.sources}),
        "files": len(manifest.sources),
        "bytes": sum(source.bytes for source in manifest.sources),
        "corpora": [
            {name: corpus.get(name) for name in ("name", "licence", "address", "from", "text_sha256", "date")}
            for corpus in manifest.provenance
        ],
    }
