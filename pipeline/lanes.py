"""A split as batches for truncated back-propagation through time (BPTT), the same ones at every start.

    B lanes   T time steps of a window   K windows of a block   W windows of an epoch

A split of n tokens has m = n - 1 targets; the input of a target is the token before it. Lane j of B covers the targets
[j*m//B, (j+1)*m//B): contiguous, as long as the others to within one. Window k of a lane holds its targets
[k*T, (k+1)*T). So no target is lost, none is seen twice, and the carry after window k of a lane belongs to window k+1:

    targets   1 2 3 4 5 6 7 8 9 10 11 12 13       B = 2, T = 3
    lane 0    1 2 3 | 4 5 6                       W = 3, the last window padded: count_B = [0, 1]
    lane 1    7 8 9 | 10 11 12 | 13 . .

Batch k is a pure function of (manifest, lanes, window, k): to resume at any k is arithmetic, not replay.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from common.errors import StageError
from pipeline.manifest import Manifest
from pipeline.shards import read_tokens

# Tokens read at a time. Large enough that the cost of a read (one call of Python, one open file a lane) is spread over
# many windows; small enough that what is held, a few times this in bytes, is nothing beside a model.
BLOCK_TOKENS = 2 << 20


class Batch(NamedTuple):
    """One window of every lane. Ids are in the shards' dtype, the cheapest to move: cast them where they are used.

    count_B (int32) says how many of a row's targets are real. They come first; the rest of the row, in the last two
    windows of an epoch at most, is padding (id 0).
    """

    ids_BxT: tf.Tensor
    targets_BxT: tf.Tensor
    count_B: tf.Tensor


def windows_per_epoch(tokens: int, lanes: int, window: int) -> int:
    """The number of batches (= training steps) that cover a split of so many tokens once."""
    longest_lane = -(-(tokens - 1) // lanes)
    return -(-longest_lane // window)


def check_fits(tokens: int, lanes: int, window: int, split: str) -> None:
    """Raises StageError unless every lane of the split fills one window; it names the most lanes and steps that do."""
    targets = tokens - 1
    if targets >= lanes * window:
        return
    fits = []
    if targets >= window:
        fits.append(f"windows of {window} fit {targets // window} lanes at most")
    if targets >= lanes:
        fits.append(f"{lanes} lanes fit windows of {targets // lanes} at most")
    way_out = "; ".join(fits) or "use a longer text"
    raise StageError(
        f"the {split} split is too short for {lanes} lanes and a window of {window}: "
        f"that needs {lanes * window + 1} tokens, it has {tokens}; {way_out}"
    )


def batches(folder: Path, manifest: Manifest, split: str, lanes: int, window: int, start: int = 0) -> tf.data.Dataset:
    """One epoch of a split, from window `start` on, as a tf.data.Dataset of Batch.

    It takes part of one core and memory that does not grow with the corpus, and starting late costs nothing.
    Raises StageError where the split is missing or too short, ValueError for a start outside [0, windows_per_epoch].
    """
    tokens = manifest.split(split).tokens
    check_fits(tokens, lanes, window, split)
    windows = windows_per_epoch(tokens, lanes, window)
    if not 0 <= start <= windows:
        raise ValueError(f"start must be a window from 0 to {windows}, got {start}")
    block = max(1, BLOCK_TOKENS // (lanes * window))

    def read(first: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
        count = min(block, windows - int(first))
        return read_block(folder, manifest, split, lanes, window, int(first), count)

    def block_at(first: tf.Tensor) -> Batch:
        # Python runs once a block, not once a batch. TensorFlow has no op that reads a part of a file: a
        # FixedLengthRecordDataset a lane does it, but holds as many files open and cannot cross from shard to shard.
        token = tf.as_dtype(manifest.dtype)
        ids_KxBxT, targets_KxBxT, count_KxB = tf.numpy_function(read, [first], [token, token, tf.int32])
        return Batch(
            tf.ensure_shape(ids_KxBxT, [None, lanes, window]),
            tf.ensure_shape(targets_KxBxT, [None, lanes, window]),
            tf.ensure_shape(count_KxB, [None, lanes]),
        )

    dataset = tf.data.Dataset.range(start, windows, block).map(block_at).unbatch()
    return dataset.apply(tf.data.experimental.assert_cardinality(windows - start)).prefetch(tf.data.AUTOTUNE)


def read_block(
    folder: Path, manifest: Manifest, split: str, lanes: int, window: int, first: int, count: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Windows [first, first + count) of every lane: ids_KxBxT, targets_KxBxT, count_KxB with K = count."""
    tokens = manifest.split(split).tokens
    ids_BxKT = np.zeros((lanes, count * window), manifest.dtype)
    targets_BxKT = np.zeros_like(ids_BxKT)
    length_B = np.zeros(lanes, np.int64)
    for lane in range(lanes):
        lane_start, lane_stop = (j * (tokens - 1) // lanes for j in (lane, lane + 1))
        begin = lane_start + first * window
        end = min(begin + count * window, lane_stop)
        if begin >= end:
            continue  # the other lanes are one target longer, and have a window more for it
        # Target i is token i + 1: one read, seen twice.
        text = read_tokens(folder, manifest.split(split), manifest.dtype, begin, end + 1)
        length_B[lane] = end - begin
        ids_BxKT[lane, : end - begin] = text[:-1]
        targets_BxKT[lane, : end - begin] = text[1:]
    count_KxB = np.clip(length_B - window * np.arange(count)[:, None], 0, window).astype(np.int32)
    by_window = (1, 0, 2)
    return (
        ids_BxKT.reshape(lanes, count, window).transpose(by_window),
        targets_BxKT.reshape(lanes, count, window).transpose(by_window),
        count_KxB,
    )
