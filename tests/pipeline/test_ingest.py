"""Complete data sets against a straightforward implementation of the same rules."""

import bz2
import gzip
import hashlib
import importlib.metadata
import json
import lzma
import os
import platform
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zstandard
from distributed import LocalCluster
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common import settings
from common.errors import StageError, UsageError
from pipeline.config import IngestSettings
from pipeline.ingest import DataSet, ingest
from pipeline.manifest import Manifest, Shard, Source, Split, read_manifest
from pipeline.shards import read_tokens
from pipeline.vocab import Vocab, byte_vocab

slow = pytest.mark.slow
TEXT = bytes(range(1, 101))
HALVES = {"train": 0.5, "val": 0.25, "test": 0.25}


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read few bytes at a time, so that reads split lines and characters."""
    monkeypatch.setattr("pipeline.encode.READ_BYTES", 7)


def make(tmp_path: Path, *texts: bytes, out: str = "data", force: bool = False, **values: object) -> Manifest:
    sources = [tmp_path / f"{index}.txt" for index in range(len(texts))]
    for source, text in zip(sources, texts, strict=True):
        source.write_bytes(text)
    return ingest(IngestSettings(source=[str(path) for path in sources], **values), tmp_path / out, force)


def text_of(folder: Path, manifest: Manifest, split: str) -> bytes:
    return b"".join((folder / shard.file).read_bytes() for shard in manifest.splits[split].shards)


def ids_of(folder: Path, manifest: Manifest, split: str) -> list[int]:
    part = manifest.splits[split]
    return read_tokens(folder, part, manifest.dtype, 0, part.tokens).tolist()


def decoded(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Decode each split, with ¶ for end tokens, which have no text."""
    texts = {}
    for name in manifest.splits:
        symbols = [manifest.vocab.symbols[i] or "¶".encode() for i in ids_of(folder, manifest, name)]
        texts[name] = b"".join(symbols).decode()
    return texts


def sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def test_data_set_has_expected_manifest_and_files(tmp_path: Path) -> None:
    values = {"train": 0.5, "val": 0.3, "test": 0.2, "shard_bytes": 20}
    manifest = make(tmp_path, TEXT[:30], TEXT[30:], **values)
    expected = {
        "train": [("train-00000-of-00003", 0, 20), ("train-00001-of-00003", 20, 40), ("train-00002-of-00003", 40, 50)],
        "val": [("val-00000-of-00002", 50, 70), ("val-00001-of-00002", 70, 80)],
        "test": [("test-00000-of-00001", 80, 100)],
    }
    assert manifest == Manifest(
        sources=(Source("0.txt", 30, sha256(TEXT[:30])), Source("1.txt", 70, sha256(TEXT[30:]))),
        settings=IngestSettings(**values).shaping(),
        vocab=byte_vocab(),
        splits={
            split: Split(
                shards[-1][2] - shards[0][1],
                tuple(Shard(f"{name}.tokens", b - a, sha256(TEXT[a:b])) for name, a, b in shards),
                {"bytes": shards[-1][2] - shards[0][1]},
            )
            for split, shards in expected.items()
        },
        tools={"python": platform.python_version(), "apache-beam": importlib.metadata.version("apache-beam")},
    )
    assert read_manifest(tmp_path / "data") == manifest
    files = {f"{name}.tokens": TEXT[a:b] for shards in expected.values() for name, a, b in shards}
    actual = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir() if path.name != "manifest.json"}
    assert actual == files


def cleaned(text: str, newlines: str, bom: str) -> str:
    text = text.removeprefix("\ufeff") if bom == "strip" else text
    return text.replace("\r\n", "\n").replace("\r", "\n") if newlines == "lf" else text


