"""Hostile archives: each is read or refused in one line, within seconds, and never writes a file."""

import bz2
import contextlib
import gzip
import io
import lzma
import resource
import struct
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from crash import tree
from faults.conftest import Trials, reported

from pipeline.archives import members

TEXT = b"to be or not to be, that is the question\n" * 1000
CEILING = 10_000_000
MOST_SECONDS, MOST_BYTES = 20, 1 << 30


def tar(*files: tuple[str, bytes] | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT, **headers: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, pax_headers=headers) as archive:
        for file in files:
            info = file if isinstance(file, tarfile.TarInfo) else tarfile.TarInfo(file[0])
            content = b"" if isinstance(file, tarfile.TarInfo) else file[1]
            info.size = info.size or len(content)
            archive.addfile(info, io.BytesIO(content.ljust(info.size if info.isreg() else 0, b"\0")))
    return out.getvalue()


def special(name: str, type: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type, target, size
    return info


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name) if "/" in name else name, content)
    return out.getvalue()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def header(data: bytes, at: int, new: bytes) -> bytes:
    """Change the first header of a tar, with a valid checksum."""
    block = bytearray(patched(data[:512], at, new))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[512:]


def archives() -> Iterator[tuple[str, bytes]]:
    """Yield archives with a description of their fault."""
    file, plain = ("a.txt", TEXT), tar(("a.txt", TEXT))
    yield "tar, parent folder", tar(("../a.txt", TEXT))
    yield "tar, absolute path", tar(("/tmp/a.txt", TEXT))
    yield "tar, parent folder inside a path", tar(("a/../../b.txt", TEXT))
    yield "tar, backslashes", tar(("..\\a.txt", TEXT))
    yield "tar, link out and a file behind it", tar(special("out", tarfile.SYMTYPE, ".."), ("out/a.txt", TEXT))
    yield "tar, hard link out", tar(special("a.txt", tarfile.LNKTYPE, "../../etc/passwd"))
    yield "tar, link to itself", tar(special("a", tarfile.SYMTYPE, "a"), file)
    yield "tar, device", tar(special("a", tarfile.CHRTYPE), file)
    yield "tar, named pipe", tar(special("a", tarfile.FIFOTYPE), file)
    yield "tar, escape sequence in a name", tar(("\x1b]0;a\x07.txt", TEXT))
    yield "tar, newline in a name", tar(("a\nb.txt", TEXT))
    yield "tar, long name", tar(("a" * 100_000, TEXT), format=tarfile.GNU_FORMAT)
    yield "tar, large extended header", tar(file, comment="a" * 5_000_000)
    yield "tar, cut in a header", plain[:300]
    yield "tar, cut in a file", plain[: len(plain) // 2]
    yield "tar, changed header", patched(plain, 20, b"x")
    yield "tar, huge size", header(plain, 124, b"77777777777\0")
    yield "tar, negative size", header(plain, 124, b"\xff" * 12)
    yield "tar, size that is not a number", header(plain, 124, b"zzzzzzzzzzz\0")
    yield "tar, unknown type", header(plain, 156, b"?")
    yield "tar, many members", gzip.compress(special("a", tarfile.DIRTYPE).tobuf() * 300_000)
    yield "tar.gz, cut", gzip.compress(plain)[:-20]
    yield "tar.gz, changed byte", patched(gzip.compress(plain), 100, b"\xff\x00")
    yield "tar.gz, wrong checksum", patched(gzip.compress(plain), -8 + len(gzip.compress(plain)), b"\0\0\0\0")
    yield "tar.bz2, cut", bz2.compress(plain)[:-20]
    yield "tar.xz, cut", lzma.compress(plain)[:-20]
    yield "tar.zst, cut", zstandard.compress(plain)[:-5]
    yield "tar.zst, huge window", b"\x28\xb5\x2f\xfd\x00\xf8" + zstandard.compress(plain)[6:]
    yield "tar.gz, bomb", gzip.compress(tar(("a.txt", bytes(200_000_000))))
    yield "tar.bz2, bomb", bz2.compress(tar(("a.txt", bytes(200_000_000))))
    yield "zip, parent folder", zipped(("../a.txt", TEXT))
    yield "zip, absolute path", zipped(("/a.txt", TEXT))
    yield "zip, cut", zipped(file)[:-30]
    yield "zip, changed byte", patched(zipped(file), 60, b"\xff\xff")
    yield "zip, encrypted", _with_flag(zipped(file))
    yield "zip, unknown method", zipped(file).replace(struct.pack("<HHH", 20, 0, 8), struct.pack("<HHH", 20, 0, 97))
    yield "zip, bomb", zipped(("a.txt", bytes(200_000_000)))
    yield "zip, one content under many names", _overlapping(20_000)
    yield "zip, empty", zipped()


def _with_flag(data: bytes) -> bytes:
    """Mark the entries of a zip as encrypted."""
    local, central = data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8
    return patched(patched(data, local, b"\1"), central, b"\1")


def _overlapping(count: int) -> bytes:
    """Build a zip whose entries all point to one compressed megabyte."""
    data = zipped(("a", bytes(1 << 20)))
    at, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entries = data[at:end] * count
    return data[:at] + entries + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), at, 0)


def read(path: Path) -> None:
    for _, _, file in members(path, CEILING):
        while file.read(1 << 16):
            pass


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Assert that the block takes little time and memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() - start < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_BYTES >> 10


@pytest.mark.faults("Hostile input", "archives")
def test_archives_are_read_or_refused(trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a" / "archive"
    path.parent.mkdir()
    for name, data in archives():
        path.write_bytes(data)
        before: Any = tree(tmp_path)
        with trials.trial(name), bounded(), reported():
            read(path)
        assert tree(tmp_path) == before
    assert trials.tried == 39
