import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_data import make_data

from common.errors import StageError
from common.files import load_json
from pipeline import manifest as manifests
from pipeline.manifest import Source, check_hashes, read_manifest, write_manifest
from pipeline.vocab import Vocab, byte_vocab


def change(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(load_json(path) | values))


def test_round_trip(folder: Path) -> None:
    manifest = dataclasses.replace(
        make_data(folder, 3, train=b"abcdefg", val=b"hi"),
        sources=(Source("é.txt", 9, "0" * 64),),
        settings={"unit": "byte", "train": 0.8},
        tools={"python": "3"},
        cleaned={"bytes replaced": 3},
        provenance=({"name": "names"},),
        validation={"result": "valid"},
    )
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


def test_manifest_fields(folder: Path) -> None:
    manifest = make_data(folder, 4, train=b"abcdef")
    value = load_json(folder / "manifest.json")
    assert list(value) == [
        "format_version", "data_sha256", "vocab_sha256", "dtype", "sources", "settings", "vocab", "splits", "tools",
        "cleaned", "provenance", "validation",
    ]  # fmt: skip
    assert (value["format_version"], value["dtype"], value["validation"]) == (2, "uint8", None)
    assert value["data_sha256"] == manifest.data_sha256
    shards = [(shard["file"], shard["tokens"]) for shard in value["splits"]["train"]["shards"]]
    assert shards == [("train-00000-of-00002.tokens", 4), ("train-00001-of-00002.tokens", 2)]


def test_hash_depends_only_on_data(folder: Path) -> None:
    manifest = make_data(folder, 10, train=b"abc", val=b"de")
    stamped = dataclasses.replace(manifest, validation={"result": "valid"}, tools={"python": "4"}, settings={"x": 1})
    assert stamped.data_sha256 == manifest.data_sha256
    assert make_data(folder / "b", 10, train=b"abc", val=b"de").data_sha256 == manifest.data_sha256
    assert make_data(folder / "c", 10, train=b"abd", val=b"de").data_sha256 != manifest.data_sha256
    assert make_data(folder / "d", 10, train=b"abc", test=b"de").data_sha256 != manifest.data_sha256
    other_vocab = dataclasses.replace(manifest, vocab=Vocab("byte", (b"a",)))
    assert other_vocab.data_sha256 != manifest.data_sha256


def test_missing_folder_raises(folder: Path) -> None:
    with pytest.raises(StageError, match=r"data set .*/data does not exist: create it with python -m pipeline ingest"):
        read_manifest(folder)


