"""Named corpora to data/raw: downloaded or copied, checked, made into one text with its provenance beside it.

A download goes to a file beside the corpus's folder that survives a break: the next attempt, of this call or the next,
asks the server for the rest, if the file there is still the same one.
"""

import contextlib
import datetime
import fcntl
import json
import os
import re
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3
from rich.table import Table

from common import console
from common.errors import StageError, UsageError
from common.files import check_replaceable, sha256_file, whole_folder, write_json
from pipeline.corpora import CORPORA, Corpus, find, make_text
from pipeline.sources import PROVENANCE, RAW

TEXT = "input.txt"
FORMAT_VERSION = 1
ATTEMPTS = 4
WAIT_S = 1.0  # before the second attempt; doubled before each later one
TIMEOUT_S = (10, 60)  # to connect; to send something


def fetch(name: str, source: str | None = None, to: Path | None = None, force: bool = False) -> Path:
    """Makes the folder `to` (data/raw/NAME), the corpus as input.txt and provenance.json; or says that it is there.

    source: a file, a folder or an http(s) URL instead of the corpus's address; what comes of it is checked alike.
    force: fetch again what is there. Raises UsageError for a name or a source that there is not; StageError where the
    download fails, where what came is not the corpus, and where `to` holds something else.
    """
    corpus = find(name)
    source = source or corpus.address
    if name == "stdlib":
        raise UsageError("stdlib is on this machine already: python -m pipeline ingest stdlib --out data/stdlib")
    if not source:
        raise UsageError(
            f"{name} is not to be had at an address ({corpus.licence}): give your own copy by --from FILE_OR_FOLDER"
        )
    folder = to or RAW / name
    check_replaceable(folder, PROVENANCE, "a fetched corpus")
    if (folder / PROVENANCE).is_file() and not force:
        _check_fetched(folder, name)
        console.note(f"{folder} holds {name} already; --force fetches it again")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    if "://" in source:
        with _downloaded(source, corpus, folder) as path:
            _make(name, corpus, path, _public(source), folder)
    elif Path(source).exists():
        _make(name, corpus, Path(source), Path(source).resolve().name, folder)
    else:
        raise UsageError(f"--from: '{source}' is neither a file, nor a folder, nor a URL (http://..., https://...)")
    return folder


def listing() -> Table:
    """The corpora as a table: name, bytes of text, licence, what it is and what the essay did with it, address."""
    table = Table("name", box=None, pad_edge=False, header_style="bold")
    table.add_column("bytes", justify="right")
    table.add_column("what it is, what the essay did with it, its licence and address", overflow="fold")
    for name, corpus in CORPORA.items():
        size = corpus.text_bytes or corpus.cut
        about = f"{corpus.about}\nEssay: {corpus.essay}\nLicence: {corpus.licence}\n{corpus.address or ''}".rstrip()
        table.add_row(name, f"{size:,}" if size else "", f"{about}\n")
    return table


def _check_fetched(folder: Path, name: str) -> None:
    """Raises StageError where `folder` holds another corpus, or a text that was changed."""
    try:
        made = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        holds, sha256 = made["name"], made["text_sha256"]
    except (ValueError, KeyError, TypeError):
        raise StageError(f"{folder / PROVENANCE} is damaged: --force fetches it again") from None
    if holds != name:
        raise StageError(f"{folder} holds the corpus {holds}, not {name}: give another --to, or --force")
    text = folder / TEXT
    if not text.is_file() or sha256_file(text) != sha256:
        raise StageError(f"{text} is not what was fetched: --force fetches it again")


def _make(name: str, corpus: Corpus, path: Path, origin: str, folder: Path) -> None:
    """Makes `folder` out of the file or folder `path`, which came from `origin`."""
    console.note(f"making {folder / TEXT} of {origin}")
    with whole_folder(folder) as partial:
        text = partial / TEXT
        make_text(corpus, path, text)
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
        write_json(partial / PROVENANCE, provenance)
    console.note(f"{folder / TEXT}: {provenance['text_bytes']:,} bytes, SHA-256 {provenance['text_sha256']}")


class UnfinishedError(StageError):
    """A download that did not come to its end. What came is kept, and the next attempt goes on from there."""


