import hashlib
from pathlib import Path

import numpy as np
import pytest
from tiny_data import make_data, write_shard

from common.errors import StageError
from pipeline.manifest import Shard
from pipeline.shards import read_tokens, shard_name


def test_shard_name() -> None:
    assert shard_name("train", 0, 4) == "train-00000-of-00004.tokens"


@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_shard_contains_only_ids(dtype: str, tmp_path: Path) -> None:
    ids = np.array([3, 1, 200, 0, 7], dtype)
    shard = write_shard(tmp_path / "x.tokens", [ids[:2], ids[2:2], ids[2:]])
    content = (tmp_path / "x.tokens").read_bytes()
    assert content == ids.tobytes()
    assert shard == Shard("x.tokens", 5, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("shard_tokens", [1, 2, 3, 7, 100])
def test_read_any_range(shard_tokens: int, folder: Path) -> None:
    text = b"0123456789"
    split = make_data(folder, shard_tokens, train=text).splits["train"]
    for start in range(len(text) + 1):
        for stop in range(start, len(text) + 1):
            ids = read_tokens(folder, split, "u1", start, stop)
            assert ids.dtype == np.uint8
            assert ids.tobytes() == text[start:stop]


def test_read_wide_tokens(tmp_path: Path) -> None:
    from pipeline.manifest import Split

    ids = np.arange(1000, 1010, dtype="<u2")
    shards = [write_shard(tmp_path / name, [part]) for name, part in [("a", ids[:4]), ("b", ids[4:])]]
    tokens = read_tokens(tmp_path, Split(10, tuple(shards)), "<u2", 2, 9)
    np.testing.assert_array_equal(tokens, ids[2:9])


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
    def pieces():  # type: ignore[no-untyped-def]
        yield np.zeros(3, np.uint8)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_shard(tmp_path / "x.tokens", pieces())
    assert list(tmp_path.iterdir()) == []


def test_shard_truncated_while_it_is_read(folder: Path) -> None:
    split = make_data(folder, 6, train=b"0123456789").splits["train"]
    (folder / "train-00001-of-00002.tokens").write_bytes(b"67")
    assert read_tokens(folder, split, "u1", 0, 8).tobytes() == b"01234567"
    with pytest.raises(StageError, match=r"train-00001-of-00002\.tokens was truncated while it was read: run ingest"):
        read_tokens(folder, split, "u1", 0, 9)
