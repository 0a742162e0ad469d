"""Every command that writes files, run in process on a tiny text, and the folder before and after each."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

from crash import Tree, restore, tree
from page_packages import placeholder_packages
from unmeasured import unmeasured

from common.errors import StageError
from common.files import recover
from pipeline.corpora import CORPORA, Corpus
from trainers.training.devices import Devices

BOOKS = Corpus(about="", licence="free", essay="", files=(r"books\.txt$",))
TEXT = b"".join(b"%d bottles of beer on the wall, %d bottles of beer.\n" % (n, n) for n in range(60, 0, -1))
CONFIG = """[model]
units = 8
layers = 1
[train]
lanes = 2
window = 40
epochs = 0.4
evaluate_every = 5
report_every = 3
sample = 0
precision = "float32"
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Command. inputs: the folders and files that it reads or extends. checks: the commands that read its output."""

    command: str
    inputs: tuple[str, ...]
    checks: tuple[str, ...] = ()


STAGES = {
    "fetch": Stage(
        "pipeline fetch books --from books.txt", ("books.txt",), ("pipeline ingest books --out data/books",)
    ),
    "ingest": Stage(
        "pipeline ingest books.txt --out data/tiny",
        ("books.txt", "tiny.toml"),
        ("pipeline info data/tiny", "trainers train tiny.toml --data data/tiny --out runs/other --unvalidated"),
    ),
    "validate": Stage("pipeline validate data/tiny", ("data",), ("pipeline validate data/tiny",)),
    "train": Stage(
        "trainers train tiny.toml --data data/tiny --out runs/tiny",
        ("data", "tiny.toml"),
        (
            "trainers info runs/tiny",
            "trainers train tiny.toml",
            "trainers evaluate runs/tiny",
            "trainers plot runs/tiny",
        ),
    ),
    "evaluate": Stage("trainers evaluate runs/tiny", ("data", "runs"), ("trainers evaluate runs/tiny",)),
    "judge": Stage(
        "trainers judge runs/tiny --texts 2 --length 30 --temperatures 0.5",
        ("data", "runs"),
        ("trainers judge runs/tiny --texts 2 --length 30 --temperatures 0.5",),
    ),
    "neurons": Stage("trainers neurons runs/tiny --length 300", ("data", "runs"), ("trainers neurons runs/tiny",)),
    "plot": Stage("trainers plot runs/tiny", ("runs",), ("trainers plot runs/tiny",)),
    "savedmodel": Stage(
        "export savedmodel runs/tiny --most-length 20 --most-prompt 20 --most-rows 1",
        ("data", "runs"),
        ("export verify served/tiny",),
    ),
    "label": Stage("export label served/tiny canary=1", ("served",), ("export verify served/tiny",)),
    "tflite": Stage("export tflite runs/tiny --precision float32", ("data", "runs"), ("export verify devices/tiny",)),
    "keras": Stage("export keras runs/tiny", ("runs",), ("export verify exported/tiny",)),
    "web": Stage("export web devices/tiny", ("devices",), ("export verify site/tiny",)),
}
# Files whose bytes differ between runs of a command: they contain times, or names that TensorFlow numbers per process.
VOLATILE = re.compile(r"SHA256SUMS|.*\.keras|fingerprint\.pb|saved_model\.pb|.*\.index|state\.data.*|.*\.stats\.pb")


def run(command: str) -> None:
    """Run a command in this process."""
    import export.__main__
    import pipeline.__main__
    import trainers.__main__

    package, *arguments = command.split()
    cli = {"export": export, "pipeline": pipeline, "trainers": trainers}[package].__main__.cli
    if code := cli.main(arguments, standalone_mode=False):
        raise StageError(f"exit code {code}")


@contextmanager
def working_in(folder: Path, devices: Devices) -> Iterator[None]:
    """Work in a folder, with a corpus named books, an installed page runtime, and no measurements in the exports."""
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    with (
        mock.patch.dict(CORPORA, books=BOOKS),
        unmeasured(),
        mock.patch("export.lite.lite.prove"),
        mock.patch("export.keras_model.prove"),
        mock.patch("export.serve.saved_model.prove"),
        mock.patch("export.web.build.PACKAGES", placeholder_packages(folder.parent / "node_modules")),
        mock.patch("trainers.training.loop.prepare", return_value=devices),
        mock.patch("trainers.training.devices.prepare", return_value=devices),
    ):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def graph_written_once() -> AbstractContextManager[Any]:
    """Write a SavedModel's graph in the first export of the block, and copy it in the others: tracing takes seconds.

    Only for exports of the same run that are not killed themselves.
    """
    from export.serve import saved_model

    write, written = saved_model.write_version, list[Tree]()

    def write_or_copy(folder: Path, *arguments: Any) -> None:
        if written:
            restore(written[0], folder)
        else:
            write(folder, *arguments)
            written.append(tree(folder))

    return mock.patch.object(saved_model, "write_version", write_or_copy)


def build(folder: Path, devices: Devices) -> None:
    """Run all stages in a folder, and pickle the inputs and the outputs of each, by name."""
    root, trees = folder / "root", {}
    with working_in(root, devices):
        Path("books.txt").write_bytes(TEXT)
        Path("tiny.toml").write_text(CONFIG)
        for name, stage in STAGES.items():
            before = tree(Path())
            run(stage.command)
            trees[name] = (_inputs(before, stage), _outputs(before, tree(Path())))
    (folder / "trees").write_bytes(pickle.dumps(trees))


def _inputs(before: Tree, stage: Stage) -> Tree:
    return {name: content for name, content in before.items() if name.partition("/")[0] in stage.inputs}


def _outputs(before: Tree, after: Tree) -> Tree:
    """Return the new and changed files, with their folders."""
    changed = [name for name, content in after.items() if content is not None and before.get(name) != content]
    folders = {parent.as_posix() for name in changed for parent in PurePosixPath(name).parents}
    return {name: content for name, content in after.items() if name in changed or name in folders}


def outcome(root: Path) -> dict[str, Any]:
    """Summarize the files of a folder, without times, dates and TensorBoard's logs, which differ from run to run."""
    result: dict[str, Any] = {}
    for name, content in tree(root).items():
        file = name.rpartition("/")[2]
        if not ("tfevents" in file or file in (".lock", ".verified.json") or content is None):
            result[name] = _essence(file, content)
    return result