@contextlib.contextmanager
def _downloaded(url: str, corpus: Corpus, folder: Path) -> Iterator[Path]:
    """The file at `url`, whole and checked. It is removed when the block ends, unless that was interrupted."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"--from: only http:// and https:// can be fetched, got {_public(url)}")
    path = folder.with_name(f".{folder.name}.download")
    known = corpus if url == corpus.address else None
    keep = False
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"another process is fetching {folder}: wait for it, or give another --to") from None
        try:
            _download(url, file, known.bytes if known else None, corpus.ceiling)
            if known and known.sha256 not in (None, got := sha256_file(path)):
                raise StageError(f"{url} is not what it was: expected SHA-256 {known.sha256}, got {got}")
            yield path
        except (UnfinishedError, OSError, KeyboardInterrupt):
            keep = True
            raise
        finally:
            if not (keep and file.seek(0, os.SEEK_END)):
                path.unlink()
                _state_file(path).unlink(missing_ok=True)


def _download(url: str, file: BinaryIO, size: int | None, ceiling: int) -> None:
    """Brings the file at `url` into `file`, in several attempts; raises UnfinishedError after the last."""
    for attempt in range(ATTEMPTS):
        try:
            return _attempt(url, file, size, ceiling)
        except (UnfinishedError, requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            why = _why(error)
        except requests.RequestException as error:
            raise StageError(f"{_public(url)} cannot be fetched: {_why(error)}") from None
        if attempt + 1 < ATTEMPTS:
            wait = WAIT_S * 2**attempt
            console.note(f"{_public(url)}: {why}; the next attempt is in {wait:g} s")
            time.sleep(wait)
    raise UnfinishedError(
        f"{_public(url)} did not come in {ATTEMPTS} attempts ({why}; {file.tell():,} bytes are kept): run it again, or "
        "fetch the file by other means and give it by --from"
    )


def _attempt(url: str, file: BinaryIO, size: int | None, ceiling: int) -> None:
    state_file = _state_file(Path(file.name))
    state = json.loads(state_file.read_text()) if state_file.is_file() else {}
    have = file.seek(0, os.SEEK_END) if state.get("url") == _public(url) else 0
    if have and have == state["bytes"]:
        return
    headers = {"Accept-Encoding": "identity"}
    if have and state["validator"]:
        headers |= {"Range": f"bytes={have}-", "If-Range": state["validator"]}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        have, total = _announced(response, file)
        if size and total not in (None, size):
            raise StageError(f"{_public(url)} is not what it was: expected {size:,} bytes, {total:,} are announced")
        file.truncate(have)
        write_json(state_file, {"url": _public(url), "validator": _validator(response), "bytes": total})
        with console.progress("bytes") as progress:
            task = progress.add_task(_public(url).rpartition("/")[2], total=total or size, completed=have)
            for data in response.raw.stream(1 << 16, decode_content=False):
                have += len(data)
                if have > (size or ceiling):
                    raise StageError(
                        f"{_public(url)} is too long: expected at most {size or ceiling:,} bytes, got more"
                    )
                file.write(data)
                progress.update(task, completed=have)
    file.flush()
    if have < (total or size or 0):
        raise UnfinishedError(f"broke off after {have:,} of {total or size:,} bytes")
    write_json(state_file, {"url": _public(url), "validator": None, "bytes": have})


def _announced(response: requests.Response, file: BinaryIO) -> tuple[int, int | None]:
    """With which byte of the file a response begins, and the file's size, where it says so.

    Raises UnfinishedError for what another attempt may mend, StageError for what it will not.
    """
    status = response.status_code
    if status == 200:  # also of a server that knows no ranges, and of a file that is another one by now
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    if status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if span and int(span[1]) == file.tell():
            return int(span[1]), int(span[2])
    why = f"HTTP {status} {response.reason}"
    if status in (206, 416):
        file.truncate(0)
        raise UnfinishedError(f"{why}, but not the rest that was asked for: starting over")
    if status in (408, 425, 429) or status >= 500:
        raise UnfinishedError(why)
    raise StageError(f"{_public(response.url)} cannot be fetched: {why}; give another copy by --from")


def _validator(response: requests.Response) -> str | None:
    """What tells whether the file at the server is still the same one: a strong ETag, or its date."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if tag.startswith("W/") else tag


def _state_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _public(url: str) -> str:
    """The URL without the user's name and password."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _why(error: Exception) -> str:
    """The cause at the bottom of what requests and urllib3 wrap around it."""
    while isinstance(cause := getattr(error, "reason", None) or (error.args or ("",))[-1], Exception):
        error = cause
    return re.sub(r"^\w+\([^)]*\): ", "", str(error.args[-1] if error.args else error))