def test_missing_manifest_raises(folder: Path) -> None:
    make_data(folder, 3, train=b"abcdefg")
    (folder / "manifest.json").unlink()
    with pytest.raises(StageError, match=r"data has no manifest.json: it is incomplete or not a data set; remove"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "JSONDecodeError"), ("{}", "KeyError: 'format_version'"), ("[]", "TypeError"), ("1", "Type")],
)
def test_invalid_json_raises(text: str, reason: str, folder: Path) -> None:
    make_data(folder, 3, train=b"abcdefg")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StageError, match=rf"manifest.json is invalid \({reason}.*: run ingest again"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("splits", [], "dict"),
        ("splits.train.tokens", 5, "the tokens of train do not match its shards"),
        ("splits.train.shards.0.tokens", None, "valid integer"),
        ("splits.train.shards.0.file", "../other/x.tokens", "a shard is outside the folder: ../other/x.tokens"),
        ("splits.train.counts", None, "dict"),
        ("sources", 3, "tuple"),
        ("validation", "yes", "dict"),
        ("provenance", [3], "dict"),
        ("cleaned", [], "dict"),
        ("vocab", [], "list indices"),
        ("cleaned", {"\x1b[2J": 1}, r"a name has no path separators and no control characters, got '\\x1b\[2J'"),
        ("sources", [{"name": "a/\x1b[2J", "bytes": 1, "sha256": ""}], "no control characters"),
        ("splits.train.counts", {"\u202e": 1}, "no control characters"),
        ("splits.train.shards.0.file", "\n", "no control characters"),
    ],
)
def test_invalid_field_raises(path: str, value: object, reason: str, folder: Path) -> None:
    make_data(folder, 3, train=b"abcdefg")
    manifest = node = load_json(folder / "manifest.json")
    *parents, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    for name in parents:
        node = node[name]
    node[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StageError, match=rf"manifest.json is invalid \(.*{reason}.*\): run ingest again with --force"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../../elsewhere", "/tmp/x", "", "..", "a\x1b[31m", "a\u202eb", "a\nb"])
def test_hostile_split_name_raises(name: str, folder: Path) -> None:
    manifest = make_data(folder, 3, train=b"abcdefg")
    splits = {**manifest.splits, name: manifest.splits["train"]}
    write_manifest(folder, dataclasses.replace(manifest, splits=splits))
    with pytest.raises(StageError, match="a name has no path separators and no control characters, got") as error:
        read_manifest(folder)
    assert str(error.value).isprintable()


def test_unsupported_format_version_raises(folder: Path) -> None:
    make_data(folder, 3, train=b"abcdefg")
    change(folder, format_version=1)
    with pytest.raises(StageError, match="has format_version 1, this program reads version 2: run ingest again"):
        read_manifest(folder)


def test_hash_mismatch_raises(folder: Path) -> None:
    make_data(folder, 3, train=b"abcdefg")
    change(folder, data_sha256="0" * 64)
    with pytest.raises(StageError, match="data_sha256 does not match its shards"):
        read_manifest(folder)


def test_missing_shard_raises(folder: Path) -> None:
    make_data(folder, 3, train=b"abcdefg")
    (folder / "train-00001-of-00003.tokens").unlink()
    with pytest.raises(StageError, match=r"train-00001-of-00003\.tokens is missing: run ingest again with --force"):
        read_manifest(folder)


def test_truncated_shard_raises(folder: Path) -> None:
    make_data(folder, 3, train=b"abcdefg")
    (folder / "train-00001-of-00003.tokens").write_bytes(b"de")
    with pytest.raises(
        StageError, match=r"train-00001-of-00003\.tokens must have 3 bytes, but has 2: run ingest again"
    ):
        read_manifest(folder)


def test_shards_are_read_again_only_if_they_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_data(folder, 3, train=b"abcdefg")
    read = []
    check = manifests._check_shard

    def checked(path: Path, *rest: Any) -> None:
        read.append(path.name[6:11])
        check(path, *rest)

    monkeypatch.setattr(manifests, "_check_shard", checked)
    check_hashes(folder, manifest, trust=True)
    check_hashes(folder, manifest, trust=True)
    assert read == ["00000", "00001", "00002"]
    shard = folder / "train-00001-of-00003.tokens"
    os.utime(shard, ns=(1, 1))
    check_hashes(folder, manifest, trust=True)
    assert read[3:] == ["00001"]
    check_hashes(folder, manifest)
    assert read[4:] == ["00000", "00001", "00002"]
    shard.write_bytes(b"dxf")
    for _ in range(2):
        with pytest.raises(StageError, match=r"train-00001-of-00003\.tokens is corrupted: run ingest"):
            check_hashes(folder, manifest, trust=True)


def test_a_read_only_data_set_is_verified_without_a_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_data(folder, 3, train=b"abcdefg")

    def write_json(path: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(manifests, "write_json", write_json)
    check_hashes(folder, manifest, trust=True)
    assert not (folder / ".verified.json").exists()


@pytest.mark.parametrize(("vocab", "id"), [(byte_vocab("token"), 257), (Vocab("char", (b"a", b"b")), 255)])
def test_ids_outside_the_vocabulary(vocab: Vocab, id: int, folder: Path) -> None:
    manifest = make_data(folder, 3, vocab, train=np.array([0, 1, 0, 1, id]))
    with pytest.raises(
        StageError,
        match=rf"train-00001-of-00002\.tokens contains the id {id}, but the vocabulary has {vocab.size} ids: run",
    ):
        check_hashes(folder, manifest, trust=True)
