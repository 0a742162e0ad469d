"""Serve a split as batches for truncated back-propagation through time (BPTT), identical in every run.

    B lanes   T time steps of a window   K windows of a block   W windows of an epoch

A split of n tokens has m = n - 1 targets; the input of a target is the token before it. Lane j of B covers the
contiguous targets [j*m//B, (j+1)*m//B), so lane lengths differ by at most one. Window k of a lane has its targets
[k*T, (k+1)*T). So each target is seen exactly once, and the carry after window k of a lane belongs to window k+1:

    targets   1 2 3 4 5 6 7 8 9 10 11 12 13       B = 2, T = 3
    lane 0    1 2 3 | 4 5 6                       W = 3, the last window padded: count_B = [0, 1]
    lane 1    7 8 9 | 10 11 12 | 13 . .

Batch k is a pure function of (manifest, lanes, window, k): resuming at any k is arithmetic, not replay.
"""

import bisect
import contextlib
import itertools
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from common.errors import StageError
from pipeline.manifest import Manifest, Split, check_hashes, read_manifest

# Tokens per block over all lanes, read and cut into windows together: large enough to spread the cost of a read over
# many windows, small enough that the few blocks in memory are negligible beside a model.
BLOCK_TOKENS = 2 << 20
BUFFER_BYTES = 1 << 16  # per lane's open file
OTHER_FILES = 64  # of the process, at most
# decode_raw lacks uint32; no id comes near 2**31.
READ_AS = {1: tf.uint8, 2: tf.uint16, 4: tf.int32}


class Batch(NamedTuple):
    """One window of every lane. Ids keep their stored type (uint8, uint16; int32 for uint32), the cheapest to move:
    cast them where they are used.

    count_B (int32): number of real targets per row, which come first. The rest of the row, in the last two windows of
    an epoch at most, is padded with arbitrary ids.
    reset_BxT (bool): inputs before which the carry is reset, the ends of documents. None if there are no documents.
    """

    ids_BxT: tf.Tensor
    targets_BxT: tf.Tensor
    count_B: tf.Tensor
    reset_BxT: tf.Tensor | None = None


class ShardPart(NamedTuple):
    """Part of one shard: records of `record` tokens each, from token `first` of the split up to `past`."""

    shard: int
    first: int
    past: int
    record: int


Plan = list[list[ShardPart]]  # the runs of a lane


