import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_data import make_data

from pipeline.records import code_of, cut_at_characters, name_of, read_text, record_batch
from pipeline.vocab import CODE_POINTS, Vocab, byte_vocab, char_vocab

TEXT = "a é€𝄞\n".encode()


def cut(text: bytes, size: int) -> list[bytes]:
    """Cut a text into ranges of `size` bytes like pipeline.validate."""
    vocab, tokens = byte_vocab(), np.frombuffer(text, np.uint8)
    starts = range(0, len(text), size)
    return [cut_at_characters(tokens[s : s + size + 3], vocab, min(size, len(text) - s), s == 0) for s in starts]


@pytest.mark.parametrize("size", range(1, len(TEXT) + 1))
def test_ranges_are_cut_at_characters(size: int) -> None:
    parts = cut(TEXT, size)
    assert b"".join(parts) == TEXT
    assert "".join(part.decode() for part in parts) == TEXT.decode()


def test_leading_continuation_bytes_are_kept() -> None:
    assert cut(b"\x80\x80ab", 3) == [b"\x80\x80a", b"b"]


@given(st.text(), st.integers(1, 20))
def test_cutting_preserves_any_text(text: str, size: int) -> None:
    assert "".join(part.decode() for part in cut(text.encode(), size)) == text


@given(st.binary(), st.integers(1, 20))
def test_cutting_preserves_any_bytes(data: bytes, size: int) -> None:
    parts = [part.decode(errors="surrogateescape") for part in cut(data, size)]
    assert "".join(parts) == data.decode(errors="surrogateescape")


def test_ranges_cross_shards(folder: Path) -> None:
    manifest = make_data(folder, 4, train=TEXT * 3)
    parts = [read_text(folder, manifest, manifest.splits["train"], start, start + 5) for start in range(0, 36, 5)]
    assert b"".join(parts) == TEXT * 3
    assert all(part.decode() for part in parts if part)


@pytest.mark.parametrize(
    "vocab", [char_vocab(Counter("aé\n"), end="token"), byte_vocab(end="token")], ids=["char", "byte"]
)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_document_ends_have_no_text(folder: Path, vocab: Vocab, size: int) -> None:
    documents = ["é".encode(), b"a", b"", "éé\n".encode()]
    ids = [np.append(vocab.encode(document), vocab.end_id) for document in documents]
    manifest = make_data(folder, 3, vocab, train=np.concatenate(ids))
    split = manifest.splits["train"]
    parts = [read_text(folder, manifest, split, start, start + size) for start in range(0, split.tokens, size)]
    assert [part.decode() for part in parts if part]
    assert b"".join(parts) == b"".join(documents)


def test_character_names_are_printable_and_unique() -> None:
    names = [name_of(code) for code in range(CODE_POINTS)]
    assert all(name.isprintable() for name in names)
    assert [code_of(name) for name in names] == list(range(CODE_POINTS))
    for name in names:
        name.encode()  # TFDV drops names that are not UTF-8


def test_invalid_character_name_raises() -> None:
    with pytest.raises(ValueError, match="'ab' is not the name of a character"):
        code_of("ab")


def test_record_batch_features() -> None:
    batch = record_batch("né 12\n\tx".encode() + b"\xff\x01\n", chunk_chars=6)
    assert batch.to_pydict() == {
        "char": [["n", "é", "<space>", "1", "2", "\\n"], ["\\t", "x", "<0xff>", "\\x01", "\\n"]],
        "bytes": [[7], [5]],
        "characters": [[6], [5]],
        "lines": [[1], [1]],
        "longest_line": [[5], [4]],
        "repeated_lines": [[0.0], [0.0]],
        "entropy": [[np.float32(np.log2(6))], [np.float32(np.log2(5))]],
        "non_ascii": [[np.float32(1 / 6)], [np.float32(0.2)]],
        "control": [[0.0], [np.float32(0.2)]],
        "space": [[np.float32(2 / 6)], [np.float32(0.4)]],
        "digit": [[np.float32(2 / 6)], [0.0]],
        "not_utf8": [[0.0], [np.float32(0.2)]],
    }


def reference(record: str) -> dict[str, Any]:
    """Compute a record's features, one character and one line at a time."""
    size, seen, repeated, filled = len(record), set[str](), 0, 0
    lines = record.split("\n")
    if len(lines) > 1 and lines[-1] == "":
        lines.pop()
    for line in lines:
        if line.strip():
            filled += 1
            repeated += line in seen
            seen.add(line)
    bad = [c for c in record if 0xDC80 <= ord(c) <= 0xDCFF]
    control = [c for c in record if unicodedata.category(c) == "Cc" and c not in "\t\n\r"]
    return {
        "char": [name_of(ord(c)) for c in record],
        "bytes": [len(record.encode(errors="surrogateescape"))],
        "characters": [size],
        "lines": [len(lines)],
        "longest_line": [max(len(line) for line in lines)],
        "repeated_lines": [repeated / filled if filled else 0],
        "entropy": [-sum(n / size * np.log2(n / size) for n in Counter(record).values())],
        "non_ascii": [sum(ord(c) > 127 for c in record) / size],
        "control": [len(control) / size],
        "space": [sum(c.isspace() for c in record) / size],
        "digit": [sum(c.isdigit() for c in record) / size],
        "not_utf8": [len(bad) / size],
    }


@given(
    st.lists(st.sampled_from([*"ab \n\n\t\r\x00\x0b0٣é€𝄞", "a\n", "\xa0", "\udcff", "\udc80", "\u200b"]), min_size=1),
    st.integers(1, 9),
)
@example([" \n", " \n", "a\n"], 6)
def test_record_batch_matches_reference(parts: list[str], size: int) -> None:
    # Decode the joined bytes: adjacent parts may form one character.
    data = "".join(parts).encode(errors="surrogateescape")
    text = data.decode(errors="surrogateescape")
    actual = record_batch(data, size).to_pydict()
    for index, start in enumerate(range(0, len(text), size)):
        for feature, expected in reference(text[start : start + size]).items():
            if isinstance(expected[0], str):
                assert actual[feature][index] == expected
            else:
                assert actual[feature][index] == pytest.approx(expected, rel=1e-6), feature
    assert len(actual["char"]) == -(-len(text) // size)
