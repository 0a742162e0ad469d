import dataclasses
import hashlib
import io
import json
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from common.errors import StageError, UsageError
from pipeline.corpora import CORPORA, Corpus, _plain, find, make_text


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


KERNEL = {
    "b/z.c": b"z is C;\n",
    "b.c": b"b is C;\n",  # "." comes before "/"
    "a/x.h": b"x is C;\n",
    "a/Y.h": b"Y is C;\n",  # capitals come first
    "a/notes.txt": b"no C",
    "a/c": b"no C either",
    "drivers/gpu/drm/amd/include/deep/regs.h": b"#define A 1\n",
    "drivers/gpu/drm/amd/amd.c": b"amd is C;\n",
}
KERNEL_TEXT = b"Y is C;\nx is C;\nb is C;\nz is C;\namd is C;\n"


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def text_of(corpus: Corpus, source: Path) -> bytes:
    text = source.parent / "made" / "input.txt"
    text.parent.mkdir(exist_ok=True)
    make_text(corpus, source, text)
    assert [path.name for path in text.parent.iterdir()] == ["input.txt"], "no temporary file is left"
    return text.read_bytes()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("step", [1, -1])
def test_kernel_from_tar_in_any_order(mode: str, step: int, tmp_path: Path) -> None:
    files = {f"linux-9.9/{name}": data for name, data in list(KERNEL.items())[::step]}
    assert text_of(CORPORA["linux"], make_tar(tmp_path / "x", files, mode)) == KERNEL_TEXT


def test_kernel_from_sorted_tar(tmp_path: Path) -> None:
    files = {f"./{name}": KERNEL[name] for name in sorted(KERNEL)}
    assert text_of(CORPORA["linux"], make_tar(tmp_path / "x", files)) == KERNEL_TEXT


def test_kernel_from_folder(tmp_path: Path) -> None:
    assert text_of(CORPORA["linux"], make_folder(tmp_path / "linux", KERNEL)) == KERNEL_TEXT


@pytest.mark.parametrize("top", ["", "./", "linux-9.9/"])
def test_core_of_kernel_is_its_folder_kernel(top: str, tmp_path: Path) -> None:
    files = {
        "kernel/sched/core.c": b"core;\n",
        "kernel/acct.c": b"acct;\n",
        "arch/x86/kernel/apm.c": b"no",
        "a.c": b"no",
    }
    archive = make_tar(tmp_path / "x", {top + name: data for name, data in files.items()})
    assert text_of(CORPORA["linux-core"], archive) == b"acct;\ncore;\n"


MIXED = ["drivers/gpu/drm/amd/amd.c", "a/x.h", "b/z.c", "a/Y.h", "b.c"]


@pytest.mark.parametrize("cut", range(1, len(KERNEL_TEXT) + 2))
@pytest.mark.parametrize("order", [sorted(KERNEL), sorted(KERNEL)[::-1], list(KERNEL), MIXED])
def test_kernel_is_cut_at_any_length(cut: int, order: list[str], tmp_path: Path) -> None:
    corpus = dataclasses.replace(CORPORA["linux"], cut=cut)
    assert text_of(corpus, make_tar(tmp_path / "x", {name: KERNEL[name] for name in order})) == KERNEL_TEXT[:cut]


def test_files_beyond_the_cut_are_not_read(tmp_path: Path) -> None:
    corpus = dataclasses.replace(CORPORA["linux"], cut=5, ceiling=1000)
    folder = make_folder(tmp_path / "x", {"a.c": b"int a;", "b.c": bytes(2000)})
    assert text_of(corpus, folder) == b"int a"


def test_tar_without_matching_files_raises(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"x contains none of the corpus's files: expected paths like \\\.\[ch\]\$"):
        text_of(CORPORA["linux"], make_tar(tmp_path / "x", {"readme": b""}))


def test_unrelated_file_raises(tmp_path: Path) -> None:
    (tmp_path / "kernel.iso").write_bytes(b"text")
    with pytest.raises(StageError, match=r"kernel.iso contains none of the corpus's files"):
        text_of(CORPORA["linux"], tmp_path / "kernel.iso")


TWO_FILES = Corpus(about="", licence="", essay="", files=(r"(^|/)two$", r"(^|/)one$"), text_bytes=6, ceiling=100_000)


def test_files_follow_the_order_of_expressions(tmp_path: Path) -> None:
    assert (
        text_of(TWO_FILES, make_tar(tmp_path / "x", {"d/one": b"one", "d/two": b"two", "d/not-one": b"no"}))
        == b"twoone"
    )


def test_finished_text_is_accepted_plain_or_compressed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"twoone")
    subprocess.run(["gzip", "-k", tmp_path / "x"], check=True)
    assert text_of(TWO_FILES, tmp_path / "x") == b"twoone"
    assert text_of(TWO_FILES, tmp_path / "x.gz") == b"twoone"


def test_text_of_wrong_size_or_hash_raises(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"oneone")
    for field, hash in (("text_sha256", hashlib.sha256(b"twoone").hexdigest()), ("text_git", "0" * 40)):
        with pytest.raises(StageError, match=rf"x is not this corpus: expected a text of [\w -]+ {hash}, got \w+$"):
            text_of(dataclasses.replace(TWO_FILES, **{field: hash}), tmp_path / "x")
    (tmp_path / "x").write_bytes(b"more text")
    with pytest.raises(StageError, match=r"x is not this corpus: expected a text of 6 bytes, got 9"):
        text_of(TWO_FILES, tmp_path / "x")


def test_text_git_matches_git_hash_object(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"twoone")
    command = ["git", "hash-object", tmp_path / "x"]
    blob = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert text_of(dataclasses.replace(TWO_FILES, text_git=blob), tmp_path / "x") == b"twoone"


