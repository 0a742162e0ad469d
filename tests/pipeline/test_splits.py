import dataclasses
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common.errors import StageError
from pipeline.splits import Layout, contiguous, files_by_hash, hash_bounds, of_each_stream, shares, split_of_line
from pipeline.text import Text

THIRDS = {"train": 0.5, "val": 0.25, "test": 0.25}
END = "¶"  # represents document ends that the text does not mark


def layout(folder: Path, texts: list[str], documents: str = "none", unit: str = "byte") -> Layout:
    files = []
    for index, text in enumerate(texts):
        path = folder / str(index)
        path.write_text(text, newline="")
        data = text.encode()
        files.append(Text(str(path), len(data), len(data), 0, "", f"{index:064x}", data.endswith(b"\n"), {}))
    return Layout(files, documents, unit)


def cut(lay: Layout, spans: list[range], encoding: str = "utf-8") -> str:
    """Return the text at given positions."""
    text = b""
    for piece in (piece for span in spans for piece in lay.pieces(span)):
        text += Path(piece.path).read_bytes()[piece.offset : piece.offset + piece.length]
        text += END.encode() if piece.end else b""
    return text.decode(encoding, errors="replace")


@pytest.mark.parametrize(
    ("values", "total", "expected"),
    [
        ({"train": 0.9, "val": 0.05, "test": 0.05}, 1_115_394, [1_003_854, 55_770, 55_770]),
        ({"train": 0.9, "val": 0.1, "test": 0}, 1_115_394, [1_003_854, 111_540]),
        (
            {"train": 0.7, "val": 0.1, "test": 0.2},
            20,
            [14, 2, 4],
        ),  # in floating point 0.7 + 0.1 < 0.8, and val would get 1
        ({"train": 1, "val": 0, "test": 0}, 2, [2]),
        ({"train": 96, "val": 0, "test": 4}, 100, [96, 4]),
        ({"train": 90, "val": 5, "test": 5}, 120, [90, 5, 5]),
    ],
)
def test_shares_are_contiguous_and_exact(values: dict[str, int | float], total: int, expected: list[int]) -> None:
    spans = list(shares(values, total).values())
    assert list(map(len, spans)) == expected
    assert [i for span in spans for i in span] == list(range(sum(expected)))


def test_shares_larger_than_the_text_raise() -> None:
    with pytest.raises(StageError, match="train, val and test need 101 bytes, but the text has 100"):
        shares({"train": 96, "val": 1, "test": 4}, 100)


@pytest.mark.parametrize(
    ("documents", "unit", "expected"),
    [
        ("none", "byte", ["ab\nc\ufffd", "\ufffd\nf", "gh\n"]),  # é is split
        ("none", "char", ["ab\ncé", "\nf", "gh\n"]),
        ("line", "byte", ["ab\ncé\n", "fgh\n", ""]),
        ("file", "byte", [f"ab\ncé\n{END}", f"fgh\n{END}", ""]),
    ],
)
def test_cuts_respect_units_and_documents(tmp_path: Path, documents: str, unit: str, expected: list[str]) -> None:
    lay = layout(tmp_path, ["ab\ncé\n", "fgh\n"], documents, unit)
    assert [cut(lay, spans) for spans in contiguous(lay, THIRDS).values()] == expected


def test_unterminated_lines_get_an_end(tmp_path: Path) -> None:
    lay = layout(tmp_path, ["ann\nbob", "", "cy"], "line")
    assert cut(lay, [range(lay.total)]) == f"ann\nbob{END}cy{END}"
    assert lay.total == 4 + 3 + 1 + 2 + 1


def test_char_rnn_split_takes_the_end_of_each_stream(tmp_path: Path) -> None:
    lay = layout(tmp_path, ["abcdefgh", "ijklmnop"])
    splits = {name: cut(lay, spans) for name, spans in of_each_stream(lay, THIRDS, streams=4).items()}
    assert splits == {"train": "abefijmn", "val": "cgko", "test": "dhlp"}


def test_char_rnn_split_does_not_cut_characters(tmp_path: Path) -> None:
    lay = layout(tmp_path, ["aé世bcd世é"], unit="char")
    splits = {name: cut(lay, spans) for name, spans in of_each_stream(lay, THIRDS, streams=2).items()}
    assert splits == {"train": "aécd世", "val": "世", "test": "bé"}


def test_cuts_at_line_ends_are_kept(tmp_path: Path) -> None:
    lay = layout(tmp_path, ["abc\nefg\n"], "line")
    assert [lay.aligned(position) for position in range(9)] == [0, 4, 4, 4, 4, 8, 8, 8, 8]


def test_files_are_split_by_hash(tmp_path: Path) -> None:
    lay = layout(tmp_path, ["a\n", "b\n", "c\n"], "file")
    hashes = ["0" * 64, "f" * 64, "8" * 64]
    lay.texts = [dataclasses.replace(text, text_sha256=sha) for text, sha in zip(lay.texts, hashes, strict=True)]
    splits = {name: cut(lay, spans) for name, spans in files_by_hash(lay, THIRDS).items()}
    assert splits == {"train": f"a\n{END}", "val": f"c\n{END}", "test": f"b\n{END}"}


def test_line_hashes_follow_the_shares() -> None:
    bounds = hash_bounds({"train": 0.5, "val": 0, "test": 0.5})
    splits = [split_of_line(str(number).encode(), bounds) for number in range(2000)]
    assert set(splits) == {"train", "test"}
    assert 900 < splits.count("train") < 1100


TEXTS = st.lists(st.text(alphabet="aé世😀\n", max_size=12), min_size=1, max_size=5)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    TEXTS, st.sampled_from(["none", "line", "file"]), st.sampled_from(["byte", "char"]), st.integers(1, 9), st.data()
)
def test_concatenated_parts_equal_the_whole(
    texts: list[str], documents: str, unit: str, size: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lay = layout(Path(folder), texts, documents, unit)
        pieces_of_all = [
            (Path(p.path).read_bytes()[p.offset : p.offset + p.length], p.end) for p in lay.pieces(range(lay.total))
        ]
        nonempty = [text.encode() for text in texts if text]
        unmarked = {"none": lambda t: False, "file": lambda t: True, "line": lambda t: t[-1:] != b"\n"}[documents]
        assert pieces_of_all == [(text, unmarked(text)) for text in nonempty]
        cuts = data.draw(st.sampled_from(["none", documents]))
        parts = lay.stretches(range(lay.total), size, cuts)
        assert [i for part in parts for i in part] == list(range(lay.total))
        if cuts == documents == "none":
            assert all(size <= len(part) <= size + 3 for part in parts[:-1])
        assert "".join(cut(lay, [part], "latin-1") for part in parts) == cut(lay, [range(lay.total)], "latin-1")
        for part in parts:
            pieces = list(lay.pieces(part))
            if unit == "char" or cuts != "none":
                for p in pieces:
                    Path(p.path).read_bytes()[p.offset : p.offset + p.length].decode()
            if cuts != "none":
                last = pieces[-1]
                text = Path(last.path).read_bytes()[last.offset : last.offset + last.length]
                assert last.end or text.endswith(b"\n")
