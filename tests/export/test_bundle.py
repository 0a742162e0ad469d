import json
import zipfile
from pathlib import Path

import pytest

from common.errors import StageError
from export.bundle import pack, unpack

FLATBUFFER = bytes(range(256)) * 2
ABOUT = {"format_version": 1, "run": "tiny", "vocab": {"unit": "char", "symbols": "aéあ"}, "val_nats": 1.1 + 2.2}
CORRUPTED = r"a\.tflite is corrupted or was not exported by this project \(.*\): copy or export it again$"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.tflite"
    path.write_bytes(pack(FLATBUFFER, ABOUT))
    return path


def test_pack_and_unpack_round_trip(path: Path) -> None:
    flatbuffer, about = unpack(path)
    assert flatbuffer == FLATBUFFER
    assert ABOUT.items() <= about.items()
    assert path.read_bytes()[:512] == FLATBUFFER
    assert pack(FLATBUFFER, ABOUT) == path.read_bytes()


def test_zip_tools_can_read_the_vocabulary(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["vocab.json"]
        assert archive.testzip() is None
        assert ABOUT.items() <= json.loads(archive.read("vocab.json")).items()
        assert archive.getinfo("vocab.json").header_offset == len(FLATBUFFER)


def test_truncation_is_detected_at_any_length(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(StageError, match=CORRUPTED):
            unpack(path)


def test_flipped_bit_is_detected_anywhere(path: Path) -> None:
    content = path.read_bytes()
    for index in range(len(content)):
        for bit in (0, 3, 7):
            path.write_bytes(content[:index] + bytes([content[index] ^ 1 << bit]) + content[index + 1 :])
            with pytest.raises(StageError, match=CORRUPTED):
                unpack(path)


def test_inserted_byte_is_detected_anywhere(path: Path) -> None:
    content = path.read_bytes()
    for index in (0, 100, len(FLATBUFFER), len(content)):
        path.write_bytes(content[:index] + b"\0" + content[index:])
        with pytest.raises(StageError, match=CORRUPTED):
            unpack(path)


def test_vocabulary_of_another_flatbuffer_is_rejected(path: Path) -> None:
    other = FLATBUFFER[::-1]
    path.write_bytes(other + pack(FLATBUFFER, ABOUT)[len(FLATBUFFER) :])
    with pytest.raises(StageError, match="checksum mismatch"):
        unpack(path)


def test_missing_file_and_unsupported_format_raise(path: Path) -> None:
    with pytest.raises(StageError, match=r"cannot read .*gone \(No such file or directory\)"):
        unpack(path.with_name("gone"))
    path.write_bytes(pack(FLATBUFFER, {**ABOUT, "format_version": 9}))
    with pytest.raises(StageError, match="has format_version 9, this program reads 1: export it again"):
        unpack(path)
