import gzip
import hashlib
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common.errors import StageError
from pipeline import text as text_module
from pipeline.text import ReadingRules, Text, check_encoding, read_text

ROOT = Path(__file__).parents[2]
CORPORA = Path(os.environ.get("CORPORA", ROOT.parent / "shared/corpora"))


def rules(encoding: str = "utf-8", errors: str = "strict", newlines: str = "keep", bom: str = "keep") -> ReadingRules:
    return ReadingRules(encoding, errors, newlines, bom)


def read(path: Path, conversion_rules: ReadingRules) -> tuple[bytes, Text]:
    """Return the text of a file, and its description."""
    with tempfile.TemporaryDirectory() as folder:
        text = read_text(path, path.name, conversion_rules, Path(folder) / "scratch", lambda count: None)
        return Path(text.path).read_bytes() if text.path else b"", text


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    return path


def test_valid_file_is_not_copied(tmp_path: Path) -> None:
    data = "né\r\n".encode()
    path = write(tmp_path, data)
    sha256 = hashlib.sha256(data).hexdigest()
    expected = Text(str(path), 5, 5, path.stat().st_mtime_ns, sha256, sha256, True, {})
    assert read_text(path, "a", rules(), tmp_path / "scratch", lambda count: None) == expected
    assert not (tmp_path / "scratch").exists()


# Small reads, so that characters, CR LF and byte-order marks are split in every way.
@pytest.fixture(params=[1, 2, 3, 1 << 18])
def small_reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "READ_BYTES", request.param)


@pytest.mark.parametrize(
    ("data", "conversion", "expected", "changes"),
    [
        (b"a\r\nb\rc\n\r", rules(newlines="lf"), b"a\nb\nc\n\n", {"carriage returns converted": 3}),
        (b"\xef\xbb\xbfa\xef\xbb\xbf", rules(bom="strip"), b"a\xef\xbb\xbf", {"byte-order marks stripped": 1}),
        (b"\xef\xbb\xbf", rules(bom="strip"), b"", {"byte-order marks stripped": 1}),
        (b"\xef\xbb\xbfa", rules(), b"\xef\xbb\xbfa", {}),
        ("né€😀".encode("utf-16"), rules("utf-16"), "né€😀".encode(), {}),
        ("né€😀".encode("utf-32-be"), rules("utf-32-be"), "né€😀".encode(), {}),
        ("世界 ab".encode("euc_jp"), rules("euc_jp"), "世界 ab".encode(), {}),
        ("世界 ab".encode("iso2022_jp"), rules("iso2022_jp"), "世界 ab".encode(), {}),
        ("né€".encode("cp1252"), rules("cp1252"), "né€".encode(), {}),
        (b"a\xff\xe4\xb8b", rules(errors="replace"), "a\ufffd\ufffdb".encode(), {"bytes replaced": 3}),
        (b"a\xff\xe4\xb8b\xe4\xb8", rules(errors="skip"), b"ab", {"bytes left out": 5}),
        (b"a\0b", rules(errors="skip"), b"", {"files that are not text, left out": 1}),
        (b"\xff\xfea\0", rules(errors="skip"), b"", {"files that are not text, left out": 1}),
        (b"\0\xff\r\n", rules("raw"), b"\0\xff\r\n", {}),
        (b"", rules(), b"", {}),
        (gzip.compress(b"ab", mtime=0), rules("raw"), gzip.compress(b"ab", mtime=0), {}),
        (gzip.compress(b"ab", mtime=0) + gzip.compress(b"cd", mtime=0), rules(), b"abcd", {}),
    ],
)
@pytest.mark.usefixtures("small_reads")
def test_text_is_converted(
    tmp_path: Path, data: bytes, conversion: ReadingRules, expected: bytes, changes: dict[str, int]
) -> None:
    text, description = read(write(tmp_path, data), conversion)
    assert (text, description.changes, description.bytes, description.newline_at_end) == (
        expected,
        changes,
        len(expected),
        expected[-1:] == b"\n",
    )
    assert (description.source_bytes, description.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    if description.path:
        assert description.text_sha256 == hashlib.sha256(expected).hexdigest()


SET_ENCODING = "pass the encoding (such as --encoding latin-1), or --errors replace or --errors skip"
NO_MARK = "a.txt is not utf-16 (UTF-16 stream does not start with BOM): pass --encoding utf-16-le or utf-16-be"
LEAVE_OUT = "leave the file out with --exclude or --errors skip"


@pytest.mark.parametrize(
    ("data", "conversion", "message"),
    [
        (
            b"abc\xe9 d",
            rules(),
            f"a.txt: byte 0xe9 at offset 3 is not utf-8 (invalid continuation byte): {SET_ENCODING}",
        ),
        (b"\x80", rules(), f"a.txt: byte 0x80 at offset 0 is not utf-8 (invalid start byte): {SET_ENCODING}"),
        (b"ab\xe4\xb8", rules(), f"a.txt: byte 0xe4 at offset 2 is not utf-8 (unexpected end of data): {SET_ENCODING}"),
        (b"a\0b", rules(), f"a.txt is not text in utf-8: byte 0x00 at offset 1: {LEAVE_OUT}"),
        (b"a\0b", rules(errors="replace"), f"a.txt is not text in utf-8: byte 0x00 at offset 1: {LEAVE_OUT}"),
        (b"aa\0\0", rules("utf-16-be"), f"a.txt is not text in utf-16-be: character 1 is U+0000: {LEAVE_OUT}"),
        (
            b"a\0b",
            rules("utf-16-le"),
            f"a.txt: byte 0x62 at offset 2 is not utf-16-le (truncated data): {SET_ENCODING}",
        ),
        (b"ab", rules("utf-16"), NO_MARK),
        (
            b"\x00\xd8a\0b\0",
            rules("utf-16-le"),
            f"a.txt: byte 0x00 at offset 0 is not utf-16-le (illegal UTF-16 surrogate): {SET_ENCODING}",
        ),
        (b"+2AA-", rules("utf-7"), f"a.txt: utf-7 decodes to U+D800, a lone surrogate: {SET_ENCODING}"),
    ],
)
@pytest.mark.usefixtures("small_reads")
def test_invalid_text_raises(tmp_path: Path, data: bytes, conversion: ReadingRules, message: str) -> None:
    with pytest.raises(StageError) as error:
        read(write(tmp_path, data), conversion)
    assert str(error.value) == message


def test_error_names_the_encoding_of_a_byte_order_mark(tmp_path: Path) -> None:
    with pytest.raises(StageError) as error:
        read(write(tmp_path, "a".encode("utf-16")), rules())
    assert str(error.value) == (
        "a.txt is not text in utf-8: it begins with the byte-order mark of utf-16 (ff fe at offset 0): "
        f"pass --encoding utf-16, or {LEAVE_OUT}"
    )


def test_decompression_stops_at_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, gzip.compress(bytes([97]) * 1_000_000))
    monkeypatch.setattr(text_module, "MAX_UNPACKED_BYTES", 999_999)
    with pytest.raises(StageError, match=r"a\.txt unpacks to more than 999,999 bytes: decompress it yourself"):
        read(path, rules())


