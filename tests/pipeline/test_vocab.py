import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import StageError
from pipeline.vocab import Vocab, byte_vocab, char_vocab, characters, count_characters

SMALL = Vocab("byte", (b"b", b"\n", b"a"))
CHARS = Vocab("char", tuple(c.encode() for c in "\nabé世\ufffd😀"), end_id=0, unknown_id=5)
WITH_END = Vocab("char", (b"a", "é".encode(), b""), end_id=2)


@given(st.binary())
def test_byte_ids_are_byte_values(text: bytes) -> None:
    ids = byte_vocab().encode(text)
    assert ids.dtype == np.uint8
    assert ids.tolist() == list(text)
    assert byte_vocab().decode(ids) == text


def test_subset_of_bytes() -> None:
    ids = SMALL.encode(b"aab\nb")
    np.testing.assert_array_equal(ids, np.array([2, 2, 0, 1, 0], np.uint8))
    assert SMALL.decode(ids) == b"aab\nb"
    assert (SMALL.size, SMALL.start_id, SMALL.dtype) == (3, 1, np.uint8)


def test_unknown_byte_is_reported_with_its_offset() -> None:
    with pytest.raises(StageError, match="byte 0x78 at offset 2 is not in the vocabulary"):
        SMALL.encode(b"abxay")


def test_decode_accepts_any_integers_and_rejects_large_ids() -> None:
    assert byte_vocab().decode(np.array([[72, 105]], np.int32)) == b"Hi"
    assert byte_vocab().decode([]) == b""
    with pytest.raises(IndexError):
        SMALL.decode([3])


def test_start_id_is_the_newline() -> None:
    assert byte_vocab().start_id == 10
    assert Vocab("byte", (b"a", b"b")).start_id == 0


@pytest.mark.parametrize("vocab", [byte_vocab(), SMALL, byte_vocab("newline"), byte_vocab("token"), CHARS, WITH_END])
def test_json_round_trip(vocab: Vocab) -> None:
    restored = Vocab.from_json(json.loads(json.dumps(vocab.to_json())))
    assert restored == vocab
    assert restored.sha256 == vocab.sha256


def test_byte_vocab_json() -> None:
    assert SMALL.to_json() == {"unit": "byte", "symbols": "620a61"}


def test_hash_depends_on_order() -> None:
    assert SMALL.sha256 != Vocab("byte", (b"a", b"\n", b"b")).sha256


