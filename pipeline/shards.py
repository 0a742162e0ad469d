"""The token format: ids one after another, unsigned, little-endian, with no header, so an offset is arithmetic."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.files import whole_file
from pipeline.manifest import Shard, Split


def shard_name(split: str, index: int, count: int) -> str:
    """The name of a split's shard, such as train-00000-of-00004.tokens."""
    return f"{split}-{index:05d}-of-{count:05d}.tokens"


def write_shard(path: Path, pieces: Iterable[npt.NDArray[Any]]) -> Shard:
    """Writes the ids of `pieces`, joined, in their own dtype; says what was written. Holds one piece at a time."""
    tokens, digest = 0, hashlib.sha256()
    with whole_file(path) as partial, partial.open("wb") as file:
        for ids in pieces:
            data = np.ascontiguousarray(ids).data
            file.write(data)
            digest.update(data)
            tokens += ids.size
    return Shard(path.name, tokens, digest.hexdigest())


def read_tokens(folder: Path, split: Split, dtype: npt.DTypeLike, start: int, stop: int) -> npt.NDArray[Any]:
    """Tokens [start, stop) of a split, whichever shards they lie in. Reads these bytes and no others.

    A file is opened for each call: a read costs some 10 us, and no number of shards or readers runs out of descriptors.
    """
    dtype = np.dtype(dtype)
    parts, shard_start = [], 0
    for shard in split.shards:
        first, last = max(start - shard_start, 0), min(stop - shard_start, shard.tokens)
        if first < last:
            parts.append(np.fromfile(folder / shard.file, dtype, count=last - first, offset=first * dtype.itemsize))
        shard_start += shard.tokens
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)
