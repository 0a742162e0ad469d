"""Text to token shards, with Beam, in three stages: read every file, count characters, write tokens.

What travels between Beam's steps is places in files and counts, never text:

    read    each file: its hash, and whether it is text; what needs it becomes UTF-8 in a scratch file   (pipeline.text)
    count   the characters of train, where the vocabulary is made of them                               (pipeline.vocab)
    write   each stretch of a split becomes a shard                                                    (pipeline.shards)

The manifest is written last.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from common import console, settings
from common.errors import StageError, UsageError
from common.files import check_replaceable, sha256_file, whole_folder
from pipeline import beam, splits
from pipeline.manifest import FILE_NAME, Manifest, Shard, Source, Split, read_manifest, write_manifest
from pipeline.shards import ShardWriter, shard_name
from pipeline.sources import SourceFile, opened
from pipeline.splits import Layout, Piece, Stretch
from pipeline.text import LEFT_OUT, RAW, READ_BYTES, Rules, Text, check_encoding, read_text
from pipeline.vocab import Vocab, byte_vocab, char_vocab, characters, count_characters, describe

SCRATCH = ".text"  # holds the texts that had to be written anew, until their tokens are
GROUP_BYTES, GROUP_FILES = 32 << 20, 500  # what a worker takes of the files at a time
ENDS: dict[str, Literal["newline", "token"] | None] = {"none": None, "line": "newline", "file": "token"}


@settings.settings
class IngestSettings:
    """[data]

    source: files, folders, patterns, "-" or named corpora (pipeline.sources), joined in this order.
    include, exclude: patterns on the names of a folder's files.
    unit: what a token is. "byte": every text fits; "char": a Unicode code point.
    max_vocab, min_count: of char: the most tokens there may be, and how often a character must occur in train.
    unknown: of char: what becomes of a character that is not in the vocabulary: "error", "replace" (by U+FFFD), "skip".
    encoding, errors, newlines, bom, unpacked_bytes: how files are read (pipeline.text.Rules).
    documents: "none"; "line": each line is a text of its own; "file": each file is. The end of one is a token.
    split: "contiguous": beginning, middle and end of the text; "document": each document to a split by its hash;
        "char-rnn": the beginning, middle and end of each of `streams` equal streams.
    train, val, test: shares that sum to 1, exact decimals; or, not of documents, numbers of bytes. val or test may be
        0: then the data set has no such split.
    shard_bytes: bytes of text in a shard, about; a shard is written by one worker. Small shards let lanes start soon:
        TensorFlow comes to a place in a file by way of all that lies before it.
    """

    source: list[str] = pydantic.Field(default_factory=list)
    include: list[str] = pydantic.Field(default_factory=list)
    exclude: list[str] = pydantic.Field(default_factory=list)
    unit: Literal["byte", "char"] = "byte"
    max_vocab: int | None = pydantic.Field(None, ge=1)
    min_count: int = pydantic.Field(1, ge=1)
    unknown: Literal["error", "replace", "skip"] = "error"
    encoding: str = "utf-8"
    errors: Literal["strict", "replace", "skip"] = "strict"
    newlines: Literal["keep", "lf"] = "keep"
    bom: Literal["keep", "strip"] = "keep"
    unpacked_bytes: int = pydantic.Field(64 << 30, gt=0)
    documents: Literal["none", "line", "file"] = "none"
    split: Literal["contiguous", "document", "char-rnn"] = "contiguous"
    streams: int = pydantic.Field(50, ge=1)
    train: int | float = pydantic.Field(0.9, gt=0)
    val: int | float = pydantic.Field(0.05, ge=0)
    test: int | float = pydantic.Field(0.05, ge=0)
    shard_bytes: int = pydantic.Field(8 << 20, gt=0)

    def __post_init__(self) -> None:
        check_encoding(self.encoding)
        asked = (self.unit, self.errors, self.newlines, self.bom)
        if self.encoding == RAW and asked != ("byte", "strict", "keep", "keep"):
            raise ValueError("encoding raw takes bytes as they are: unit byte, and nothing to replace, skip or strip")
        if self.unit == "byte" and (self.max_vocab, self.min_count, self.unknown) != (None, 1, "error"):
            raise ValueError("max_vocab, min_count and unknown are of unit char: all bytes are in a byte vocabulary")
        if self.split == "document" and self.documents == "none":
            raise ValueError("split document needs documents: line or file")
        values = self.parts()
        if splits.in_bytes(values):
            if self.split != "contiguous" or any(value != int(value) for value in values.values()):
                raise ValueError("train, val and test are shares, 0 to 1, or whole bytes of a contiguous split")
        elif (total := sum(map(splits.as_decimal, values.values()))) != 1:
            written = " + ".join(str(value) for value in values.values())
            raise ValueError(
                f"train, val and test must sum to 1 (or be numbers of bytes), got {written} = {float(total)}"
            )

    def parts(self) -> dict[str, int | float]:
        """What each split wants."""
        return {name: getattr(self, name) for name in splits.SPLITS}

    def rules(self) -> Rules:
        """How files are read."""
        return Rules(check_encoding(self.encoding), self.errors, self.newlines, self.bom, self.unpacked_bytes)

    def shaping(self) -> dict[str, Any]:
        """The settings that shape the data, for the manifest; the sources stand there by their content."""
        names = settings.field_names(IngestSettings)
        values = {name: getattr(self, name) for name in names if name not in ("source", "include", "exclude")}
        return values | {"encoding": check_encoding(self.encoding)}


def ingest(settings: IngestSettings, out: Path, force: bool = False, options: str = "") -> Manifest:
    """Makes the data set `out`, or finds it made from the same bytes with the same settings, and says which.

    options: Beam's (pipeline.beam). Raises UsageError for a source that is not there; StageError for what is no text,
    for a text that is empty or too short, for an `out` that was made from something else (unless `force`), and for one
    that is no data set at all (whatever `force` says).
    """
    if not settings.source:
        raise UsageError("nothing to read: name a file, a folder or a named corpus, or a config with [data] source")
    check_replaceable(out, FILE_NAME, "a data set")
    out.parent.mkdir(parents=True, exist_ok=True)
    with opened(settings.source, settings.include, settings.exclude, out.parent) as sources:
        if out.exists() and not force and any(out.iterdir()):
            manifest = read_manifest(out)
            check_same(out, manifest, hash_sources(sources.files), settings)
            console.out.print(f"{out} is already made from these sources and settings")
            return manifest
        with whole_folder(out, replace=force) as partial:
            made = DataSet(settings, partial, options).make(sources.files)
            manifest = dataclasses.replace(made, provenance=tuple(sources.provenance))
            _check_provenance(manifest)
            write_manifest(partial, manifest)
    report(out, manifest)
    return manifest


def report(out: Path, manifest: Manifest) -> None:
    """Says what was made, and what is in it that is not in the sources."""
    for what, count in manifest.cleaned.items():
        console.note(f"{what}: {count:,}")
    for name, split in manifest.splits.items():
        if outside := split.counts.get("outside"):
            done = "replaced by U+FFFD" if manifest.vocab.unknown_id is not None else "left out"
            console.note(f"{name}: {outside:,} characters that are not in the vocabulary were {done}")
    tokens = ", ".join(f"{name} {split.tokens:,}" for name, split in manifest.splits.items())
    console.out.print(f"{out}: tokens: {tokens}; data {manifest.data_sha256[:12]}")


def _check_provenance(manifest: Manifest) -> None:
    hashes = {source.sha256 for source in manifest.sources}
    for found in manifest.provenance:
        if found["text_sha256"] not in hashes:
            raise StageError(
                f"the text of {found['name']} is not the one that was fetched: fetch it again with --force, or ingest "
                "it without its provenance.json"
            )


def check_same(out: Path, manifest: Manifest, sources: tuple[Source, ...], settings: IngestSettings) -> None:
    """Raises StageError, with what differs, where the data set was made from other text or with other settings."""
    old, new = ([(source.sha256, source.bytes) for source in s if source.bytes] for s in (manifest.sources, sources))
    differs = [
        f"{name} was {manifest.settings.get(name)}, is {value}"
        for name, value in settings.shaping().items()
        if manifest.settings.get(name) != value
    ]
    if old != new:
        differs.insert(0, f"the sources were {_summary(manifest.sources)}, are {_summary(sources)}")
    if differs:
        raise StageError(
            f"{out} was made from something else ({'; '.join(differs)}): "
            "use --force to replace it, or another --out to keep both"
        )


def _summary(sources: tuple[Source, ...]) -> str:
    names = ", ".join(source.name for source in sources[:3]) + (", ..." if len(sources) > 3 else "")
    return f"{names} ({sum(source.bytes for source in sources)} bytes)"


def hash_sources(files: list[SourceFile]) -> tuple[Source, ...]:
    """The files by name, size and SHA-256. Raises StageError for one that cannot be read."""
    sources = []
    with console.progress("bytes") as bar:
        task = bar.add_task("hashing the sources", total=sum(file.bytes for file in files))
        for file in files:
            try:
                sources.append(Source(file.name, file.bytes, sha256_file(file.path)))
            except OSError as error:
                raise StageError(f"{file.path} cannot be read: {error.strerror}") from None
            bar.advance(task, file.bytes)
    return tuple(sources)


class DataSet:
    """A data set in the making, in the folder `folder`."""

    def __init__(self, settings: IngestSettings, folder: Path, options: str):
        self.settings, self.folder, self.options = settings, folder, options
        self.end = ENDS[settings.documents]
        self.bounds = splits.hash_bounds(settings.parts()) if settings.split == "document" else {}
        self.total = 0

    def make(self, files: list[SourceFile]) -> Manifest:
        """Reads, counts and writes. Gives the manifest, not yet written."""
        scratch = self.folder / SCRATCH
        scratch.mkdir()
        texts = self.read(files, scratch)
        layout = Layout(texts, self.settings.documents, self.settings.unit)
        self.total = layout.total
        plan = self.plan(layout)
        vocab = self.vocabulary(plan)
        made = self.write(plan, vocab)
        _check_unchanged(files, texts)
        shutil.rmtree(scratch)
        left_out = [file.name for file, text in zip(files, texts, strict=True) if LEFT_OUT in text.changes]
        if left_out:
            console.note(f"not text: {', '.join(left_out[:5])}{', ...' if len(left_out) > 5 else ''}")
        changes = sum((Counter(text.changes) for text in texts), Counter[str]())
        return Manifest(
            sources=tuple(Source(f.name, t.source_bytes, t.sha256) for f, t in zip(files, texts, strict=True)),
            settings=self.settings.shaping(),
            vocab=vocab,
            splits=made,
            tools={"python": platform.python_version(), "apache-beam": importlib.metadata.version("apache-beam")},
            cleaned=dict(changes),
        )

    def read(self, files: list[SourceFile], scratch: Path) -> list[Text]:
        """Each file as checked text, in order."""
        rules = self.settings.rules()

        def work(group: list[tuple[int, SourceFile]]) -> list[tuple[int, dict[str, Any]]]:
            texts = []
            for index, file in group:
                text = read_text(file.path, file.name, rules, scratch / str(index), beam.advance)
                # A path may hold bytes that no JSON can.
                texts.append((index, dataclasses.asdict(text) | {"path": os.fsencode(text.path).hex()}))
            return texts

        read = self._each("reading the text", work, _groups(files), sum(file.bytes for file in files))
        texts = {
            index: Text(**text | {"path": os.fsdecode(bytes.fromhex(text["path"]))})
            for group in read
            for index, text in group
        }
        return [texts[index] for index in range(len(files))]

    def plan(self, layout: Layout) -> list[Stretch]:
        """The shards to write. Raises StageError where a split would have fewer than two tokens."""
        settings, values = self.settings, self.settings.parts()
        if settings.split == "document" and settings.documents == "line":
            # Which lines a split gets is known when they are read: each stretch gives every split a shard.
            parts = layout.stretches(range(layout.total), settings.shard_bytes, "line")
            return [Stretch("", index, tuple(layout.pieces(part))) for index, part in enumerate(parts)]
        if settings.split == "document":
            spans = splits.files_by_hash(layout, values)
        elif settings.split == "char-rnn":
            spans = splits.of_each_stream(layout, values, settings.streams)
        else:
            spans = splits.contiguous(layout, values)
        self._check_lengths({name: sum(map(len, parts)) for name, parts in spans.items()}, "bytes")
        return [stretch for name, parts in spans.items() for stretch in self._shards(layout, name, parts)]

    def _shards(self, layout: Layout, split: str, spans: list[range]) -> list[Stretch]:
        """The spans of a split, cut where they are long and joined where they are short."""
        shards: list[list[range]] = []
        room = 0
        for span in spans:
            for part in layout.stretches(span, self.settings.shard_bytes, "none"):
                if len(part) > room or not shards:
                    shards.append([])
                    room = self.settings.shard_bytes
                shards[-1].append(part)
                room -= len(part)
        return [
            Stretch(split, index, tuple(piece for part in parts for piece in layout.pieces(part)))
            for index, parts in enumerate(shards)
        ]

    def vocabulary(self, plan: list[Stretch]) -> Vocab:
        """All bytes, or the characters of train."""
        settings = self.settings
        if settings.unit == "byte":
            return byte_vocab(self.end)
        bounds = self.bounds

        def work(stretch: Stretch) -> dict[str, int]:
            texts = (text for split, text in _texts(stretch, bounds) if split == "train" and text)
            counts = count_characters(texts)
            found = np.flatnonzero(counts).astype(np.uint32)
            return dict(zip(characters(found), counts[found].tolist(), strict=True))

        wanted = [stretch for stretch in plan if stretch.split in ("train", "")]
        parts = self._each("counting characters", work, wanted, _length(wanted))
        counts = sum((Counter(part) for part in parts), Counter[str]())
        if counts and max(counts.values()) < settings.min_count:
            most = f"the most frequent one occurs {max(counts.values()):,} times"
            raise StageError(f"no character of train occurs {settings.min_count:,} times: {most}; lower min_count")
        replace = settings.unknown == "replace"
        try:
            return char_vocab(counts, settings.max_vocab, settings.min_count, self.end, replace)
        except ValueError as error:
            raise StageError(
                f"no vocabulary can be made of train: {error}; lower min_count or raise max_vocab"
            ) from None

    def write(self, plan: list[Stretch], vocab: Vocab) -> dict[str, Split]:
        """The shards, and the splits that they make. Raises StageError as `unknown` says, and for too short a split."""
        folder, unknown = self.folder, self.settings.unknown
        bounds, total = self.bounds, Counter(stretch.split for stretch in plan)

        def work(stretch: Stretch) -> list[dict[str, Any]]:
            with contextlib.ExitStack() as stack:
                encoders = {}
                for name in [stretch.split] if stretch.split else bounds:
                    path = folder / shard_name(name, stretch.index, total[stretch.split])
                    encoders[name] = Encoder(vocab, unknown, stack.enter_context(ShardWriter(path)))
                for name, text in _texts(stretch, bounds):
                    encoders[name].write(text)
            return [{"split": name, "index": stretch.index} | encoder.report() for name, encoder in encoders.items()]

        written = [shard for made in self._each("writing tokens", work, plan, _length(plan)) for shard in made]
        if unknown == "error":
            _refuse_unknown(written, vocab.unit)
        written.sort(key=lambda shard: shard["index"])
        made = {name: self._split([shard for shard in written if shard["split"] == name]) for name in splits.SPLITS}
        made = {name: split for name, split in made.items() if self.settings.parts()[name]}
        self._check_lengths({name: split.tokens for name, split in made.items()}, "tokens")
        return made

    def _split(self, written: list[dict[str, Any]]) -> Split:
        """The split of these shards; one that came out empty is taken away."""
        shards = tuple(Shard(shard["file"], shard["tokens"], shard["sha256"]) for shard in written if shard["tokens"])
        for shard in written:
            if not shard["tokens"]:
                (self.folder / shard["file"]).unlink()
        counts = {"bytes": sum(shard["bytes"] for shard in written)}
        if self.end:
            counts["documents"] = sum(shard["documents"] for shard in written)
        if outside := sum(sum(shard["outside"].values()) for shard in written):
            counts["outside"] = outside
        return Split(sum(shard.tokens for shard in shards), shards, counts)

    def _each(self, what: str, work: Callable[..., Any], places: list[Any], total: int) -> list[Any]:
        return beam.each("ingest", work, places, self.folder, what, total, self.options)

    def _check_lengths(self, lengths: dict[str, int], what: str) -> None:
        name = min(lengths, key=lambda name: lengths[name])
        if lengths[name] < 2:
            raise StageError(
                f"the text is too short: of {self.total} bytes the {name} split would get {lengths[name]} {what}, and "
                f"needs 2 (an input and its target): take a longer text{self._documents()}, or other shares"
            )

    def _documents(self) -> str:
        whole = {"line": " or more lines", "file": " or more files (each is one document)", "none": ""}
        return whole[self.settings.documents]


class Encoder:
    """Texts to the ids of a shard, and what is counted on the way."""

    def __init__(self, vocab: Vocab, unknown: str, shard: ShardWriter):
        self.vocab, self.keep_unknown, self.shard = vocab, unknown != "skip", shard
        self.bytes, self.documents, self.outside = 0, 0, Counter[str]()

    def write(self, text: bytes | None) -> None:
        """Writes the ids of a text; of None, the end of a document."""
        if text is None:
            ids, outside = np.array([self.vocab.end_id], self.vocab.dtype), Counter[str]()
        else:
            ids, outside = self.vocab.encode_known(text, self.keep_unknown)
            self.bytes += len(text)
        self.shard.write(ids)
        self.outside += outside
        if self.vocab.end_id is not None:
            self.documents += int(np.count_nonzero(ids == self.vocab.end_id))

    def report(self) -> dict[str, Any]:
        """The finished shard, its text's bytes, the documents that end in it, the characters outside the vocabulary."""
        written = dataclasses.asdict(self.shard.shard)
        return written | {"bytes": self.bytes, "documents": self.documents, "outside": dict(self.outside)}


