"""Named corpora: address, licence, and how to build each text."""

import dataclasses
import hashlib
import html
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from common.errors import StageError, UsageError
from pipeline.archives import is_archive, members, open_text

SortKey = tuple[int, bytes]  # sort key of a file in the text: index of the expression it matches, path
HTML, POEMS = r"(?i)\.html?$", r"\.json$"
BLOCKS = ("blockquote", "div", "dd", "dt", *(f"h{n}" for n in range(1, 7)), "li", "p", "pre", "table", "td", "ul", "ol")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Named text, built from a file, archive or folder.

    about: description. licence: terms of use. essay: its use in the essay.
    address: URL; None if users must pass their own copy (or, for stdlib, if it is on every machine).
    bytes, sha256: of the file at that address, if known.
    files: regular expressions for the paths in an archive or folder. The text is the matching files, ordered by the
        first expression that they match, then by path bytes.
    without: regular expression for paths to leave out.
    cut: maximum size of the text, in bytes.
    text_bytes, text_sha256, text_git: size, SHA-256 and git blob name of the finished text, if known.
    ceiling: maximum bytes to download or unpack.
    settings: recommended settings for a config's [data].
    """

    about: str
    licence: str
    essay: str
    address: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    files: tuple[str, ...] = ()
    without: str | None = None
    cut: int | None = None
    text_bytes: int | None = None
    text_sha256: str | None = None
    text_git: str | None = None
    ceiling: int = 200_000_000
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


LINUX = Corpus(
    about="474 MB of the Linux kernel's C source and headers, ordered by path; pass another kernel's tar or folder "
    "with --from",
    licence="GPL-2.0",
    essay="3-layer LSTMs of some 10 million parameters wrote C for days, on 474 MB of all *.c and *.h of 2015",
    address="https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.1.tar.xz",
    sha256="2ca1f17051a430f6fed1196e4952717507171acfd97d96577212502703b25deb",
    files=(r"\.[ch]$",),
    # Generated register maps: 395 MB of #define in 6.1, a third of the total.
    without=r"(^|/)drivers/gpu/drm/amd/include/",
    cut=474_000_000,
    ceiling=4_000_000_000,
)

CORPORA = {
    "stdlib": Corpus(
        about="some 5 MB of the Python standard library that runs this program; nothing is downloaded",
        licence="PSF",
        essay="not in it",
    ),
    "tinyshakespeare": Corpus(
        about="40,000 lines of Shakespeare's plays, char-rnn's first example; 65 distinct characters",
        licence="public domain",
        essay="not in it; char-rnn, the essay's code, trains on it by default",
        address="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        bytes=1_115_394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        files=(r"(^|/)input\.txt$",),
        text_bytes=1_115_394,
        text_sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "shakespeare": Corpus(
        about="all works of Shakespeare; 67 distinct characters",
        licence="public domain",
        essay="a 3-layer RNN of 512 units per layer wrote the scenes of Pandarus and Vincentio",
        address="https://cs.stanford.edu/people/karpathy/char-rnn/shakespeare_input.txt",
        bytes=4_573_338,
        files=(r"(^|/)shakespeare_input\.txt$",),
        text_bytes=4_573_338,
        text_git="9b164024154db21fc8c833cde26b408486393a00",
    ),
    "wikipedia": Corpus(
        about="enwik8, the first 100 MB of English Wikipedia's XML of 2006, as in the Hutter Prize; papers compare "
        "models on the last 5 MB, after 90 for training and 5 for validation: train = 90_000_000, "
        "val = 5_000_000, test = 5_000_000",
        licence="CC BY-SA 3.0 and GFDL",
        essay="following Graves, trained on the first 96 MB and validated on the other 4; wrote links, tables and XML",
        address="http://mattmahoney.net/dc/enwik8.zip",
        bytes=36_445_475,
        sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        files=(r"(^|/)enwik8$",),
        text_bytes=100_000_000,
        text_sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        settings={"train": 96_000_000, "val": 4_000_000, "test": 0},
    ),
    "wikipedia-sample": Corpus(
        about="206 pages of English Wikipedia's XML of 2016, 6 MB, a stand-in for enwik8: pass gensim/test/test_data/"
        "enwiki-latest-pages-articles1.*.bz2 of the Python package gensim 4.3.3 with --from",
        licence="CC BY-SA 3.0 and GFDL",
        essay="not in it",
        files=(r"(^|/)enwiki-latest-pages-articles1\.xml.*-shortened\.bz2$",),
        text_bytes=6_089_746,
        text_sha256="34c1c63050c87cc8477b9ae36b1cb0edf372612c92938b742e579a7109c20fa4",
    ),
    "linux": LINUX,
    "linux-core": dataclasses.replace(
        LINUX,
        about="kernel/ of Linux, its core, 11.6 MB of C (scheduler, locks, BPF, tracing), ordered by path; "
        "pass another kernel's tar or folder with --from",
        essay="not in it; arXiv 1506.02078 trains on 6 MB of the kernel",
        files=(r"^(\./)?([^/]+/)?kernel/.*\.[ch]$",),
        without=None,
        cut=None,
    ),
    "latex": Corpus(
        about="the Stacks project, a book on algebraic geometry in LaTeX, as of the day before the essay",
        licence="GFDL 1.2",
        essay="a multilayer LSTM on the 16 MB wrote LaTeX that almost compiled",
        address="https://github.com/stacks/stacks-project/archive/aca856f4523fc2b4dca6925cfd7480ccb3e8d0b0.tar.gz",
        files=(r"\.tex$",),
        text_bytes=16_689_022,
        text_sha256="d085437a2022aedb523c471f4608654bd2dd72895419e3bdfae7b7ea28c66c40",
    ),
    "warpeace": Corpus(
        about="Tolstoy's War and Peace, Maudes' translation; with byte order mark and CRLF",
        licence="public domain",
        essay="samples after 100 to 2,000 iterations show how a model learns; its neurons are visualized",
        address="https://cs.stanford.edu/people/karpathy/char-rnn/warpeace_input.txt",
        bytes=3_258_246,
        sha256="fb66ba999dafe24017cdd59e04c56d385a9c8466993d374fd4c6f08b2142985e",
        files=(r"(^|/)warpeace_input\.txt$",),
        text_bytes=3_258_246,
        text_sha256="fb66ba999dafe24017cdd59e04c56d385a9c8466993d374fd4c6f08b2142985e",
    ),
    "paul-graham": Corpus(
        about="essays by Paul Graham, about 1 MB, from pages that you saved (pass HTML or text with --from)",
        licence="copyright Paul Graham, all rights reserved",
        essay="a 2-layer LSTM of 512 units, dropout 0.5, batches of 100 sequences of 100 characters",
        files=(r"(?i)\.(html?|txt)$",),
    ),
    "names": Corpus(
        about="2,943 male and 5,001 female first names, one per line (Mark Kantrowitz's corpus 1.3)",
        licence="free to use and redistribute with its README and credit to Mark Kantrowitz; not public domain",
        essay="8,000 names; 90 % of those generated were new: Rudi, Levette, Berice, Lussa",
        address="https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/names.zip",
        bytes=21_326,
        files=(r"(^|/)male\.txt$", r"(^|/)female\.txt$"),
        text_bytes=55_869,
        text_sha256="5ab97d2b30bd6d718d28f93651662585d44b4f7c28186435e3e1b616de71c784",
        settings={"documents": "line"},
    ),
    "makemore": Corpus(
        about="32,033 first names given in the US in 2018, in lower case, one per line: the example of Karpathy's "
        "makemore, four times as many as in the corpus names",
        licence="public domain (US Social Security Administration)",
        essay="not in it; makemore's transformer of 200,000 parameters reaches 1.92 nats on test",
        address="https://raw.githubusercontent.com/karpathy/makemore/988aa59e4d8fefa526d06f3b453ad116258398d4/names.txt",
        bytes=228_145,
        sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
        files=(r"(^|/)names\.txt$",),
        text_bytes=228_145,
        text_sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
        settings={"documents": "line"},
    ),
    "chinese-poetry": Corpus(
        about="57,607 poems of the Tang dynasty, each with title and author; 4.7 million characters, 9,728 distinct",
        licence="MIT; the poems are public domain",
        essay="not in it",
        address="https://github.com/chinese-poetry/chinese-poetry/archive/99ebbef7e1345c0985c44b9fd96a3f9e776f117b.tar.gz",
        files=tuple(rf"(^|/)全唐诗/poet\.tang\.{first}\.json$" for first in range(0, 58_000, 1000)),
        cut=13_137_854,  # without the blank line after the last poem
        text_bytes=13_137_854,
        text_sha256="4083507661bc75e383634936c37c731bf603333d7b409bdaca608754f8c54b62",
        ceiling=1_000_000_000,
        settings={"unit": "char", "max_vocab": 3500, "unknown": "replace"},
    ),
}


def find(name: str) -> Corpus:
    """Look up a corpus. Raises UsageError, listing the valid names, for an unknown one."""
    if name not in CORPORA:
        raise UsageError(f"unknown corpus '{name}'; the corpora are {', '.join(CORPORA)}")
    return CORPORA[name]


def make_text(corpus: Corpus, source: Path, text: Path, origin: str = "") -> None:
    """Build the corpus's `text` from `source`: an archive, a folder, or one file, compressed or not.

    origin: address that `source` was downloaded from, if any.

    An archive is streamed once, into a spool beside `text`, and never unpacked. Raises StageError if it contains none
    of the corpus's files, is corrupted (pipeline.archives), or yields a text other than the known one.
    """
    spool = text.with_name(f".{text.name}.spool")
    with spool.open("wb+") as file:
        pieces = list(_collect(corpus, source, file, PurePosixPath(origin).name or source.name))
        if not pieces:
            rule = f"expected paths like {' or '.join(corpus.files)}"
            raise StageError(f"{origin or source} contains none of the corpus's files: {rule}")
        if pieces != sorted(pieces):
            with text.open("wb") as in_order:
                for _, start, count in sorted(pieces):
                    file.seek(start)
                    in_order.write(file.read(count))
            os.replace(text, spool)
    if corpus.cut and spool.stat().st_size > corpus.cut:
        os.truncate(spool, corpus.cut)
    os.replace(spool, text)
    _check(corpus, source, text)


def _collect(corpus: Corpus, source: Path, spool: BinaryIO, own_name: str) -> Iterator[tuple[SortKey, int, int]]:
    """Append the files of the text to `spool`; for each, yield its sort key, first byte and length."""
    last: SortKey | None = None
    highest: SortKey = (0, b"")
    for rank, name, file in _files(corpus, source, own_name):
        key = (rank, os.fsencode(name))
        if last and key > last:
            continue
        start = spool.tell()
        if re.search(HTML, name):
            spool.write(_plain(file.read(corpus.ceiling)))
        elif re.search(POEMS, name) and _rank(corpus, name) is not None:
            try:
                spool.write(_poems(file.read(corpus.ceiling)))
            except (KeyError, TypeError, ValueError) as error:
                raise StageError(f"{name} in {source} is not a list of poems in JSON: {error!r}") from error
        else:
            while data := file.read(1 << 20):
                spool.write(data)
                if spool.tell() > corpus.ceiling:
                    raise StageError(f"{source} contains more than {corpus.ceiling:,} bytes: it is not this corpus")
        yield key, start, spool.tell() - start
        highest = max(highest, key)
        if corpus.cut and not last and spool.tell() >= corpus.cut:
            last = highest  # enough text: later files are not needed


def _files(corpus: Corpus, source: Path, own_name: str) -> Iterator[tuple[int, str, BinaryIO]]:
    """Iterate over the files of the text: index of the expression they match, path, content."""
    if source.is_dir() or is_archive(source):
        for name, _, file in members(source, corpus.ceiling):
            rank = _rank(corpus, name)
            if rank is not None and not (corpus.without and re.search(corpus.without, name)):
                yield rank, name, file
    # A single file may be the finished text; if its content cannot prove that, its name must match.
    elif corpus.text_bytes or _rank(corpus, own_name) is not None:
        with open_text(source) as file:
            yield 0, own_name, file


def _rank(corpus: Corpus, name: str) -> int | None:
    return next((rank for rank, expression in enumerate(corpus.files) if re.search(expression, name)), None)


def _check(corpus: Corpus, source: Path, text: Path) -> None:
    size = text.stat().st_size
    if corpus.text_bytes not in (None, size):
        raise StageError(f"{source} is not this corpus: expected a text of {corpus.text_bytes:,} bytes, got {size:,}")
    blob = hashlib.sha1(b"blob %d\0" % size)  # git's name for a file
    for kind, known, digest in (
        ("SHA-256", corpus.text_sha256, hashlib.sha256()),
        ("git blob", corpus.text_git, blob),
    ):
        if known and (got := _digest(text, digest)) != known:
            raise StageError(f"{source} is not this corpus: expected a text of {kind} {known}, got {got}")


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


# Markup of a page, found in linear time: a comment or a script without an end takes the rest of the page, and a tag
# ends at the next "<" at the latest.
MARKUP = re.compile(
    r"""<!--.*?(?:-->|\Z) | <[!?][^<>]*>?
    | <(?P<hidden>script|style|title)\b[^<>]*>.*?(?:</(?P=hidden)\s*>|\Z)
    | <(?P<end>/?)(?P<tag>[a-z][^\s/<>]*)(?:"[^"<]*"|'[^'<]*'|[^"'<>])*+> | </?[a-z][^<>]*>""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)


