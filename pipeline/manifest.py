"""What a data set is: manifest.json, written last, read first. A folder without it is no data set.

data/NAME/manifest.json                   this file
data/NAME/train-00000-of-00004.tokens     the shards (pipeline.shards)
data/NAME/validation/                     statistics, schema and report (pipeline.validate)
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from common import console
from common.errors import StageError
from common.files import sha256_file, sha256_json, write_json
from pipeline.vocab import Vocab

FORMAT_VERSION = 2
FILE_NAME = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that the text came from, under a name that holds nothing of the machine it lay on; sha256 is of the file
    as it lay there, compressed or not."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of tokens in the data set's folder; sha256 is of the file's bytes."""

    file: str
    tokens: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of the corpus; its shards, joined in order, are its tokens.

    counts: of its text: "bytes"; "documents", where it is one of documents; "outside", where there are any: characters
        that the vocabulary does not have, replaced or left out.
    """

    tokens: int
    shards: tuple[Shard, ...]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that a reader of the data set needs to know, and all that says where it came from.

    settings: those that shape the data (pipeline.ingest).
    splits: "train" and, unless their share is 0, "val" and "test".
    tools: versions of what made it.
    cleaned: what was changed in the text as it was read, counted: {"bytes replaced": 3}; empty: nothing.
    provenance: of each named corpus that it was made from, where that came from (pipeline.fetch).
    validation: None until pipeline.validate finds nothing wrong; then when, with what settings, and what was checked.
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
        """How a token is stored in the shards."""
        return self.vocab.dtype

    @property
    def data_sha256(self) -> str:
        """The hash of what a model can learn from: the vocabulary and every split's tokens.

        It does not depend on names, on tools, or on whether the data has been validated.
        """
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        return sha256_json({"vocab": self.vocab.sha256, "shards": shards})

    @property
    def judged(self) -> str:
        """The split that a model's figures are of: test, or val where there is no test."""
        return "test" if "test" in self.splits else "val"

    def split(self, name: str) -> Split:
        """The split of that name. Raises StageError, listing those there are."""
        if name not in self.splits:
            raise StageError(f"the data set has no split '{name}'; it has: {', '.join(self.splits)}")
        return self.splits[name]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json, whole or not at all. The shards must be there already."""
    value = {
        "format_version": FORMAT_VERSION,
        "data_sha256": manifest.data_sha256,
        "vocab_sha256": manifest.vocab.sha256,
        "dtype": manifest.dtype.name,
        **dataclasses.asdict(manifest),
        "vocab": manifest.vocab.to_json(),
    }
    write_json(folder / FILE_NAME, value)


def read_manifest(folder: Path) -> Manifest:
    """Reads manifest.json and checks that every shard is there in its full size (not its hash: that takes a reading).

    Raises StageError, with the way out, where the folder or the manifest is missing, broken, or of another format.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise StageError(f"there is no data set {folder}: make it with python -m pipeline ingest ... --out {folder}")
    if not path.is_file():
        raise StageError(
            f"{folder} has no {FILE_NAME}: it is half written or no data set; remove it and run ingest again"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = value["format_version"]
        if version != FORMAT_VERSION:
            rule = f"this program reads {FORMAT_VERSION}: run ingest again with --force"
            raise StageError(f"{path} has format_version {version}, {rule}")
        manifest = _from_json(value)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else str(error)
        raise StageError(f"{path} is broken ({type(error).__name__}: {what}): run ingest again with --force") from None
    if manifest.data_sha256 != value.get("data_sha256"):
        raise StageError(f"{path} is broken (its data_sha256 does not fit its shards): run ingest again with --force")
    _check_shards(folder, manifest)
    return manifest


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Reads every shard in full. Raises StageError for one whose bytes are not those that were written."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    with console.progress("tokens") as bar:
        task = bar.add_task("verifying", total=sum(shard.tokens for shard in shards))
        for shard in shards:
            if sha256_file(folder / shard.file) != shard.sha256:
                raise StageError(f"the shard {folder / shard.file} is damaged: run ingest again with --force")
            bar.advance(task, shard.tokens)


_MANIFEST = pydantic.TypeAdapter(Manifest)


def _from_json(value: dict[str, Any]) -> Manifest:
    fields = {field.name: value[field.name] for field in dataclasses.fields(Manifest)}
    manifest = _MANIFEST.validate_python(fields | {"vocab": Vocab.from_json(value["vocab"])})
    for name, split in manifest.splits.items():
        if split.tokens != sum(shard.tokens for shard in split.shards):
            raise ValueError(f"the tokens of {name} are not those of its shards")
        for shard in split.shards:
            if Path(shard.file).name != shard.file:
                raise ValueError(f"a shard lies outside the folder: {shard.file}")
    return manifest


def _check_shards(folder: Path, manifest: Manifest) -> None:
    for split in manifest.splits.values():
        for shard in split.shards:
            path, expected = folder / shard.file, shard.tokens * manifest.dtype.itemsize
            if not path.is_file():
                raise StageError(f"the shard {path} is missing: run ingest again with --force")
            if path.stat().st_size != expected:
                came = path.stat().st_size
                raise StageError(
                    f"the shard {path} must have {expected} bytes, it has {came}: run ingest again with --force"
                )
