"""TensorFlow is set up once for all tests: two logical CPUs, so that two replicas run on any machine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common import console

with console.hushed():
    import tensorflow as tf

    CPU = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.list_logical_devices()

from pipeline.manifest import Manifest, Split, write_manifest
from pipeline.shards import shard_name, write_shard
from pipeline.vocab import byte_vocab


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Manifest]:
    """make_data(folder, shard_tokens, train=text, val=text): writes a data set without Beam."""

    def make(folder: Path, shard_tokens: int, **texts: bytes) -> Manifest:
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

    return make
