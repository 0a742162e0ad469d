"""Stream text out of compressed files, tars, zips and folders, without unpacking them to disk."""

import bz2
import contextlib
import errno
import io
import itertools
import lzma
import os
import shlex
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import zstandard

from common.errors import StageError

# The largest window of zstd --long=31, and more than the largest dictionary that xz makes, 1.5 GiB. Only what a text
# fills of it is used. A hostile header can request 4 GiB or more.
MEMORY_BYTES = 1 << 31
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES),
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=MEMORY_BYTES).decompressobj(),
}
# Programs that decompress without that limit.
UNPACK = {"gzip": "gzip -dc", "bz2": "bzip2 -dc", "xz": "xz -dc", "zstd": "zstd -dc --memory=4096MB"}
ZIP = (b"PK\3\4", b"PK\5\6")  # with files; empty
# Small reads bound the output of a decompression bomb to some megabytes (zstd: 32). bz2, which expands 40 bytes to
# 45 MB, and xz take a limit as well.
READ_SIZE, MAX_OUTPUT = 1024, 1 << 20
# Each takes some 100 us. The Linux kernel's tar has 84,000; one of 149 KB can have a million.
MAX_MEMBERS = 250_000
CORRUPTION = (
    EOFError,
    OSError,
    RuntimeError,  # includes NotImplementedError, for zip methods that Python lacks
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    zstandard.ZstdError,
)


def compression(path: Path) -> str | None:
    """Compression of a file by its first bytes: "gzip", "bz2", "xz", "zstd" or None."""
    with path.open("rb") as file:
        head = file.read(10)
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "bz2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    # pzstd writes a skippable frame first.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return "zstd"
    return None


def is_archive(path: Path) -> bool:
    """Check whether a file's first bytes are those of a zip or a tar, compressed or not."""
    with open_text(path) as file:
        head = file.read(tarfile.BLOCKSIZE)
    return head.startswith(ZIP) or head[257:262] == b"ustar" or _is_tar_header(head)


