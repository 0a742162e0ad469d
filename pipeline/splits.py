"""Cut the text into splits, and each split into the stretches that workers write as shards.

The files of a corpus are laid out on one line of positions: each file's bytes, then one position for the end of the
document, if documents are marked and the text does not mark the end itself. A cut inside a character or a document
moves to its end. Only the few bytes around a cut are read.
"""

import bisect
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

from common.errors import StageError
from pipeline.text import Text

SPLITS = ("train", "val", "test")
LOOK_BYTES = 64 << 10


class Piece(NamedTuple):
    """Part of a file, in bytes; `end`: followed by an end-of-document token that has no text."""

    path: str
    offset: int
    length: int
    end: bool


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Work of one worker: pieces and their split, or "" if each line goes to a split by its hash."""

    split: str
    index: int
    pieces: tuple[Piece, ...]


class Layout:
    """Files on one line of positions.

    documents: "none"; "line": each line is a document; "file": each file is. unit: as in Vocab.
    """

    def __init__(self, texts: Iterable[Text], documents: str, unit: str):
        self.documents, self.unit = documents, unit
        self.texts = [text for text in texts if text.bytes]
        self.starts, self.ends_document = [0], []
        for text in self.texts:
            unmarked = documents == "file" or (documents == "line" and not text.newline_at_end)
            self.ends_document.append(unmarked)
            self.starts.append(self.starts[-1] + text.bytes + unmarked)

    @property
    def total(self) -> int:
        """Number of positions."""
        return self.starts[-1]

    def aligned(self, position: int) -> int:
        """First position at or after `position` where two splits may be cut apart."""
        return self._cut(position, self.documents)

    def pieces(self, span: range) -> Iterator[Piece]:
        """Parts of files that make up the positions `span`."""
        index = bisect.bisect_right(self.starts, span.start) - 1
        while index < len(self.texts) and self.starts[index] < span.stop:
            text, start = self.texts[index], self.starts[index]
            first, last = max(span.start - start, 0), min(span.stop - start, text.bytes)
            end = self.ends_document[index] and self.starts[index + 1] <= span.stop
            if first < last or end:
                yield Piece(text.path, first, max(last - first, 0), end)
            index += 1

    def stretches(self, span: range, bytes_each: int, documents: str) -> list[range]:
        """Cut a span into parts of about `bytes_each`, at the ends of characters or of `documents`."""
        cuts = [span.start]
        while cuts[-1] < span.stop:
            cuts.append(min(self._cut(cuts[-1] + bytes_each, documents), span.stop))
        return [range(start, stop) for start, stop in itertools.pairwise(cuts)]

    def _cut(self, position: int, documents: str) -> int:
        if position >= self.total:
            return self.total
        index = bisect.bisect_right(self.starts, position) - 1
        text, start = self.texts[index], self.starts[index]
        if position == start:
            return position
        if documents == "file":
            return self.starts[index + 1]
        if documents == "line":
            return min(start + _after_newline(text.path, position - start - 1), self.starts[index + 1])
        return start + _character_start(text.path, position - start) if self.unit == "char" else position


def shares(values: dict[str, int | float], total: int) -> dict[str, range]:
    """Positions of each split, from shares that sum to 1 or numbers of bytes.

    A split ends at the sum of the shares up to its own, rounded down. Empty shares make no split.
    Raises StageError for more bytes than the text has.
    """
    by_bytes = in_bytes(values)
    if by_bytes and sum(values.values()) > total:
        raise StageError(f"train, val and test need {sum(values.values()):,} bytes, but the text has {total:,}")
    ranges, share, start = {}, Fraction(0), 0
    for name, part in values.items():
        share += as_decimal(part)
        stop = math.floor(share if by_bytes else total * share)
        if part:
            ranges[name] = range(start, stop)
        start = stop
    return ranges


def in_bytes(values: dict[str, int | float]) -> bool:
    """Check whether splits are numbers of bytes rather than shares."""
    return any(value > 1 for value in values.values())


def as_decimal(value: int | float) -> Fraction:
    """Exact value of a decimal: 0.7 + 0.1 is 0.8 here, but not in floats."""
    return Fraction(str(value))


def contiguous(layout: Layout, values: dict[str, int | float]) -> dict[str, list[range]]:
    """Beginning, middle and end of the text."""
    spans = shares(values, layout.total)
    return {name: [range(layout.aligned(span.start), layout.aligned(span.stop))] for name, span in spans.items()}


def of_each_stream(layout: Layout, values: dict[str, int | float], streams: int) -> dict[str, list[range]]:
    """Split as char-rnn's CharSplitLMMinibatchLoader: cut the text into equal streams, one per lane; the beginning of
    each goes to train, its middle to val and its end to test."""
    cuts = [layout.aligned(index * layout.total // streams) for index in range(streams + 1)]
    splits: dict[str, list[range]] = {}
    for start, stop in itertools.pairwise(cuts):
        for name, span in shares(values, stop - start).items():
            part = range(layout.aligned(start + span.start), min(layout.aligned(start + span.stop), stop))
            splits.setdefault(name, []).append(part)
    return splits


def files_by_hash(layout: Layout, values: dict[str, int | float]) -> dict[str, list[range]]:
    """Assign each file to a split by the hash of its text, so that equal texts share a split in any corpus."""
    bounds = hash_bounds(values)
    splits: dict[str, list[range]] = {name: [] for name in bounds}
    for index, text in enumerate(layout.texts):
        name = split_of(bytes.fromhex(text.text_sha256), bounds)
        splits[name].append(range(layout.starts[index], layout.starts[index + 1]))
    return splits


def hash_bounds(values: dict[str, int | float]) -> dict[str, int]:
    """Upper bound of the 64-bit document hashes of each split."""
    bounds, share = {}, Fraction(0)
    for name, part in values.items():
        share += as_decimal(part)
        if part:
            bounds[name] = math.ceil(share * 2**64)
    return bounds


def split_of(digest: bytes, bounds: dict[str, int]) -> str:
    """Split of a document, from the first eight bytes of its hash."""
    number = int.from_bytes(digest[:8], "big")
    return next(name for name, bound in bounds.items() if number < bound)


def split_of_line(line: bytes, bounds: dict[str, int]) -> str:
    """Split of a line without its newline, so that equal lines share a split."""
    return split_of(hashlib.blake2b(line, digest_size=8).digest(), bounds)


def _after_newline(path: str, offset: int) -> int:
    """Offset after the first newline at or after `offset`; past the end of the file if there is none."""
    with open(path, "rb") as file:
        file.seek(offset)
        while part := file.read(LOOK_BYTES):
            if (at := part.find(b"\n")) >= 0:
                return offset + at + 1
            offset += len(part)
    return offset + 1


def _character_start(path: str, offset: int) -> int:
    """Offset of the first character that begins at or after `offset`."""
    with open(path, "rb") as file:
        file.seek(offset)
        head = file.read(3)
    while head and head[0] & 0xC0 == 0x80:
        head, offset = head[1:], offset + 1
    return offset