def _essence(file: str, content: bytes) -> Any:
    if VOLATILE.fullmatch(file):
        return "volatile"
    with suppress(ValueError):
        if file == "metrics.jsonl":
            return [_timeless(json.loads(line)) for line in content.splitlines()]
        if file.endswith(".json"):
            return _timeless(json.loads(content))
    return hashlib.sha256(content).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    timed = ("checksum", "files", "statistics", "when", "since", "seconds", "per_second", "memory")
    return {key: _timeless(item) for key, item in value.items() if key not in timed}


def leftovers(state: Tree) -> set[str]:
    """Return the names of the scratch folders in a tree, and of their contents, without the random part."""
    paths = (name.split("/") for name in state)
    return {
        re.sub(r"partial-.{8}", "partial", "/".join(parts[: index + 2]))
        for parts in paths
        for index, part in enumerate(parts)
        if ".partial-" in part
    }


def situation(state: Tree, root: Path) -> str:
    """Identify the state that the next command finds after a kill: the leftovers, and the tree without them."""
    restore(state, root)
    for name, content in state.items():
        if content is None and ".partial-" not in name:
            recover(root / name)
    recover(root)
    return hashlib.sha256(json.dumps([sorted(leftovers(state)), outcome(root)], sort_keys=True).encode()).hexdigest()


def resumed(act: Callable[[], None], state: Tree, root: Path, whole: dict[str, Any]) -> None:
    """Assert that a command, run again after a kill in `state`, ends as if it had never been killed."""
    restore(state, root)
    act()
    assert outcome(root) == whole
    assert not leftovers(tree(root))
