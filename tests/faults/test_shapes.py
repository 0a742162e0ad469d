"""The project's JSON files, well-formed but of another shape: each is a one-line error, or changes no result."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.conftest import Trials, reported

from common.files import load_json, write_json
from export.serve import facts, labels, package
from pipeline.manifest import Manifest

TEXT = b"def spam(eggs):\n    return eggs * 2\n" * 10
ROOT = Path(__file__).parents[2]
SHAPES = (None, -1, "x", [], {"x": 1})


def reshaped(value: Any, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yield copies of a JSON value in which one entry is missing or of another type, with the path of that entry."""
    yield from (("", other) for other in SHAPES if type(other) is not type(value))
    for key in value if isinstance(value, dict) and depth else ():
        yield key, {name: item for name, item in value.items() if name != key}
        for names, changed in reshaped(value[key], depth - 1):
            yield f"{key}.{names}", {**value, key: changed}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]) -> Path:
    """Folder of an evaluated run, its export and its device files."""
    import tiny_run

    home = tmp_path_factory.mktemp("shapes")
    manifest = make_data(home / "data", 1000, train=TEXT, val=TEXT)
    run = tiny_run.random_run(home / "run", manifest, TEXT, 12)
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 12, "epoch": 1.0, "val_nats": 1.0, "val_bits": 1.4427}) + "\n"
    )
    about = load_json(next(run.glob("checkpoints/*/checkpoint.json")))
    inputs = {"step": 12, "weights_sha256": about["files"]["state.data-00000-of-00001"]}
    inputs |= {"data_sha256": manifest.data_sha256}
    evaluation = {"inputs": inputs, "bits": 1.5, "nats": 1.0, "targets": 9, "baselines": {"ngram": {"nats": 2.0}}}
    letters = {"name": "letters", "targets": 9, "nats": 1.0, "ngram_nats": 2.0}
    evaluation["by"] = {"class": [letters]}
    write_json(run / f"evaluation-{manifest.judged}.json", evaluation)
    write_json(run / "evaluation-test.json", evaluation)
    shutil.copytree(ROOT / "models" / "shakespeare", home / "devices")
    for name in labels.VERSION_FILES:
        (home / "served" / "1" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "served" / "1" / name).touch()
    origin = {"run": "run", "step": 12, "val_nats": 1.0, "weights_sha256": "", "data_sha256": "", "limits": {"rows": 4}}
    write_json(home / "served" / "1" / labels.ORIGIN, load_json(run / "run.json") | origin)
    package.write_package(
        home / "served", 1, {"parameters": 9, "test": {"nats": 1.0, "targets": 9}, "tools": {"a": "1"}}
    )
    return home


def read_run(home: Path) -> None:
    from trainers import checkpoint, run

    opened = run.read_run(home / "run")
    run.open_run(opened)
    assert checkpoint.best(opened).step == 12


def read_evaluation(home: Path) -> None:
    from export import show
    from trainers import checkpoint, run
    from trainers.judging import samples

    opened = run.read_run(home / "run")
    show._bits(opened)
    samples._order(opened.folder, "val", checkpoint.weights_sha256(checkpoint.best(opened)))
    facts._test(opened, checkpoint.best(opened))


def read_export(home: Path) -> None:
    config = labels.read(home / "served")
    assert config
    package._values(home / "served", package.served_versions(home / "served", config))


def read_devices(home: Path) -> None:
    from export.lite.lite import LiteSettings, _check_precisions
    from export.web.build import _read_files

    _check_precisions(home / "devices", LiteSettings(("int8-dynamic",)))
    _read_files(home / "devices", "devices")


READERS = {
    "run.json": read_run,
    "checkpoint.json": read_run,
    "evaluation-*.json": read_evaluation,
    "export.json": read_export,
    "facts.json": read_export,
    "model.json": read_devices,
}


@pytest.mark.faults("JSON of another shape")
@pytest.mark.parametrize("stage", READERS)
def test_json_of_another_shape_is_reported(trials: Trials, stage: str, home: Path) -> None:
    READERS[stage](home)
    for path in home.rglob(stage):
        whole = path.read_bytes()
        for entry, value in reshaped(load_json(path)):
            write_json(path, value)
            with trials.trial(f"{path.name} {entry} {str(value)[:40]}"), reported():
                READERS[stage](home)
        path.write_bytes(whole)