def windows_per_epoch(tokens: int, lanes: int, window: int) -> int:
    """Number of batches (= training steps) in one epoch of `tokens` tokens."""
    longest_lane = -(-(tokens - 1) // lanes)
    return -(-longest_lane // window)


def check_fits(tokens: int, lanes: int, window: int, split: str) -> None:
    """Raise StageError, naming the largest lanes and window that fit, unless every lane fills one window."""
    targets = tokens - 1
    if targets >= lanes * window:
        return
    fits = []
    if targets >= window:
        fits.append(f"with windows of {window}, use at most {targets // window} lanes")
    if targets >= lanes:
        fits.append(f"with {lanes} lanes, use windows of at most {targets // lanes}")
    fix = "; ".join(fits) or "use a longer text"
    raise StageError(
        f"the {split} split is too short for {lanes} lanes and a window of {window}: "
        f"it needs {lanes * window + 1} tokens, but has {tokens}; {fix}"
    )


def batches(
    folder: Path, manifest: Manifest, split: str, lanes: int, window: int, start: int = 0, rows: range | None = None
) -> tf.data.Dataset:
    """Build a tf.data.Dataset of Batch over one epoch of a split, from window `start` on. Pure tf.data ops, no Python.

    rows: contiguous range of lanes, by default all; a worker reads only the lanes it requests.

    Uses about one core, and memory that does not grow with the corpus. Start-up time is the same for any `start`: at
    most reading one shard per lane, since TensorFlow reaches a position in a file by reading everything before it.
    Each lane keeps a file open, so the process's limit on open files is raised to its maximum.
    Raises StageError for a missing or too short split; ValueError for a start outside [0, windows_per_epoch] or
    invalid rows.
    """
    tokens = manifest.split(split).tokens
    check_fits(tokens, lanes, window, split)
    windows = windows_per_epoch(tokens, lanes, window)
    if not 0 <= start <= windows:
        raise ValueError(f"start must be a window from 0 to {windows}, got {start}")
    rows = range(lanes) if rows is None else rows
    if not rows or rows.step != 1 or rows.start < 0 or rows.stop > lanes:
        raise ValueError(f"rows must be a range of lanes, 0 to {lanes}, got {rows}")
    with tf.device("/CPU:0"):  # by default, the constants of a dataset are copied to a GPU and back
        return _batches(folder, manifest, split, lanes, window, start, rows)


@tf.autograph.experimental.do_not_convert  # there is nothing to convert, and the search takes a third of the time
def _batches(
    folder: Path, manifest: Manifest, split: str, lanes: int, window: int, start: int, rows: range
) -> tf.data.Dataset:
    tokens = manifest.split(split).tokens
    windows = windows_per_epoch(tokens, lanes, window)
    B, T, item, end_id = len(rows), window, manifest.dtype.itemsize, manifest.vocab.end_id
    K, dtype = max(1, BLOCK_TOKENS // (B * T)), READ_AS[item]
    ends = [(j * (tokens - 1) // lanes, (j + 1) * (tokens - 1) // lanes) for j in rows]
    targets_B = tf.constant([stop - begin for begin, stop in ends], tf.int64)

    def by_window(x_BxKT: tf.Tensor) -> tf.Tensor:
        return tf.transpose(tf.reshape(x_BxKT, [B, -1, T]), [1, 0, 2])

    def cut(before_Bx1: tf.Tensor, block: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, Batch]:
        """Cut a block into windows; also return its last tokens, the inputs of the next block's first targets."""
        first, text_B = block
        window_K = tf.range(first, tf.minimum(first + K, windows))
        size = tf.size(window_K) * T + 1 - tf.shape(before_Bx1)[1]
        text_BxN = tf.concat([before_Bx1, tf.io.decode_raw(text_B, dtype, fixed_length=size * item)], 1)
        ids_KxBxT = by_window(text_BxN[:, :-1])
        count_KxB = tf.cast(tf.clip_by_value(targets_B - window_K[:, None] * T, 0, T), tf.int32)
        reset_KxBxT = None if end_id is None else ids_KxBxT == tf.constant(end_id, dtype)
        return text_BxN[:, -1:], Batch(ids_KxBxT, by_window(text_BxN[:, 1:]), count_KxB, reset_KxBxT)

    blocks, edges = len(range(start, windows, K)), _edges(manifest.split(split))
    plans = [plan(edges, begin + start * T, stop, K * T, blocks) for begin, stop in ends]
    texts = _read(folder, manifest.split(split), item, plans)
    dataset = tf.data.Dataset.zip(tf.data.Dataset.range(start, windows, K), texts)
    dataset = dataset.scan(tf.zeros([B, 0], dtype), cut).unbatch()
    # A multi-worker strategy must shard each batch by rows, not the files.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    # The thread that tunes a pipeline sleeps for up to a minute, and may miss that its iterator is deleted.
    options.autotune.enabled = False
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(windows - start)).with_options(options)
    return dataset.prefetch(tf.data.AUTOTUNE)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Check the shards if TensorFlow fails in the block. Raises StageError if one was truncated or changed."""
    try:
        yield
    except (StopIteration, tf.errors.OpError):
        check_hashes(folder, read_manifest(folder), trust=True)
        raise


def _edges(split: Split) -> list[int]:
    """First token of each shard of the split and, last, the end of the split."""
    return list(itertools.accumulate((shard.tokens for shard in split.shards), initial=0))


def _read(folder: Path, split: Split, item: int, plans: list[Plan]) -> tf.data.Dataset:
    """Read one record of every lane at a time, as byte strings [B]; `item`: bytes per token."""
    files = tf.constant([str(folder / shard.file) for shard in split.shards])
    edges = tf.constant(_edges(split), tf.int64)

    def read(piece: tf.Tensor) -> tf.data.Dataset:
        shard, first, past, record = tf.unstack(piece)
        before, after = first - edges[shard], edges[shard + 1] - past
        return tf.data.FixedLengthRecordDataset(files[shard], record * item, before * item, after * item, BUFFER_BYTES)

    def read_run(pieces: tf.Tensor) -> tf.data.Dataset:
        parts = tf.data.Dataset.from_tensor_slices(pieces).flat_map(read)
        return parts.batch(tf.shape(pieces, tf.int64)[0]).map(tf.strings.reduce_join)

    def read_lane(runs: tf.RaggedTensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(runs).flat_map(read_run)

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if len(plans) + OTHER_FILES > hard != resource.RLIM_INFINITY:
        raise StageError(f"{len(plans)} lanes need as many open files, at most {hard}: use fewer, or raise ulimit -Hn")
    lanes = tf.data.Dataset.from_tensor_slices(tf.ragged.constant(plans, tf.int64, ragged_rank=2, inner_shape=(4,)))
    B = len(plans)
    records = lanes.interleave(read_lane, cycle_length=B, num_parallel_calls=min(2, B), deterministic=True)
    return records.batch(B, drop_remainder=True)


def plan(shard_edges: list[int], begin: int, stop: int, length: int, blocks: int) -> Plan:
    """Plan the reads of the lane of targets [begin, stop), in blocks of `length`: one record per block.

    Target i is token i + 1. The first record also has the token before its targets; a record without targets, where
    other lanes are longer, is one arbitrary token. A run is many records in one shard, or the parts of one record.
    """
    runs: Plan = []
    done = 0
    while done < blocks:
        past = min(begin + (done + 1) * length, stop) + 1
        first = min(begin + done * length + (done > 0), past - 1)
        shard = bisect.bisect_right(shard_edges, first) - 1
        whole = (min(shard_edges[shard + 1], stop + 1) - first) // length
        if done and whole:
            runs.append([ShardPart(shard, first, first + whole * length, length)])
            done += whole
            continue
        last = bisect.bisect_left(shard_edges, past)
        cuts = [first, *shard_edges[shard + 1 : last], past]
        stretches = itertools.pairwise(cuts)
        runs.append([ShardPart(shard + i, a, b, b - a) for i, (a, b) in enumerate(stretches) if a < b])
        done += 1
    return runs