def _refuse_unknown(written: list[dict[str, Any]], unit: str) -> None:
    for shard in written:
        if shard["outside"]:
            character, count = max(shard["outside"].items(), key=lambda item: item[1])
            more = f" and {len(shard['outside']) - 1:,} others" if len(shard["outside"]) > 1 else ""
            raise StageError(
                f"{shard['split']} holds {describe(character, unit)}, {count:,} times{more}, which train's vocabulary "
                "does not: --unknown replace or skip, or another split"
            )


def _groups(files: Iterable[SourceFile]) -> list[list[tuple[int, SourceFile]]]:
    """The files, numbered, some at a time: one element a file would cost more than most files do."""
    groups: list[list[tuple[int, SourceFile]]] = []
    room = 0
    for index, file in enumerate(files):
        if not groups or file.bytes > room or len(groups[-1]) == GROUP_FILES:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append((index, file))
        room -= file.bytes
    return groups


def _check_unchanged(files: list[SourceFile], texts: list[Text]) -> None:
    """Raises StageError where a file was written to since it was read first: the tokens may be of other text than its
    hash."""
    for file, text in zip(files, texts, strict=True):
        try:
            now = file.path.stat()
        except OSError:
            now = None
        if now is None or (now.st_size, now.st_mtime_ns) != (text.source_bytes, text.modified):
            raise StageError(f"{file.name} changed while it was read: run it again when it is at rest")


