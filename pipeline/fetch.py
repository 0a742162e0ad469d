"""Fetch named corpora into data/raw: download or copy, verify, build the text, record its provenance.

A partial download is kept beside the corpus's folder. The next attempt, in the same call or a later one, resumes it if
the server still has the same file.
"""

import contextlib
import datetime
import http.client
import logging
import os
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import requests
import urllib3
from requests.adapters import HTTPAdapter
from rich.table import Table

from common import console
from common.errors import StageError, UsageError
from common.files import (
    check_movable,
    check_replaceable,
    hold,
    load_json,
    read_json,
    sha256_file,
    whole_folder,
    write_json,
    write_record,
)
from pipeline.corpora import CORPORA, Corpus, find, make_text
from pipeline.sources import PROVENANCE, RAW

TEXT = "input.txt"
FORMAT_VERSION = 1
ATTEMPTS = 4
BACKOFF_S = 1.0  # urllib3 retries at once, then waits 2, 4, ... times this
TIMEOUT_S = (10, 60)  # connect, read
DIGITS = r"[0-9]{1,18}"  # Python refuses to convert more than 4,300 of them
FLOOR_BYTES, FLOOR_S = 60_000, 60.0  # a slower server ends the attempt: at 1 kB/s, 1 MB takes 17 minutes
BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses worth another attempt


def fetch(name: str, source: str | None = None, to: Path | None = None, force: bool = False) -> Path:
    """Create the folder `to` (default data/raw/NAME) with the corpus as input.txt and its provenance.json.

    source: file, folder or http(s) URL to use instead of the corpus's own address; its text is verified as well.
    force: fetch again even if the corpus is already there.
    Raises UsageError for an unknown name or source; StageError if the download fails, the text is not the corpus's,
    or `to` holds something else.
    """
    corpus = find(name)
    source = source or corpus.address
    if name == "stdlib":
        raise UsageError("stdlib needs no fetching: run python -m pipeline ingest stdlib --out data/stdlib")
    if not source:
        raise UsageError(
            f"{name} has no public download ({corpus.licence}): pass your own copy with --from FILE_OR_FOLDER"
        )
    folder = to or RAW / name
    check_replaceable(folder, PROVENANCE, "a fetched corpus", "--to")
    if (folder / PROVENANCE).is_file() and not force:
        _check_fetched(folder, name)
        console.note(f"{folder} already holds {name}; pass --force to fetch it again")
        return folder
    check_movable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if "://" in source:
        with _downloaded(source, corpus, folder) as path:
            _make(name, corpus, path, _public(source), folder)
    elif Path(source).exists():
        _make(name, corpus, Path(source), Path(source).resolve().name, folder)
    else:
        raise UsageError(f"--from: '{source}' is not a file, a folder or a URL (http://..., https://...)")
    return folder


def listing() -> Table:
    """Table of the corpora: name, bytes of text, description, use in the essay, licence, address."""
    table = Table("name", box=None, pad_edge=False, header_style="bold")
    table.add_column("bytes", justify="right")
    table.add_column("description, use in the essay, licence, address", overflow="fold")
    for name, corpus in CORPORA.items():
        size = corpus.text_bytes or corpus.cut
        about = f"{corpus.about}\nEssay: {corpus.essay}\nLicence: {corpus.licence}\n{corpus.address or ''}".rstrip()
        table.add_row(name, f"{size:,}" if size else "", f"{about}\n")
    return table


def _check_fetched(folder: Path, name: str) -> None:
    """Raise StageError if `folder` holds a different corpus or a modified text."""
    try:
        provenance = load_json(folder / PROVENANCE)
        other, sha256 = provenance["name"], provenance["text_sha256"]
    except (ValueError, KeyError, TypeError):
        raise StageError(f"{folder / PROVENANCE} is corrupted: pass --force to fetch the corpus again") from None
    if other != name:
        raise StageError(f"{folder} holds the corpus {other}, not {name}: pass a different --to, or --force")
    text = folder / TEXT
    if not text.is_file() or sha256_file(text) != sha256:
        raise StageError(f"{text} differs from the text that was fetched: pass --force to fetch it again")


