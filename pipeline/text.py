"""A file's bytes as checked text in UTF-8: encodings, byte-order marks, newlines, and what is no text at all.

A file that is fine as it stands is only read; one that must be changed is written anew, in UTF-8, to a scratch file.
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

READ_BYTES = 256 << 10  # small enough that many pieces of a Western text are ASCII throughout, which is quick to see
RAW = "raw"
LEFT_OUT = "files that are not text, left out"
# Longer marks first: that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WAY_OUT = "name the encoding (such as --encoding latin-1), or take --errors replace or --errors skip"
LEAVE_OUT = "leave the file out, with --exclude or --errors skip"


@dataclasses.dataclass(frozen=True)
class Rules:
    """How files are read.

    encoding: Python's name for it; "raw" takes the bytes for what they are, checked for nothing.
    errors: "strict" refuses what is not text in that encoding; "replace" puts U+FFFD in place of each bad stretch;
        "skip" leaves the bad bytes out, and a binary file altogether.
    newlines: "keep", or "lf": CR LF and a lone CR become LF.
    bom: "keep", or "strip" a byte-order mark at the head of a file.
    unpacked_bytes: the most that one compressed file may unpack to.
    """

    encoding: str
    errors: str
    newlines: str
    bom: str
    unpacked_bytes: int


@dataclasses.dataclass(frozen=True)
class Text:
    """A file's text: `bytes` bytes of the file `path`, which is the source itself or a scratch file.

    source_bytes, sha256: of the source as it lies there; modified: when that was last written, in ns.
    text_sha256: of the text, whatever it was packed or encoded in. newline_at_end: whether it ends with one.
    changes: what is not as in the source, counted by kind. A file that was left out has no bytes and no path.
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
    """This is no text; the message says what was found where."""


def read_text(path: Path, name: str, rules: Rules, scratch: Path, seen: Callable[[int], None]) -> Text:
    """Reads a file in full, checks it, and where the rules or a compression ask for it, writes its text to `scratch`.

    `seen` is told of every stretch of bytes. Raises StageError naming the file, the offset in bytes (in what is
    unpacked), and what was found there.
    """
    changes: Counter[str] = Counter()
    plain = dataclasses.replace(rules, errors="strict", newlines="keep", bom="keep")
    last, length, text_digest = b"", 0, hashlib.sha256()
    try:
        # The time is taken first, so that whatever is written later shows.
        source = path.stat()
        digest = sha256_file(path)
        packed = compression(path) if rules.encoding != RAW else None
        as_it_stands = not packed and rules == plain and rules.encoding in ("utf-8", RAW)
        if rules.encoding != RAW and is_archive(path):
            raise BinaryFileError("it is an archive: unpack it, and give the folder")
        with open_text(path) if packed else path.open("rb") as file:
            pieces = _limited(file, name, rules.unpacked_bytes if packed else None, seen)
            if rules.encoding == RAW:
                texts = pieces
            elif as_it_stands:
                texts = (piece for piece, _ in _decoded(pieces, name, rules, changes))
            else:
                texts = _cleaned(pieces, name, rules, changes)
            with open(os.devnull if as_it_stands else scratch, "wb") as out:
                for text in texts:
                    out.write(text)
                    if not as_it_stands:
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
        path=str(path if as_it_stands else scratch),
        bytes=length,
        source_bytes=source.st_size,
        modified=source.st_mtime_ns,
        sha256=digest,
        text_sha256=digest if as_it_stands else text_digest.hexdigest(),
        newline_at_end=last == b"\n",
        changes=dict(+changes),
    )


def check_encoding(name: str) -> str:
    """Python's own name of an encoding: UTF8 is utf-8. Raises ValueError unless it is one of text, which can be decoded
    piece by piece."""
    if name == RAW:
        return name
    try:
        codec = codecs.lookup(name)
    except LookupError:
        codec = None
    if codec is None or not codec._is_text_encoding or codec.incrementaldecoder is None:
        raise ValueError(f"no text encoding is called {name!r}: utf-8, utf-16, latin-1, cp1252, ... or raw")
    return codec.name


