import io
import json
import os
import sys
from pathlib import Path

import pytest

from common.errors import StageError, UsageError
from pipeline.sources import SourceFile, defaults, opened


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def files(*sources: object, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[SourceFile]:
    with opened(map(str, sources), list(include), list(exclude), Path()) as found:
        return found.files


def names(*sources: object, **how: tuple[str, ...]) -> list[str]:
    return [file.name for file in files(*sources, **how)]


def test_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "abc")
    assert files(path) == [SourceFile("a.txt", path, 3)]


def test_a_folder_is_its_files_in_path_order_without_hidden_ones(tmp_path: Path) -> None:
    books = tmp_path / "books"
    wanted = [write(books / name, name) for name in ("a/z.txt", "b.txt", "c/a/b.txt", "c/b.txt")]
    for hidden in (".git/config", "c/.hidden"):
        write(books / hidden, "no")
    called = ["books/a/z.txt", "books/b.txt", "books/c/a/b.txt", "books/c/b.txt"]
    assert files(books) == [
        SourceFile(name, path, path.stat().st_size) for name, path in zip(called, wanted, strict=True)
    ]


def test_patterns_choose_among_a_folders_files(tmp_path: Path) -> None:
    for name in ("a.c", "b.h", "gen/c.c", "d.txt"):
        write(tmp_path / "src" / name, name)
    assert names(tmp_path / "src", include=("*.c", "*.h")) == ["src/a.c", "src/b.h", "src/gen/c.c"]
    assert names(tmp_path / "src", include=("*.c",), exclude=("gen/*",)) == ["src/a.c"]
    assert names(tmp_path / "src", exclude=("b.*", "c.c")) == ["src/a.c", "src/d.txt"]


def test_a_pattern_is_every_file_that_fits(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md", "sub/d.txt"):
        write(tmp_path / name, name)
    assert names(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert names(tmp_path / "**/*.txt") == ["a.txt", "b.txt", "sub/d.txt"]
    with pytest.raises(StageError, match=r"none\.\* matches no files: check the pattern"):
        names(tmp_path / "none.*")


def test_standard_input_is_kept_for_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped\xff")))
    with opened(["-"], [], [], tmp_path) as found:
        (file,) = found.files
        assert (file.name, file.bytes, file.path.read_bytes()) == ("standard input", 6, b"piped\xff")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_in_a_folder_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "a", "")
    write(tmp_path / "b", "text")
    assert [file.bytes for file in files(tmp_path)] == [0, 4]


def test_file_name_that_is_not_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("x")
    assert files(path) == [SourceFile("caf\ufffd.txt", path, 1)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.txt", "empty.txt is empty: name a source"),
        ("empty", "empty matches no files"),
        ("dangling", "dangling' is a broken link"),
        ("pipe", "pipe' is neither a file nor a folder: to read a pipe, pass -"),
    ],
)
def test_sources_without_text(name: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "empty.txt", "")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((StageError, UsageError), match=message):
        files(tmp_path / name)


def test_links_to_folders_are_not_followed_and_no_file_comes_twice(tmp_path: Path) -> None:
    write(tmp_path / "a/b.txt", "b")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    (tmp_path / "a/again.txt").symlink_to(tmp_path / "a/b.txt")
    assert names(tmp_path / "a") == ["a/again.txt", "a/b.txt"]
    assert names(tmp_path / "a/**") == ["again.txt"]


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a/b.txt", "b")

    def scandir(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        files(tmp_path / "a")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "x", "text_sha256": "0", "settings": 3}'])
def test_invalid_provenance(text: str, tmp_path: Path) -> None:
    write(tmp_path / "raw/input.txt", "text")
    write(tmp_path / "raw/provenance.json", text)
    with pytest.raises(StageError, match=r"provenance\.json is invalid \(.*\): fetch"):
        files(tmp_path / "raw")


def test_unknown_source() -> None:
    with pytest.raises(UsageError, match=r"'no/such' is not a file, a folder or a named corpus \(stdlib"):
        files("no/such")


def test_the_standard_library() -> None:
    found = files("stdlib")
    total = sum(file.bytes for file in found)
    assert found[0].name == "stdlib/__future__.py"
    assert [file.name for file in found] == sorted(file.name for file in found)
    assert 3_000_000 < total < 6_000_000
    assert total - found[-1].bytes < 5_000_000


def test_a_named_corpus_is_where_it_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the corpus 'names' has not been fetched: run python -m pipeline fetch names"):
        files("names")
    assert defaults(["names"])["documents"] == "line"
    assert defaults("names") == defaults([3]) == {}
    text = write(Path("data/raw/names/input.txt"), "Ann\n")
    where = {
        "name": "names",
        "text_sha256": "0",
        "licence": "free",
        "settings": {"documents": "line", "split": "document"},
    }
    write(Path("data/raw/names/provenance.json"), json.dumps(where))
    for source in ("names", "data/raw/names"):
        with opened([source], [], [], tmp_path) as found:
            assert (found.files, found.provenance) == ([SourceFile("names/input.txt", text, 4)], [where])
        assert defaults([source])["documents"] == "line"
    write(Path("names"), "a file of that name wins")
    assert names("names") == ["names"]
    assert defaults(["names"]) == defaults([]) == defaults(["names", "stdlib"]) == {}


def test_path_takes_precedence_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "stdlib", "mine")
    assert files("stdlib") == [SourceFile("stdlib", Path("stdlib"), 4)]
