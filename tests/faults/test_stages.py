"""Kills, damaged files and full disks, for every command that writes files. The fast tests cover two commands."""

import contextlib
import functools
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, chdir
from pathlib import Path
from typing import Any

import pytest
from crash import Tree, disk_of, restore, states, tree
from faults import stages
from faults.conftest import Trials, reported
from faults.stages import STAGES, Stage, leftovers, outcome, resumed, run, situation, working_in
from once import once

from common.files import write_json
from export import checksums
from export.serve import labels
from export.serve.package import write_package
from pipeline.corpora import CORPORA
from pipeline.vocab import byte_vocab

FORCED = [name for name, stage in STAGES.items() if name not in ("train", "neurons", "plot", "label")]
SIZES = 10  # sizes of full disks, as fractions of what a command writes


@pytest.fixture(scope="session")
def devices() -> Any:
    import tensorflow as tf

    from trainers.training.devices import Devices

    return Devices(tf.distribute.MirroredStrategy(["CPU:0"]), replicas=1)


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory, devices: Any) -> dict[str, tuple[Tree, Tree]]:
    """Inputs and outputs of each stage."""
    return pickle.loads((once(tmp_path_factory, "stages", lambda to: stages.build(to, devices)) / "trees").read_bytes())


@pytest.fixture
def root(tmp_path: Path, devices: Any) -> Any:
    with working_in(tmp_path / "root", devices):
        yield tmp_path / "root"


def finished(command: str, before: Tree, root: Path) -> dict[str, Any]:
    """Run a command without faults, twice, and return its outcome, which must be the same."""
    outcomes = []
    for _ in range(2):
        restore(before, root)
        run(command)
        outcomes.append(outcome(root))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


@pytest.mark.slow
@pytest.mark.faults("Killed before each write")
@pytest.mark.parametrize("stage", [*STAGES, *(f"{name} --force" for name in FORCED)])
def test_kill_before_each_write(trials: Trials, stage: str, trees: dict[str, tuple[Tree, Tree]], root: Path) -> None:
    name, _, option = stage.partition(" ")
    command, (before, outputs) = f"{STAGES[name].command} {option}", trees[name]
    if option:
        before = dict(sorted({**before, **outputs}.items()))
    kill_before_each_write(trials, command, before, root, stages.graph_written_once)


