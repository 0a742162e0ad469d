import io
import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from common.errors import StageError, UsageError
from pipeline import sources
from pipeline.sources import SourceFile, defaults, opened


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def files(*sources: object, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[SourceFile]:
    with opened(map(str, sources), list(include), list(exclude), Path("out")) as inputs:
        return inputs.files


def names(*sources: object, **patterns: tuple[str, ...]) -> list[str]:
    return [file.name for file in files(*sources, **patterns)]


def test_single_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "abc")
    assert files(path) == [SourceFile("a.txt", path, 3)]


def test_folder_lists_files_in_path_order_without_hidden_ones(tmp_path: Path) -> None:
    books = tmp_path / "books"
    paths = [write(books / name, name) for name in ("a/z.txt", "b.txt", "c/a/b.txt", "c/b.txt")]
    for hidden in (".git/config", "c/.hidden"):
        write(books / hidden, "no")
    expected_names = ["books/a/z.txt", "books/b.txt", "books/c/a/b.txt", "books/c/b.txt"]
    assert files(books) == [
        SourceFile(name, path, path.stat().st_size) for name, path in zip(expected_names, paths, strict=True)
    ]


def test_include_and_exclude_filter_a_folder(tmp_path: Path) -> None:
    for name in ("a.c", "b.h", "gen/c.c", "d.txt"):
        write(tmp_path / "src" / name, name)
    assert names(tmp_path / "src", include=("*.c", "*.h")) == ["src/a.c", "src/b.h", "src/gen/c.c"]
    assert names(tmp_path / "src", include=("*.c",), exclude=("gen/*",)) == ["src/a.c"]
    assert names(tmp_path / "src", exclude=("b.*", "c.c")) == ["src/a.c", "src/d.txt"]


