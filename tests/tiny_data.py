"""Tiny data sets, written without Beam."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.manifest import Manifest, Shard, Split, write_manifest
from pipeline.shards import ShardWriter, shard_name
from pipeline.vocab import Vocab, byte_vocab

TEXT = b"to be or not to be, that is the question\n" * 40


def write_shard(path: Path, pieces: Iterable[npt.NDArray[Any]]) -> Shard:
    """Write the concatenated ids of `pieces` as one shard."""
    with ShardWriter(path) as writer:
        for ids in pieces:
            writer.write(ids)
    return writer.shard


def make_config(folder: Path, text: str) -> Path:
    """Write the config tiny.toml and, next to it, a data set of TEXT in data/."""
    make_data(folder / "data", 1000, train=TEXT, val=TEXT[:200])
    config = folder / "tiny.toml"
    config.write_text(text, encoding="utf-8")
    return config


def make_data(
    folder: Path,
    shard_tokens: int,
    vocab: Vocab | None = None,
    settings: dict[str, Any] | None = None,
    **texts: bytes | np.ndarray,
) -> Manifest:
    """Write a data set in shards of `shard_tokens` tokens. texts: bytes or ids by split, such as train=b"..."."""
    folder.mkdir(parents=True)
    vocab, splits = vocab or byte_vocab(), {}
    for name, text in texts.items():
        ids = vocab.encode(text) if isinstance(text, bytes) else text.astype(vocab.dtype)
        parts = [ids[start : start + shard_tokens] for start in range(0, len(ids), shard_tokens)]
        files = [folder / shard_name(name, index, len(parts)) for index in range(len(parts))]
        shards = [write_shard(file, [part]) for file, part in zip(files, parts, strict=True)]
        splits[name] = Split(len(ids), tuple(shards))
    manifest = Manifest(sources=(), settings=settings or {}, vocab=vocab, splits=splits, tools={})
    write_manifest(folder, manifest)
    return manifest
