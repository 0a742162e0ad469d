"""Read files as checked UTF-8 text: encodings, byte-order marks, newlines, binary files.

A file that needs no change is only read; any other is converted to UTF-8 in a scratch file.
"""

import codecs
import dataclasses
import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from common.errors import StageError
from common.files import sha256_file
from pipeline.archives import compression, is_archive, open_text

READ_BYTES = 256 << 10  # small, so that many pieces of a Western text are pure ASCII, which has a fast path
MAX_UNPACKED_BYTES = 64 << 30  # of one compressed file: above any corpus, below what fills a disk
RAW = "raw"
LEFT_OUT = "files that are not text, left out"
# Longest first: the mark of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ENCODING_FIX = "pass the encoding (such as --encoding latin-1), or --errors replace or --errors skip"
EXCLUDE_FIX = "leave the file out with --exclude or --errors skip"


@dataclasses.dataclass(frozen=True)
class ReadingRules:
    """Rules for reading files.

    encoding: Python's name; "raw" takes the bytes unchecked.
    errors: "strict" rejects invalid bytes; "replace" substitutes U+FFFD for them; "skip" drops them, and binary files
        altogether.
    newlines: "keep", or "lf": convert CR LF and a lone CR to LF.
    bom: "keep", or "strip" a byte-order mark at the start of a file.
    """

    encoding: str
    errors: str
    newlines: str
    bom: str


@dataclasses.dataclass(frozen=True)
class Text:
    """Text of a file: `bytes` bytes of the file `path`, which is the source itself or a scratch file.

    source_bytes, sha256: of the source file itself; modified: its modification time, in ns.
    text_sha256: of the text, independent of compression and encoding. newline_at_end: whether it ends with a newline.
    changes: changes made to the text, counted by kind. A file that was left out has no bytes and no path.
    """

    path: str
    bytes: int
    source_bytes: int
    modified: int
    sha256: str
    text_sha256: str
    newline_at_end: bool
    changes: dict[str, int]


class BinaryFileError(Exception):
    """Finding that a file is not text; the message has the evidence and its offset."""


def read_text(path: Path, name: str, rules: ReadingRules, scratch: Path, advance: Callable[[int], None]) -> Text:
    """Read and check a whole file; if it is compressed or the rules change it, write its text to `scratch`.

    advance: called with the number of bytes of each read. Raises StageError with the file, the offset in bytes (after
    decompression) and the invalid byte.
    """
    changes: Counter[str] = Counter()
    plain = dataclasses.replace(rules, errors="strict", newlines="keep", bom="keep")
    last, length, text_digest = b"", 0, hashlib.sha256()
    try:
        # Take the time first, so that any later write is noticed.
        source = path.stat()
        digest = sha256_file(path)
        packed = compression(path) if rules.encoding != RAW else None
        unchanged = not packed and rules == plain and rules.encoding in ("utf-8", RAW)
        if rules.encoding != RAW and is_archive(path):
            raise BinaryFileError("it is an archive: unpack it and pass the folder")
        with open_text(path) if packed else path.open("rb") as file:
            pieces = _limited(file, name, MAX_UNPACKED_BYTES if packed else None, advance)
            if rules.encoding == RAW:
                texts = pieces
            elif unchanged:
                texts = (piece for piece, _ in _decoded(pieces, name, rules, changes))
            else:
                texts = _cleaned(pieces, name, rules, changes)
            with open(os.devnull if unchanged else scratch, "wb") as out:
                for text in texts:
                    out.write(text)
                    if not unchanged:
                        text_digest.update(text)
                    last, length = text[-1:] or last, length + len(text)
    except BinaryFileError as error:
        if rules.errors != "skip":
            raise StageError(f"{name} is not text in {rules.encoding}: {error}") from None
        scratch.unlink(missing_ok=True)
        return Text("", 0, source.st_size, source.st_mtime_ns, digest, digest, False, {LEFT_OUT: 1})
    except OSError as error:
        raise StageError(f"{path} cannot be read: {error.strerror or error}") from None
    return Text(
        path=str(path if unchanged else scratch),
        bytes=length,
        source_bytes=source.st_size,
        modified=source.st_mtime_ns,
        sha256=digest,
        text_sha256=digest if unchanged else text_digest.hexdigest(),
        newline_at_end=last == b"\n",
        changes=dict(+changes),
    )


def check_encoding(name: str) -> str:
    """Normalize the name of an encoding, such as UTF8 to utf-8. Raises ValueError unless it is a text encoding that
    can be decoded incrementally."""
    if name == RAW:
        return name
    try:
        codec = codecs.lookup(name)
    except LookupError:
        codec = None
    if codec is None or not codec._is_text_encoding or codec.incrementaldecoder is None:
        raise ValueError(f"unknown text encoding {name!r}: use utf-8, utf-16, latin-1, cp1252, ... or raw")
    return codec.name