def test_glob_pattern(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md", "sub/d.txt"):
        write(tmp_path / name, name)
    assert names(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert names(tmp_path / "**/*.txt") == ["a.txt", "b.txt", "sub/d.txt"]
    with pytest.raises(StageError, match=r"none\.\* matches no files: check the pattern"):
        names(tmp_path / "none.*")


def test_standard_input_is_stored_within_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped\xff")))
    with opened(["-"], [], [], tmp_path / "out") as inputs:
        (file,) = inputs.files
        assert (file.name, file.bytes, file.path.read_bytes()) == ("standard input", 6, b"piped\xff")
    assert list(tmp_path.iterdir()) == []


def test_empty_file_in_a_folder_is_accepted(tmp_path: Path) -> None:
    write(tmp_path / "a", "")
    write(tmp_path / "b", "text")
    assert [file.bytes for file in files(tmp_path)] == [0, 4]


def test_invalid_characters_in_file_name_are_replaced(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("x")
    assert files(path) == [SourceFile("caf\ufffd.txt", path, 1)]
    path = write(tmp_path / "a\x1b[31m\n.txt", "x")
    assert files(path) == [SourceFile("a\ufffd[31m\ufffd.txt", path, 1)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.txt", "empty.txt is empty: name a source"),
        ("empty", "empty matches no files"),
        ("dangling", "dangling' is a broken link"),
        ("socket", "socket' is neither a file, a folder nor a pipe"),
    ],
)
def test_sources_without_text_raise(name: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "empty.txt", "")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    with pytest.raises((StageError, UsageError), match=message):
        files(tmp_path / name)


@pytest.mark.parametrize("pattern", ["", "/**"])
def test_links_are_followed_once_and_loops_are_not(
    pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = tmp_path / "top"
    for name in ("top/a/b.txt", "top/c.txt", "store/part/d.txt", "one.txt"):
        write(tmp_path / name, name)
    links = {
        "a/again.txt": "b.txt",  # target is read anyway
        "a/root1": "..",
        "a/root2": "../..",  # points to a parent folder
        "gone.txt": "nowhere",
        "me.txt": "me.txt",
        "other.txt": "../one.txt",
        "part": "../store/part",
        "part2": "../store/part",
        "store": "../store",
    }
    for name, target in links.items():
        (top / name).symlink_to(target)
    os.mkfifo(top / "pipe")
    write(top / ".git/config", "no")
    expected = ["a/b.txt", "c.txt", "other.txt", "part/d.txt"]
    assert names(f"{top}{pattern}") == [name if pattern else f"top/{name}" for name in expected]
    notes = capsys.readouterr().err.replace(f"{top}{pattern}: left out ", "")
    assert sorted(notes.splitlines()) == [
        "1 (hidden): .git",
        "1 (links to files already read): a/again.txt",
        "1 (pipes and devices): pipe",
        "2 (broken links): gone.txt, me.txt",
        "2 (links to a folder that contains them): a/root1, a/root2",
        "2 (links to folders already read): part2, store/part",
    ]


def test_folders_that_link_to_each_other_are_read_quickly(tmp_path: Path) -> None:
    for index in range(30):
        write(tmp_path / f"{index}/text.txt", "text")
        for other in range(30):
            (tmp_path / f"{index}/to{other}").symlink_to(f"../{other}")
    assert len(names(tmp_path)) == len(names(tmp_path / "**/*.txt")) == 30
    others = sorted(str(index) for index in range(30) if index != 7)
    assert names(tmp_path / "7/*/text.txt") == [f"to{index}/text.txt" for index in others]


def test_pattern_enters_only_matching_folders(tmp_path: Path) -> None:
    write(tmp_path / "a/b/c.txt", "c")
    (tmp_path / "a/b/closed").mkdir(mode=0)
    write(tmp_path / "a/.hidden/d.txt", "d")
    assert names(tmp_path / "*/b/*.txt") == ["a/b/c.txt"]
    assert names(tmp_path / "a/.h*/*.txt") == [".hidden/d.txt"]
    (tmp_path / "a/b/closed").chmod(0o700)


@pytest.mark.parametrize("pattern", ["", "/**/*.txt"])
def test_unreadable_folder_raises(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a/b.txt", "b")

    def scandir(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StageError, match="a cannot be read: Permission denied"):
        files(f"{tmp_path}/a{pattern}")


@pytest.mark.parametrize("pattern", ["", "/**", "/*/*"])
def test_this_projects_own_folders_are_not_sources(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("texts/mine/manifest.json"), '{"format_version": 1}')  # not written by this project
    data = write(Path("texts/data/manifest.json"), '{"format_version": 2, "data_sha256": "", "splits": {}}')
    run = write(Path("texts/run/run.json"), '{"format_version": 3, "data_sha256": "", "config": {}}')
    write(Path("texts/data/train-00000-of-00001.tokens"), "tokens")
    write(Path("texts/out/half-written"), "")
    with opened([f"texts{pattern}"], [], [], Path("texts/out")) as inputs:
        assert [Path(file.name).name for file in inputs.files] == ["manifest.json"]
    assert "left out 3 (data sets and runs): " in capsys.readouterr().err
    for source, kind in ((data.parent, "a data set"), (run.parent, "a run")):
        with pytest.raises(StageError, match=f"{source} is {kind} that this program wrote, not a source"):
            files(f"{source}/*" if pattern else source)


@pytest.mark.parametrize("kind", ["named", "descriptor", "/dev/stdin"])
def test_pipes_are_read_like_standard_input(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    source, writer = kind, None
    if kind == "named":
        source = str(tmp_path / "pipe")
        os.mkfifo(source)
        writer = threading.Thread(target=Path(source).write_bytes, args=(b"piped",))
        writer.start()
    elif kind == "descriptor":
        reading, writing = os.pipe()
        os.write(writing, b"piped")
        os.close(writing)
        source = f"/dev/fd/{reading}"
    with opened([source], [], [], tmp_path / "out") as inputs:
        (file,) = inputs.files
        assert (file.name, file.path.read_bytes()) == ("pipe" if source != kind else "standard input", b"piped")
    if writer:
        writer.join()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "x", "text_sha256": "0", "settings": 3}'])
def test_invalid_provenance_raises(text: str, tmp_path: Path) -> None:
    write(tmp_path / "raw/input.txt", "text")
    write(tmp_path / "raw/provenance.json", text)
    with pytest.raises(StageError, match=r"provenance\.json is invalid \(.*\): fetch"):
        files(tmp_path / "raw")


def test_another_programs_provenance_is_text(tmp_path: Path) -> None:
    write(tmp_path / "mine/provenance.json", '{"builder": "npm"}')
    write(tmp_path / "mine/a.txt", "text")
    assert names(tmp_path / "mine") == ["mine/a.txt", "mine/provenance.json"]
    with opened([str(tmp_path / "mine")], [], [], tmp_path / "out") as inputs:
        assert inputs.provenance == []


def test_unknown_source_raises() -> None:
    with pytest.raises(UsageError, match="a source must not be empty"):
        files("")
    with pytest.raises(UsageError, match=r"'no/such' is not a file, a folder or a named corpus \(stdlib"):
        files("no/such")


def test_files_below_the_root_have_no_leading_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_walked", lambda *_: {"bin/sh": Path("/bin/sh")})
    assert names("/") == ["bin/sh"]


def test_stdlib_source() -> None:
    modules = files("stdlib")
    total = sum(file.bytes for file in modules)
    assert modules[0].name == "stdlib/__future__.py"
    assert [file.name for file in modules] == sorted(file.name for file in modules)
    assert 3_000_000 < total < 6_000_000
    assert total - modules[-1].bytes < 5_000_000


def test_corpus_name_resolves_to_its_fetched_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the corpus 'names' has not been fetched: run python -m pipeline fetch names"):
        files("names")
    assert defaults(["names"])["documents"] == "line"
    assert defaults("names") == defaults([3]) == {}
    text = write(Path("data/raw/names/input.txt"), "Ann\n")
    provenance = {
        "name": "names",
        "text_sha256": "0",
        "licence": "free",
        "settings": {"documents": "line", "split": "document"},
    }
    write(Path("data/raw/names/provenance.json"), json.dumps(provenance))
    for source in ("names", "data/raw/names"):
        with opened([source], [], [], tmp_path / "out") as inputs:
            assert (inputs.files, inputs.provenance) == ([SourceFile("names/input.txt", text, 4)], [provenance])
        assert defaults([source])["documents"] == "line"
    write(Path("names"), "a file of that name wins")
    assert names("names") == ["names"]
    assert defaults(["names"]) == defaults([]) == defaults(["names", "stdlib"]) == {}


def test_path_takes_precedence_over_corpus_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "stdlib", "mine")
    assert files("stdlib") == [SourceFile("stdlib", Path("stdlib"), 4)]
