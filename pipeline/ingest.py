"""Text to token shards, with Beam. What travels between its steps is places in files, never text."""

import contextlib
import importlib.metadata
import json
import math
import platform
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pydantic

from common import console, settings
from common.errors import StageError, UsageError
from common.files import check_replaceable, sha256_file, whole_folder, write_json
from pipeline.beam import run
from pipeline.corpora import TextFile, resolve
from pipeline.manifest import FILE_NAME, Manifest, Shard, Source, Split, read_manifest, write_manifest
from pipeline.shards import shard_name, write_shard
from pipeline.vocab import Vocab, byte_vocab

READ_BYTES = 4 << 20  # what a worker holds of the text at a time
RESULTS = "shards.json"  # the writers' reports, until the manifest has taken them up


@settings.settings
class IngestSettings:
    """[data]

    source: files, folders, or named corpora (pipeline.corpora), joined in this order with nothing between them.
    unit: what a token is. "byte": every text fits, whatever its encoding.
    train, val, test: shares of the text, which are its beginning, middle and end; exact decimals that sum to 1.
        val or test may be 0: then the data set has no such split.
    shard_bytes: bytes of text in a shard, at most; a shard is written by one worker.
    """

    source: list[str] = pydantic.Field(default_factory=list)
    unit: Literal["byte"] = "byte"
    train: float = pydantic.Field(0.9, gt=0, le=1)
    val: float = pydantic.Field(0.05, ge=0, lt=1)
    test: float = pydantic.Field(0.05, ge=0, lt=1)
    shard_bytes: int = pydantic.Field(64 << 20, gt=0)

    def __post_init__(self) -> None:
        total = sum(self.shares().values())
        if total != 1:
            raise ValueError(
                f"train, val and test must sum to 1, got {self.train} + {self.val} + {self.test} = {total}"
            )

    def shares(self) -> dict[str, Fraction]:
        """The share of every split, as the decimal that was written: 0.7 + 0.1 is 0.8 here, and is not in floats."""
        return {name: Fraction(str(getattr(self, name))) for name in ("train", "val", "test")}

    def shaping(self) -> dict[str, Any]:
        """The settings that shape the data, for the manifest; the sources stand there by their content."""
        return {name: getattr(self, name) for name in ("unit", "train", "val", "test", "shard_bytes")}


class Piece(NamedTuple):
    """A stretch of a file, in bytes."""

    path: str
    offset: int
    length: int


class Plan(NamedTuple):
    """A shard to write, and the stretches of text that make it."""

    split: str
    file: str
    pieces: list[Piece]


def ingest(settings: IngestSettings, out: Path, force: bool = False) -> Manifest:
    """Makes the data set `out`, or finds it made from the same bytes with the same settings, and says which.

    Raises UsageError for a source that is not there; StageError for a text that is empty or too short, for an `out`
    that was made from something else (unless `force`), and for one that is no data set at all (whatever `force` says).
    """
    if not settings.source:
        raise UsageError("nothing to read: name a file, a folder or a named corpus, or a config with [data] source")
    files = [file for source in settings.source for file in resolve(source)]
    splits = split_ranges(sum(file.bytes for file in files), settings)
    check_replaceable(out, FILE_NAME, "a data set")
    sources = hash_sources(files)
    if out.exists() and not force and any(out.iterdir()):
        manifest = read_manifest(out)
        check_same(out, manifest, sources, settings)
        console.out.print(f"{out} is already made from these sources and settings")
        return manifest
    with whole_folder(out, replace=force) as partial:
        manifest = write_data_set(partial, files, sources, splits, settings)
    tokens = ", ".join(f"{name} {split.tokens:,}" for name, split in manifest.splits.items())
    console.out.print(f"{out}: tokens: {tokens}; data {manifest.data_sha256[:12]}")
    return manifest


