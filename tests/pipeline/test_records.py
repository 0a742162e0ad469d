import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import records
from pipeline.records import cut_at_characters, longest_lines, name_of, record_batch

TEXT = "a é€𝄞\n".encode()


def cut(text: bytes, size: int) -> list[bytes]:
    """The text in ranges of `size` bytes, cut as pipeline.validate does."""
    starts = range(0, len(text), size)
    return [cut_at_characters(text[s : s + size + 3], min(size, len(text) - s), s == 0) for s in starts]


@pytest.mark.parametrize("size", range(1, len(TEXT) + 1))
def test_ranges_are_cut_at_characters(size: int) -> None:
    parts = cut(TEXT, size)
    assert b"".join(parts) == TEXT
    assert "".join(part.decode() for part in parts) == TEXT.decode()


def test_bytes_that_are_no_character_at_the_very_start_stay() -> None:
    assert cut(b"\x80\x80ab", 3) == [b"\x80\x80a", b"b"]


@given(st.text(), st.integers(1, 20))
def test_any_text_is_cut_without_loss(text: str, size: int) -> None:
    assert "".join(part.decode() for part in cut(text.encode(), size)) == text


def test_doctest() -> None:
    assert doctest.testmod(records).failed == 0


def test_names_are_printable_and_all_different() -> None:
    names = [name_of(code) for code in range(records.CODE_POINTS)]
    assert all(name.isprintable() for name in names)
    assert len(set(names)) == len(names)
    for name in names:
        name.encode()  # TFDV drops what is no UTF-8


def test_the_whole_record_batch() -> None:
    batch = record_batch("né 12\n\tx".encode() + b"\xff\n", chunk_chars=6)
    assert batch.to_pydict() == {
        "char": [["n", "é", "<space>", "1", "2", "\\n"], ["\\t", "x", "<0xff>", "\\n"]],
        "newlines": [[1], [1]],
        "longest_line": [[5], [3]],
        "non_ascii": [[np.float32(1 / 6)], [0.25]],
        "space": [[np.float32(2 / 6)], [0.5]],
        "digit": [[np.float32(2 / 6)], [0.0]],
        "not_utf8": [[0.0], [0.25]],
    }


@given(st.text(alphabet="ab\n", min_size=1), st.integers(1, 9))
def test_longest_lines(text: str, size: int) -> None:
    starts = range(0, len(text), size)
    wanted = [max(map(len, text[start : start + size].split("\n"))) for start in starts]
    codes = np.array([ord(c) for c in text], np.uint32)
    assert longest_lines(codes, np.array(starts)).tolist() == wanted