def _limited(file: IO[bytes], name: str, ceiling: int | None, advance: Callable[[int], None]) -> Iterator[bytes]:
    total = 0
    while piece := file.read(READ_BYTES):
        total += len(piece)
        if ceiling is not None and total > ceiling:
            raise StageError(
                f"{name} unpacks to more than {ceiling:,} bytes: decompress it yourself and pass the result"
            )
        advance(len(piece))
        yield piece


def _cleaned(pieces: Iterator[bytes], name: str, rules: ReadingRules, changes: Counter[str]) -> Iterator[bytes]:
    """Convert to UTF-8, applying the rules for newlines and byte-order marks."""
    newline = io.IncrementalNewlineDecoder(None, translate=True)
    at_start = True
    for _, text in _decoded(pieces, name, rules, changes):
        if at_start and text:
            if rules.bom == "strip" and text[0] == "\ufeff":
                text, changes["byte-order marks stripped"] = text[1:], 1
            at_start = False
        if rules.newlines == "lf":
            changes["carriage returns converted"] += text.count("\r")
            text = newline.decode(text)
        yield _in_utf8(text, name, rules.encoding)
    if rules.newlines == "lf":
        yield newline.decode("", final=True).encode()


def _in_utf8(text: str, name: str, encoding: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # some encodings, such as utf-7, can express lone surrogates
        code = ord(text[error.start])
        raise StageError(f"{name}: {encoding} decodes to U+{code:04X}, a lone surrogate: {ENCODING_FIX}") from None


def _decoded(
    pieces: Iterator[bytes], name: str, rules: ReadingRules, changes: Counter[str]
) -> Iterator[tuple[bytes, str]]:
    """Pair each piece with its decoded text; a character cut by the end of a piece comes with the next.

    Raises StageError for bytes that are invalid in the encoding, BinaryFileError for a binary file.
    """
    decoder = codecs.getincrementaldecoder(rules.encoding)(errors=HANDLERS[rules.errors])
    utf8 = codecs.lookup(rules.encoding).name == "utf-8"
    offset = characters = 0
    for piece in _ended(pieces):
        if utf8 and not offset:
            _reject_marks(piece)
        pending = decoder.getstate()[0]
        _counting.changes = changes
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            if b"\0" in piece and not rules.encoding.startswith(("utf-16", "utf-32")):
                raise BinaryFileError(_nul(piece, offset)) from None
            at, byte = offset - len(pending) + error.start, error.object[error.start]
            raise StageError(
                f"{name}: byte 0x{byte:02x} at offset {at} is not {rules.encoding} ({error.reason}): {ENCODING_FIX}"
            ) from None
        except UnicodeError as error:  # of a whole stream: utf-16 without a mark
            raise StageError(
                f"{name} is not {rules.encoding} ({error}): pass --encoding utf-16-le or utf-16-be"
            ) from None
        if "\0" in text:
            where = f"character {characters + text.index(chr(0)):,} is U+0000"
            raise BinaryFileError(_nul(piece, offset) if utf8 else f"{where}: {EXCLUDE_FIX}")
        offset, characters = offset + len(piece), characters + len(text)
        yield piece, text


def _ended(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Append an empty piece, at which the decoder checks for a truncated character."""
    yield from pieces
    yield b""


def _reject_marks(head: bytes) -> None:
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            raise BinaryFileError(
                f"it begins with the byte-order mark of {encoding} ({mark.hex(' ')} at offset 0): "
                f"pass --encoding {encoding}, or {EXCLUDE_FIX}"
            )


def _nul(piece: bytes, offset: int) -> str:
    return f"byte 0x00 at offset {offset + piece.index(0)}: {EXCLUDE_FIX}"


# Error handlers are registered globally by name. Several files are read at a time, so each thread sets the counter that
# its handler adds to.
_counting = threading.local()


def _replace(error: UnicodeError) -> tuple[str, int]:
    return _handled(error, "bytes replaced", "\ufffd")


def _skip(error: UnicodeError) -> tuple[str, int]:
    return _handled(error, "bytes left out", "")


def _handled(error: UnicodeError, change: str, replacement: str) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    _counting.changes[change] += error.end - error.start
    return replacement, error.end


HANDLERS = {"strict": "strict", "replace": "rnn.replace", "skip": "rnn.skip"}
codecs.register_error("rnn.replace", _replace)
codecs.register_error("rnn.skip", _skip)
