import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from combined import combined
from tiny_data import make_data

from common.errors import StageError
from pipeline import lanes
from pipeline.lanes import Batch, batches, check_fits, plan, reading, windows_per_epoch
from pipeline.manifest import Manifest
from pipeline.vocab import Vocab, byte_vocab

TEXT = np.random.default_rng(1).integers(0, 256, 257, dtype=np.uint8).tobytes()


def expected(ids: bytes | np.ndarray, B: int, T: int, end_id: int | None = None) -> list[Batch]:
    """Build an epoch by the definition in pipeline/lanes.py, one target at a time, with padding of 0."""
    ids = np.frombuffer(ids, np.uint8) if isinstance(ids, bytes) else ids
    m = len(ids) - 1
    epoch = []
    for k in range(math.ceil(math.ceil(m / B) / T)):
        x, y, count = np.zeros((B, T), ids.dtype), np.zeros((B, T), ids.dtype), np.zeros(B, np.int32)
        for j in range(B):
            for t, i in enumerate(range(j * m // B, (j + 1) * m // B)[k * T : (k + 1) * T]):
                x[j, t], y[j, t], count[j] = ids[i], ids[i + 1], t + 1
        real = np.arange(T) < count[:, None]
        epoch.append(Batch(x, y, count, None if end_id is None else (x == end_id) & real))
    return epoch


def assert_epochs_equal(actual: list[Batch], expected_batches: list[Batch]) -> None:
    assert len(actual) == len(expected_batches)
    for actual_batch, expected_batch in zip(actual, expected_batches, strict=True):
        assert isinstance(actual_batch, Batch)
        real_BxT = np.arange(expected_batch.ids_BxT.shape[1]) < expected_batch.count_B[:, None]
        for name, actual_part, expected_part in zip(Batch._fields, actual_batch, expected_batch, strict=True):
            if expected_part is None:
                assert actual_part is None
            else:
                assert actual_part.dtype == expected_part.dtype
                actual_part = actual_part if name == "count_B" else actual_part * real_BxT
                np.testing.assert_array_equal(actual_part, expected_part)


# tokens, shard_tokens, lanes, window: partial and full last windows, one lane, one step, shards smaller than a window,
# one token per shard, one target per lane, and splits where only some lanes reach the last window.
SIZES = [
    (14, 100, 2, 3),
    (13, 5, 2, 3),
    (2, 1, 1, 1),
    (9, 1, 1, 1),
    (9, 1, 8, 1),
    (50, 3, 1, 7),
    (50, 3, 7, 7),
    (51, 50, 7, 7),
    (60, 7, 7, 8),
    (200, 64, 3, 1),
    (257, 10, 16, 16),
    (257, 256, 5, 13),
    (256, 1000, 4, 60),
]


@pytest.mark.parametrize(("size", "block_tokens"), combined(SIZES, [1, 100, 1 << 20]))
def test_epoch_matches_definition(
    size: tuple[int, int, int, int],
    block_tokens: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "BLOCK_TOKENS", block_tokens)
    tokens, shard_tokens, B, T = size
    text = TEXT[:tokens]
    manifest = make_data(folder, shard_tokens, train=text)
    dataset = batches(folder, manifest, "train", B, T)
    epoch = list(dataset.as_numpy_iterator())
    assert_epochs_equal(epoch, expected(text, B, T))
    assert int(dataset.cardinality()) == windows_per_epoch(tokens, B, T) == len(epoch)
    # Lane by lane, the targets are the text.
    targets = [batch.targets_BxT[j, : batch.count_B[j]] for j in range(B) for batch in epoch]
    assert np.concatenate(targets).tobytes() == text[1:]


@pytest.mark.parametrize("start", [0, 1, 2, 5, 8, 9])
def test_start_gives_the_rest_of_the_epoch(start: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "BLOCK_TOKENS", 60)  # blocks of 2 windows, so that starts fall inside blocks
    manifest = make_data(folder, 11, train=TEXT)
    assert windows_per_epoch(257, 3, 10) == 9
    rest = batches(folder, manifest, "train", lanes=3, window=10, start=start)
    assert int(rest.cardinality()) == 9 - start
    assert_epochs_equal(list(rest.as_numpy_iterator()), expected(TEXT, 3, 10)[start:])


def test_start_does_not_read_earlier_shards(folder: Path) -> None:
    manifest = make_data(folder, 10, train=TEXT)
    dataset = batches(folder, manifest, "train", lanes=1, window=16, start=15)
    for shard in manifest.splits["train"].shards[:24]:
        (folder / shard.file).unlink()
    assert_epochs_equal(list(dataset.as_numpy_iterator()), expected(TEXT, 1, 16)[15:])


DTYPES = {"u1": np.uint8, "<u2": np.uint16, "<u4": np.int32}


@pytest.mark.parametrize(("stored", "shard_tokens"), combined(DTYPES, [1, 2, 3, 5, 7]))
def test_ids_of_all_dtypes(stored: str, shard_tokens: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = DTYPES[stored]
    monkeypatch.setattr(lanes, "BLOCK_TOKENS", 30)
    monkeypatch.setattr(Vocab, "dtype", np.dtype(stored))
    ids = np.random.default_rng(2).integers(0, np.iinfo(dtype).max, 61, endpoint=True, dtype=dtype)
    manifest = make_data(folder, shard_tokens, train=ids)
    for start in (0, 1, 3):
        epoch = list(batches(folder, manifest, "train", 3, 5, start).as_numpy_iterator())
        assert_epochs_equal(epoch, expected(ids, 3, 5)[start:])


def test_ends_of_documents_are_resets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "BLOCK_TOKENS", 30)
    text = b"\nto be\n\nor\n" * 9
    manifest = make_data(folder, 7, byte_vocab(end="newline"), train=text)
    epoch = expected(text, 4, 5, end_id=10)
    assert_epochs_equal(list(batches(folder, manifest, "train", 4, 5).as_numpy_iterator()), epoch)
    assert sum(int(batch.reset_BxT.sum()) for batch in epoch) == text[:-1].count(b"\n")


@pytest.mark.parametrize("workers", [1, 2, pytest.param(3, marks=pytest.mark.slow), 7])
def test_rows_of_all_workers_form_the_batch(workers: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "BLOCK_TOKENS", 50)
    manifest = make_data(folder, 6, byte_vocab(end="newline"), train=TEXT)
    shares = [range(w * 7 // workers, (w + 1) * 7 // workers) for w in range(workers)]
    parts = [batches(folder, manifest, "train", 7, 4, start=2, rows=rows).as_numpy_iterator() for rows in shares]
    whole = [Batch(*map(np.concatenate, zip(*row, strict=True))) for row in zip(*parts, strict=True)]
    assert_epochs_equal(whole, expected(TEXT, 7, 4, end_id=10)[2:])


def test_worker_reads_only_its_lanes(folder: Path) -> None:
    manifest = make_data(folder, 10, train=TEXT)
    for shard in manifest.splits["train"].shards[13:]:
        (folder / shard.file).unlink()
    epoch = list(batches(folder, manifest, "train", lanes=2, window=16, rows=range(1)).as_numpy_iterator())
    assert_epochs_equal(epoch, [Batch(*(part[:1] for part in batch[:3])) for batch in expected(TEXT, 2, 16)])


@pytest.mark.parametrize("rows", [range(0), range(2, 5), range(-1, 2), range(0, 4, 2)])
def test_invalid_rows_raise(rows: range, folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    with pytest.raises(ValueError, match="rows must be a range of lanes, 0 to 4, got range"):
        batches(folder, manifest, "train", lanes=4, window=10, rows=rows)


def test_shards_are_read_in_manifest_order(folder: Path) -> None:
    manifest = make_data(folder, 11, train=TEXT)
    shards = list(manifest.splits["train"].shards)
    names = [shard.file for shard in shards]
    for shard in shards:
        (folder / shard.file).rename(folder / f"{shard.file}.moved")
    order = np.random.default_rng(3).permutation(len(shards))
    for i in order:  # permute names, in random order
        (folder / f"{names[i]}.moved").rename(folder / names[order[i]])
        shards[i] = dataclasses.replace(shards[i], file=names[order[i]])
    split = dataclasses.replace(manifest.splits["train"], shards=tuple(shards))
    moved: Manifest = dataclasses.replace(manifest, splits={"train": split})
    assert_epochs_equal(list(batches(folder, moved, "train", 3, 10).as_numpy_iterator()), expected(TEXT, 3, 10))


def test_plan_reads_long_runs_and_skips_empty_shards() -> None:
    # Targets 0 to 19 in blocks of 4: the first record has 5 tokens. Shards: 0 to 12, empty, 13 to 20.
    assert plan([0, 13, 13, 21], begin=0, stop=20, length=4, blocks=6) == [
        [(0, 0, 5, 5)],
        [(0, 5, 13, 4)],
        [(2, 13, 21, 4)],
        [(2, 20, 21, 1)],  # no target is left, so read one arbitrary token
    ]
    assert plan([0, 3, 3, 5], begin=1, stop=4, length=3, blocks=1) == [[(0, 1, 3, 2), (2, 3, 5, 2)]]


def test_dataset_has_no_python_ops(folder: Path) -> None:
    """Serialise the data set, which works only without Python ops."""
    manifest = make_data(folder, 10, byte_vocab(end="newline"), train=TEXT)
    dataset = batches(folder, manifest, "train", lanes=3, window=10)
    graph = tf.compat.v1.GraphDef.FromString(tf.raw_ops.DatasetToGraphV2(input_dataset=dataset._variant_tensor).numpy())
    functions = graph.library.function
    ops = {node.op for node in [*graph.node, *(node for function in functions for node in function.node_def)]}
    assert {"FixedLengthRecordDatasetV2", "DecodePaddedRaw"} <= ops
    assert not {op for op in ops if "PyFunc" in op}


def test_element_spec_has_static_shapes_and_the_shards_dtype(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    spec = batches(folder, manifest, "train", lanes=4, window=8).element_spec
    ids = tf.TensorSpec([4, 8], tf.uint8)
    assert spec[:3] == (ids, ids, tf.TensorSpec([4], tf.int32))
    manifest = dataclasses.replace(manifest, vocab=byte_vocab(end="newline"))
    spec = batches(folder, manifest, "train", lanes=4, window=8).element_spec
    assert spec == Batch(ids, ids, tf.TensorSpec([4], tf.int32), tf.TensorSpec([4, 8], tf.bool))


def test_dataset_runs_inside_a_graph(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    dataset = batches(folder, manifest, "train", lanes=4, window=8)

    @tf.function
    def targets() -> tf.Tensor:
        total = tf.constant(0)
        for batch in dataset:
            total += tf.reduce_sum(batch.count_B)
        return total

    assert int(targets()) == len(TEXT) - 1


def test_replicas_get_contiguous_lanes(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    epoch = strategy.experimental_distribute_dataset(batches(folder, manifest, "train", lanes=4, window=8, start=2))
    actual = [[part.numpy() for part in strategy.experimental_local_results(batch.ids_BxT)] for batch in epoch]
    desired = [[batch.ids_BxT[:2], batch.ids_BxT[2:]] for batch in expected(TEXT, 4, 8)[2:]]
    np.testing.assert_array_equal(actual, desired)


def test_other_split(folder: Path) -> None:
    manifest = make_data(folder, 9, train=TEXT[:100], val=TEXT[100:150])
    epoch = list(batches(folder, manifest, "val", lanes=2, window=5).as_numpy_iterator())
    assert_epochs_equal(epoch, expected(TEXT[100:150], 2, 5))


def test_more_lanes_than_open_files_raise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_data(folder, 9, train=TEXT)
    monkeypatch.setattr("resource.getrlimit", lambda kind: (60, 80))
    monkeypatch.setattr("resource.setrlimit", lambda kind, limits: None)
    batches(folder, manifest, "train", lanes=16, window=2)
    with pytest.raises(StageError, match=r"^17 lanes need as many open files, at most 80: use fewer, or raise ulimit"):
        batches(folder, manifest, "train", lanes=17, window=2)


def test_too_short_split_raises(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT, val=TEXT[:80])
    with pytest.raises(StageError) as error:
        batches(folder, manifest, "val", lanes=8, window=10)
    assert str(error.value) == (
        "the val split is too short for 8 lanes and a window of 10: it needs 81 tokens, but has 80; "
        "with windows of 10, use at most 7 lanes; with 8 lanes, use windows of at most 9"
    )


@pytest.mark.parametrize(
    ("tokens", "B", "T", "suggestion"),
    [
        (10, 20, 5, "but has 10; with windows of 5, use at most 1 lanes"),
        (10, 3, 10, "but has 10; with 3 lanes, use windows of at most 3"),
        (10, 20, 10, "but has 10; use a longer text"),
    ],
)
def test_error_suggests_only_sizes_that_fit(tokens: int, B: int, T: int, suggestion: str) -> None:
    with pytest.raises(StageError, match=suggestion):
        check_fits(tokens, B, T, "train")


def test_smallest_split_that_fits() -> None:
    check_fits(81, 8, 10, "val")


def test_missing_split_raises(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    with pytest.raises(StageError, match="no split 'val', only: train"):
        batches(folder, manifest, "val", lanes=1, window=1)


@pytest.mark.parametrize("start", [-1, 10])
def test_start_outside_the_epoch_raises(start: int, folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    with pytest.raises(ValueError, match=f"start must be a window from 0 to 9, got {start}"):
        batches(folder, manifest, "train", lanes=3, window=10, start=start)


@pytest.mark.parametrize(
    ("cut", "message"),
    [(1, "must have 100 bytes, but"), (90, "must have 100 bytes, but"), (None, "is missing")],
)
def test_shard_truncated_while_it_is_read(cut: int | None, message: str, folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT[:200])
    rows = batches(folder, manifest, "train", lanes=2, window=5)
    shard = folder / "train-00001-of-00002.tokens"
    if cut is None:
        shard.unlink()
    else:
        os.truncate(shard, cut)
    with pytest.raises(StageError, match=rf"train-00001-of-00002\.tokens {message}"), reading(folder):
        for _ in rows:
            pass


def test_autotuning_is_disabled(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    # The tuner's thread would delay the end of an iterator.
    assert not batches(folder, manifest, "train", 2, 3).options().autotune.enabled
