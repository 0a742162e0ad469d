import contextlib
import datetime
import fcntl
import hashlib
import http.server
import itertools
import os
import re
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common import console
from common.errors import StageError, UsageError
from common.files import load_json
from pipeline import corpora
from pipeline import fetch as fetching
from pipeline.corpora import CORPORA, Corpus
from pipeline.fetch import fetch, listing

TEXT = b"".join(b"line %d of a text\n" % line for line in range(20_000))
SHA256 = hashlib.sha256(TEXT).hexdigest()
REAL = Path(os.environ.get("CORPORA", Path(__file__).resolve().parents[3] / "shared" / "corpora"))


class Server(http.server.ThreadingHTTPServer):
    """Server that sends `data` for any path, with faults. requests: (path, Range, If-Range) of all requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = TEXT
        self.breaks: list[int] = []  # bytes after which the next responses break off
        self.statuses: list[int] = []  # error statuses of the next responses, which then have no data
        self.ranges = True
        self.drip = ""  # part to send slowly: headers, data or the line before a chunk
        self.length: str | None = ""  # Content-Length; "": correct; None: no header
        self.headers = {"ETag": '"1"'}
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        requested = self.headers["Range"]
        server.requests.append((self.path, requested, self.headers["If-Range"]))
        assert self.headers["Accept-Encoding"] == "identity"
        if self.path.startswith("/moved"):
            self.respond(302, {"Location": self.path.removeprefix("/moved")}, b"")
            return
        if server.statuses:
            self.respond(server.statuses.pop(0), {}, b"<html>the server's own page</html>")
            return
        start, total = 0, len(server.data)
        if requested and server.ranges and self.headers["If-Range"] in server.headers.values():
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
        if start >= total:
            self.respond(416, {}, b"")
            return
        headers = server.headers | ({"Content-Range": f"bytes {start}-{total - 1}/{total}"} if start else {})
        self.respond(206 if start else 200, headers, server.data[start:], server.length)

    def respond(self, status: int, headers: dict[str, str], data: bytes, length: str | None = "") -> None:
        if self.server.drip == "headers":
            self.drip(itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"x")))
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.drip == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
        elif length is not None:
            self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.server.breaks and status < 300:
            data = data[: self.server.breaks.pop(0)]
        if self.server.drip == "chunks":
            self.drip(itertools.repeat(b"0"))
        elif self.server.drip:
            self.drip(data[start : start + 10] for start in range(0, len(data), 10))
        else:
            with contextlib.suppress(OSError):  # the client has disconnected
                self.wfile.write(data)

    def drip(self, pieces: Iterable[bytes]) -> None:
        """Send a piece every 10 ms until the client disconnects."""
        with contextlib.suppress(OSError):
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(0.01)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Server of the corpus "books". The working folder is empty, and retries do not wait."""
    with Server() as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(fetching, "BACKOFF_S", 0.0)
        register_books(monkeypatch, address=f"{server.url}/books.txt")
        yield server
        server.shutdown()
        thread.join()


def register_books(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "about": "books",
        "licence": "free",
        "essay": "read them",
        "bytes": len(TEXT),
        "sha256": SHA256,
        "files": (r"(^|/)books\.txt$",),
        "text_bytes": len(TEXT),
        "text_sha256": SHA256,
        "ceiling": 1_000_000,
        "settings": {"documents": "line"},
    }
    monkeypatch.setitem(corpora.CORPORA, "books", Corpus(**fields | changes))


def raw_files() -> dict[str, bytes]:
    """Return all files in data/raw, by path."""
    root = Path("data/raw")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fetched_text() -> bytes:
    """Return the text of books, after checking that data/raw has only it and its provenance."""
    files = raw_files()
    assert set(files) == {"books/input.txt", "books/provenance.json"}
    return files["books/input.txt"]


def provenance() -> Any:
    return load_json(Path("data/raw/books/provenance.json"))