@hypothesis_settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.lists(st.text(alphabet="ab\r\né\ufeff世😀", min_size=1, max_size=15), min_size=1, max_size=4),
    shard_bytes=st.integers(1, 50),
    unit=st.sampled_from(["byte", "char"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-32"]),
    compress=st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress]),
    newlines=st.sampled_from(["keep", "lf"]),
    bom=st.sampled_from(["keep", "strip"]),
    documents=st.sampled_from(["none", "line", "file"]),
)
def test_text_round_trips_through_the_data_set(
    texts: list[str], shard_bytes: int, unit: str, encoding: str, compress, newlines: str, bom: str, documents: str
) -> None:
    texts = [*texts, "long enough for three splits\n" * 3, "of any kind\n", "and more\n" * 3]
    data = [compress(text.encode(encoding)) for text in texts]
    values = {"unit": unit, "shard_bytes": shard_bytes, "documents": documents, "newlines": newlines, "bom": bom}
    values |= {"unknown": "replace"} if unit == "char" else {}
    with tempfile.TemporaryDirectory() as folder:
        manifest = make(Path(folder), *data, encoding=encoding, train=1, val=0, test=0, **values)
        text = manifest.vocab.decode(ids_of(Path(folder) / "data", manifest, "train")).decode()
        with_ends = decoded(Path(folder) / "data", manifest)["train"]
    expected = [cleaned(text, newlines, bom) for text in texts]
    if documents == "line":
        expected = [text if text[-1:] in ("\n", "") else text + "\n" for text in expected]
    assert text == "".join(expected)
    ends = [text + "¶" for text in expected if text] if documents == "file" else expected
    assert with_ends == "".join(ends)
    if documents != "none":
        count = text.count("\n") if documents == "line" else sum(map(bool, expected))
        assert manifest.splits["train"].counts["documents"] == count