def _is_tar_header(head: bytes) -> bool:
    """Check the header's checksum: the oldest tars have no magic number."""
    try:
        return bool(tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape"))
    except tarfile.HeaderError:
        return False


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed if need be, including concatenated streams.

    Reading raises StageError if the compressed data are corrupted or truncated.
    """
    kind = compression(path)
    with path.open("rb") as file:
        yield io.BufferedReader(_Decompressed(file, path, kind)) if kind else file


class _Decompressed(io.RawIOBase):
    """Concatenated streams of a compressed file.

    The libraries' own readers mistake corruption for the end of the text: bz2 and lzma in the header of a later stream,
    zstandard in any truncated frame.
    """

    def __init__(self, file: BinaryIO, path: Path, kind: str) -> None:
        self.file, self.path, self.kind = file, path, kind
        self.decompressor: Any = None
        self.rest = b""  # read but not yet decompressed
        self.text = memoryview(b"")  # decompressed but not yet returned

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text and self._more():
            pass
        count = min(len(buffer), len(self.text))
        buffer[:count], self.text = self.text[:count], self.text[count:]
        return count

    def _more(self) -> bool:
        """Decompress the next piece. Returns False at the end of the file."""
        pending = not getattr(self.decompressor, "needs_input", True)  # the decompressor holds more output
        piece = b"" if pending else self.rest or self.file.read(READ_SIZE)
        if self.decompressor is None:
            # gzip and xz allow zero padding between streams.
            self.rest = piece.lstrip(b"\0")
            if self.rest:
                self.decompressor = DECOMPRESSORS[self.kind]()
            return piece != b""
        self.rest = b""
        if not (piece or pending):
            raise StageError(f"the {self.kind} stream of {self.path} is truncated: copy or fetch it again")
        try:
            limit = (MAX_OUTPUT,) if self.kind in ("bz2", "xz") else ()
            self.text = memoryview(self.decompressor.decompress(piece, *limit))
        except (MemoryError, *CORRUPTION) as error:
            if isinstance(error, MemoryError) or "memory" in str(error).lower():
                raise StageError(
                    f"{self.path} needs too much memory to decompress (at most {MEMORY_BYTES >> 30} GiB, if free): "
                    f"run {UNPACK[self.kind]} {shlex.quote(str(self.path))} > FILE and pass that file"
                ) from None
            raise StageError(
                f"{self.path} is corrupted: invalid {self.kind} data ({error}); copy or fetch it again"
            ) from None
        if self.decompressor.eof:
            self.rest, self.decompressor = self.decompressor.unused_data, None
        return True


def members(path: Path, ceiling: int) -> Iterator[tuple[str, int, BinaryIO]]:
    """Iterate over the regular files of a tar (compressed or not), a zip or a folder: name, size in bytes, content.

    Each content is readable until the next iteration. Archives keep their order; a folder is sorted by path bytes.
    Links, devices and folders are skipped. In archives, the size is what the header claims.

    Raises StageError if the path is not an archive, if the archive is corrupted or encrypted, contains a path that
    leads out of it, or yields more than `ceiling` bytes, a tar's own headers included.
    """
    if path.is_dir():
        files = _folder_members(path)
    elif not is_archive(path):
        raise StageError(f"{path} is not an archive: expected a folder, a zip or a tar (.gz, .bz2, .xz, .zst or plain)")
    elif compression(path) is None and zipfile.is_zipfile(path):
        files = _zip_members(path)
    else:
        files = _tar_members(path, ceiling)
    allowance = _Allowance(path, ceiling)
    with _corruption(path):
        for name, size, file in files:
            yield name, size, io.BufferedReader(_Counted(file, allowance))


class _Allowance:
    """Budget of the bytes that may still be read from an archive."""

    def __init__(self, path: Path, ceiling: int) -> None:
        self.path, self.ceiling, self.left = path, ceiling, ceiling

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise StageError(
                f"{self.path} contains more than the {self.ceiling:,} bytes allowed: if that is intended, unpack it "
                "yourself and pass the folder"
            )


class _Counted(io.RawIOBase):
    """File in an archive. Counts the bytes read, since headers may lie, and reports corruption."""

    def __init__(self, file: Any, allowance: _Allowance) -> None:
        self.file, self.allowance = file, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _corruption(self.allowance.path):
            data = self.file.read(len(buffer))
        self.allowance.take(len(data))
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _corruption(path: Path) -> Iterator[None]:
    try:
        yield
    except CORRUPTION as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # not the archive's fault; EINVAL comes from a header that points before the file
        raise StageError(f"{path} is corrupted: {error or 'truncated'}; copy or fetch it again") from None


class _TarInfo(tarfile.TarInfo):
    """Tar member. tarfile itself mistakes a corrupted header for the end, and trusts any size of a long name."""

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
        # Counted here too, since skipped files must be decompressed as well.
        stream: Any = _Counted(file, _Allowance(path, ceiling))
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarInfo) as tar:
            for count in itertools.count(1):
                if not (info := tar.next()):
                    break
                _check_count(path, count)
                _check_name(path, info.name)
                if info.isreg():
                    yield info.name, info.size, tar.extractfile(info)
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
        while stream.read(1 << 16):
            pass  # the checksum of a compressed stream is at its end


class _Entries(list[zipfile.ZipInfo]):
    """Entries of a zip, limited in number, since zipfile reads them all at once: some 2 KB of memory each."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def append(self, entry: zipfile.ZipInfo) -> None:
        _check_count(self.path, len(self) + 1)
        super().append(entry)


class _ZipFile(zipfile.ZipFile):
    def _RealGetContents(self) -> None:
        self.filelist = _Entries(Path(str(self.filename)))
        super()._RealGetContents()  # type: ignore[misc]


def _zip_members(path: Path) -> Iterator[tuple[str, int, Any]]:
    with _ZipFile(path) as archive:
        infos = archive.infolist()
        for info in infos:
            _check_name(path, info.filename)
            if info.flag_bits & 1:
                raise StageError(f"{path} is encrypted: unpack it with its password and pass the folder")
        for info in infos:
            mode = info.external_attr >> 16  # 0 if the zip was not made on Unix
            if not info.is_dir() and (stat.S_ISREG(mode) or not stat.S_IFMT(mode)):
                with archive.open(info) as file:
                    yield info.filename, info.file_size, file


def _folder_members(folder: Path) -> Iterator[tuple[str, int, Any]]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in sorted(paths, key=os.fsencode):
        with path.open("rb") as file:
            yield path.relative_to(folder).as_posix(), path.stat().st_size, file


def _check_count(path: Path, count: int) -> None:
    if count > MAX_MEMBERS:
        raise StageError(
            f"{path} has more than {MAX_MEMBERS:,} members: if that is intended, unpack it yourself and pass the folder"
        )


def _check_name(path: Path, name: str) -> None:
    name = name.replace("\\", "/")
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise StageError(f"{path} contains a path that leads out of it ({name}): do not trust this archive")