def test_compressed_bomb_raises(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(2_000_000))
    subprocess.run(["gzip", tmp_path / "x"], check=True)
    with pytest.raises(StageError, match=r"x.gz contains more than 100,000 bytes"):
        text_of(dataclasses.replace(TWO_FILES, text_bytes=2_000_000), tmp_path / "x.gz")


PAGE = b"""<html><head><title>Title</title><style>p {}</style><script>var a;</script></head>
<body><!-- no comment --><table><tr><td><font>First &amp; <b>bold</b>
   line<br><br>Second \x97 line</font></td></tr></table>
<p>Third</p>Fourth<pre>(code
    here)</pre></body></html>"""
PAGE_TEXT = "First & bold line\n\nSecond \u2014 line\n\nThird\n\nFourth\n\n(code\n    here)\n\n"


def test_html_is_converted_to_text(tmp_path: Path) -> None:
    pages = {"b.html": PAGE, "a.txt": b"plain\n", "c.HTM": "<p>caf\u00e9".encode(), "image.gif": b"GIF89a"}
    expected = "plain\n" + PAGE_TEXT + "caf\u00e9\n\n"
    corpus = CORPORA["paul-graham"]
    assert text_of(corpus, make_folder(tmp_path / "folder", pages)).decode() == expected
    assert text_of(corpus, make_tar(tmp_path / "x.tar", pages)).decode() == expected
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in pages.items():
            archive.writestr(name, data)
    assert text_of(corpus, tmp_path / "x.zip").decode() == expected
    assert text_of(corpus, tmp_path / "folder" / "b.html").decode() == PAGE_TEXT


def test_poems_are_converted_to_text(tmp_path: Path) -> None:
    first = [
        {"title": "靜夜思", "author": "李白", "paragraphs": ["床前看月光，", "疑是地上霜。"], "id": "1"},
        {"title": "失題", "author": "無名", "paragraphs": []},
    ]
    second = [{"title": "登鸛雀樓", "author": "王之渙", "paragraphs": ["白日依山盡。"]}]
    folder = tmp_path / "x" / "全唐诗"
    for name, poems in (("poet.tang.1000", second), ("poet.tang.0", first), ("error/poet.tang.0", second)):
        write(folder / f"{name}.json", json.dumps(poems))
    corpus = dataclasses.replace(CORPORA["chinese-poetry"], cut=None, text_bytes=None, text_sha256=None)
    text = "靜夜思\n李白\n床前看月光，\n疑是地上霜。\n\n失題\n無名\n\n\n登鸛雀樓\n王之渙\n白日依山盡。\n\n"
    assert text_of(corpus, tmp_path / "x").decode() == text
    for damaged in ("[{]", "[1]", '[{"title": "", "author": ""}]', '{"title": 1}'):
        write(folder / "poet.tang.0.json", damaged)
        with pytest.raises(StageError, match=r"poet.tang.0.json in .*x is not a list of poems in JSON"):
            text_of(corpus, tmp_path / "x")


def test_file_of_another_corpus_is_not_read_as_poems(tmp_path: Path) -> None:
    assert text_of(TWO_FILES, write(tmp_path / "a.json", "twoone")) == b"twoone"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("a < b & c &lt; d", "a < b & c < d"),
        ("a<!-- > <p> --> b<!doctype x><?php y?><!-- open", "a b"),
        ("<a title='x > y' href=\"'\">link</a> <a href='open>text", "link text"),
        ("<script>if (a < b) '<p>'</script >x<STYLE>p</style>y<title>z", "xy"),
        ("<scripted>x</scripted>", "x"),
        ("</p>one</div>two", "onetwo"),
        ("<p>one<p>two<ul><li>three<li>four</ul>five<br/>six", "one\n\ntwo\n\nthree\n\nfour\n\nfive\nsix"),
        ("<pre>a  b\n\n\n  c </pre>d  e\n f", "a  b\n\n  c\n\nd e f"),
    ],
)
def test_text_of_a_page(page: str, text: str) -> None:
    assert _plain(page.encode()).decode() == f"{text}\n\n"


def test_find_by_name() -> None:
    assert find("linux") is CORPORA["linux"]
    with pytest.raises(UsageError, match=r"unknown corpus 'lynx'; the corpora are stdlib, tinyshakespeare"):
        find("lynx")


def test_registry_is_consistent() -> None:
    for name, corpus in CORPORA.items():
        assert all((corpus.about, corpus.licence, corpus.essay)), name
        for hash in (corpus.sha256, corpus.text_sha256):
            assert hash is None or len(bytes.fromhex(hash)) == 32, name
        assert corpus.address is None or corpus.address.startswith(("https://", "http://mattmahoney.net/")), name
        assert bool(corpus.files) == (name != "stdlib")
        # An unconverted text is as long as its download.
        if corpus.sha256 and corpus.sha256 == corpus.text_sha256:
            assert corpus.bytes == corpus.text_bytes, name


@pytest.mark.parametrize(
    "unit", [b"<div>", b"<p><b>x", b"<!--", b"<a ", b"<a \"<a' ", b"<script>", b"<title", b"<", b"&", b" ", b"\n "]
)
@pytest.mark.parametrize("before", [b"", b"<pre>"])
def test_hostile_pages_take_no_longer_than_others(unit: bytes, before: bytes) -> None:
    def seconds(size: int) -> float:
        start = time.process_time()
        _plain(before + unit * (size // len(unit)))
        return time.process_time() - start

    # Sixteen times the page would take 256 times as long if the time were quadratic.
    assert seconds(320_000) < 64 * max(seconds(20_000), 0.005)