@hypothesis_settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=3),
    st.sampled_from(["byte", "char"]),
    st.sampled_from(["strict", "replace", "skip"]),
    st.integers(1, 9),
)
def test_any_bytes_give_a_data_set_or_a_one_line_error(
    texts: list[bytes], unit: str, errors: str, shard_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        values = {"unknown": "skip"} if unit == "char" else {}
        try:
            manifest = make(Path(folder), *texts, unit=unit, errors=errors, shard_bytes=shard_bytes, **HALVES, **values)
        except StageError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert not (Path(folder) / "data").exists()
        else:
            assert read_manifest(Path(folder) / "data") == manifest


@pytest.mark.parametrize("raw", [False, True])
def test_concatenated_splits_equal_concatenated_files(tmp_path: Path, raw: bool) -> None:
    texts = [bytes(range(256)) * 3, b"\xff\xfe" * 40] if raw else [b"ab" * 100, b"\xe4\xb8\x96" * 50]
    manifest = make(tmp_path, *texts, encoding="raw" if raw else "utf-8", shard_bytes=37)
    joined = b"".join(text_of(tmp_path / "data", manifest, split) for split in ("train", "val", "test"))
    assert joined == b"".join(texts)


def test_vocabulary_is_built_from_train_only(tmp_path: Path) -> None:
    text = "aaaa bbb cc d 世世é" + "abz世" + "zzéa"
    manifest = make(tmp_path, text.encode(), unit="char", unknown="skip", train=22, val=6, test=5)
    assert manifest.vocab == Vocab("char", tuple(c.encode() for c in sorted(set("aaaa bbb cc d 世世é"))))
    assert decoded(tmp_path / "data", manifest) == {"train": "aaaa bbb cc d 世世é", "val": "ab世", "test": "éa"}
    assert {name: split.counts for name, split in manifest.splits.items()} == {
        "train": {"bytes": 22}, "val": {"bytes": 6, "outside": 1}, "test": {"bytes": 5, "outside": 2},
    }  # fmt: skip


def test_characters_outside_a_small_vocabulary_are_replaced_or_skipped(tmp_path: Path) -> None:
    text = "aaaaa bbbb ccc ddé世"
    manifest = make(tmp_path, text.encode() * 3, unit="char", unknown="replace", max_vocab=4, train=1, val=0, test=0)
    assert manifest.vocab == Vocab("char", (b" ", b"a", b"b", "\ufffd".encode()), unknown_id=3)
    assert decoded(tmp_path / "data", manifest)["train"] == "aaaaa bbbb \ufffd\ufffd\ufffd \ufffd\ufffd\ufffd\ufffd" * 3
    assert manifest.splits["train"].counts == {"bytes": 66, "outside": 21}
    manifest = make(
        tmp_path, text.encode(), unit="char", unknown="skip", min_count=3, train=1, val=0, test=0, out="counted"
    )
    assert decoded(tmp_path / "counted", manifest)["train"] == "aaaaa bbbb ccc "


def test_unknown_character_raises_by_default(tmp_path: Path) -> None:
    with pytest.raises(StageError) as error:
        make(tmp_path, b"abcabcabz!z", unit="char", train=6, val=2, test=3)
    assert str(error.value) == (
        "test contains the character 'z' (U+007A), 2 times and 1 others, which is not in train's vocabulary: "
        "pass --unknown replace or --unknown skip, or split the text differently"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("symbols", "dtype"),
    [(257, "uint16"), *(pytest.param(*size, marks=slow) for size in ((256, "uint8"), (65_537, "uint32")))],
)
def test_dtype_is_the_smallest_that_fits(tmp_path: Path, symbols: int, dtype: str) -> None:
    text = "".join(chr(code) for code in range(0x20, 0x20 + symbols + 2048) if not 0xD800 <= code < 0xE000)[:symbols]
    manifest = make(tmp_path, text.encode(), unit="char", train=1, val=0, test=0)
    assert (manifest.vocab.size, manifest.dtype.name) == (symbols, dtype)
    assert ids_of(tmp_path / "data", manifest, "train") == list(range(symbols))


NAMES = "".join(f"name{number}\n" for number in range(300))


def test_lines_are_split_by_hash(tmp_path: Path) -> None:
    values = {"documents": "line", "split": "document", **HALVES}
    first = make(tmp_path, (NAMES + "last").encode(), shard_bytes=100, **values)
    lines = {name: text.splitlines() for name, text in decoded(tmp_path / "data", first).items()}
    assert sorted(line for part in lines.values() for line in part) == sorted([*NAMES.split(), "last"])
    assert all(abs(len(lines[name]) / 301 - share) < 0.1 for name, share in HALVES.items())
    assert {name: split.counts["documents"] for name, split in first.splits.items()} == {
        name: len(part) for name, part in lines.items()
    }
    shards = [shard.file for split in first.splits.values() for shard in split.shards]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted([*shards, "manifest.json"])
    # Reordered, from two files, with every line twice, each line is still in the same split.
    reversed_lines = "".join(f"{line}\n" for line in reversed(NAMES.split()))
    again = make(tmp_path, b"last\n" + reversed_lines.encode(), (NAMES + "last").encode(), out="again", **values)
    for name, text in decoded(tmp_path / "again", again).items():
        assert Counter(text.splitlines()) == Counter(lines[name] * 2)


@pytest.mark.slow
def test_vocabulary_is_built_from_train_only_with_hashed_lines(tmp_path: Path) -> None:
    text = "".join(f"{chr(0x4E00 + number)} {number % 7}\n" for number in range(60)).encode()
    values = {"documents": "line", "split": "document", "unit": "char", "shard_bytes": 90}
    manifest = make(tmp_path, text, unknown="skip", **values, **HALVES)
    train = decoded(tmp_path / "data", manifest)["train"]
    assert 15 < manifest.splits["train"].counts["documents"] < 45
    assert {symbol.decode() for symbol in manifest.vocab.symbols} == set(train)
    assert manifest.vocab.symbols[manifest.vocab.end_id or 0] == b"\n"


def test_files_are_split_by_hash(tmp_path: Path) -> None:
    texts = [f"file {number}\n".encode() * 3 for number in range(40)]
    manifest = make(tmp_path, *texts, documents="file", split="document", shard_bytes=50, **HALVES)
    parts = {name: text.split("¶")[:-1] for name, text in decoded(tmp_path / "data", manifest).items()}
    assert sorted(text for part in parts.values() for text in part) == sorted(text.decode() for text in texts)
    assert all(abs(len(parts[name]) / 40 - share) < 0.25 for name, share in HALVES.items())
    assert manifest.vocab == byte_vocab("token")
    assert manifest.dtype == np.uint16
    assert len(manifest.splits["train"].shards) < len(parts["train"])  # short files share a shard


def test_compression_does_not_change_the_split(tmp_path: Path) -> None:
    texts = [f"file {number}\n".encode() * 3 for number in range(20)]
    packed = [gzip.compress(text) for text in texts] + [bz2.compress(text) for text in texts]
    manifest = make(tmp_path, *texts, *packed, documents="file", split="document", **HALVES)
    for text in decoded(tmp_path / "data", manifest).values():
        assert set(Counter(text.split("¶")[:-1]).values()) == {3}


def test_file_changed_during_ingest_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DataSet.plan

    def plan(self: DataSet, layout: object) -> object:
        (tmp_path / "0.txt").write_bytes(b"z" * 100)
        return real(self, layout)  # type: ignore[arg-type]

    monkeypatch.setattr(DataSet, "plan", plan)
    with pytest.raises(StageError, match=r"0\.txt changed while it was read: run ingest again when"):
        make(tmp_path, TEXT)
    assert not (tmp_path / "data").exists()


def test_invalid_characters_in_file_names_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"bad\xff\xfe.txt", b"two\nlines.txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"text\r\n" * 20)
    for newlines in ("keep", "lf"):
        values = IngestSettings(source=[str(folder)], newlines=newlines)
        manifest = ingest(values, tmp_path / newlines)
        assert [source.name for source in manifest.sources] == ["odd/bad\ufffd\ufffd.txt", "odd/two\ufffdlines.txt"]


def test_text_changed_since_fetch_raises(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/input.txt").write_bytes(TEXT)
    provenance = {"name": "x", "text_sha256": sha256(TEXT), "settings": {}}
    (tmp_path / "raw/provenance.json").write_text(json.dumps(provenance))
    values = IngestSettings(source=[str(tmp_path / "raw")])
    assert ingest(values, tmp_path / "data").provenance == (provenance,)
    (tmp_path / "raw/input.txt").write_bytes(TEXT + b"!")
    with pytest.raises(StageError, match="the text of x differs from the one that was fetched: fetch it again"):
        ingest(values, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_char_rnn_split(tmp_path: Path) -> None:
    manifest = make(tmp_path, b"abcdefghijklmnop", split="char-rnn", streams=4, **HALVES)
    assert decoded(tmp_path / "data", manifest) == {"train": "abefijmn", "val": "cgko", "test": "dhlp"}


def test_manifest_counts_changes_to_the_text(tmp_path: Path) -> None:
    texts = [b"\xef\xbb\xbfone\r\n" * 2, b"tw\xffo\r", b"gone\0"]
    manifest = make(tmp_path, *texts, errors="skip", newlines="lf", bom="strip", train=1, val=0, test=0)
    assert decoded(tmp_path / "data", manifest) == {"train": "one\n\ufeffone\ntwo\n"}
    assert manifest.cleaned == {
        "byte-order marks stripped": 1,
        "carriage returns converted": 3,
        "bytes left out": 1,
        "files that are not text, left out": 1,
    }
    assert [source.bytes for source in manifest.sources] == [16, 5, 5]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "manifest.json", "train-00000-of-00001.tokens",
    ]  # fmt: skip


def test_zero_share_makes_no_split(tmp_path: Path) -> None:
    assert list(make(tmp_path, TEXT, train=0.9, val=0.1, test=0).splits) == ["train", "val"]


def test_too_short_text_raises(tmp_path: Path) -> None:
    with pytest.raises(StageError) as error:
        make(tmp_path, b"0123456789")
    assert str(error.value) == (
        "the text is too short: of its 10 bytes the val split would get 0 bytes, but needs 2 (an input and its "
        "target): use a longer text, or other shares"
    )
    make(tmp_path, b"x" * 60)
    with pytest.raises(StageError, match="the test split would get 1 tokens"):
        make(tmp_path, b"ababababxa", unit="char", unknown="skip", train=6, val=2, test=2, out="short")
    mark = b"\xef\xbb\xbf"
    with pytest.raises(StageError, match="of its 0 bytes the train split would get 0 tokens"):
        make(tmp_path, mark, bom="strip", documents="line", split="document", out="mark")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val": 0.05, "test": 0.06}, r"train, val and test must sum to 1 \(or be numbers of bytes\), got 0.9 \+ 0.05"),
        ({"train": 0.5, "val": 0.1, "test": 0.1}, "must sum to 1"),
        ({"train": 96, "val": 0.5, "test": 4}, "must be shares from 0 to 1, or whole bytes of a contiguous split"),
        ({"train": 96, "val": 0, "test": 4, "split": "char-rnn"}, "whole bytes of a contiguous split"),
        ({"encoding": "nonsense"}, "unknown text encoding 'nonsense'"),
        ({"encoding": "raw", "unit": "char"}, "encoding raw requires unit byte"),
        ({"encoding": "raw", "newlines": "lf"}, "encoding raw requires unit byte"),
        ({"max_vocab": 10}, "max_vocab, min_count and unknown require unit char"),
        ({"split": "document"}, "split document requires documents: line or file"),
        ({"unit": "word"}, "'unit': input should be 'byte' or 'char', got 'word'"),
        ({"streams": 10**9}, "'streams': input should be less than or equal to 10000, got 1000000000"),
    ],
)
def test_invalid_settings_raise(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=rf"here: .*{message}"):
        settings.make(IngestSettings, values, "here")