def _make(name: str, corpus: Corpus, path: Path, origin: str, folder: Path) -> None:
    """Build `folder` from the file or folder `path`, which came from `origin`."""
    console.note(f"building {folder / TEXT} from {origin}")
    with whole_folder(folder) as partial:
        text = partial / TEXT
        make_text(corpus, path, text, origin if "://" in origin else "")
        provenance = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "address": corpus.address,
            "from": origin,
            "licence": corpus.licence,
            "bytes": path.stat().st_size if path.is_file() else None,
            "sha256": sha256_file(path) if path.is_file() else None,
            "text_bytes": text.stat().st_size,
            "text_sha256": sha256_file(text),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "essay": corpus.essay,
            "settings": dict(corpus.settings),
        }
        write_record(partial / PROVENANCE, provenance)
    console.note(f"{folder / TEXT}: {provenance['text_bytes']:,} bytes, SHA-256 {provenance['text_sha256']}")


class UnfinishedError(StageError):
    """Incomplete download. Its bytes are kept, and the next call resumes it."""


class _InterruptedError(Exception):
    """Response that ended early or did not match the request. The next request resumes or starts over."""


@contextlib.contextmanager
def _downloaded(url: str, corpus: Corpus, folder: Path) -> Iterator[Path]:
    """Yield the verified file at `url`. It is deleted when the block ends, unless the block was interrupted."""
    try:
        scheme = urllib.parse.urlsplit(url).scheme
    except ValueError as error:
        raise UsageError(f"--from: '{url}' is not a URL ({error})") from None
    if scheme not in ("http", "https"):
        raise UsageError(f"--from: a URL must begin with http:// or https://, got {_public(url)}")
    path = folder.with_name(f".{folder.name}.download")
    known = corpus if url == corpus.address else None
    keep = False
    with path.open("ab") as file:
        hold(file, f"another process is fetching {folder}: wait for it, or pass a different --to")
        try:
            _download(url, file, known.bytes if known else None, corpus.ceiling)
            if known and known.sha256 not in (None, got := sha256_file(path)):
                raise StageError(f"{url} has changed: expected SHA-256 {known.sha256}, got {got}")
            yield path
        except (UnfinishedError, OSError, KeyboardInterrupt):
            keep = True
            raise
        finally:
            if not (keep and file.seek(0, os.SEEK_END)):
                path.unlink()
                _state_file(path).unlink(missing_ok=True)


@contextlib.contextmanager
def _interrupting(interrupt: Callable[[], None], after: float) -> Iterator[None]:
    """Call `interrupt` and raise _InterruptedError if the block takes longer: a socket's own timeout restarts with each
    byte."""
    slow = threading.Event()

    def stop() -> None:
        slow.set()
        with contextlib.suppress(AttributeError, OSError, ValueError):  # the connection is closed
            interrupt()

    timer = threading.Timer(after, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if slow.is_set():
            raise _InterruptedError("the server sends too slowly")


class _Headers:
    """Mixin of a connection that limits the wait for the headers of a response to FLOOR_S."""

    def getresponse(self) -> Any:
        connection: Any = self
        with _interrupting(lambda: connection.sock.shutdown(socket.SHUT_RD), FLOOR_S):
            return super().getresponse()  # type: ignore[misc]


class _Adapter(HTTPAdapter):
    """Adapter whose connections, to servers and proxies, are _Headers."""

    def get_connection_with_tls_context(self, *arguments: Any, **settings: Any) -> Any:
        pool = super().get_connection_with_tls_context(*arguments, **settings)
        if not issubclass(pool.ConnectionCls, _Headers):
            pool.ConnectionCls = type("Connection", (_Headers, pool.ConnectionCls), {})
        return pool


def _session() -> requests.Session:
    """Session that retries refused connections and busy servers, honouring Retry-After."""
    retry = urllib3.Retry(ATTEMPTS - 1, status_forcelist=BUSY, backoff_factor=BACKOFF_S)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it logs each retry as a Python repr
    session = requests.Session()
    session.mount("http://", _Adapter(max_retries=retry))
    session.mount("https://", _Adapter(max_retries=retry))
    return session


def _download(url: str, file: BinaryIO, size: int | None, ceiling: int) -> None:
    """Download `url` into `file`, resuming after each interruption. Raises UnfinishedError after the last attempt."""
    with _session() as session:
        for _ in range(ATTEMPTS):
            try:
                return _attempt(session, url, file, size, ceiling)
            except (_InterruptedError, urllib3.exceptions.HTTPError) as error:
                reason = _reason(error)  # the body ended early: the next request resumes it
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError) as error:
                reason = _reason(error)  # the session has retried already
                break
            except requests.RequestException as error:
                raise StageError(f"{_public(url)} cannot be fetched: {_reason(error)}") from None
    raise UnfinishedError(
        f"{_public(url)} could not be downloaded in {ATTEMPTS} attempts ({reason}; {file.tell():,} bytes are kept): "
        "run the command again to resume, or download the file yourself and pass it with --from"
    )