def test_fetch_writes_text_and_provenance(server: Server) -> None:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert fetch("books") == Path("data/raw/books")
    assert fetched_text() == TEXT
    assert provenance() == {
        "format_version": 1,
        "name": "books",
        "address": f"{server.url}/books.txt",
        "from": f"{server.url}/books.txt",
        "licence": "free",
        "bytes": len(TEXT),
        "sha256": SHA256,
        "text_bytes": len(TEXT),
        "text_sha256": SHA256,
        "date": today,
        "essay": "read them",
        "settings": {"documents": "line"},
    }
    assert server.requests == [("/books.txt", None, None)]


def test_existing_corpus_is_fetched_again_only_with_force(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    fetch("books")
    capsys.readouterr()
    fetch("books")
    assert "data/raw/books already holds books; pass --force to fetch it again" in capsys.readouterr().err
    assert len(server.requests) == 1
    fetch("books", force=True)
    assert len(server.requests) == 2
    assert fetched_text() == TEXT


def test_changed_or_different_corpus_raises(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("books", to=Path("mine"))
    monkeypatch.setitem(corpora.CORPORA, "letters", corpora.CORPORA["books"])
    with pytest.raises(StageError, match=r"mine holds the corpus books, not letters: pass a different --to"):
        fetch("letters", to=Path("mine"))
    Path("mine/input.txt").write_bytes(b"changed")
    with pytest.raises(StageError, match=r"mine/input.txt differs from the text that was fetched: pass --force"):
        fetch("books", to=Path("mine"))
    for damaged in ("{", "[]", "{}"):
        Path("mine/provenance.json").write_text(damaged)
        with pytest.raises(StageError, match=r"mine/provenance.json is corrupted: pass --force to fetch"):
            fetch("books", to=Path("mine"))
    fetch("books", to=Path("mine"), force=True)
    assert Path("mine/input.txt").read_bytes() == TEXT


def test_unrelated_folder_is_never_replaced(server: Server) -> None:
    Path("data/raw/books").mkdir(parents=True)
    Path("data/raw/books/notes").write_text("mine")
    for force in (False, True):
        with pytest.raises(StageError, match=r"data/raw/books exists and is not a fetched corpus"):
            fetch("books", force=force)
    assert raw_files() == {"books/notes": b"mine"}
    assert not server.requests


def test_broken_download_resumes(server: Server) -> None:
    server.breaks = [100_000, 0, 50_000]
    fetch("books")
    assert fetched_text() == TEXT
    rest = ("/books.txt", "bytes=100000-", '"1"')
    assert server.requests == [("/books.txt", None, None), rest, rest, ("/books.txt", "bytes=150000-", '"1"')]


def test_next_fetch_resumes_the_download(server: Server) -> None:
    server.breaks = [100_000, 0, 0, 0]
    with pytest.raises(StageError, match=r"could not be downloaded in 4 attempts \(.+; 100,000 bytes are kept\): run"):
        fetch("books")
    assert raw_files()[".books.download"] == TEXT[:100_000]
    server.requests.clear()
    fetch("books")
    assert fetched_text() == TEXT
    assert server.requests == [("/books.txt", "bytes=100000-", '"1"')]


@pytest.mark.parametrize("headers", [{"Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}, {"ETag": 'W/"1"'}, {}])
def test_if_range_uses_etag_or_date(headers: dict[str, str], server: Server) -> None:
    server.headers = headers
    server.breaks = [100_000]
    fetch("books")
    assert fetched_text() == TEXT
    date = headers.get("Last-Modified")
    assert server.requests[1] == ("/books.txt", "bytes=100000-" if date else None, date)


def test_changed_file_starts_over(server: Server) -> None:
    server.data = bytes(len(TEXT))
    server.breaks = [100_000, 0, 0, 0]
    with pytest.raises(StageError, match="are kept"):
        fetch("books")
    server.data, server.headers = TEXT, {"ETag": '"2"'}
    fetch("books")
    assert fetched_text() == TEXT


def test_partial_download_of_another_address_is_not_resumed(server: Server) -> None:
    server.data = bytes(len(TEXT))
    server.breaks = [100_000, 0, 0, 0]
    with pytest.raises(StageError, match="are kept"):
        fetch("books", f"{server.url}/other")
    server.data = TEXT
    server.requests.clear()
    fetch("books")
    assert fetched_text() == TEXT
    assert server.requests == [("/books.txt", None, None)]


def test_server_without_ranges_starts_over(server: Server) -> None:
    server.ranges = False
    server.breaks = [100_000, 50_000]
    fetch("books")
    assert fetched_text() == TEXT


def test_wrong_range_starts_over(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def send_header(handler: Handler, name: str, value: str) -> None:
        send(handler, name, "bytes 5-9/408890" if name == "Content-Range" else value)

    send = Handler.send_header
    monkeypatch.setattr(Handler, "send_header", send_header)
    server.breaks = [100_000]
    fetch("books")
    assert fetched_text() == TEXT
    assert [request[1] for request in server.requests] == [None, "bytes=100000-", None]


def test_unsatisfiable_range_starts_over(server: Server) -> None:
    server.breaks = [100_000, 0, 0, 0]
    with pytest.raises(StageError, match="are kept"):
        fetch("books")
    server.statuses = [416]
    fetch("books")
    assert fetched_text() == TEXT
    assert [request[1] for request in server.requests[-2:]] == ["bytes=100000-", None]


@pytest.mark.parametrize("length", ["", None])
def test_complete_download_is_reused_after_an_interrupt(
    length: str | None, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    server.length = length
    with monkeypatch.context() as patched:
        patched.setattr(fetching, "make_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("books")
    assert set(raw_files()) == {".books.download", ".books.download.json"}
    fetch("books")
    assert fetched_text() == TEXT
    assert len(server.requests) == 1


def test_wrong_hash_deletes_the_download(server: Server) -> None:
    server.data = TEXT[:-1] + b"!"
    got = hashlib.sha256(server.data).hexdigest()
    with pytest.raises(StageError, match=rf"books.txt has changed: expected SHA-256 {SHA256}, got {got}"):
        fetch("books")
    assert raw_files() == {}


@pytest.mark.parametrize("change", [-1000, 1000])
def test_file_of_wrong_size_is_not_downloaded(change: int, server: Server) -> None:
    server.data = (TEXT + TEXT)[: len(TEXT) + change]
    expected = rf"has changed: expected {len(TEXT):,} bytes, the server announces {len(TEXT) + change:,}"
    with pytest.raises(StageError, match=expected):
        fetch("books")
    assert raw_files() == {}


def test_too_long_content_length_raises(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    register_books(monkeypatch, address=f"{server.url}/books.txt", bytes=None, sha256=None)
    server.ranges, server.length = False, str(len(TEXT) + 1000)
    with pytest.raises(StageError, match=r"could not be downloaded in 4 attempts"):
        fetch("books")
    assert len(server.requests) == 4


def test_too_short_content_length_raises(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    register_books(monkeypatch, address=f"{server.url}/books.txt", bytes=None, sha256=None)
    server.length = str(len(TEXT) - 1000)
    expected = rf"is not this corpus: expected a text of {len(TEXT):,} bytes, got {len(TEXT) - 1000:,}"
    with pytest.raises(StageError, match=expected):
        fetch("books")
    assert raw_files() == {}


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("headers", "the server sends too slowly"),
        ("data", "the server sent fewer than 60,000 bytes in a minute"),
        ("chunks", "the server sends too slowly"),
    ],
)
def test_a_slow_server_ends_the_attempt(
    part: str, reason: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FLOOR_S", 0.1)
    server.drip = part
    with pytest.raises(StageError, match=rf"in 4 attempts \({reason}; "):
        fetch("books")
    assert len(server.requests) == 4
    server.drip = ""
    fetch("books")
    assert fetched_text() == TEXT


def test_broken_download_reports_the_cause(server: Server) -> None:
    server.breaks = [0, 10, 20, 30]
    with pytest.raises(StageError, match=r"in 4 attempts \(the (connection was closed|response ended) "):
        fetch("books")


@pytest.mark.parametrize(
    "state", ["{", "[]", "{}", '{"url": "URL"}', '{"url": "URL", "validator": "a\\nb", "bytes": "x"}']
)
def test_a_damaged_state_starts_over(state: str, server: Server) -> None:
    server.breaks = [100, 0, 0, 0]
    with pytest.raises(StageError, match="100 bytes are kept"):
        fetch("books")
    (path,) = Path("data/raw").glob(".books.download.json")
    path.write_text(state.replace("URL", f"{server.url}/books.txt"))
    fetch("books")
    assert fetched_text() == TEXT


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "x"])
def test_meaningless_content_length_is_harmless(length: str, server: Server) -> None:
    server.length = length
    with contextlib.suppress(StageError):
        fetch("books")
    assert "books/input.txt" not in raw_files() or fetched_text() == TEXT


def test_missing_content_length_resumes(server: Server) -> None:
    server.length = None
    server.breaks = [100_000]  # looks complete without a Content-Length
    fetch("books")
    assert fetched_text() == TEXT
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("known", "data", "most"), [(len(TEXT), TEXT + b"!", f"{len(TEXT):,}"), (None, TEXT * 3, "1,000,000")]
)
def test_download_stops_at_the_ceiling(
    known: int | None, data: bytes, most: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_books(monkeypatch, address=f"{server.url}/books.txt", bytes=known, sha256=None)
    server.length = None
    server.data = data
    with pytest.raises(StageError, match=rf"books.txt is too long: expected at most {most} bytes"):
        fetch("books")
    assert raw_files() == {}


def test_not_found_is_not_retried(server: Server) -> None:
    server.statuses = [404]
    with pytest.raises(StageError, match=r"books.txt cannot be fetched: HTTP 404 Not Found; pass another copy"):
        fetch("books")
    assert len(server.requests) == 1
    assert raw_files() == {}


def test_busy_server_is_retried(server: Server) -> None:
    server.statuses = [503, 429, 500]
    fetch("books")
    assert fetched_text() == TEXT
    server.statuses = [503] * 9
    with pytest.raises(StageError, match=r"in 4 attempts \(too many 503 error responses; 0 bytes"):
        fetch("books", force=True)
    assert fetched_text() == TEXT


def test_backoff_doubles(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(fetching, "BACKOFF_S", 0.5)
    monkeypatch.setattr("time.sleep", waits.append)
    server.statuses = [503] * 9
    with pytest.raises(StageError, match="4 attempts"):
        fetch("books")
    assert waits == [1, 2]  # the first retry is immediate


def test_redirects_are_followed_only_within_http(server: Server) -> None:
    fetch("books", f"{server.url}/moved/books.txt")
    assert fetched_text() == TEXT
    with pytest.raises(StageError, match=r"cannot be fetched: No connection adapters"):
        fetch("books", f"{server.url}/movedfile:///etc/passwd", force=True)


def test_unreachable_server_raises(server: Server) -> None:
    with pytest.raises(
        StageError, match=r"http://127.0.0.1:9/x could not be downloaded in 4 attempts \([^()]*Connection refused; 0"
    ):
        fetch("books", "http://127.0.0.1:9/x")
    assert raw_files() == {}


def test_concurrent_fetch_raises(server: Server) -> None:
    Path("data/raw").mkdir(parents=True)
    with Path("data/raw/.books.download").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StageError, match=r"another process is fetching data/raw/books: wait for it"):
            fetch("books")
    fetch("books")
    assert fetched_text() == TEXT


def test_own_copy_is_accepted(server: Server, tmp_path: Path) -> None:
    copy = tmp_path / "copies" / "any name"
    copy.parent.mkdir()
    copy.write_bytes(TEXT)
    fetch("books", str(copy))
    assert fetched_text() == TEXT
    assert (provenance()["from"], provenance()["bytes"], provenance()["sha256"]) == ("any name", len(TEXT), SHA256)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme", "")
        archive.writestr("inner/books.txt", TEXT)
    fetch("books", "x.zip", force=True)
    assert fetched_text() == TEXT
    copy.rename(copy.with_name("books.txt"))
    fetch("books", "copies", force=True)
    assert fetched_text() == TEXT
    assert (provenance()["from"], provenance()["bytes"], provenance()["sha256"]) == ("copies", None, None)
    assert not server.requests


def test_own_copy_is_verified(server: Server, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(TEXT + b"more")
    with pytest.raises(StageError, match=r"copy is not this corpus: expected a text of 408,890 bytes, got 408,894"):
        fetch("books", "copy")
    server.data = TEXT[:-1] + b"!"
    with pytest.raises(StageError, match=r"is not this corpus: expected a text of SHA-256"):
        fetch("books", f"{server.url}/mirror")
    assert raw_files() == {}


def test_password_is_not_stored_or_printed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    fetch("books", server.url.replace("//", "//me:secret@") + "/books.txt")
    assert provenance()["from"] == f"{server.url}/books.txt"
    server.breaks = [5000, 0, 0, 0]
    with pytest.raises(StageError, match=re.escape(f"{server.url}/x could not") + ".*5,000 bytes are kept"):
        fetch("books", server.url.replace("//", "//me:secret@") + "/x", force=True)
    assert raw_files()[".books.download"] == TEXT[:5000]
    assert b"secret" not in raw_files()[".books.download.json"]
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize("source", ["ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_other_protocols_raise(source: str, server: Server) -> None:
    with pytest.raises(UsageError, match=rf"a URL must begin with http:// or https://, got {source}"):
        fetch("books", source)


def test_a_file_of_an_unknown_text_is_known_by_the_name_in_its_address(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_books(monkeypatch, address=None, bytes=None, sha256=None, text_bytes=None, text_sha256=None)
    fetch("books", f"{server.url}/books.txt")
    assert raw_files()["books/input.txt"] == TEXT
    with pytest.raises(StageError, match=rf"^{server.url}/other.txt contains none of the corpus's files"):
        fetch("books", f"{server.url}/other.txt", to=Path("other"))


def test_the_current_folder_is_refused_before_the_download(server: Server) -> None:
    for folder in (Path(), Path.cwd()):
        with pytest.raises(StageError, match="contains the current folder, so it cannot be replaced"):
            fetch("books", to=folder)
    assert server.requests == []


def test_unfetchable_sources_raise(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"unknown corpus 'x'; the corpora are stdlib"):
        fetch("x")
    with pytest.raises(UsageError, match=r"stdlib needs no fetching: run python -m pipeline ingest stdlib"):
        fetch("stdlib")
    with pytest.raises(UsageError, match=r"paul-graham has no public download .*: pass your own copy with --from"):
        fetch("paul-graham")
    with pytest.raises(UsageError, match=r"--from: 'no/such' is not a file, a folder or a URL"):
        fetch("books", "no/such")
    with pytest.raises(UsageError, match=r"--from: 'http://\[x' is not a URL \(Invalid IPv6 URL\)$"):
        fetch("books", "http://[x")
    with pytest.raises(StageError, match=r"http:// cannot be fetched: Invalid URL"):
        fetch("books", "http://")


def test_listing_has_all_corpora(capsys: pytest.CaptureFixture[str]) -> None:
    console.out.print(listing())
    shown = "".join(capsys.readouterr().out.split())
    for name, corpus in CORPORA.items():
        for part in (name, corpus.about, corpus.licence, corpus.essay, corpus.address or ""):
            assert "".join(part.split()) in shown
    assert "1,115,394" in shown


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tinyshakespeare", "tinyshakespeare/input.txt"),
        ("warpeace", "warpeace"),
        ("names", "names"),
        ("names", "names/input.txt"),
        ("latex", "latex/input.txt"),
        ("chinese-poetry", "chinese-poetry/input.txt"),
    ],
)
def test_real_corpora_match_their_hashes(name: str, source: str, tmp_path: Path) -> None:
    if not (REAL / source).exists():
        pytest.skip(f"{REAL / source} is missing: set CORPORA to the folder of the real corpora")
    fetch(name, str(REAL / source), tmp_path / name)
    with (tmp_path / name / "input.txt").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == CORPORA[name].text_sha256


def test_shakespeare_copy_of_wrong_size_raises(tmp_path: Path) -> None:
    if not (REAL / "shakespeare/input.txt").exists():
        pytest.skip(f"{REAL}/shakespeare is missing")
    with pytest.raises(StageError, match=r"expected a text of 4,573,338 bytes, got 4,572,940"):
        fetch("shakespeare", str(REAL / "shakespeare/input.txt"), tmp_path / "x")
