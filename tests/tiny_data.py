"""Data sets made in an instant, without Beam."""

from pathlib import Path

from pipeline.manifest import Manifest, Split, write_manifest
from pipeline.shards import shard_name, write_shard
from pipeline.vocab import byte_vocab


def make_data(folder: Path, shard_tokens: int, **texts: bytes) -> Manifest:
    """Writes the data set `folder` of these splits (train=..., val=...), cut into shards of so many tokens."""
    folder.mkdir(parents=True)
    vocab, splits = byte_vocab(), {}
    for name, text in texts.items():
        parts = [text[start : start + shard_tokens] for start in range(0, len(text), shard_tokens)]
        files = [folder / shard_name(name, index, len(parts)) for index in range(len(parts))]
        shards = [write_shard(file, [vocab.encode(part)]) for file, part in zip(files, parts, strict=True)]
        splits[name] = Split(len(text), tuple(shards))
    manifest = Manifest(sources=(), settings={}, vocab=vocab, splits=splits, tools={})
    write_manifest(folder, manifest)
    return manifest
