"""Atomic writes of files and folders, also over existing ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import StageError
from common.files import check_replaceable, sha256_file, sha256_json, whole_file, whole_folder, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_appears_when_complete(tmp_path: Path) -> None:
    with whole_file(tmp_path / "deep" / "a.txt") as partial:
        partial.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert (tmp_path / "deep" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt", "deep"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert ((tmp_path / "a.txt").read_text(), names(tmp_path)) == ("old", ["a.txt"])


@pytest.mark.parametrize("before", [[], ["old.txt", "older.txt"]])
def test_a_folder_replaces_another_when_complete(tmp_path: Path, before: list[str]) -> None:
    target = tmp_path / "data"
    for name in before:
        target.mkdir(exist_ok=True)
        (target / name).touch()
    with whole_folder(target) as partial:
        (partial / "new.txt").touch()
        assert names(target) == before
    assert names(tmp_path) == ["data", "new.txt"]
    (tmp_path / "plain").mkdir()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_another_process_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"another process wrote .* meanwhile"):  # noqa: SIM117
        with whole_folder(tmp_path / "data", replace=False):
            (tmp_path / "data").mkdir()
            (tmp_path / "data" / "theirs.txt").touch()
    assert names(tmp_path) == ["data", "theirs.txt"]


def test_only_folders_with_the_marker_are_replaceable(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StageError, match=r"exists and is not a run \(it has no run.json\): remove it, or pass another"):
        check_replaceable(tmp_path, "run.json", "a run")
    with pytest.raises(StageError, match=r"thesis.txt is a file, but a run is a folder: pass another --out"):
        check_replaceable(tmp_path / "thesis.txt", "run.json", "a run")
    with pytest.raises(StageError, match=r"or pass another --to$"):
        check_replaceable(tmp_path, "run.json", "a run", "--to")
    (tmp_path / "run.json").touch()
    check_replaceable(tmp_path, "run.json", "a run")
    check_replaceable(tmp_path / "new", "run.json", "a run")


def test_a_failed_write_keeps_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old.txt").touch()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "data") as partial:
        (partial / "new.txt").touch()
        raise RuntimeError
    assert names(tmp_path) == ["data", "old.txt"]


def test_hashes_depend_on_content_only(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": "é"\n}\n'
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1}) != sha256_json({"a": 2, "b": 2})


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """Unfinished folders are removed, those of running processes kept, and a folder moved aside is restored."""
    program = (
        "import os, sys; from pathlib import Path; from common.files import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as partial:\n    (partial / 'half').touch()\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "made")], check=False)
    (stale,) = tmp_path.iterdir()
    assert (stale / "half").exists()
    (tmp_path / ".made.old-1/made").mkdir(parents=True)
    (tmp_path / ".made.old-1/made/whole").touch()
    with whole_folder(tmp_path / "made", replace=False) as mine:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, "made"])
        assert [path.name for path in (tmp_path / "made").iterdir()] == ["whole"]
        with whole_folder(tmp_path / "made") as another:
            assert mine.exists()
            (another / "b").touch()
        shutil.rmtree(tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
