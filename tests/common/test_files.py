"""Atomic writes of files and folders, new and existing."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import killed_at_each, tree

from common import files
from common.errors import StageError
from common.files import (
    check_replaceable,
    load_json,
    parse_json,
    read_json,
    recover,
    remove_folder,
    sha256_file,
    sha256_json,
    whole_file,
    whole_folder,
    write_json,
    write_record,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    with whole_file(tmp_path / "deep" / "a.txt") as partial:
        partial.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert (tmp_path / "deep" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt", "deep"]


def test_failed_write_keeps_existing_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert ((tmp_path / "a.txt").read_text(), names(tmp_path)) == ("old", ["a.txt"])


@pytest.mark.parametrize("before", [[], ["old.txt", "older.txt"]])
def test_folder_is_replaced_only_when_complete(tmp_path: Path, before: list[str]) -> None:
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


def test_concurrently_written_folder_is_kept(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"another process wrote .* meanwhile"):  # noqa: SIM117
        with whole_folder(tmp_path / "data", replace=False):
            (tmp_path / "data").mkdir()
            (tmp_path / "data" / "theirs.txt").touch()
    assert names(tmp_path) == ["data", "theirs.txt"]


def test_only_folders_with_marker_file_are_replaceable(tmp_path: Path) -> None:
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


def test_a_read_only_disk_is_reported_with_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(prefix: str, dir: Path) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{dir}/{prefix}j3u58874")

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    with pytest.raises(OSError, match=rf"^\[Errno {errno.EROFS}\] Read-only file system: '{tmp_path}/a.png'$"):
        write_json(tmp_path / "a.png", {})


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    # As on a read-only disk. Permissions would not do: root, who may run the tests, ignores them.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "disk")
    for folder in (tmp_path / "disk", tmp_path / "disk" / "runs" / "book"):
        with pytest.raises(StageError, match=rf"^{tmp_path}/disk is read-only: make it writable, or pass another --to"):
            check_replaceable(folder, "run.json", "a run", "--to")
    check_replaceable(tmp_path / "other", "run.json", "a run")


def test_a_link_is_followed_to_the_folder_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "data"
    link.symlink_to(tmp_path / "disk/data")
    for name in ("old", "new"):
        with whole_folder(link) as partial:
            (partial / name).touch()
    assert link.is_symlink()
    assert names(tmp_path / "disk") == ["data", "new"]


def test_a_file_is_written_through_a_link_and_into_a_device_but_not_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link", "pipe"):
        with whole_file(tmp_path / name) as partial:
            partial.write_text("new")
    assert ((tmp_path / "target").read_text(), os.read(reader, 9)) == ("new", b"new")
    os.close(reader)
    assert names(tmp_path) == ["link", "pipe", "target"]
    (tmp_path / "work").mkdir()
    (tmp_path / "work/precious").touch()
    monkeypatch.chdir(tmp_path / "work")
    for path in (Path(".."), Path(".")):
        with pytest.raises(StageError, match="is a folder: pass the name of a file"), whole_file(path):
            raise AssertionError
    assert names(tmp_path) == ["link", "pipe", "precious", "target", "work"]


@pytest.mark.parametrize("leftover", ["..partial-abcdefgh", "...partial-abcdefgh", "....partial-abcdefgh"])
def test_recovery_deletes_nothing_outside_a_scratch_folder(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).mkdir()
    (tmp_path / "precious").touch()
    recover(tmp_path)
    check_replaceable(tmp_path / "new", "run.json", "a run")
    assert names(tmp_path) == sorted([leftover, "precious"])


@pytest.mark.parametrize("path", [".", "inner/..", "..", "/proc"])
def test_a_folder_that_cannot_be_renamed_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    reason = "is a mount point" if path == "/proc" else "contains the current folder"
    with pytest.raises(StageError, match=f"{reason}, so it cannot be replaced"), whole_folder(Path(path)):
        raise AssertionError
    assert names(tmp_path) == ["inner"]


def test_concurrent_writes_of_a_file_all_succeed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from common.files import write_json\n"
        "for _ in range(150): write_json(Path(sys.argv[1]), 1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.json")]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 4
    assert names(tmp_path) == ["x.json"]


def test_a_file_system_without_locks_is_used_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with files.exclusive(tmp_path):
        write_json(tmp_path / "x.json", 1)
    note = f"{tmp_path}/.lock cannot be locked (Function not implemented): do not start a second process on it"
    assert "".join(capsys.readouterr().err.split()) == "".join(note.split())
    assert names(tmp_path) == [".lock", "x.json"]


def test_failed_write_keeps_existing_folder(tmp_path: Path) -> None:
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


def write_file(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text)


def write_folder(path: Path, text: str) -> None:
    """Write a folder with a file and a subfolder, both named after the text."""
    with whole_folder(path) as partial:
        write_file(partial / f"{text}.txt", text)
        (partial / text).mkdir()
        (partial / text / "more.txt").write_text(text)


def delete(path: Path, _: str) -> None:
    if path.exists():
        remove_folder(path)


@pytest.mark.parametrize("before", ["nothing", "old"])
@pytest.mark.parametrize(("make", "act"), [(write_file,) * 2, (write_folder,) * 2, (write_folder, delete)])
def test_kill_at_any_operation_leaves_the_old_or_the_new_version(
    tmp_path: Path, make: Callable[[Path, str], None], act: Callable[[Path, str], None], before: str
) -> None:
    root, states = tmp_path / "root", []
    target = root / "target"

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if before == "old":
            make(target, "old")

    for action in (lambda: None, lambda: act(target, "new")):
        prepare()
        action()
        states.append(tree(root))
    reached = set()
    for count in killed_at_each(prepare, lambda: act(target, "new")):
        for _ in killed_at_each(lambda: None, lambda: recover(root)):  # kill the recovery, too
            pass
        assert tree(root) in states, count
        reached.add(states.index(tree(root)))
        # Leftovers never replace anything newer.
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        make(target, "newer")
        recover(root)
        newer = tree(root)
        assert any("newer" in str(item) for item in newer.items())
        assert not any(word in str(newer) for word in ("old", "partial", "b'new'"))
    assert reached == ({0, 1} if states[0] != states[1] else {0})


def test_half_deleted_folder_is_not_restored(tmp_path: Path) -> None:
    """Simulate a swap killed while deleting the replaced folder, whose new folder was removed later."""
    target = tmp_path / "target"
    write_folder(target, "old")
    for _ in killed_at_each(lambda: write_folder(target, "old"), lambda: write_folder(target, "new")):
        if (target / "new.txt").exists():
            shutil.rmtree(target)
            recover(tmp_path)
            assert tree(tmp_path) == {}


def test_folder_with_only_leftovers_is_replaceable(tmp_path: Path) -> None:
    """Cover a run killed right after its start, which has a lock but no run.json."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / ".run.json.partial-abcdefgh").mkdir()
    check_replaceable(run, "run.json", "a run")
    (run / ".bashrc").touch()
    with pytest.raises(StageError, match="exists and is not a run"):
        check_replaceable(run, "run.json", "a run")