def _length(plan: list[Stretch]) -> int:
    return sum(piece.length for stretch in plan for piece in stretch.pieces)


def _texts(stretch: Stretch, bounds: dict[str, int]) -> Iterator[tuple[str, bytes | None]]:
    """The stretch in pieces of whole characters, each with its split; None is the end of a document."""
    for piece in stretch.pieces:
        if stretch.split:
            for text in _read(piece):
                yield stretch.split, text
            if piece.end:
                yield stretch.split, None
        else:
            yield from _lines(piece, bounds)


def _lines(piece: Piece, bounds: dict[str, int]) -> Iterator[tuple[str, bytes | None]]:
    """The lines of a piece with the split of each; in each part that is read, those of a split are joined."""
    begun: list[bytes] = []  # of a line that goes on in the next part
    for text in _read(piece):
        *lines, rest = text.split(b"\n")
        if lines:
            lines[0], begun = b"".join([*begun, lines[0]]), []
        begun.append(rest)
        joined: dict[str, list[bytes]] = {name: [] for name in bounds}
        for line in lines:
            joined[splits.split_of_line(line, bounds)].append(line)
        yield from ((name, b"\n".join(own) + b"\n") for name, own in joined.items() if own)
    if piece.end:
        line = b"".join(begun)
        name = splits.split_of_line(line, bounds)
        yield from ((name, line), (name, None))


def _read(piece: Piece) -> Iterator[bytes]:
    """The bytes of a piece, in parts that end between two characters of UTF-8."""
    left, rest = piece.length, b""
    with open(piece.path, "rb") as file:
        file.seek(piece.offset)
        while left:
            text = file.read(min(left, READ_BYTES))
            if not text:
                raise StageError(f"{piece.path} became shorter while it was read")
            left -= len(text)
            beam.advance(len(text))
            text = rest + text
            cut = _last_character(text) if left else len(text)
            yield text[:cut]
            rest = text[cut:]


def _last_character(text: bytes) -> int:
    """Where the last character begins: no later part of the text is needed to decode what comes before it. A text that
    is no UTF-8 may be cut anywhere, so only the last four bytes are looked at."""
    for cut in range(len(text) - 1, max(len(text) - 5, 0), -1):
        if text[cut] & 0xC0 != 0x80:
            return cut
    return len(text)