@pytest.mark.parametrize(
    ("unit", "symbols", "message"),
    [
        ("word", (b"a",), "unknown unit 'word': use byte or char"),
        ("char", (b"b", b"a"), "one character, in the order of code points"),
        ("char", (b"ab", b"c"), "one character, in the order of code points"),
        ("char", (b"", b"a"), "only the last symbol may be empty"),
        ("byte", (b"a", b""), "only the last symbol may be empty"),
        ("byte", (), "one or more distinct symbols, got 0"),
        ("byte", (b"a", b"a"), "one or more distinct symbols, got 2"),
        ("byte", (b"ab",), "every symbol of a byte vocabulary must be one byte"),
    ],
)
def test_invalid_vocabularies_raise(unit: str, symbols: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocab(unit, symbols)


def test_vocab_and_manifest_import_no_heavy_packages() -> None:
    code = (
        "import sys, pipeline.manifest, pipeline.shards, pipeline.vocab;"
        "heavy = {'tensorflow', 'apache_beam', 'tensorflow_data_validation'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def test_invalid_special_ids_raise() -> None:
    for name in ("end_id", "unknown_id"):
        with pytest.raises(ValueError, match=f"{name} must be an id, 0 to 0, got 1"):
            Vocab("char", (b"a",), **{name: 1})
    with pytest.raises(ValueError, match="a byte vocabulary cannot have an unknown_id"):
        Vocab("byte", (b"a",), unknown_id=0)


@given(st.text(alphabet="\nabé世😀xyß\ufffd", max_size=40))
def test_characters_match_a_dict(text: str) -> None:
    ids = {c: i for i, c in enumerate("\nabé世\ufffd😀")}
    kept, outside = CHARS.encode_known(text.encode(), keep_unknown=True)
    np.testing.assert_array_equal(kept, np.array([ids.get(c, 5) for c in text], np.uint8))
    assert outside == Counter(c for c in text if c not in ids)
    np.testing.assert_array_equal(CHARS.encode(text.encode()), kept)
    left, outside_again = CHARS.encode_known(text.encode(), keep_unknown=False)
    np.testing.assert_array_equal(left, np.array([ids[c] for c in text if c in ids], np.uint8))
    assert outside_again == outside
    assert CHARS.decode(kept).decode() == "".join(c if c in ids else "\ufffd" for c in text)


def test_large_vocabulary_with_and_without_ascii_text() -> None:
    symbols = "".join(map(chr, [*range(0x20, 0x7F), *range(0x4E00, 0x4E00 + 300), 0xFFFD]))
    vocab = Vocab("char", tuple(c.encode() for c in symbols), unknown_id=395)
    for text in ("plain\tASCII", "plain\tand 一"):
        ids = vocab.encode(text.encode())
        assert ids.dtype == np.uint16
        assert ids.tolist() == [symbols.index(c) if c in symbols else 395 for c in text]


def test_end_token_has_no_text() -> None:
    assert (WITH_END.size, WITH_END.start_id) == (3, 2)
    assert WITH_END.decode([0, 2, 1, 2]) == "aé".encode()
    assert byte_vocab("token").decode([104, 256, 105]) == b"hi"
    assert (byte_vocab("token").dtype, byte_vocab("newline").dtype) == (np.uint16, np.uint8)
    assert (byte_vocab("token").start_id, byte_vocab("newline").end_id) == (256, 10)


def test_unknown_character_is_reported_with_its_offset() -> None:
    for text in ("aéxé", "aéßé"):
        with pytest.raises(StageError, match=r"the character '[xß]' \(U\+00..\) at offset 3 is not in the vocabulary"):
            WITH_END.encode(text.encode())
    with pytest.raises(StageError, match="byte 0xff at offset 1 is not UTF-8"):
        WITH_END.encode(b"a\xff")


def test_prompt_ids() -> None:
    assert [vocab.prompt_ids(b"a").tolist() for vocab in (SMALL, CHARS, WITH_END)] == [[2], [0, 1], [2, 0]]
    assert [vocab.prompt_ids(b"").tolist() for vocab in (SMALL, CHARS, WITH_END)] == [[1], [0], [2]]
    assert WITH_END.prompt_ids(b"a").dtype == np.uint8


def test_char_vocab() -> None:
    counts = Counter("bbbaaccé\n")
    assert char_vocab(counts).symbols == (b"\n", b"a", b"b", b"c", "é".encode())
    assert char_vocab(counts, max_size=2).symbols == (
        b"a",
        b"b",
    )  # a and c are equally frequent: the lower code point wins
    assert char_vocab(counts, min_count=2).symbols == (b"a", b"b", b"c")
    assert char_vocab(counts, max_size=3, end="newline") == Vocab("char", (b"\n", b"a", b"b"), end_id=0)
    assert char_vocab(Counter("b"), end="newline") == Vocab("char", (b"\n", b"b"), end_id=0)
    expected = Vocab("char", (b"b", "\ufffd".encode(), b""), end_id=2, unknown_id=1)
    assert char_vocab(counts, max_size=3, end="token", replace=True) == expected
    with pytest.raises(ValueError, match="one or more distinct symbols"):
        char_vocab(counts, min_count=4)
    with pytest.raises(ValueError, match="a vocabulary of 1 has no room"):
        char_vocab(counts, max_size=1, end="newline", replace=True)


@given(st.lists(st.text(max_size=9), max_size=5))
def test_count_characters(texts: list[str]) -> None:
    counts = count_characters(text.encode() for text in texts)
    codes = np.flatnonzero(counts)
    assert dict(zip(characters(codes), counts[codes].tolist(), strict=True)) == Counter("".join(texts))


def test_char_vocab_json() -> None:
    assert CHARS.to_json() == {"unit": "char", "symbols": "\nabé世\ufffd😀", "end_id": 0, "unknown_id": 5}
    assert WITH_END.to_json() == {"unit": "char", "symbols": "aé", "end_id": 2}


@pytest.mark.parametrize(
    ("known", "text", "message"),
    [
        (
            "cafe\u0301",
            "caf\u00e9",
            "'é' (U+00E9) at offset 3 is not in the vocabulary, which holds decomposed letters (U+0065 U+0301): "
            "normalize the text to NFD",
        ),
        (
            "caf\u00e9e",
            "cafe\u0301",
            "'\u0301' (U+0301) at offset 4 is not in the vocabulary, which holds composed letters (U+00E9): "
            "normalize the text to NFC",
        ),
        ("cafe", "caf\u00e9", "'é' (U+00E9) at offset 3 is not in the vocabulary"),
        ("cafe", "e\u0301", "'\u0301' (U+0301) at offset 1 is not in the vocabulary"),
    ],
)
def test_letter_in_another_unicode_normal_form(known: str, text: str, message: str) -> None:
    with pytest.raises(StageError) as error:
        char_vocab(Counter(known)).encode(text.encode())
    assert str(error.value) == f"the character {message}"