def _limited(file: IO[bytes], name: str, ceiling: int | None, seen: Callable[[int], None]) -> Iterator[bytes]:
    total = 0
    while piece := file.read(READ_BYTES):
        total += len(piece)
        if ceiling is not None and total > ceiling:
            raise StageError(
                f"{name} unpacks to more than {ceiling:,} bytes: raise unpacked_bytes in [data] if that is meant"
            )
        seen(len(piece))
        yield piece


def _cleaned(pieces: Iterator[bytes], name: str, rules: Rules, changes: Counter[str]) -> Iterator[bytes]:
    """The text in UTF-8, newlines and mark as the rules want them."""
    newline = io.IncrementalNewlineDecoder(None, translate=True)
    at_start = True
    for _, text in _decoded(pieces, name, rules, changes):
        if at_start and text:
            if rules.bom == "strip" and text[0] == "\ufeff":
                text, changes["byte-order marks taken away"] = text[1:], 1
            at_start = False
        if rules.newlines == "lf":
            changes["carriage returns made LF"] += text.count("\r")
            text = newline.decode(text)
        yield _in_utf8(text, name, rules.encoding)
    if rules.newlines == "lf":
        yield newline.decode("", final=True).encode()


def _in_utf8(text: str, name: str, encoding: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # some encodings, such as utf-7, can say what UTF-8 cannot
        half = ord(text[error.start])
        raise StageError(f"{name}: in {encoding} it holds U+{half:04X}, half of a character: {WAY_OUT}") from None


def _decoded(pieces: Iterator[bytes], name: str, rules: Rules, changes: Counter[str]) -> Iterator[tuple[bytes, str]]:
    """The pieces, and what they are as strings; a character cut by the end of a piece comes with the next.

    Raises StageError for what is not in the encoding, BinaryFileError for what is no text.
    """
    decoder = codecs.getincrementaldecoder(rules.encoding)(errors=HANDLERS[rules.errors])
    utf8 = codecs.lookup(rules.encoding).name == "utf-8"
    offset = characters = 0
    for piece in _ended(pieces):
        if utf8 and not offset:
            _refuse_marks(piece)
        pending = decoder.getstate()[0]
        _counting.changes = changes
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            if b"\0" in piece:
                raise BinaryFileError(_nul(piece, offset)) from None
            found, byte = offset - len(pending) + error.start, error.object[error.start]
            raise StageError(
                f"{name}: byte 0x{byte:02x} at offset {found} is not {rules.encoding} ({error.reason}): {WAY_OUT}"
            ) from None
        except UnicodeError as error:  # of a whole stream: utf-16 without a mark
            raise StageError(f"{name} is not {rules.encoding} ({error}): --encoding utf-16-le or utf-16-be") from None
        if "\0" in text:
            where = f"character {characters + text.index(chr(0)):,} is U+0000"
            raise BinaryFileError(_nul(piece, offset) if utf8 else f"{where}: {LEAVE_OUT}")
        offset, characters = offset + len(piece), characters + len(text)
        yield piece, text


def _ended(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces, and an empty one at the end, at which a decoder looks for a character that was cut short."""
    yield from pieces
    yield b""


def _refuse_marks(head: bytes) -> None:
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            raise BinaryFileError(
                f"it begins with the byte-order mark of {encoding} ({mark.hex(' ')} at offset 0): "
                f"--encoding {encoding}, or {LEAVE_OUT}"
            )


def _nul(piece: bytes, offset: int) -> str:
    return f"byte 0x00 at offset {offset + piece.index(0)}: {LEAVE_OUT}"


# Python calls an error handler by a name that is known everywhere. What it counts goes to the counter that its thread
# has set, since several files are read at a time.
_counting = threading.local()


def _replace(error: UnicodeError) -> tuple[str, int]:
    return _handled(error, "bytes replaced", "\ufffd")


def _skip(error: UnicodeError) -> tuple[str, int]:
    return _handled(error, "bytes left out", "")


def _handled(error: UnicodeError, what: str, replacement: str) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    _counting.changes[what] += error.end - error.start
    return replacement, error.end


HANDLERS = {"strict": "strict", "replace": "rnn.replace", "skip": "rnn.skip"}
codecs.register_error("rnn.replace", _replace)
codecs.register_error("rnn.skip", _skip)