def _plain(page: bytes) -> bytes:
    """Visible text of an HTML page, in UTF-8, with blank lines between paragraphs."""
    try:
        source = page.decode("utf-8-sig")
    except UnicodeDecodeError:
        source = page.decode("cp1252", errors="replace")  # as browsers do
    parts: list[str] = []
    open_tags: Counter[str] = Counter()
    at = 0
    for markup in MARKUP.finditer(source):
        parts.append(_visible(source[at : markup.start()], in_pre=open_tags["pre"] > 0))
        at, tag = markup.end(), (markup["tag"] or "").lower()
        if tag == "br" and not markup["end"]:
            parts.append("\n")
        elif tag in BLOCKS and (not markup["end"] or open_tags[tag]):
            parts.append("\n\n")
            open_tags[tag] += -1 if markup["end"] else 1
    parts.append(_visible(source[at:], in_pre=open_tags["pre"] > 0))
    lines = (line.rstrip(" ") for line in "".join(parts).split("\n"))
    text = "\n".join(line if line.startswith("  ") else line.removeprefix(" ") for line in lines)
    return (re.sub(r"\n{3,}", "\n\n", text).strip() + "\n\n").encode(errors="replace")


def _poems(collection: bytes) -> bytes:
    """Title, author and lines of each poem in a file of chinese-poetry, in UTF-8, with a blank line after each."""
    poems = [(poem["title"], poem["author"], *(poem["paragraphs"] or [""])) for poem in json.loads(collection)]
    return "".join("\n".join(poem) + "\n\n" for poem in poems).encode(errors="replace")


def _visible(text: str, in_pre: bool) -> str:
    text = html.unescape(text)
    return text if in_pre else re.sub(r"\s+", " ", text)
