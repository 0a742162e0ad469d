"""Turn text into token shards with Beam, in three stages: read every file, count characters, write tokens.

Beam's steps exchange file positions and counts, never text:

    read    per file: hash, encoding check, conversion to UTF-8 in a scratch file if needed   (pipeline.text)
    count   the characters of train, if the vocabulary consists of characters                 (pipeline.vocab)
    write   one shard per stretch of a split                                                  (pipeline.encode)

The manifest is written last.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common import console
from common.errors import StageError, UsageError
from common.files import check_replaceable, sha256_file, whole_folder
from pipeline import beam, splits
from pipeline.config import IngestSettings
from pipeline.encode import Encoder, texts_of
from pipeline.manifest import FILE_NAME, Manifest, Shard, Source, Split, read_manifest, write_manifest
from pipeline.shards import ShardWriter, shard_name
from pipeline.sources import SourceFile, opened
from pipeline.splits import Layout, Stretch
from pipeline.text import LEFT_OUT, Text, read_text
from pipeline.vocab import Vocab, byte_vocab, char_vocab, characters, count_characters, describe

SCRATCH = ".text"  # converted texts, deleted once their tokens are written
MOST_SHARDS = 100_000  # five digits in their names
GROUP_BYTES, GROUP_FILES = 32 << 20, 500  # one Beam element of the read stage
ENDS: dict[str, Literal["newline", "token"] | None] = {"none": None, "line": "newline", "file": "token"}


def ingest(settings: IngestSettings, out: Path, force: bool = False, options: str = "") -> Manifest:
    """Build the data set `out`, unless it was already built from the same bytes with the same settings.

    options: Beam's own (pipeline.beam).
    Raises UsageError for a missing source; StageError for a file that is not text, a text that is empty or too short,
    an `out` made from different sources or settings (unless `force`), and an `out` that is not a data set (always).
    """
    if not settings.source:
        raise UsageError("no source: name a file, a folder or a corpus, or pass a config with [data] source")
    check_replaceable(out, FILE_NAME, "a data set")
    out.parent.mkdir(parents=True, exist_ok=True)
    with opened(settings.source, settings.include, settings.exclude, out) as sources:
        if out.exists() and not force and any(out.iterdir()):
            manifest = read_manifest(out)
            check_same(out, manifest, hash_sources(sources.files), settings)
            console.out.print(f"{out} is up to date: same sources, same settings")
            return manifest
        with whole_folder(out, replace=force) as partial:
            manifest = DataSet(settings, partial, options).make(sources.files)
            manifest = dataclasses.replace(manifest, provenance=tuple(sources.provenance))
            _check_provenance(manifest)
            write_manifest(partial, manifest)
    report(out, manifest)
    return manifest


def report(out: Path, manifest: Manifest) -> None:
    """Print the size of the data set and the changes made to its text."""
    for change, count in manifest.cleaned.items():
        console.note(f"{change}: {count:,}")
    for name, split in manifest.splits.items():
        if outside := split.counts.get("outside"):
            treatment = "replaced by U+FFFD" if manifest.vocab.unknown_id is not None else "left out"
            console.note(f"{name}: {outside:,} characters outside the vocabulary were {treatment}")
    tokens = ", ".join(f"{name} {split.tokens:,}" for name, split in manifest.splits.items())
    console.out.print(f"{out}: tokens: {tokens}; data {manifest.data_sha256[:12]}")


def _check_provenance(manifest: Manifest) -> None:
    hashes = {source.sha256 for source in manifest.sources}
    for origin in manifest.provenance:
        if origin["text_sha256"] not in hashes:
            raise StageError(
                f"the text of {origin['name']} differs from the one that was fetched: fetch it again with --force, or "
                "delete its provenance.json"
            )


def check_same(out: Path, manifest: Manifest, sources: tuple[Source, ...], settings: IngestSettings) -> None:
    """Raise StageError, listing the differences, if the data set was made from other text or other settings."""
    old, new = ([(source.sha256, source.bytes) for source in s if source.bytes] for s in (manifest.sources, sources))
    differs = [
        f"{name} was {manifest.settings.get(name)}, now {value}"
        for name, value in settings.shaping().items()
        if manifest.settings.get(name) != value
    ]
    if old != new:
        differs.insert(0, f"the sources were {_summary(manifest.sources)}, now {_summary(sources)}")
    if differs:
        raise StageError(
            f"{out} was made from different input ({'; '.join(differs)}): "
            "pass --force to replace it, or a different --out to keep both"
        )


def _summary(sources: tuple[Source, ...]) -> str:
    names = ", ".join(source.name for source in sources[:3]) + (", ..." if len(sources) > 3 else "")
    return f"{names} ({sum(source.bytes for source in sources)} bytes)"


def hash_sources(files: list[SourceFile]) -> tuple[Source, ...]:
    """Read name, size and SHA-256 of each file. Raises StageError for one that cannot be read."""
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
    """Data set under construction in `folder`."""

    def __init__(self, settings: IngestSettings, folder: Path, options: str):
        self.settings, self.folder, self.options = settings, folder, options
        self.end = ENDS[settings.documents]
        self.bounds = splits.hash_bounds(settings.parts()) if settings.split == "document" else {}
        self.total = 0

    def make(self, files: list[SourceFile]) -> Manifest:
        """Run the three stages. Returns the manifest, not yet written."""
        self._check_shards(sum(file.bytes for file in files))  # before the text is read
        scratch = self.folder / SCRATCH
        scratch.mkdir()
        texts = self.read(files, scratch)
        layout = Layout(texts, self.settings.documents, self.settings.unit)
        self.total = layout.total
        plan = self.plan(layout)
        vocab = self.vocabulary(plan)
        parts = self.write(plan, vocab)
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
            splits=parts,
            tools={"python": platform.python_version(), "apache-beam": importlib.metadata.version("apache-beam")},
            cleaned=dict(changes),
        )

    def read(self, files: list[SourceFile], scratch: Path) -> list[Text]:
        """Check every file, and convert it where needed; in order."""
        rules = self.settings.rules()

        def work(group: list[tuple[int, SourceFile]]) -> list[tuple[int, dict[str, Any]]]:
            texts = []
            for index, file in group:
                text = read_text(file.path, file.name, rules, scratch / str(index), beam.advance)
                # A path may contain bytes that JSON cannot.
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
        """Plan the shards. Raises StageError if a split would have fewer than two tokens."""
        settings, values = self.settings, self.settings.parts()
        self._check_shards(layout.total)
        if settings.split == "document" and settings.documents == "line":
            # A line's split is known only when it is read, so each stretch writes one shard per split.
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
        """Shards of a split: long spans cut, short ones joined."""
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
        """Vocabulary: all bytes, or the characters of train."""
        settings = self.settings
        if settings.unit == "byte":
            return byte_vocab(self.end)
        bounds = self.bounds

        def work(stretch: Stretch) -> dict[str, int]:
            texts = (text for split, text in texts_of(stretch, bounds, beam.advance) if split == "train" and text)
            counts = count_characters(texts)
            codes = np.flatnonzero(counts).astype(np.uint32)
            return dict(zip(characters(codes), counts[codes].tolist(), strict=True))

        train = [stretch for stretch in plan if stretch.split in ("train", "")]
        parts = self._each("counting characters", work, train, _length(train))
        counts = sum((Counter(part) for part in parts), Counter[str]())
        if counts and max(counts.values()) < settings.min_count:
            most = f"the most frequent one occurs {max(counts.values()):,} times"
            raise StageError(f"no character of train occurs {settings.min_count:,} times ({most}): lower min_count")
        replace = settings.unknown == "replace"
        try:
            return char_vocab(counts, settings.max_vocab, settings.min_count, self.end, replace)
        except ValueError as error:
            raise StageError(f"train yields no vocabulary: {error}; lower min_count or raise max_vocab") from None

    def write(self, plan: list[Stretch], vocab: Vocab) -> dict[str, Split]:
        """Write the shards of every split.

        Raises StageError for a split that is too short and, if `unknown` is "error", for an unknown character.
        """
        folder, unknown = self.folder, self.settings.unknown
        bounds, total = self.bounds, Counter(stretch.split for stretch in plan)

        def work(stretch: Stretch) -> list[dict[str, Any]]:
            with contextlib.ExitStack() as stack:
                encoders = {}
                for name in [stretch.split] if stretch.split else bounds:
                    path = folder / shard_name(name, stretch.index, total[stretch.split])
                    encoders[name] = Encoder(vocab, unknown, stack.enter_context(ShardWriter(path)))
                for name, text in texts_of(stretch, bounds, beam.advance):
                    encoders[name].write(text)
            return [{"split": name, "index": stretch.index} | encoder.report() for name, encoder in encoders.items()]

        written = [shard for shards in self._each("writing tokens", work, plan, _length(plan)) for shard in shards]
        if unknown == "error":
            _reject_unknown(written, vocab.unit)
        written.sort(key=lambda shard: shard["index"])
        parts = {
            name: self._split([shard for shard in written if shard["split"] == name])
            for name, share in self.settings.parts().items()
            if share
        }
        self._check_lengths({name: split.tokens for name, split in parts.items()}, "tokens")
        return parts

    def _split(self, written: list[dict[str, Any]]) -> Split:
        """Split made of these shards; empty ones are deleted."""
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

    def _each(self, title: str, work: Callable[..., Any], items: list[Any], total: int) -> list[Any]:
        return beam.each("ingest", work, items, self.folder, title, total, self.options)

    def _check_shards(self, total: int) -> None:
        if total > self.settings.shard_bytes * MOST_SHARDS:
            raise StageError(
                f"shard_bytes = {self.settings.shard_bytes} would cut the text of {total:,} bytes into more than "
                f"{MOST_SHARDS:,} shards: use at least {-(-total // MOST_SHARDS):,}"
            )

    def _check_lengths(self, lengths: dict[str, int], unit: str) -> None:
        name = min(lengths, key=lambda name: lengths[name])
        if lengths[name] < 2:
            raise StageError(
                f"the text is too short: of its {self.total} bytes the {name} split would get {lengths[name]} {unit}, "
                f"but needs 2 (an input and its target): use a longer text{self._documents()}, or other shares"
            )

    def _documents(self) -> str:
        more = {"line": " or more lines", "file": " or more files (each is one document)", "none": ""}
        return more[self.settings.documents]


def _reject_unknown(written: list[dict[str, Any]], unit: str) -> None:
    for shard in written:
        if shard["outside"]:
            character, count = max(shard["outside"].items(), key=lambda item: item[1])
            more = f" and {len(shard['outside']) - 1:,} others" if len(shard["outside"]) > 1 else ""
            raise StageError(
                f"{shard['split']} contains {describe(character, unit)}, {count:,} times{more}, which is not in "
                "train's vocabulary: pass --unknown replace or --unknown skip, or split the text differently"
            )


def _groups(files: Iterable[SourceFile]) -> list[list[tuple[int, SourceFile]]]:
    """Batch the numbered files: one Beam element per file would cost more than reading most files."""
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
    """Raise StageError if a file was modified while it was read: its tokens may not match its hash."""
    for file, text in zip(files, texts, strict=True):
        try:
            now = file.path.stat()
        except OSError:
            now = None
        if now is None or (now.st_size, now.st_mtime_ns) != (text.source_bytes, text.modified):
            raise StageError(f"{file.name} changed while it was read: run ingest again when nothing writes to it")


def _length(plan: list[Stretch]) -> int:
    return sum(piece.length for stretch in plan for piece in stretch.pieces)
