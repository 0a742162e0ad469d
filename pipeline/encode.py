"""Encode stretches of text into shards: the work of an ingest worker, without Beam."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from common.errors import StageError
from pipeline import splits
from pipeline.shards import ShardWriter
from pipeline.splits import Piece, Stretch
from pipeline.text import READ_BYTES
from pipeline.vocab import Vocab

Advance = Callable[[int], None]  # reports bytes read, for the progress bar


class Encoder:
    """Encoder of texts into a shard. Counts bytes, documents and characters outside the vocabulary."""

    def __init__(self, vocab: Vocab, unknown: str, shard: ShardWriter):
        self.vocab, self.keep_unknown, self.shard = vocab, unknown != "skip", shard
        self.bytes, self.documents, self.outside = 0, 0, Counter[str]()

    def write(self, text: bytes | None) -> None:
        """Append the ids of a text, or of the end of a document (None)."""
        if text is None:
            ids, outside = np.array([self.vocab.end_id], self.vocab.dtype), Counter[str]()
        else:
            ids, outside = self.vocab.encode_known(text, self.keep_unknown)
            self.bytes += len(text)
        self.shard.write(ids)
        self.outside += outside
        if self.vocab.end_id is not None:
            self.documents += int(np.count_nonzero(ids == self.vocab.end_id))

    def report(self) -> dict[str, Any]:
        """Return the finished shard with its counts, as JSON."""
        shard = dataclasses.asdict(self.shard.shard)
        return shard | {"bytes": self.bytes, "documents": self.documents, "outside": dict(self.outside)}


def texts_of(stretch: Stretch, bounds: dict[str, int], advance: Advance) -> Iterator[tuple[str, bytes | None]]:
    """Read a stretch as (split, text) pairs of whole characters; a text of None ends a document.

    bounds: splits.hash_bounds, for stretches whose lines go to splits by hash.
    """
    for piece in stretch.pieces:
        if stretch.split:
            for text in _read(piece, advance):
                yield stretch.split, text
            if piece.end:
                yield stretch.split, None
        else:
            yield from _lines(piece, bounds, advance)


def _lines(piece: Piece, bounds: dict[str, int], advance: Advance) -> Iterator[tuple[str, bytes | None]]:
    """Read a piece line by line, each with its split; the lines of a split within one read are joined."""
    begun: list[bytes] = []  # parts of a line that continues in the next read
    for text in _read(piece, advance):
        *lines, rest = text.split(b"\n")
        if lines:
            lines[0], begun = b"".join([*begun, lines[0]]), []
        begun.append(rest)
        joined: dict[str, list[bytes]] = {name: [] for name in bounds}
        for line in lines:
            joined[splits.split_of_line(line, bounds)].append(line)
        yield from ((name, b"\n".join(own) + b"\n") for name, own in joined.items() if own)
    if piece.end:
        line = b"".join(begun)
        name = splits.split_of_line(line, bounds)
        yield from ((name, line), (name, None))


def _read(piece: Piece, advance: Advance) -> Iterator[bytes]:
    """Read a piece in parts that end between two UTF-8 characters."""
    left, rest = piece.length, b""
    with open(piece.path, "rb") as file:
        file.seek(piece.offset)
        while left:
            text = file.read(min(left, READ_BYTES))
            if not text:
                raise StageError(f"{piece.path} was truncated while it was read: run ingest again")
            left -= len(text)
            advance(len(text))
            text = rest + text
            cut = _last_character(text) if left else len(text)
            yield text[:cut]
            rest = text[cut:]


def _last_character(text: bytes) -> int:
    """Offset of the last character, before which the text decodes without what follows.

    Bytes that are not UTF-8 may be cut anywhere, so looking at the last four is enough.
    """
    for cut in range(len(text) - 1, max(len(text) - 5, 0), -1):
        if text[cut] & 0xC0 != 0x80:
            return cut
    return len(text)
