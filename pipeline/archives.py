"""Text as it comes: compressed files, and the files of tars, zips and folders, read as a stream and never unpacked."""

import bz2
import contextlib
import errno
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import zstandard

from common.errors import StageError

DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "bz2": bz2.BZ2Decompressor,
    # A header may ask for a dictionary of 4 GiB; xz -9 needs 65 MiB.
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 28),
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
ZIP = (b"PK\3\4", b"PK\5\6")  # with files, and without
# Of few compressed bytes at a time few megabytes come (zstd: at most 32); bz2, which makes 45 MB of 40 bytes, and xz
# can be told how many to give.
PIECE, MOST = 1024, 1 << 20
DAMAGE = (
    EOFError,
    OSError,
    RuntimeError,  # NotImplementedError, for a compression of zip that Python lacks, is one
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    zstandard.ZstdError,
)


def compression(path: Path) -> str | None:
    """How a file is compressed, by its first bytes: "gzip", "bz2", "xz", "zstd", or None where it is not."""
    with path.open("rb") as file:
        head = file.read(10)
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "bz2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    # pzstd puts a skippable frame first.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return "zstd"
    return None


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or a tar, compressed or not, by its first bytes."""
    with open_text(path) as file:
        head = file.read(tarfile.BLOCKSIZE)
    return head.startswith(ZIP) or head[257:262] == b"ustar" or _is_tar_header(head)


def _is_tar_header(head: bytes) -> bool:
    """Whether the checksum in it is right: the oldest tars have no other sign."""
    try:
        return bool(tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape"))
    except tarfile.HeaderError:
        return False


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where it is compressed, however many streams of a kind are joined in it.

    Raises StageError, while it is read, where the compressed data are damaged or cut short.
    """
    kind = compression(path)
    with path.open("rb") as file:
        yield io.BufferedReader(_Decompressed(file, path, kind)) if kind else file


class _Decompressed(io.RawIOBase):
    """The streams of a compressed file one after another.

    Own code, because each library has a way to take damage for the end of the text: bz2 and lzma in the head of a
    later stream, zstandard wherever a frame is cut short.
    """

    def __init__(self, file: BinaryIO, path: Path, kind: str) -> None:
        self.file, self.path, self.kind = file, path, kind
        self.decompressor: Any = None
        self.rest = b""  # of what was read, not yet decompressed
        self.text = memoryview(b"")  # decompressed, not yet asked for

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text and self._more():
            pass
        count = min(len(buffer), len(self.text))
        buffer[:count], self.text = self.text[:count], self.text[count:]
        return count

    def _more(self) -> bool:
        """Decompresses the next piece; False at the file's end."""
        fed = not getattr(self.decompressor, "needs_input", True)  # it has more to give of what it got
        piece = b"" if fed else self.rest or self.file.read(PIECE)
        if self.decompressor is None:
            # Between streams there may be zeros that fill a block, as gzip and xz have it.
            self.rest = piece.lstrip(b"\0")
            if self.rest:
                self.decompressor = DECOMPRESSORS[self.kind]()
            return piece != b""
        self.rest = b""
        if not (piece or fed):
            raise StageError(f"{self.path} is cut short: its {self.kind} data do not end; copy or fetch it again")
        try:
            limit = (MOST,) if self.kind in ("bz2", "xz") else ()
            self.text = memoryview(self.decompressor.decompress(piece, *limit))
        except DAMAGE as error:
            raise StageError(
                f"{self.path} is damaged: not {self.kind} data ({error}); copy or fetch it again"
            ) from None
        if self.decompressor.eof:
            self.rest, self.decompressor = self.decompressor.unused_data, None
        return True


def members(path: Path, ceiling: int) -> Iterator[tuple[str, int, BinaryIO]]:
    """The regular files of a tar (compressed or not), a zip or a folder: name, size in bytes, content to read.

    A content can be read until the next one is asked for. Archives keep their order, a folder is in byte order of
    path; links, devices and folders are passed over. The size of an archive's file is its header's claim.

    Raises StageError where the archive is damaged, encrypted, no archive at all, has a name that leads out of it, or
    more than `ceiling` bytes come out of it, a tar's own headers among them.
    """
    if path.is_dir():
        found = _folder_members(path)
    elif not is_archive(path):
        raise StageError(f"{path} is not an archive: expected a folder, a zip or a tar (.gz, .bz2, .xz, .zst or plain)")
    elif compression(path) is None and zipfile.is_zipfile(path):
        found = _zip_members(path)
    else:
        found = _tar_members(path, ceiling)
    left = _Allowance(path, ceiling)
    with _damage(path):
        for name, size, file in found:
            yield name, size, io.BufferedReader(_Counted(file, left))


class _Allowance:
    """How many bytes may still come out of an archive."""

    def __init__(self, path: Path, ceiling: int) -> None:
        self.path, self.ceiling, self.left = path, ceiling, ceiling

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise StageError(
                f"{self.path} holds more than the {self.ceiling:,} bytes that are allowed for: unpack it yourself, and "
                "give the folder, if that is meant"
            )


class _Counted(io.RawIOBase):
    """A file of an archive: what is read is counted, since headers may lie, and damage is named."""

    def __init__(self, file: Any, allowance: _Allowance) -> None:
        self.file, self.allowance = file, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _damage(self.allowance.path):
            data = self.file.read(len(buffer))
        self.allowance.take(len(data))
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the machine's trouble, not the archive's; EINVAL is of a header that points before the file
        raise StageError(f"{path} is damaged: {error or 'cut short'}; copy or fetch it again") from None


class _TarInfo(tarfile.TarInfo):
    """A member of a tar. tarfile takes a damaged header for the archive's end, and believes any size of a long name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.type not in tarfile.REGULAR_TYPES and not info.isdir() and info.size > 1 << 20:
            raise tarfile.ReadError(f"a header claims {info.size:,} bytes")
        return info

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_TarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _tar_members(path: Path, ceiling: int) -> Iterator[tuple[str, int, Any]]:
    with open_text(path) as file:
        # Counted here too: what is passed over must be decompressed as well.
        stream: Any = _Counted(file, _Allowance(path, ceiling))
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarInfo) as tar:
            while info := tar.next():
                _check_name(path, info.name)
                if info.isreg():
                    yield info.name, info.size, tar.extractfile(info)
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
        while stream.read(1 << 16):
            pass  # the checksum of what is compressed is at its end


def _zip_members(path: Path) -> Iterator[tuple[str, int, Any]]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        for info in infos:
            _check_name(path, info.filename)
            if info.flag_bits & 1:
                raise StageError(f"{path} is encrypted: unpack it with its password, and give the folder")
        for info in infos:
            mode = info.external_attr >> 16  # 0 where the zip was not made on Unix
            if not info.is_dir() and (stat.S_ISREG(mode) or not stat.S_IFMT(mode)):
                with archive.open(info) as file:
                    yield info.filename, info.file_size, file


def _folder_members(folder: Path) -> Iterator[tuple[str, int, Any]]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in sorted(found, key=os.fsencode):
        with path.open("rb") as file:
            yield path.relative_to(folder).as_posix(), path.stat().st_size, file


def _check_name(path: Path, name: str) -> None:
    name = name.replace("\\", "/")
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise StageError(f"{path} has a file that leads out of it ({name}): it is not what it seems, do not use it")
