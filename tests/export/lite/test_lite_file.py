import json
import zipfile
from pathlib import Path

import pytest

from common.errors import StageError
from export.lite.file import seal, unseal

FLATBUFFER = bytes(range(256)) * 2
ABOUT = {"format_version": 1, "run": "tiny", "vocab": {"unit": "char", "symbols": "aéあ"}, "val_nats": 1.1 + 2.2}
DAMAGED = r"a\.tflite is damaged, or no \.tflite of this project \(.*\): copy it again, or make it anew$"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.tflite"
    path.write_bytes(seal(FLATBUFFER, ABOUT))
    return path


def test_what_was_sealed_comes_back(path: Path) -> None:
    flatbuffer, about = unseal(path)
    assert flatbuffer == FLATBUFFER
    assert ABOUT.items() <= about.items()
    assert path.read_bytes()[:512] == FLATBUFFER
    assert seal(FLATBUFFER, ABOUT) == path.read_bytes()


def test_any_zip_tool_reads_what_is_said_of_the_model(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["vocab.json"]
        assert archive.testzip() is None
        assert ABOUT.items() <= json.loads(archive.read("vocab.json")).items()
        assert archive.getinfo("vocab.json").header_offset == len(FLATBUFFER)


def test_a_file_cut_short_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StageError, match=DAMAGED):
            unseal(path)


def test_a_byte_flipped_anywhere_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for index in range(len(whole)):
        for bit in (0, 3, 7):
            path.write_bytes(whole[:index] + bytes([whole[index] ^ 1 << bit]) + whole[index + 1 :])
            with pytest.raises(StageError, match=DAMAGED):
                unseal(path)


def test_bytes_added_anywhere_are_found(path: Path) -> None:
    whole = path.read_bytes()
    for index in (0, 100, len(FLATBUFFER), len(whole)):
        path.write_bytes(whole[:index] + b"\0" + whole[index:])
        with pytest.raises(StageError, match=DAMAGED):
            unseal(path)


def test_what_belongs_to_another_file_is_refused(path: Path) -> None:
    """The words of one model behind the flatbuffer of another."""
    other = FLATBUFFER[::-1]
    path.write_bytes(other + seal(FLATBUFFER, ABOUT)[len(FLATBUFFER) :])
    with pytest.raises(StageError, match="do not fit their checksum"):
        unseal(path)


def test_a_file_that_is_not_there_or_of_another_format(path: Path) -> None:
    with pytest.raises(StageError, match=r"gone cannot be read \(No such file or directory\)"):
        unseal(path.with_name("gone"))
    path.write_bytes(seal(FLATBUFFER, {**ABOUT, "format_version": 9}))
    with pytest.raises(StageError, match="has format_version 9, this program reads 1: export it again"):
        unseal(path)
