"""models.config, damaged or edited by hand."""

from pathlib import Path

import pytest

from common.errors import StageError
from export.serve import labels, start

SERVED = labels.ServingConfig({"stable": 1, "canary": 2}, frozenset([1, 2]))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / labels.MODELS).write_text(labels.to_text("plays", SERVED.labels, [1, 2]))
    return tmp_path


def test_a_flipped_bit_in_any_byte_is_detected_or_harmless(base: Path) -> None:
    path = base / labels.MODELS
    whole = path.read_bytes()
    detected = 0
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << index % 8
        path.write_bytes(damaged)
        try:
            assert labels.read(base) == SERVED, bytes(damaged)
        except StageError:
            detected += 1
    assert detected > len(whole) // 2


def test_an_edit_is_accepted_once_the_checksum_is_removed(base: Path) -> None:
    path = base / labels.MODELS
    edited = path.read_text().replace("stable", "proven")
    path.write_text(edited)
    fix = r"if you edited it, remove that line\): remove it, export again and set the labels$"
    with pytest.raises(StageError, match=fix):
        labels.read(base)
    with pytest.raises(StageError, match=fix), start.started(base):
        pass
    path.write_text("".join(line for line in edited.splitlines(keepends=True) if "Checksum" not in line))
    served = labels.read(base)
    assert served
    assert served.labels == {"proven": 1, "canary": 2}