def test_too_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.MOST_SHARDS", 10)
    message = "shard_bytes = 9 would cut the text of 100 bytes into more than 10 shards: use at least 10$"
    with pytest.raises(StageError, match=message):
        make(tmp_path, TEXT, encoding="latin-1", shard_bytes=9)
    make(tmp_path, TEXT, shard_bytes=10)


def test_same_input_is_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make(tmp_path, TEXT)
    stamp = (tmp_path / "data/manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    assert make(tmp_path, TEXT) == first
    assert (tmp_path / "data/manifest.json").stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == f"{tmp_path}/data is up to date: same sources, same settings\n"
    assert make(tmp_path, TEXT, force=True) == first
    assert (tmp_path / "data/manifest.json").stat().st_mtime_ns > stamp


def test_different_input_raises(tmp_path: Path) -> None:
    first = make(tmp_path, TEXT)
    with pytest.raises(StageError) as error:
        make(tmp_path, TEXT + b"more", train=0.8, val=0.15)
    assert str(error.value) == (
        f"{tmp_path}/data was made from different input (the sources were 0.txt (100 bytes), now 0.txt (104 bytes); "
        "train was 0.9, now 0.8; val was 0.05, now 0.15): pass --force to replace it, or a different --out to keep both"
    )
    assert read_manifest(tmp_path / "data") == first
    assert make(tmp_path, TEXT + b"more", force=True) == read_manifest(tmp_path / "data") != first


def test_renamed_sources_are_up_to_date(tmp_path: Path) -> None:
    first = make(tmp_path, TEXT)
    moved = (tmp_path / "0.txt").rename(tmp_path / "moved.txt")
    assert ingest(IngestSettings(source=[str(moved)]), tmp_path / "data") == first


def test_unrelated_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    with pytest.raises(StageError, match=r"home exists and is not a data set .*: remove it, or pass another --out"):
        make(tmp_path, TEXT, out="home", force=True)
    with pytest.raises(StageError, match=r"0\.txt is a file, but a data set is a folder: pass another --out"):
        make(tmp_path, TEXT, out="0.txt", force=True)
    assert (tmp_path / "home/letter.txt").read_text() == "dear"


def test_failed_ingest_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pipeline.shards.ShardWriter.write", fail)
    with pytest.raises(StageError, match=r"data: No space left on device$"):
        make(tmp_path, TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["0.txt"]


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.ingest.ShardWriter.write", write)
    with pytest.raises(StageError, match=rf"^{tmp_path}/.*-of-00001\.tokens: No space left on device$"):
        make(tmp_path, TEXT)


def test_missing_source_raises() -> None:
    with pytest.raises(UsageError, match="no source: name a file"):
        ingest(IngestSettings(), Path("unused"))


@pytest.mark.parametrize("options", ["", "--direct_num_workers=2 --direct_running_mode=multi_threading"])
def test_invalid_text_is_a_one_line_error_on_any_worker(tmp_path: Path, options: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(StageError) as error:
        ingest(IngestSettings(source=[str(tmp_path / "a.txt")]), tmp_path / "data", options=options)
    assert str(error.value) == (
        "a.txt: byte 0xff at offset 3 is not utf-8 (invalid start byte): pass the encoding (such as --encoding "
        "latin-1), or --errors replace or --errors skip"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("mode", ["multi_threading", pytest.param("multi_processing", marks=pytest.mark.slow)])
def test_parallel_workers_give_the_same_data(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a.txt").write_bytes("né 世\n".encode() * 500)
    values = IngestSettings(source=[str(tmp_path / "a.txt")], unit="char", shard_bytes=300)
    options = f"--direct_num_workers=2 --direct_running_mode={mode}"
    manifest = ingest(values, tmp_path / "one")
    assert ingest(values, tmp_path / "two", options=options) == manifest


@pytest.mark.slow
def test_cluster_gives_the_same_data(tmp_path: Path) -> None:
    """Use Beam's Dask runner with two worker processes."""
    for index in range(3):
        (tmp_path / f"{index}.txt").write_bytes("né 世\r\n".encode() * 500)
    source = [str(tmp_path / "*.txt")]
    values = IngestSettings(source=source, unit="char", newlines="lf", documents="line", shard_bytes=300)
    manifest = ingest(values, tmp_path / "one")
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        assert len(cluster.workers) == 2
        runner = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
        options = f"{runner} --dask_client_address={cluster.scheduler_address}"
        assert ingest(values, tmp_path / "two", options=options) == manifest
    names = [shard.file for split in manifest.splits.values() for shard in split.shards]
    assert len(names) > 30
    assert all((tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--runner=NoSuch", "Beam has no runner 'NoSuch': Unexpected pipeline runner"),
        ("--runnr=FlinkRunner", "'--runnr=FlinkRunner': without a --runner, there is no --runnr"),
        ("--direct_num_workers=x", "invalid --beam options '--direct_num_workers=x'"),
        ("'", 'invalid --beam options "\'": No closing quotation'),
    ],
)
def test_invalid_beam_options_raise(tmp_path: Path, options: str, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    with pytest.raises(UsageError, match=message):
        ingest(IngestSettings(source=[str(tmp_path / "a.txt")]), tmp_path / "data", options=options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