def kill_before_each_write(
    trials: Trials,
    command: str,
    before: Tree,
    root: Path,
    resuming: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> None:
    whole = finished(command, before, root)
    restore(before, root)
    recorded = states(lambda: run(command), root)
    outcomes: dict[str, Exception | None] = {}
    with resuming():
        for index, state in enumerate(recorded[:-1]):
            key = situation(state, root)
            if key not in outcomes:  # equal situations need only one trial
                try:
                    resumed(lambda: run(command), state, root, whole)
                    outcomes[key] = None
                except Exception as error:
                    outcomes[key] = error
            with trials.trial(f"before write {index}"):
                if error := outcomes[key]:
                    raise error


# Undetected damage that changes nothing but the file itself.
UNNOTICED = {
    r"metrics\.jsonl": "metrics.jsonl: a changed digit is not noticed; curves and `patience` read it, no model does.",
    r"(report|neurons)\.html|curves\.png": "Pages and pictures: no command reads them, and their own rebuilds them.",
    r"schema\.pbtxt": "schema.pbtxt of a validation is yours to edit, so no checksum covers it.",
    r"state\..*": "An older checkpoint is read, and its damage noticed, only if the last one is unreadable.",
    r"provenance\.json": "Without provenance.json, a fetched text is read like any file of yours.",
    r"neurons\.json": "neurons.json of a .tflite is optional: if it is removed, the next export copies it again.",
    r".*\.stats\.pb": "Statistics of a validation are checked by the command that reads them, `validate --against`.",
}


def damages(content: bytes) -> dict[str, bytes | None]:
    flipped = bytearray(content or b"\0")
    flipped[len(flipped) // 2] ^= 1
    return {"flipped": bytes(flipped), "cut": content[: len(content) // 2], "removed": None}


@pytest.mark.slow
@pytest.mark.faults("A file with a flipped bit, cut, or removed")
@pytest.mark.parametrize("stage", STAGES)
def test_damage_of_each_file(
    trials: Trials,
    stage: str,
    trees: dict[str, tuple[Tree, Tree]],
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage_each_file(trials, STAGES[stage], *trees[stage], root, capsys)


def damage_each_file(
    trials: Trials, stage: Stage, inputs: Tree, outputs: Tree, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = dict(sorted({**inputs, **outputs}.items()))

    def check() -> None:
        for command in stage.checks:
            run(command)

    restore(whole, root)
    check()
    expected = outcome(root)
    for name, content in outputs.items():
        for damage, damaged in damages(content).items() if content is not None else ():
            restore({**whole, name: damaged or b""}, root)
            if damaged is None:
                (root / name).unlink()
            with trials.trial(f"{name} {damage}"):
                capsys.readouterr()
                with reported() as messages:
                    check()
                lines = [*messages, *"".join(capsys.readouterr()).splitlines()]
                if not any(_reports(line, name) for line in lines):
                    assert not messages, messages
                    if outcome(root) != expected:
                        trials.limit(_known_limit(name))


@pytest.mark.slow
@pytest.mark.faults("A file with a flipped bit, cut, or removed", "show, of its exports")
def test_damage_before_show(
    trials: Trials, trees: dict[str, tuple[Tree, Tree]], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, exports = {**trees["web"][0], **trees["savedmodel"][0]}, {**trees["savedmodel"][1], **trees["tflite"][1]}
    read = {name: content for name, content in exports.items() if name.startswith(("served/tiny/1/", "devices/"))}
    for name in ("assets.extra/facts.json", "batching_params.pbtxt"):  # for servers; `verify` checks them
        del read[f"served/tiny/1/{name}"]
    damage_each_file(trials, Stage("", (), ("export show runs/tiny",)), {**inputs, **exports}, read, root, capsys)


def _reports(line: str, name: str) -> bool:
    """Check whether a line of output reports damage of a file, or of its folder."""
    named = any(part in line for part in (Path(name).name, Path(name).parent.name))
    words = r"corrupted|invalid|is missing|has no|no run in|differs|must have|is not|does not exist|left out|removed"
    words += "|was not written|matches no files"
    return named and bool(re.search(words, line))


def _known_limit(name: str) -> str:
    for pattern, reason in UNNOTICED.items():
        if re.fullmatch(pattern, Path(name).name):
            return reason
    raise AssertionError(f"damage to {name} was not reported")


@pytest.mark.slow
@pytest.mark.faults("A full disk")
@pytest.mark.parametrize("stage", STAGES)
def test_full_disk(
    trials: Trials, stage: str, trees: dict[str, tuple[Tree, Tree]], tmp_path: Path, devices: Any
) -> None:
    enter = functools.partial(working_in, devices=devices)
    fill_disk(trials, STAGES[stage].command, trees[stage][0], tmp_path / "disk", enter, stages.graph_written_once)


def fill_disk(
    trials: Trials,
    command: str,
    inputs: Tree,
    disk: Path,
    enter: Callable[[Path], AbstractContextManager[None]],
    resuming: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    parts: Iterable[int] = range(SIZES),
) -> None:
    with disk_of(1 << 28, disk), enter(disk):
        restore(inputs, disk)
        before = shutil.disk_usage(disk).used
        run(command)
        after, whole = shutil.disk_usage(disk).used, outcome(disk)
    resuming_context = resuming()
    for part in parts:
        size = before + (after - before) * part // SIZES
        with trials.trial(f"{size:,} bytes"), disk_of(size, disk), enter(disk):
            restore(inputs, disk)
            with reported() as messages:
                run(command)
            assert all("No space left on device" in message for message in messages), messages
            assert messages or outcome(disk) == whole
            assert not leftovers(tree(disk))
            subprocess.run(["mount", "-o", f"remount,size={1 << 28}", str(disk)], check=True)
            with resuming_context:
                run(command)
            assert outcome(disk) == whole


@pytest.fixture
def served(tmp_path: Path) -> Tree:
    """Exported folder, with empty files for its graph, so that building it does not need TensorFlow."""
    base = tmp_path / "made" / "served" / "tiny"
    config = {"model": {"cell": "lstm", "units": 8, "layers": 1, "embedding": 0}, "train": {}}
    about = {"run": "tiny", "step": 3, "val_nats": 1.5, "config": config, "vocab": byte_vocab().to_json()}
    about |= {"limits": {"rows": 64}}
    for name in labels.VERSION_FILES:
        (base / "1" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "1" / name).touch()
    write_json(base / "1" / labels.ORIGIN, about | {"weights_sha256": "", "data_sha256": ""})
    checksums.write(base / "1", labels.VERSION_FILES)
    write_package(base, 1, {})
    return tree(tmp_path / "made")


def test_fetch_killed_before_each_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CORPORA, "books", stages.BOOKS)
    trials = Trials()
    with chdir(tmp_path):
        kill_before_each_write(trials, STAGES["fetch"].command, {"books.txt": stages.TEXT}, tmp_path)
    trials.check()


def test_damage_after_label(served: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials, root = Trials(), tmp_path / "root"
    root.mkdir()
    with chdir(root):
        restore(served, root)
        run(STAGES["label"].command)
        outputs = {name: content for name, content in tree(root).items() if content != served.get(name)}
        damage_each_file(trials, STAGES["label"], served, outputs, root, capsys)
    trials.check()


def test_rollback_from_a_damaged_version(served: Tree, tmp_path: Path) -> None:
    base, trials = tmp_path / "served" / "tiny", Trials()
    restore(served, tmp_path)
    shutil.copytree(base / "1", base / "2")
    write_package(base, 2, {})
    run(f"export label {base} stable=2")
    whole = tree(base)
    for name in [name for name, content in whole.items() if name.startswith("2/") and content is not None]:
        for damage, damaged in damages(whole[name] or b"").items():
            restore({**whole, name: damaged or b""}, base)
            if damaged is None:
                (base / name).unlink()
            with trials.trial(f"{name} {damage}"):
                run(f"export label {base} stable=1")
                config = labels.read(base)
                assert config is not None
                assert config.labels == {"stable": 1}
    trials.check()


def test_fetch_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CORPORA, "books", stages.BOOKS)
    trials = Trials()
    books = {"books.txt": stages.TEXT}
    fill_disk(trials, STAGES["fetch"].command, books, tmp_path / "disk", chdir, parts=(0, SIZES // 2, SIZES - 1))
    trials.check()
