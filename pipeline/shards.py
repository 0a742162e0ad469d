"""Token shards: consecutive unsigned little-endian ids without a header, so that offsets are arithmetic."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import StageError
from common.files import whole_file
from pipeline.manifest import Shard, Split


def shard_name(split: str, index: int, count: int) -> str:
    """Name of a split's shard, such as train-00000-of-00004.tokens."""
    return f"{split}-{index:05d}-of-{count:05d}.tokens"


class ShardWriter:
    """Context manager that writes a shard. The file appears, complete, when the block ends without an error."""

    def __init__(self, path: Path):
        self.path, self.tokens = path, 0
        self._digest, self._stack = hashlib.sha256(), contextlib.ExitStack()

    def __enter__(self) -> "ShardWriter":
        partial = self._stack.enter_context(whole_file(self.path))
        self._file = self._stack.enter_context(partial.open("wb"))
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, ids: npt.NDArray[Any]) -> None:
        """Append ids, in their own dtype."""
        data = np.ascontiguousarray(ids).data
        self._file.write(data)
        self._digest.update(data)
        self.tokens += ids.size

    @property
    def shard(self) -> Shard:
        """Finished shard."""
        return Shard(self.path.name, self.tokens, self._digest.hexdigest())


def read_tokens(folder: Path, split: Split, dtype: npt.DTypeLike, start: int, stop: int) -> npt.NDArray[Any]:
    """Read tokens [start, stop) of a split, across shards. Reads no other bytes.

    Each call opens its files again, some 10 us each, so that many shards and readers do not exhaust descriptors.
    Raises StageError for a shard that has become too short.
    """
    dtype = np.dtype(dtype)
    parts, shard_start = [], 0
    for shard in split.shards:
        first, last = max(start - shard_start, 0), min(stop - shard_start, shard.tokens)
        if first < last:
            path = folder / shard.file
            parts.append(np.fromfile(path, dtype, count=last - first, offset=first * dtype.itemsize))
            if len(parts[-1]) < last - first:
                raise StageError(f"the shard {path} was truncated while it was read: run ingest again with --force")
        shard_start += shard.tokens
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)