def test_full_disk_error_names_the_output(tmp_path: Path) -> None:
    for writing in (whole_file, whole_folder):
        for full, reason in (
            (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left"),
            (type("OpError", (Exception,), {})("x; No space left on device"), "No space left"),
            (type("OpError", (Exception,), {})("a/b; File too large [Op:SaveV2]"), "File too large"),
        ):
            with pytest.raises(OSError, match=reason) as error, writing(tmp_path / "out"):
                raise full
            assert (error.value.filename, names(tmp_path)) == (str(tmp_path / "out"), [])


def test_outputs_are_flushed_once_before_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    def fsync(handle: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    write_folder(tmp_path / "target", "new")
    assert sorted(flushed[:-1]) == ["more.txt", "new", "new.txt", "target"]
    assert flushed[-1] == tmp_path.name
    flushed.clear()
    write_file(tmp_path / "file", "new")
    assert flushed == ["file", tmp_path.name]


def test_leftovers_of_killed_processes_are_cleaned_up(tmp_path: Path) -> None:
    """Remove partial folders of dead processes, and keep those of live ones."""
    program = (
        "import os, sys; from pathlib import Path; from common.files import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as partial:\n    (partial / 'half').touch()\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "made")], check=False)
    (stale,) = tmp_path.iterdir()
    assert (stale / "made" / "half").exists()
    with whole_folder(tmp_path / "made", replace=False) as mine:
        assert not stale.exists()
        with whole_folder(tmp_path / "made") as another:
            assert mine.exists()
            (another / "b").touch()
        shutil.rmtree(tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_every_changed_bit_of_a_record_is_detected(tmp_path: Path) -> None:
    path, value = tmp_path / "a.json", {"b": [1, 2.5, None], "a": "é", "c": float("nan")}
    write_record(path, value)
    assert str(load_json(path)) == str(value)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        with contextlib.suppress(ValueError):
            changed = load_json(path)  # the change is in a space, or in the name of the checksum
            assert str({name: changed[name] for name in value}) == str(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        (b"\xff", "invalid start byte"),
        ("[" * 100_000, "nested deeper than 50 levels"),
        ('{"a":' * 51 + "[1]" + "}" * 51, "nested deeper than 50 levels"),
        ("[" * 51 + "]" * 51, "nested deeper than 50 levels"),
        ("1" * 5000, "an integer of 5,000 digits"),
    ],
)
def test_hostile_json_is_a_value_error(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_json(tmp_path / "a.json") == {}


def test_json_within_the_limits_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_json("[" * 50 + "]" * 50)
    assert parse_json(f"[{2**63}, {-(2**63)}, 1e300]") == [2**63, -(2**63), 1e300]
    (tmp_path / "a.json").write_text('{"a": "\u00e9"}')
    assert load_json(tmp_path / "a.json") == {"a": "é"}
    monkeypatch.setattr(files, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        load_json(tmp_path / "a.json")
