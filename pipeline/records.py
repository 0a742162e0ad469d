"""Turn text into the records that TFDV counts, one per chunk of text, as a pyarrow RecordBatch.

N characters of a text   C chunks of it   n characters of a chunk   S distinct characters   P properties of one
"""

import unicodedata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.manifest import Manifest, Split
from pipeline.shards import read_tokens
from pipeline.vocab import CODE_POINTS, CONTINUATION, Vocab, code_points

# Characters per record, over which shares and line lengths are computed: some hundred lines, and hundreds of records in
# 1 MB of text.
RECORD_CHARS = 4096
ESCAPED_BYTE = 0xDC00  # what errors="surrogateescape" adds to a byte that is not UTF-8
SHARES = ("non_ascii", "control", "space", "digit", "not_utf8")
NUMBERS = ("bytes", "characters", "lines", "longest_line", "repeated_lines", "entropy", *SHARES)
FEATURES = ("char", *NUMBERS)


def read_text(folder: Path, manifest: Manifest, split: Split, start: int, stop: int) -> bytes:
    """Read the whole characters that begin in tokens [start, stop) of a split.

    Adjacent ranges neither share nor lose a character; a range of a byte or two may be empty.
    """
    # The last character may extend three tokens past the range.
    tokens = read_tokens(folder, split, manifest.dtype, start, min(stop + 3, split.tokens))
    return cut_at_characters(tokens, manifest.vocab, min(stop, split.tokens) - start, at_start=start == 0)


def cut_at_characters(tokens: npt.NDArray[np.unsignedinteger], vocab: Vocab, length: int, at_start: bool) -> bytes:
    """Decode the whole characters that begin in tokens[:length]; `tokens` has up to three more for the last one.

    at_start: nothing precedes, so leading continuation bytes belong to no other range and stay.
    """
    text = vocab.decode(tokens[:length])
    after = vocab.decode(tokens[length : length + 3])
    begin = 0 if at_start else _continuations(vocab.decode(tokens[:3]))
    return (text + after[: _continuations(after)])[begin:]


def _continuations(text: bytes) -> int:
    return len(text) - len(text.lstrip(CONTINUATION))


def is_escaped_byte(code: int) -> bool:
    """Check whether a code point represents a byte that is not UTF-8."""
    return ESCAPED_BYTE + 0x80 <= code <= ESCAPED_BYTE + 0xFF


def name_of(code: int) -> str:
    r"""Printable name, unique to each character; `code_of` is the inverse.

    >>> [name_of(code) for code in (ord("a"), ord("é"), ord("\n"), ord(" "), 0x200B, ESCAPED_BYTE + 0xFF)]
    ['a', 'é', '\\n', '<space>', '\\u200b', '<0xff>']
    """
    if is_escaped_byte(code):
        return f"<0x{code - ESCAPED_BYTE:02x}>"
    character = chr(code)
    if character == " ":
        return "<space>"
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def code_of(name: str) -> int:
    """Code point with this name. Raises ValueError for an invalid name."""
    if len(name) == 1:
        return ord(name)
    if name == "<space>":
        return ord(" ")
    if name.startswith("<0x"):
        return ESCAPED_BYTE + int(name[3:-1], 16)
    try:
        return ord(name.encode().decode("unicode_escape"))
    except TypeError:
        raise ValueError(f"{name!r} is not the name of a character") from None


def record_batch(text: bytes, chunk_chars: int) -> pa.RecordBatch:
    """Make one record of every `chunk_chars` characters of the text, with these features:

    char: list of the names of its characters;
    bytes, characters: counts; entropy: of the character distribution, in bits per character;
    lines: whole and partial lines; longest_line: in characters, without its newline;
    repeated_lines: share of the non-blank lines that occurred earlier in the record, 0 to 1;
    non_ascii, control, space, digit, not_utf8: shares of the characters, 0 to 1. Tabs and line ends are not counted as
    control characters.
    """
    string = text.decode("utf-8", errors="surrogateescape")
    codes_N = code_points(text, errors="surrogateescape")
    starts_C = np.arange(0, len(codes_N), chunk_chars)
    used_S = np.flatnonzero(np.bincount(codes_N))
    position = np.zeros(CODE_POINTS, np.int32)
    position[used_S] = np.arange(len(used_S))
    positions_N = position[codes_N]
    properties_SxP = np.array([_properties(code) for code in used_S.tolist()])
    numbers = [
        _characters_of(positions_n, properties_SxP) | _lines_of(string[start : start + chunk_chars])
        for start, positions_n in zip(starts_C.tolist(), np.split(positions_N, starts_C[1:]), strict=True)
    ]
    names = pa.array([name_of(code) for code in used_S.tolist()], pa.string())
    char = names.take(pa.array(positions_N))
    offsets = pa.array(np.append(starts_C, len(codes_N)), pa.int32())
    columns = {"char": pa.ListArray.from_arrays(offsets, char)}
    for feature in NUMBERS:
        values_C = np.array([record[feature] for record in numbers])
        values = pa.array(values_C if values_C.dtype.kind == "i" else values_C.astype(np.float32))
        columns[feature] = pa.ListArray.from_arrays(pa.array(np.arange(len(values_C) + 1), pa.int32()), values)
    return pa.RecordBatch.from_pydict(columns)


def _properties(code: int) -> tuple[int, ...]:
    """Bytes in UTF-8, then membership in each of SHARES."""
    character, escaped = chr(code), is_escaped_byte(code)
    size = 1 if escaped else len(character.encode("utf-8", errors="surrogatepass"))
    control = unicodedata.category(character) == "Cc" and character not in "\t\n\r"
    return size, not character.isascii(), control, character.isspace(), character.isdigit(), escaped


def _characters_of(positions_n: npt.NDArray[np.int32], properties_SxP: npt.NDArray[np.int64]) -> dict[str, float]:
    counts_S = np.bincount(positions_n, minlength=len(properties_SxP))
    size, *sums = (counts_S @ properties_SxP).tolist()
    shares_S = counts_S[counts_S > 0] / len(positions_n)
    return {
        "bytes": size,
        "characters": len(positions_n),
        # abs: a single distinct character would give -0.0.
        "entropy": abs(float(shares_S @ np.log2(shares_S))),
        **{name: total / len(positions_n) for name, total in zip(SHARES, sums, strict=True)},
    }


def _lines_of(record: str) -> dict[str, float]:
    lines = record.removesuffix("\n").split("\n")
    nonblank = [line for line in lines if line and not line.isspace()]
    return {
        "lines": len(lines),
        "longest_line": max(map(len, lines)),
        "repeated_lines": 1 - len(set(nonblank)) / len(nonblank) if nonblank else 0.0,
    }
