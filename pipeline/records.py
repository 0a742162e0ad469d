"""Text as the records that TFDV counts: one a chunk of text, as a pyarrow RecordBatch.

N characters of a text   C chunks of it   S distinct characters
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

CODE_POINTS = 0x110000
ESCAPED_BYTE = 0xDC00  # what errors="surrogateescape" adds to a byte that is no UTF-8
NEWLINE = ord("\n")
CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


def cut_at_characters(text: bytes, length: int, at_start: bool) -> bytes:
    """The whole characters that begin in text[:length], where text goes on for three bytes more if there are so many.

    Two neighbours cut so share no character and lose none. `at_start`: nothing comes before the text, so that
    continuation bytes at its head belong to no neighbour, and stay.
    """
    begin = 0 if at_start else _continuations(text[:3])
    return text[begin : length + _continuations(text[length : length + 3])]


def _continuations(text: bytes) -> int:
    return len(text) - len(text.lstrip(CONTINUATION_BYTES))


def code_points(text: bytes) -> npt.NDArray[np.uint32]:
    """The characters of a text as Unicode code points; a byte that is no UTF-8 becomes ESCAPED_BYTE + byte."""
    string = text.decode("utf-8", errors="surrogateescape")
    return np.frombuffer(string.encode("utf-32-le", errors="surrogatepass"), np.dtype("<u4"))


def name_of(code: int) -> str:
    r"""A printable name, a different one for every character.

    >>> [name_of(code) for code in (ord("a"), ord("é"), ord("\n"), ord(" "), 0x200B, ESCAPED_BYTE + 0xFF)]
    ['a', 'é', '\\n', '<space>', '\\u200b', '<0xff>']
    """
    if ESCAPED_BYTE + 0x80 <= code <= ESCAPED_BYTE + 0xFF:
        return f"<0x{code - ESCAPED_BYTE:02x}>"
    character = chr(code)
    if character == " ":
        return "<space>"
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def record_batch(text: bytes, chunk_chars: int) -> pa.RecordBatch:
    """Every `chunk_chars` characters of the text as one record of these features:

    char: the name of every character, a list; newlines, longest_line: numbers of characters;
    non_ascii, space, digit, not_utf8: shares of the characters, 0 to 1.
    """
    codes_N = code_points(text)
    starts_C = np.arange(0, len(codes_N), chunk_chars)
    sizes_C = np.diff(starts_C, append=len(codes_N))
    used_S = np.flatnonzero(np.bincount(codes_N))
    names = [name_of(code) for code in used_S.tolist()]

    def count(test: Callable[[str], bool]) -> npt.NDArray[np.int64]:
        """How many characters of each chunk pass: Python is asked once for each distinct one, NumPy adds up."""
        passes = np.zeros(CODE_POINTS, bool)
        passes[used_S] = [test(chr(code)) for code in used_S.tolist()]
        return np.add.reduceat(passes[codes_N], starts_C, dtype=np.int64)

    position = np.zeros(CODE_POINTS, np.int32)
    position[used_S] = np.arange(len(used_S))
    char = pa.array(names, pa.string()).take(pa.array(position[codes_N]))
    offsets = pa.array(np.append(starts_C, len(codes_N)), pa.int32())
    columns = {
        "char": pa.ListArray.from_arrays(offsets, char),
        "newlines": _one_each(count(lambda c: c == "\n")),
        "longest_line": _one_each(longest_lines(codes_N, starts_C)),
        "non_ascii": _one_each(count(lambda c: not c.isascii()) / sizes_C),
        "space": _one_each(count(str.isspace) / sizes_C),
        "digit": _one_each(count(str.isdigit) / sizes_C),
        "not_utf8": _one_each(count(lambda c: 0xDC80 <= ord(c) <= 0xDCFF) / sizes_C),
    }
    return pa.RecordBatch.from_pydict(columns)


def longest_lines(codes_N: npt.NDArray[np.uint32], starts_C: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The length of the longest line of each chunk, or of the longest part of one that lies in the chunk."""
    ends = np.flatnonzero(codes_N == NEWLINE)
    # Lines begin after a newline, and anew with every chunk; the newline that ends a line is not of its length.
    begins = np.union1d(starts_C, ends[ends + 1 < len(codes_N)] + 1)
    lengths = np.diff(begins, append=len(codes_N)) - np.isin(np.append(begins[1:], len(codes_N)) - 1, ends)
    return np.maximum.reduceat(lengths, np.searchsorted(begins, starts_C))


def _one_each(values_C: npt.NDArray[Any]) -> pa.ListArray:
    dtype = np.int64 if values_C.dtype.kind == "i" else np.float32
    return pa.ListArray.from_arrays(
        pa.array(np.arange(len(values_C) + 1), pa.int32()), pa.array(values_C.astype(dtype))
    )
