import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from common.errors import StageError
from pipeline.archives import compression, is_archive, members, open_text

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
TEXT = bytes(range(256)) * 1000
CEILING = 10_000_000


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(path: Path) -> bytes:
    with open_text(path) as file:
        return file.read()


def contents(path: Path, ceiling: int = CEILING) -> list[tuple[str, int, bytes]]:
    return [(name, size, file.read()) for name, size, file in members(path, ceiling)]


def tar(*files: tuple[str, bytes] | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for file in files:
            if isinstance(file, tarfile.TarInfo):
                archive.addfile(file)
            else:
                info = tarfile.TarInfo(file[0])
                info.size = len(file[1])
                archive.addfile(info, io.BytesIO(file[1]))
    return out.getvalue()


def special(name: str, type: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, target
    return info


def make_zip(path: Path, *files: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("kind", COMPRESS)
class TestCompressed:
    def test_compression_is_detected_by_content(self, kind: str, tmp_path: Path) -> None:
        path = write(tmp_path / "text.txt", COMPRESS[kind](TEXT))
        assert compression(path) == kind
        assert read(path) == TEXT

    def test_reads_by_size_and_by_line(self, kind: str, tmp_path: Path) -> None:
        path = write(tmp_path / "text", COMPRESS[kind](b"first\nsecond\n" + TEXT))
        with open_text(path) as file:
            assert [file.read(3), file.readline(), file.readline()] == [b"fir", b"st\n", b"second\n"]
            assert b"".join(iter(lambda: file.read(777), b"")) == TEXT

    @pytest.mark.parametrize("between", [b"", b"\0" * 512])
    def test_concatenated_streams_are_all_read(self, kind: str, between: bytes, tmp_path: Path) -> None:
        compress = COMPRESS[kind]
        joined = between.join([compress(b"one "), compress(TEXT), compress(b""), compress(b" two")])
        assert read(write(tmp_path / "text", joined + between)) == b"one " + TEXT + b" two"

    def test_empty_stream(self, kind: str, tmp_path: Path) -> None:
        assert read(write(tmp_path / "text", COMPRESS[kind](b""))) == b""

    @pytest.mark.parametrize("missing", [1, 5, 100])
    def test_truncated_stream_raises(self, kind: str, missing: int, tmp_path: Path) -> None:
        noise = os.urandom(5000)
        path = write(tmp_path / "text", COMPRESS[kind](noise)[:-missing])
        with pytest.raises(StageError, match=rf"the {kind} stream of .*text is truncated"):
            read(path)

    def test_truncated_second_stream_raises(self, kind: str, tmp_path: Path) -> None:
        compressed = COMPRESS[kind](b"text")
        for length in range(1, len(compressed)):
            path = write(tmp_path / "text", compressed + compressed[:length])
            with pytest.raises(StageError, match="is truncated"):
                read(path)

    def test_trailing_garbage_raises(self, kind: str, tmp_path: Path) -> None:
        path = write(tmp_path / "text", COMPRESS[kind](TEXT) + b"<html>no such file, but enough text</html>")
        with pytest.raises(StageError, match=rf"text is corrupted: invalid {kind} data"):
            read(path)

    def test_corrupted_stream_raises(self, kind: str, tmp_path: Path) -> None:
        data = bytearray(COMPRESS[kind](os.urandom(5000)))
        data[2000:2100] = bytes(100)
        path = write(tmp_path / "text", bytes(data) + bytes(10))
        with pytest.raises(StageError, match=r"text is (corrupted|truncated)"), open_text(path) as file:
            file.read()

    def test_bomb_is_decompressed_in_bounded_pieces(self, kind: str, tmp_path: Path) -> None:
        path = write(tmp_path / "text", COMPRESS[kind](bytes(50 << 20)))
        with open_text(path) as file:
            assert file.read(10) == bytes(10)
            assert len(file.raw.text) <= 32 << 20  # type: ignore[attr-defined]


def with_window(kind: str, gib: float) -> bytes:
    """Compress a small text, with a header that requests a window of `gib` GiB."""
    if kind == "zstd":
        compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        data = bytearray(compressor.compress(b"abc" * 1000) + compressor.flush())
        data[5] = {0.5: 29, 2: 31, 4: 32, 8: 33}[gib] - 10 << 3
        return bytes(data)
    data = bytearray(lzma.compress(b"abc" * 1000, preset=0))
    data[16] = {0.5: 34, 1.5: 37, 2: 38, 4: 40}[gib]
    end = 12 + 4 * data[12]
    data[end : end + 4] = zlib.crc32(data[12:end]).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(("kind", "gib"), [("zstd", 0.5), ("zstd", 2), ("xz", 0.5), ("xz", 1.5)])
def test_large_windows_are_read(kind: str, gib: float, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(with_window(kind, gib))
    with open_text(tmp_path / "a") as file:
        assert file.read() == b"abc" * 1000


@pytest.mark.parametrize(("kind", "gib"), [("zstd", 4), ("zstd", 8), ("xz", 2), ("xz", 4)])
def test_larger_windows_are_not_reported_as_corruption(kind: str, gib: float, tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(with_window(kind, gib))
    message = rf"a b needs too much memory to decompress \(at most 2 GiB.*: run {kind} -dc.* '/.*/a b' > FILE and pass"
    with open_text(tmp_path / "a b") as file, pytest.raises(StageError, match=message):
        file.read()


def test_zstd_with_leading_skippable_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "text", b"\x50\x2a\x4d\x18\4\0\0\0abcd" + zstandard.compress(TEXT))
    assert compression(path) == "zstd"
    assert read(path) == TEXT


@pytest.mark.parametrize("data", [b"", b"a", b"BZhello, I am a text", b"\x1f\x8b", b"\xfd7z", TEXT])
def test_plain_file_is_unchanged(data: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "text.gz", data)
    assert compression(path) is None
    assert read(path) == data
    assert not is_archive(path)


FILES = (("top/b.txt", b"bee"), ("top/a.txt", TEXT), ("top/empty", b""))
EXPECTED = [(name, len(data), data) for name, data in FILES]


@pytest.mark.parametrize("compress", [bytes, *COMPRESS.values()])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_members(compress: Callable[[bytes], bytes], format: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x", compress(tar(*FILES, format=format)))
    assert is_archive(path)
    assert contents(path) == EXPECTED


def test_tar_older_than_ustar(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = write(tmp_path / "x", bytes(header) + bytes(1024))
    assert is_archive(path)
    assert contents(path) == [("a", 0, b"")]


def test_long_names_in_tar(tmp_path: Path) -> None:
    name = "/".join(["folder-é" * 5] * 10)
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert contents(write(tmp_path / "x", tar((name, b"text"), format=format))) == [(name, 4, b"text")]


def test_tar_continues_after_unread_files(tmp_path: Path) -> None:
    path = write(tmp_path / "x", gzip.compress(tar(("a", TEXT), ("b", TEXT), ("c", b"see"))))
    assert [(name, file.read(3)) for name, _, file in members(path, CEILING) if name != "a"] == [
        ("b", TEXT[:3]),
        ("c", b"see"),
    ]


def test_special_files_in_tar_are_skipped(tmp_path: Path) -> None:
    others = [
        special("folder", tarfile.DIRTYPE),
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard", tarfile.LNKTYPE, "a"),
        special("fifo", tarfile.FIFOTYPE),
        special("chr", tarfile.CHRTYPE),
        special("blk", tarfile.BLKTYPE),
    ]
    assert contents(write(tmp_path / "x", tar(("a", b"1"), *others, ("z", b"2")))) == [("a", 1, b"1"), ("z", 1, b"2")]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..", "a\\..\\..\\x"])
def test_path_outside_the_archive_raises(name: str, tmp_path: Path) -> None:
    for path in (
        write(tmp_path / "x.tar", tar(("good", b"1"), (name, b"2"))),
        write(tmp_path / "y.tar", tar(("good", b"1"), special(name, tarfile.SYMTYPE, "t"))),
        make_zip(tmp_path / "x.zip", ("good", b"1"), (name, b"2")),
    ):
        with pytest.raises(StageError, match=rf"{path.name} contains a path that leads out of it"):
            contents(path)


def test_dots_in_names_are_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "x", tar(("./a..b", b"1"), ("..c/d", b"2")))
    assert contents(path) == [("./a..b", 1, b"1"), ("..c/d", 1, b"2")]


@pytest.mark.parametrize("compress", [bytes, *COMPRESS.values()])
def test_truncated_tar_raises(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    whole = tar(("a", os.urandom(3000)), ("b", b"2" * 600))
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    # Within file b, within its header, before its header, and within file a.
    for length in (end - 100, end - 512, end - 1024, end - 1200, end - 1536, 600, 512):
        with pytest.raises(StageError, match="x is corrupted"):
            contents(write(tmp_path / "x", compress(whole[:length])))
    compressed = compress(whole)
    for length in (len(compressed) - 9000, len(compressed) // 2) if compress is bytes else (len(compressed) - 20,):
        with pytest.raises(StageError, match=r"x is (corrupted|truncated)"):
            contents(write(tmp_path / "x", compressed[:length]))


def test_corrupted_second_tar_header_raises(tmp_path: Path) -> None:
    data = bytearray(tar(("a", b"1"), ("b", b"2")))
    data[1024 + 20] ^= 1
    with pytest.raises(StageError, match="x is corrupted: bad checksum"):
        contents(write(tmp_path / "x", bytes(data)))


def test_long_name_with_false_size_raises(tmp_path: Path) -> None:
    info = special("long", tarfile.GNUTYPE_LONGNAME)
    info.size = 1 << 40
    with pytest.raises(StageError, match="x is corrupted: a header claims 1,099,511,627,776 bytes"):
        contents(write(tmp_path / "x", info.tobuf(tarfile.GNU_FORMAT) + tar(("a", b"1"))))


@pytest.mark.parametrize("compress", COMPRESS.values())
def test_bomb_in_tar_raises(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "x", compress(tar(("bomb", bytes(20 << 20)))))
    assert path.stat().st_size < 100_000
    with pytest.raises(StageError, match=r"x contains more than the 10,000,000 bytes allowed"):
        contents(path)
    with pytest.raises(StageError, match=r"x contains more than"):  # also if the member is skipped
        list(members(path, CEILING))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archive_of_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("pipeline.archives.MAX_MEMBERS", 3)
    for count in (3, 4):
        files = [(f"{index}", b"") for index in range(count)]
        path = tmp_path / "x"
        write(path, tar(*files)) if kind == "tar" else make_zip(path, *files)
        if count == 3:
            assert len(list(members(path, 1 << 20))) == 3
    with pytest.raises(StageError, match=r"x has more than 3 members: if that is intended, unpack"):
        list(members(path, 1 << 20))


def test_sparse_file_counts_with_its_full_size(tmp_path: Path) -> None:
    # GNU's old sparse format: no data, but a real size of 100 MB.
    header = bytearray(special("hole", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (100_000_000, 0)
    header[483:495] = b"%011o\0" % 100_000_000
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = write(tmp_path / "x", bytes(header) + bytes(1024))
    with pytest.raises(StageError, match=r"x contains more than the 10,000,000 bytes"):
        for _, _, file in members(path, CEILING):
            while file.read(1 << 16):
                pass


def test_ceiling_applies_to_the_sum_of_members(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x", ("a", b"12345"), ("b", b"67890"))
    assert len(contents(path, ceiling=10)) == 2
    with pytest.raises(StageError, match=r"x contains more than the 9 bytes"):
        contents(path, ceiling=9)


def test_zip_members(tmp_path: Path) -> None:
    link, fifo = zipfile.ZipInfo("link"), zipfile.ZipInfo("fifo")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    fifo.external_attr = (stat.S_IFIFO | 0o644) << 16
    dos = zipfile.ZipInfo("dos.txt")
    dos.create_system, dos.external_attr = 0, 0
    path = make_zip(tmp_path / "x", *FILES, ("folder/", b""), (link, b"/etc/passwd"), (fifo, b""), (dos, b"d"))
    assert is_archive(path)
    assert contents(path) == [*EXPECTED, ("dos.txt", 1, b"d")]


def test_encrypted_zip_raises(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x", ("open", b"1"), ("secret", b"2"))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    data[entry + 8] |= 1
    with pytest.raises(StageError, match="x is encrypted: unpack it with its password"):
        contents(write(path, bytes(data)))


def test_corrupted_zip_raises(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "x", ("a", os.urandom(3000)), ("b", TEXT)).read_bytes()
    flipped = bytearray(whole)
    flipped[1000] ^= 255
    method = bytearray(whole)
    method[method.index(b"PK\1\2") + 10] = 77
    before = bytearray(whole)  # an offset of the central directory that puts the first file before the start
    before[whole.rindex(b"PK\5\6") + 17] += 1
    for data in (bytes(before), whole[:-30], whole[: len(whole) // 2], whole[10:], bytes(flipped), bytes(method)):
        path = write(tmp_path / "x", data)
        with pytest.raises(StageError, match=r"x is (corrupted|not an archive)"):
            contents(path)


def test_any_corruption_is_harmless_or_raises_stage_error(tmp_path: Path) -> None:
    zip_file = make_zip(tmp_path / "x", ("a", TEXT), ("b", b"2")).read_bytes()
    for data in (zip_file, tar(*FILES), gzip.compress(tar(*FILES)), zstandard.compress(tar(*FILES))):
        messages = []
        for offset in range(0, min(len(data), 4000), 29):
            corrupted = bytearray(data)
            corrupted[offset] ^= 0x55
            path = write(tmp_path / "x", bytes(corrupted))
            try:
                for _, _, file in members(path, CEILING):
                    file.read()
            except StageError as error:
                messages.append(str(error))
        assert messages
        assert not any("\n" in message for message in messages)


def test_folder_members(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("b.txt", "a/z.txt", "a.txt", ".hidden"):
        write(top / name, name.encode())
    (top / "link").symlink_to(top / "b.txt")
    (top / "loop").symlink_to(top)
    os.mkfifo(top / "fifo")
    names = [".hidden", "a.txt", "a/z.txt", "b.txt"]
    assert contents(top) == [(name, len(name), name.encode()) for name in names]
    with pytest.raises(StageError, match=r"top contains more than the 20 bytes"):
        contents(top, ceiling=20)


def test_other_file_raises(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="x is not an archive: expected a folder, a zip or a tar"):
        contents(write(tmp_path / "x", b"only text"))


def test_missing_file_is_not_reported_as_corrupted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        contents(tmp_path / "x")
