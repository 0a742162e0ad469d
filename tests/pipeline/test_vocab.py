import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import StageError
from pipeline.vocab import Vocab, byte_vocab

SMALL = Vocab("byte", (b"b", b"\n", b"a"))


@given(st.binary())
def test_bytes_are_their_own_ids(text: bytes) -> None:
    ids = byte_vocab().encode(text)
    assert ids.dtype == np.uint8
    assert ids.tolist() == list(text)
    assert byte_vocab().decode(ids) == text


def test_a_subset_of_bytes() -> None:
    ids = SMALL.encode(b"aab\nb")
    np.testing.assert_array_equal(ids, np.array([2, 2, 0, 1, 0], np.uint8))
    assert SMALL.decode(ids) == b"aab\nb"
    assert (SMALL.size, SMALL.start_id, SMALL.dtype) == (3, 1, np.uint8)


def test_a_byte_outside_is_named_with_its_offset() -> None:
    with pytest.raises(StageError, match="byte 0x78 at offset 2 is not in the vocabulary"):
        SMALL.encode(b"abxay")


def test_decode_takes_any_integers_and_refuses_what_is_too_large() -> None:
    assert byte_vocab().decode(np.array([[72, 105]], np.int32)) == b"Hi"
    assert byte_vocab().decode([]) == b""
    with pytest.raises(IndexError):
        SMALL.decode([3])


def test_decode_text_replaces_what_is_not_utf8() -> None:
    assert byte_vocab().decode_text(list("né".encode())) == "né"
    assert byte_vocab().decode_text(list("né".encode())[:-1]) == "n\ufffd"


def test_start_is_the_newline() -> None:
    assert byte_vocab().start_id == 10
    assert Vocab("byte", (b"a", b"b")).start_id == 0


@pytest.mark.parametrize("vocab", [byte_vocab(), SMALL])
def test_json_round_trip(vocab: Vocab) -> None:
    again = Vocab.from_json(json.loads(json.dumps(vocab.to_json())))
    assert again == vocab
    assert again.sha256 == vocab.sha256


def test_json_is_exact() -> None:
    assert SMALL.to_json() == {"unit": "byte", "symbols": "620a61"}


def test_hash_depends_on_the_order() -> None:
    assert SMALL.sha256 != Vocab("byte", (b"a", b"\n", b"b")).sha256


@pytest.mark.parametrize(
    ("unit", "symbols", "message"),
    [
        ("word", (b"a",), "no unit is called 'word'; there are: byte"),
        ("byte", (), "one symbol or more, all different, got 0"),
        ("byte", (b"a", b"a"), "one symbol or more, all different, got 2"),
        ("byte", (b"ab",), "every symbol of a byte vocabulary must be one byte"),
    ],
)
def test_impossible_vocabularies(unit: str, symbols: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocab(unit, symbols)


def test_vocab_and_manifest_import_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.manifest, pipeline.shards, pipeline.vocab;"
        "heavy = {'tensorflow', 'apache_beam', 'tensorflow_data_validation'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