def _attempt(session: requests.Session, url: str, file: BinaryIO, size: int | None, ceiling: int) -> None:
    """Append the missing bytes of `url` to `file`. Raises _InterruptedError where another request may help."""
    state_file = _state_file(Path(file.name))
    state = read_json(state_file)
    have = file.seek(0, os.SEEK_END) if state.get("url") == _public(url) else 0
    if have and have == state.get("bytes"):
        return
    headers, validator = {"Accept-Encoding": "identity"}, state.get("validator")
    if have and isinstance(validator, str) and validator.isascii() and validator.isprintable():
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        have, total = _announced(response, file)
        if size and total not in (None, size):
            raise StageError(f"{_public(url)} has changed: expected {size:,} bytes, the server announces {total:,}")
        file.truncate(have)
        write_json(state_file, {"url": _public(url), "validator": _validator(response), "bytes": total})
        with console.progress("bytes") as progress:
            task = progress.add_task(_public(url).rpartition("/")[2], total=total or size, completed=have)
            for data in _pieces(response):
                have += len(data)
                if have > (size or ceiling):
                    raise StageError(f"{_public(url)} is too long: expected at most {size or ceiling:,} bytes")
                file.write(data)
                progress.update(task, completed=have)
    file.flush()
    if have < (total or size or 0):
        raise _InterruptedError(f"the response ended after {have:,} of {total or size:,} bytes")
    write_json(state_file, {"url": _public(url), "validator": None, "bytes": have})


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """Yield the pieces of a body. Raises _InterruptedError if fewer than FLOOR_BYTES arrive in a minute."""
    while True:
        received, until = 0, time.monotonic() + FLOOR_S
        with _interrupting(response.raw.shutdown, 2 * FLOOR_S):  # while it reads the line before a chunk
            while time.monotonic() < until:
                if not (data := response.raw.read1(1 << 16, decode_content=False)):
                    return
                received += len(data)
                yield data
        if received < FLOOR_BYTES:
            raise _InterruptedError(f"the server sent fewer than {FLOOR_BYTES:,} bytes in a minute")


def _announced(response: requests.Response, file: BinaryIO) -> tuple[int, int | None]:
    """Offset of a response's first byte in the file, and the file's size if the server announces it.

    Raises _InterruptedError where another request may help, StageError where it will not.
    """
    status = response.status_code
    if status == 200:  # also from servers that ignore Range, and for a file that has changed since
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if re.fullmatch(DIGITS, length) else None
    if status == 206:
        span = re.fullmatch(rf"bytes ({DIGITS})-\d+/({DIGITS})", response.headers.get("Content-Range", ""))
        if span and int(span[1]) == file.tell():
            return int(span[1]), int(span[2])
    reason = f"HTTP {status} {response.reason}"
    if status in (206, 416):
        file.truncate(0)
        raise _InterruptedError(f"{reason}, but not for the range requested")
    raise StageError(f"{_public(response.url)} cannot be fetched: {reason}; pass another copy with --from")


def _validator(response: requests.Response) -> str | None:
    """Value for If-Range, which proves the file unchanged: a strong ETag, else Last-Modified."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if tag.startswith("W/") else tag


def _state_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _public(url: str) -> str:
    """Strip user name and password from a URL."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _reason(error: Exception) -> str:
    """Find the root cause of an error that requests and urllib3 have wrapped."""
    while isinstance(cause := getattr(error, "reason", None) or (error.args or ("",))[-1], Exception):
        error = cause
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was closed early"
    return re.sub(r"^\w+\([^)]*\): ", "", str(error.args[-1] if error.args else error))
