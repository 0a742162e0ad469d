"""Manifest of a data set, manifest.json. Written last and read first: a folder without it is incomplete.

data/NAME/manifest.json                   this file
data/NAME/train-00000-of-00004.tokens     the shards (pipeline.shards)
data/NAME/.verified.json                  size, time and inode of each shard when its hash was last verified
data/NAME/validation/                     statistics, schema and report (pipeline.validate)
"""

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from common import console
from common.errors import StageError
from common.files import load_json, read_json, sha256_json, write_json, write_record
from common.printable import check_name
from pipeline.vocab import Vocab

FORMAT_VERSION = 2
FILE_NAME = "manifest.json"
VERIFIED = ".verified.json"
READ_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Source:
    """Source file, by a name that is the same on every machine. sha256: of the file itself, compressed or not."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """File of tokens in the data set's folder. sha256: of the file's bytes."""

    file: str
    tokens: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """Part of the corpus. Its shards, joined in order, are its tokens.

    counts: "bytes" of text; "documents", if the text consists of documents; "outside", if any: characters outside the
        vocabulary, replaced or left out.
    """

    tokens: int
    shards: tuple[Shard, ...]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything needed to read the data set and to trace its origin.

    settings: those that shape the data (pipeline.ingest).
    splits: "train" and, unless their share is 0, "val" and "test".
    tools: versions of Python and Beam.
    cleaned: changes made to the text as it was read, counted by kind, such as {"bytes replaced": 3}.
    provenance: origin of each named corpus among the sources (pipeline.fetch).
    validation: None until the data set is valid; then the stamp of pipeline.validate.
    """

    sources: tuple[Source, ...]
    settings: dict[str, Any]
    vocab: Vocab
    splits: dict[str, Split]
    tools: dict[str, str]
    cleaned: dict[str, int] = dataclasses.field(default_factory=dict)
    provenance: tuple[dict[str, Any], ...] = ()
    validation: dict[str, Any] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a token in the shards."""
        return self.vocab.dtype

    @property
    def data_sha256(self) -> str:
        """Hash of the vocabulary and every split's tokens, independent of names, tools and validation."""
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        return sha256_json({"vocab": self.vocab.sha256, "shards": shards})

    @property
    def judged(self) -> str:
        """Split on which models are judged: test, or val if there is no test."""
        return "test" if "test" in self.splits else "val"

    def split(self, name: str) -> Split:
        """Split by name. Raises StageError, listing the valid names, if it is missing."""
        if name not in self.splits:
            raise StageError(f"the data set has no split '{name}', only: {', '.join(self.splits)}")
        return self.splits[name]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json atomically. The shards must exist already."""
    value = {
        "format_version": FORMAT_VERSION,
        "data_sha256": manifest.data_sha256,
        "vocab_sha256": manifest.vocab.sha256,
        "dtype": manifest.dtype.name,
        **dataclasses.asdict(manifest),
        "vocab": manifest.vocab.to_json(),
    }
    write_record(folder / FILE_NAME, value)


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json and check that every shard exists in its full size (`check_hashes` reads them as well).

    Raises StageError, with the fix, if the folder or a file is missing, corrupted, or of another format version.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise StageError(
            f"data set {folder} does not exist: create it with python -m pipeline ingest ... --out {folder}"
        )
    if not path.is_file():
        raise StageError(
            f"{folder} has no {FILE_NAME}: it is incomplete or not a data set; remove it and run ingest again"
        )
    try:
        value = load_json(path)
        version = value["format_version"]
        if version != FORMAT_VERSION:
            rule = f"this program reads version {FORMAT_VERSION}: run ingest again with --force"
            raise StageError(f"{path} has format_version {version}, {rule}")
        manifest = _from_json(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else str(error)
        raise StageError(
            f"{path} is invalid ({type(error).__name__}: {reason}): run ingest again with --force"
        ) from None
    if manifest.data_sha256 != value.get("data_sha256"):
        raise StageError(
            f"{path} is invalid (its data_sha256 does not match its shards): run ingest again with --force"
        )
    _check_shards(folder, manifest)
    return manifest


def check_hashes(folder: Path, manifest: Manifest, trust: bool = False) -> None:
    """Read every shard in full. Raises StageError if one differs from its checksum or has an id outside the vocabulary.

    trust: skip shards with the size, modification time and inode that they had when they last passed.
    """
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    before, stamps = read_json(folder / VERIFIED), {}
    with console.progress("tokens") as bar:
        task = bar.add_task("verifying", total=sum(shard.tokens for shard in shards))
        for shard in shards:
            status = (folder / shard.file).stat()
            stamp = [shard.sha256, status.st_size, status.st_mtime_ns, status.st_ino]
            if not (trust and before.get(shard.file) == stamp):
                _check_shard(folder / shard.file, shard, manifest.vocab)
            stamps[shard.file] = stamp
            bar.advance(task, shard.tokens)
    if stamps != before:
        with contextlib.suppress(OSError):  # a read-only data set is read again each time
            write_json(folder / VERIFIED, stamps)


def _check_shard(path: Path, shard: Shard, vocab: Vocab) -> None:
    digest, highest = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            whole = len(piece) - len(piece) % vocab.dtype.itemsize
            highest = max(highest, int(np.frombuffer(piece[:whole], vocab.dtype).max(initial=0)))
    if digest.hexdigest() != shard.sha256:
        raise StageError(f"the shard {path} is corrupted: run ingest again with --force")
    if highest >= vocab.size:
        raise StageError(
            f"the shard {path} contains the id {highest}, but the vocabulary has {vocab.size} ids: "
            "run ingest again with --force"
        )


_MANIFEST = pydantic.TypeAdapter(Manifest)


def _from_json(value: dict[str, Any]) -> Manifest:
    fields = {field.name: value[field.name] for field in dataclasses.fields(Manifest)}
    manifest = _MANIFEST.validate_python(fields | {"vocab": Vocab.from_json(value["vocab"])})
    for source in manifest.sources:
        for part in source.name.split("/"):
            check_name(part)
    for name in manifest.cleaned:
        check_name(name)
    for name, split in manifest.splits.items():
        for kind in (name, *split.counts):
            check_name(kind)
        if split.tokens != sum(shard.tokens for shard in split.shards):
            raise ValueError(f"the tokens of {name} do not match its shards")
        for shard in split.shards:
            if Path(shard.file).name != shard.file:
                raise ValueError(f"a shard is outside the folder: {shard.file}")
            check_name(shard.file)
    return manifest


def _check_shards(folder: Path, manifest: Manifest) -> None:
    for split in manifest.splits.values():
        for shard in split.shards:
            path, expected = folder / shard.file, shard.tokens * manifest.dtype.itemsize
            if not path.is_file():
                raise StageError(f"the shard {path} is missing: run ingest again with --force")
            if path.stat().st_size != expected:
                size = path.stat().st_size
                raise StageError(
                    f"the shard {path} must have {expected} bytes, but has {size}: run ingest again with --force"
                )