def split_ranges(total: int, settings: IngestSettings) -> dict[str, range]:
    """The bytes of each split, in order: a split ends where its share, added to those before it, ends (rounded down).

    Raises StageError where a split would have fewer than two bytes: an input and its target.
    """
    ranges, share, start = {}, Fraction(0), 0
    for name, part in settings.shares().items():
        share += part
        stop = math.floor(total * share)
        if part:
            ranges[name] = range(start, stop)
        start = stop
    name = min(ranges, key=lambda name: len(ranges[name]))
    if len(ranges[name]) < 2:
        enough = math.ceil(3 / min(part for part in settings.shares().values() if part))
        raise StageError(
            f"the text is too short: of {total} bytes the {name} split would get {len(ranges[name])}, "
            f"and needs 2 (an input and its target); {enough} bytes are enough for these shares"
        )
    return ranges


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


def hash_sources(files: list[TextFile]) -> tuple[Source, ...]:
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


def write_data_set(
    folder: Path,
    files: list[TextFile],
    sources: tuple[Source, ...],
    splits: dict[str, range],
    settings: IngestSettings,
) -> Manifest:
    """Writes the shards and, last, the manifest."""
    vocab = byte_vocab()
    plans = [plan for name, span in splits.items() for plan in plan_split(name, span, files, settings.shard_bytes)]
    with _show_growth(folder, sum(file.bytes for file in files)), run("ingest") as pipeline:
        _ = (
            pipeline
            | "Plan" >> beam.Create(plans)
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(_write, folder=folder, vocab=vocab)
            | "Gather" >> beam.combiners.ToList()
            | "Report" >> beam.Map(lambda shards: write_json(folder / RESULTS, shards))
        )
    written = {shard["file"]: Shard(**shard) for shard in json.loads((folder / RESULTS).read_text())}
    (folder / RESULTS).unlink()
    shards_of = {name: tuple(written[plan.file] for plan in plans if plan.split == name) for name in splits}
    manifest = Manifest(
        sources=sources,
        settings=settings.shaping(),
        vocab=vocab,
        splits={name: Split(sum(shard.tokens for shard in shards), shards) for name, shards in shards_of.items()},
        tools={"python": platform.python_version(), "apache-beam": importlib.metadata.version("apache-beam")},
    )
    write_manifest(folder, manifest)
    return manifest


def plan_split(name: str, span: range, files: list[TextFile], shard_bytes: int) -> list[Plan]:
    """The shards of a split: as many as it takes, all full but the last."""
    parts = [span[start : start + shard_bytes] for start in range(0, len(span), shard_bytes)]
    return [Plan(name, shard_name(name, index, len(parts)), pieces_of(part, files)) for index, part in enumerate(parts)]


def pieces_of(span: range, files: list[TextFile]) -> list[Piece]:
    """The stretches of files that make the bytes `span` of the files joined."""
    ends = np.cumsum([file.bytes for file in files])
    pieces, first = [], int(np.searchsorted(ends, span.start, side="right"))
    for file, end in zip(files[first:], ends[first:].tolist(), strict=True):
        file_start = end - file.bytes
        start, stop = max(span.start, file_start), min(span.stop, end)
        if start < stop:
            pieces.append(Piece(str(file.path), start - file_start, stop - start))
        if end >= span.stop:
            break
    return pieces


def _write(plan: Plan, folder: Path, vocab: Vocab) -> dict[str, Any]:
    shard = write_shard(folder / plan.file, (ids for piece in plan.pieces for ids in _read(piece, vocab)))
    return {"file": shard.file, "tokens": shard.tokens, "sha256": shard.sha256}


def _read(piece: Piece, vocab: Vocab) -> Iterator[npt.NDArray[np.uint8]]:
    with open(piece.path, "rb") as file:
        file.seek(piece.offset)
        left = piece.length
        while left:
            text = file.read(min(left, READ_BYTES))
            if not text:
                raise StageError(f"{piece.path} became shorter while it was read")
            yield vocab.encode(text)
            left -= len(text)


@contextlib.contextmanager
def _show_growth(folder: Path, total: int) -> Iterator[None]:
    """A progress bar of the bytes that lie in `folder`: it needs nothing of the workers, wherever they run."""
    done = threading.Event()

    def watch() -> None:
        with console.progress("bytes") as bar:
            task = bar.add_task("writing tokens", total=total)
            while not done.wait(0.2):
                # A partial file may become whole, and so change its name, between the listing and the look.
                with contextlib.suppress(FileNotFoundError):
                    bar.update(task, completed=sum(file.stat().st_size for file in folder.iterdir()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
