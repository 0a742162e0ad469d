import os
from pathlib import Path

import pytest

from common.errors import StageError, UsageError
from pipeline.corpora import TextFile, resolve


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "abc")
    assert resolve(str(path)) == [TextFile("a.txt", path, 3)]


def test_a_folder_is_its_files_in_path_order_without_hidden_ones(tmp_path: Path) -> None:
    books = tmp_path / "books"
    wanted = [write(books / name, name) for name in ("a/z.txt", "b.txt", "c/a/b.txt", "c/b.txt")]
    for hidden in (".git/config", "c/.hidden"):
        write(books / hidden, "no")
    names = ["books/a/z.txt", "books/b.txt", "books/c/a/b.txt", "books/c/b.txt"]
    assert resolve(str(books)) == [
        TextFile(name, path, path.stat().st_size) for name, path in zip(names, wanted, strict=True)
    ]


def test_an_empty_file_in_a_folder_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "a", "")
    write(tmp_path / "b", "text")
    assert [file.bytes for file in resolve(str(tmp_path))] == [0, 4]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("x")
    assert resolve(str(path)) == [TextFile("caf\ufffd.txt", path, 1)]


@pytest.mark.parametrize("name", ["empty.txt", "empty"])
def test_nothing_to_learn_from(name: str, tmp_path: Path) -> None:
    write(tmp_path / "empty.txt", "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=rf"{name} is empty: there is nothing to learn from"):
        resolve(str(tmp_path / name))


def test_what_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"'no/such' is neither a file, nor a folder, nor a named corpus \(stdlib"):
        resolve("no/such")


def test_the_standard_library() -> None:
    files = resolve("stdlib")
    total = sum(file.bytes for file in files)
    assert files[0].name == "stdlib/__future__.py"
    assert [file.name for file in files] == sorted(file.name for file in files)
    assert total - files[-1].bytes < 5_000_000
    assert 3_000_000 < total < 5_500_000


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "stdlib", "mine")
    assert resolve("stdlib") == [TextFile("stdlib", Path("stdlib"), 4)]
