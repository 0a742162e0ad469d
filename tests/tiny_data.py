"""Data sets made in an instant, without Beam."""

from pathlib import Path

import numpy as np

from pipeline.manifest import Manifest, Split, write_manifest
from pipeline.shards import shard_name, write_shard
from pipeline.vocab import Vocab, byte_vocab


def make_data(folder: Path, shard_tokens: int, vocab: Vocab | None = None, **texts: bytes | np.ndarray) -> Manifest:
    """Writes the data set `folder` of these splits (train=..., val=...), texts or ids, in shards of so many tokens."""
    folder.mkdir(parents=True)
    vocab, splits = vocab or byte_vocab(), {}
    for name, text in texts.items():
        ids = vocab.encode(text) if isinstance(text, bytes) else text.astype(vocab.dtype)
        parts = [ids[start : start + shard_tokens] for start in range(0, len(ids), shard_tokens)]
        files = [folder / shard_name(name, index, len(parts)) for index in range(len(parts))]
        shards = [write_shard(file, [part]) for file, part in zip(files, parts, strict=True)]
        splits[name] = Split(len(ids), tuple(shards))
    manifest = Manifest(sources=(), settings={}, vocab=vocab, splits=splits, tools={})
    write_manifest(folder, manifest)
    return manifest