def test_ceiling_applies_only_to_compressed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "MAX_UNPACKED_BYTES", 3)
    assert read(write(tmp_path, b"abcd"), rules(newlines="lf"))[0] == b"abcd"


def test_unreadable_file_raises(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"gone\.txt cannot be read: No such file or directory"):
        read(tmp_path / "gone.txt", rules())


def test_archive_raises(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.txt", "w:gz") as tar:
        tar.add(__file__, "inside.py")
    with pytest.raises(StageError, match="is not text in utf-8: it is an archive: unpack it and pass the folder"):
        read(tmp_path / "a.txt", rules())
    assert read(tmp_path / "a.txt", rules(errors="skip"))[1].changes == {"files that are not text, left out": 1}


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=40),
    st.sampled_from(["utf-8", "utf-16", "cp1252", "shift_jis", "utf-7", "hz", "raw"]),
    st.sampled_from(["strict", "replace", "skip"]),
)
def test_any_bytes_give_text_or_a_one_line_error(data: bytes, encoding: str, errors: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(data)
        try:
            text, _ = read(path, rules(encoding, errors))
        except StageError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert text == data if encoding == "raw" else "\0" not in text.decode("utf-8")


@pytest.mark.parametrize("name", ["utf-8", "latin-1", "utf-16", "cp1252", "euc_jp", "raw"])
def test_known_encodings(name: str) -> None:
    assert check_encoding(name) in (name, "iso8859-1")
    assert check_encoding("UTF8") == "utf-8"


@pytest.mark.parametrize("name", ["nonsense", "base64", "rot13", ""])
def test_unknown_encodings_raise(name: str) -> None:
    with pytest.raises(ValueError, match="unknown text encoding"):
        check_encoding(name)


# Expected results for real malformed files. Reading one as UTF-8 leaves it unchanged or raises an error.
UNCHANGED = [
    "kernel/howto.rst", "kernel/sparse.txt", "synthetic/emoji_zwj_combining_rtl.txt", "synthetic/empty.txt",
    "synthetic/many_symbols_20k.txt", "synthetic/mixed_newlines.txt", "synthetic/no_final_newline.txt",
    "synthetic/one_byte.txt", "synthetic/one_long_line_1MB.txt", "synthetic/one_newline.txt",
    "synthetic/one_symbol_10k.txt", "synthetic/only_bom.txt", "udhr/Burmese_Myanmar-WinResearcher",
    "udhr/Chinese_Mandarin-HZ", "udhr/Hindi_web-UTF8", "udhr/Hungarian_Magyar-UTF8", "udhr/Japanese_Nihongo-JIS",
    "udhr/Japanese_Nihongo-UTF8", "web/blns.txt",
]  # fmt: skip

# True encodings of these files. HZ and ISO-2022-JP look like ASCII.
DECODED = {
    "kernel/defkeymap.map": "latin-1",
    "kernel/hp300map.map": "latin-1",
    "synthetic/cp1252_smart_quotes.txt": "cp1252",
    "synthetic/latin1.txt": "latin-1",
    "synthetic/utf16le_bom.txt": "utf-16",
    "synthetic/utf32le_bom.txt": "utf-32",
    "udhr/Abkhaz-Cyrillic+Abkh": "cp1251",
    "udhr/Arabic_Alarabia-Arabic": "cp1256",
    "udhr/Bulgarian_Balgarski-Cyrillic": "cp1251",
    "udhr/Chinese_Mandarin-GB2312": "gb2312",
    "udhr/Chinese_Mandarin-HZ": "hz",
    "udhr/Czech-Latin2-err": "latin2",
    "udhr/French_Francais-Latin1": "latin-1",
    "udhr/Hebrew_Ivrit-Hebrew": "cp1255",
    "udhr/Japanese_Nihongo-EUC": "euc_jp",
    "udhr/Polish-Latin2": "latin2",
    "udhr/Russian-Cyrillic": "cp1251",
    "udhr/Turkish_Turkce-Turkish": "cp1254",
    "web/bgwiki_utf16le_bom.xml": "utf-16",
}

# Errors as UTF-8: the byte, its offset and Python's reason.
ERRORS = {
    "kernel/defkeymap.map": "byte 0xc0 at offset 10662 is not utf-8 (invalid start byte)",
    "kernel/hp300map.map": "byte 0xc0 at offset 4007 is not utf-8 (invalid start byte)",
    "kernel/logo.gif": "is not text in utf-8: byte 0x00 at offset 11",
    "synthetic/all_256_bytes.bin": "is not text in utf-8: byte 0x00 at offset 0",
    "synthetic/cp1252_smart_quotes.txt": "byte 0x93 at offset 0 is not utf-8 (invalid start byte)",
    "synthetic/latin1.txt": "byte 0xe9 at offset 3 is not utf-8 (invalid continuation byte)",
    "synthetic/nul_bytes.txt": "is not text in utf-8: byte 0x00 at offset 3",
    "synthetic/starts_mid_char.txt": "byte 0xb8 at offset 0 is not utf-8 (invalid start byte)",
    "synthetic/truncated_utf8_at_eof.txt": "byte 0xe7 at offset 10496 is not utf-8 (unexpected end of data)",
    "synthetic/utf16le_bom.txt": "byte-order mark of utf-16 (ff fe at offset 0)",
    "synthetic/utf32le_bom.txt": "byte-order mark of utf-32 (ff fe 00 00 at offset 0)",
    "udhr/Abkhaz-Cyrillic+Abkh": "byte 0xc0 at offset 0 is not utf-8 (invalid start byte)",
    "udhr/Amharic-Afenegus6..60375": "byte 0x85 at offset 4340 is not utf-8 (invalid start byte)",
    "udhr/Arabic_Alarabia-Arabic": "byte 0xc7 at offset 0 is not utf-8 (invalid continuation byte)",
    "udhr/Armenian-DallakHelv": "byte 0xd8 at offset 2 is not utf-8 (invalid continuation byte)",
    "udhr/Bulgarian_Balgarski-Cyrillic": "byte 0xc2 at offset 0 is not utf-8 (invalid continuation byte)",
    "udhr/Chinese_Mandarin-GB2312": "byte 0xca at offset 0 is not utf-8 (invalid continuation byte)",
    "udhr/Czech-Latin2-err": "byte 0x8a at offset 1 is not utf-8 (invalid start byte)",
    "udhr/Esperanto-T61": "byte 0xc3 at offset 93 is not utf-8 (invalid continuation byte)",
    "udhr/French_Francais-Latin1": "byte 0xe9 at offset 1 is not utf-8 (invalid continuation byte)",
    "udhr/Hebrew_Ivrit-Hebrew": "byte 0xe4 at offset 0 is not utf-8 (invalid continuation byte)",
    "udhr/Hungarian_Magyar-Unicode": "byte-order mark of utf-16 (ff fe at offset 0)",
    "udhr/Japanese_Nihongo-EUC": "byte 0xa1 at offset 0 is not utf-8 (invalid start byte)",
    "udhr/Lithuanian_Lietuviskai-Baltic": "byte 0xcc at offset 8 is not utf-8 (invalid continuation byte)",
    "udhr/Polish-Latin2": "byte 0xa3 at offset 29 is not utf-8 (invalid start byte)",
    "udhr/Russian-Cyrillic": "byte 0xc2 at offset 0 is not utf-8 (invalid continuation byte)",
    "udhr/Turkish_Turkce-Turkish": "byte 0xdd at offset 0 is not utf-8 (invalid continuation byte)",
    "udhr/Vietnamese-TCVN": "byte 0xab at offset 8 is not utf-8 (invalid start byte)",
    "udhr/Vietnamese-VPS": "byte 0xf4 at offset 8 is not utf-8 (invalid continuation byte)",
    "web/UTF-8-test.txt": "is not text in utf-8: byte 0x00 at offset 4149",
    "web/bgwiki_utf16le_bom.xml": "byte-order mark of utf-16 (ff fe at offset 0)",
}
UNPACKED = {"synthetic/gzip_of_text.txt": gzip.decompress}


def malformed(name: str) -> Path:
    path = CORPORA / "malformed" / name
    if not path.is_file():
        pytest.skip(f"real malformed files are missing: set CORPORA to their folder (now {CORPORA})")
    return path


def test_every_malformed_file_has_an_expectation() -> None:
    folder = malformed("PROVENANCE.txt").parent
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names - {"PROVENANCE.txt"} == {*UNCHANGED, *ERRORS, *UNPACKED}


@pytest.mark.parametrize("name", UNCHANGED)
def test_unusual_utf8_is_unchanged(name: str) -> None:
    path = malformed(name)
    assert read(path, rules())[0] == path.read_bytes()


@pytest.mark.parametrize("name", ERRORS)
def test_malformed_file_raises(name: str) -> None:
    with pytest.raises(StageError) as error:
        read(malformed(name), rules())
    assert str(error.value).startswith(Path(name).name)
    assert ERRORS[name] in str(error.value)


@pytest.mark.parametrize("name", DECODED)
def test_legacy_encodings(name: str) -> None:
    path = malformed(name)
    assert read(path, rules(DECODED[name]))[0].decode() == path.read_bytes().decode(DECODED[name])


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("errors", ["replace", "skip"])
def test_repair_matches_python_error_handlers(name: str, errors: str) -> None:
    path = malformed(name)
    if "is not text" in ERRORS[name] or "mark" in ERRORS[name]:
        if errors == "skip":
            assert read(path, rules(errors=errors))[1].changes == {"files that are not text, left out": 1}
        else:
            with pytest.raises(StageError, match="is not text in utf-8"):
                read(path, rules(errors=errors))
        return
    text, description = read(path, rules(errors=errors))
    assert text.decode() == path.read_bytes().decode(errors="replace" if errors == "replace" else "ignore")
    kept = len(path.read_bytes().decode(errors="ignore").encode())
    assert sum(description.changes.values()) == path.stat().st_size - kept


@pytest.mark.parametrize("name", UNPACKED)
def test_compressed_file_is_decompressed(name: str) -> None:
    path = malformed(name)
    assert read(path, rules())[0] == UNPACKED[name](path.read_bytes())
