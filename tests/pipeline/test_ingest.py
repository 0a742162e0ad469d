import hashlib
import importlib.metadata
import platform
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common import settings
from common.errors import StageError, UsageError
from pipeline.ingest import IngestSettings, ingest, split_ranges
from pipeline.manifest import Manifest, Shard, Source, Split, read_manifest
from pipeline.vocab import byte_vocab

TEXT = bytes(range(100))


def make(tmp_path: Path, *texts: bytes, out: str = "data", force: bool = False, **values: object) -> Manifest:
    sources = [tmp_path / f"{index}.txt" for index in range(len(texts))]
    for source, text in zip(sources, texts, strict=True):
        source.write_bytes(text)
    return ingest(IngestSettings(source=[str(path) for path in sources], **values), tmp_path / out, force)


def text_of(folder: Path, manifest: Manifest, split: str) -> bytes:
    return b"".join((folder / shard.file).read_bytes() for shard in manifest.splits[split].shards)


def sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def test_the_whole_data_set(tmp_path: Path) -> None:
    manifest = make(tmp_path, TEXT[:30], TEXT[30:], train=0.5, val=0.3, test=0.2, shard_bytes=20)
    wanted = {
        "train": [("train-00000-of-00003", 0, 20), ("train-00001-of-00003", 20, 40), ("train-00002-of-00003", 40, 50)],
        "val": [("val-00000-of-00002", 50, 70), ("val-00001-of-00002", 70, 80)],
        "test": [("test-00000-of-00001", 80, 100)],
    }
    assert manifest == Manifest(
        sources=(Source("0.txt", 30, sha256(TEXT[:30])), Source("1.txt", 70, sha256(TEXT[30:]))),
        settings={"unit": "byte", "train": 0.5, "val": 0.3, "test": 0.2, "shard_bytes": 20},
        vocab=byte_vocab(),
        splits={
            split: Split(
                shards[-1][2] - shards[0][1],
                tuple(Shard(f"{name}.tokens", b - a, sha256(TEXT[a:b])) for name, a, b in shards),
            )
            for split, shards in wanted.items()
        },
        tools={"python": platform.python_version(), "apache-beam": importlib.metadata.version("apache-beam")},
    )
    assert read_manifest(tmp_path / "data") == manifest
    files = {f"{name}.tokens": TEXT[a:b] for shards in wanted.values() for name, a, b in shards}
    came = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir() if path.name != "manifest.json"}
    assert came == files


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(min_size=1), min_size=1, max_size=4), st.integers(1, 50))
def test_the_splits_joined_are_the_files_joined(texts: list[bytes], shard_bytes: int) -> None:
    texts[-1] += b"long enough for three splits: " * 2
    with tempfile.TemporaryDirectory() as folder:
        manifest = make(Path(folder), *texts, shard_bytes=shard_bytes)
        joined = b"".join(text_of(Path(folder) / "data", manifest, split) for split in ("train", "val", "test"))
        assert manifest.vocab.decode(manifest.vocab.encode(joined)) == b"".join(texts)


@pytest.mark.parametrize(
    ("total", "shares", "wanted"),
    [
        (1_115_394, (0.9, 0.05, 0.05), (1_003_854, 55_770, 55_770)),
        (1_115_394, (0.9, 0.1, 0), (1_003_854, 111_540)),
        (10, (0.7, 0.1, 0.2), None),
        (20, (0.7, 0.1, 0.2), (14, 2, 4)),  # in floats 0.7 + 0.1 < 0.8, and val would get 1
        (2, (1, 0, 0), (2,)),
    ],
)
def test_split_ranges(total: int, shares: tuple[float, float, float], wanted: tuple[int, ...] | None) -> None:
    train, val, test = shares
    how = IngestSettings(train=train, val=val, test=test)
    if wanted is None:
        with pytest.raises(StageError, match="too short"):
            split_ranges(total, how)
        return
    ranges = list(split_ranges(total, how).values())
    assert tuple(map(len, ranges)) == wanted
    assert [i for span in ranges for i in span] == list(range(total))


def test_a_share_of_nothing_is_no_split(tmp_path: Path) -> None:
    assert list(make(tmp_path, TEXT, train=0.9, val=0.1, test=0.0).splits) == ["train", "val"]


def test_too_short_names_what_is_enough(tmp_path: Path) -> None:
    with pytest.raises(StageError) as error:
        make(tmp_path, b"0123456789")
    assert str(error.value) == (
        "the text is too short: of 10 bytes the val split would get 0, and needs 2 (an input and its target); "
        "60 bytes are enough for these shares"
    )
    make(tmp_path, b"x" * 60)


@pytest.mark.parametrize("shares", [(0.9, 0.05, 0.06), (0.5, 0.1, 0.1)])
def test_shares_must_sum_to_one(shares: tuple[float, float, float]) -> None:
    train, val, test = shares
    with pytest.raises(UsageError, match=r"here: train, val and test must sum to 1, got \d"):
        settings.make(IngestSettings, {"train": train, "val": val, "test": test}, "here")


def test_made_again_from_the_same_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make(tmp_path, TEXT)
    stamp = (tmp_path / "data/manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    assert make(tmp_path, TEXT) == first
    assert (tmp_path / "data/manifest.json").stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == f"{tmp_path}/data is already made from these sources and settings\n"
    assert make(tmp_path, TEXT, force=True) == first
    assert (tmp_path / "data/manifest.json").stat().st_mtime_ns > stamp


def test_made_from_something_else_is_refused(tmp_path: Path) -> None:
    first = make(tmp_path, TEXT)
    with pytest.raises(StageError) as error:
        make(tmp_path, TEXT + b"more", train=0.8, val=0.15)
    assert str(error.value) == (
        f"{tmp_path}/data was made from something else (the sources were 0.txt (100 bytes), are 0.txt (104 bytes); "
        "train was 0.9, is 0.8; val was 0.05, is 0.15): use --force to replace it, or another --out to keep both"
    )
    assert read_manifest(tmp_path / "data") == first
    assert make(tmp_path, TEXT + b"more", force=True) == read_manifest(tmp_path / "data") != first


def test_the_same_text_under_other_names_is_the_same(tmp_path: Path) -> None:
    first = make(tmp_path, TEXT)
    moved = (tmp_path / "0.txt").rename(tmp_path / "moved.txt")
    assert ingest(IngestSettings(source=[str(moved)]), tmp_path / "data") == first


def test_other_peoples_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    with pytest.raises(StageError, match=r"home exists and is not a data set .*: remove it, or give another --out"):
        make(tmp_path, TEXT, out="home", force=True)
    with pytest.raises(StageError, match=r"0\.txt is a file, a data set is a folder: give another --out"):
        make(tmp_path, TEXT, out="0.txt", force=True)
    assert (tmp_path / "home/letter.txt").read_text() == "dear"


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pipeline.ingest.write_shard", fail)
    with pytest.raises(StageError, match="ingest failed: No space left on device"):
        make(tmp_path, TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["0.txt"]


def test_nothing_named() -> None:
    with pytest.raises(UsageError, match="nothing to read: name a file"):
        ingest(IngestSettings(), Path("unused"))
