import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tiny_data import make_data

from common.errors import StageError
from pipeline import lanes
from pipeline.lanes import Batch, batches, check_fits, windows_per_epoch

TEXT = np.random.default_rng(1).integers(1, 256, 257, dtype=np.uint8).tobytes()  # no 0: that is the padding


def expected(text: bytes, B: int, T: int) -> list[Batch]:
    """The epoch by the definition at the head of pipeline/lanes.py, one target at a time."""
    m = len(text) - 1
    epoch = []
    for k in range(math.ceil(math.ceil(m / B) / T)):
        batch = Batch(np.zeros((B, T), np.uint8), np.zeros((B, T), np.uint8), np.zeros(B, np.int32))
        for j in range(B):
            for t, i in enumerate(range(j * m // B, (j + 1) * m // B)[k * T : (k + 1) * T]):
                batch.ids_BxT[j, t], batch.targets_BxT[j, t] = text[i], text[i + 1]
                batch.count_B[j] = t + 1
        epoch.append(batch)
    return epoch


def assert_same(came: list[Batch], wanted: list[Batch]) -> None:
    assert len(came) == len(wanted)
    for came_batch, wanted_batch in zip(came, wanted, strict=True):
        assert isinstance(came_batch, Batch)
        for came_part, wanted_part in zip(came_batch, wanted_batch, strict=True):
            assert came_part.dtype == wanted_part.dtype
            np.testing.assert_array_equal(came_part, wanted_part)


# tokens, shard_tokens, lanes, window: odd ends, whole ends, one lane, one step, shards smaller than a window, one token
# a shard, one target a lane, and splits where only some lanes reach the last window.
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


@pytest.mark.parametrize("block_tokens", [1, 100, 1 << 20])
@pytest.mark.parametrize(("tokens", "shard_tokens", "B", "T"), SIZES)
def test_an_epoch_is_what_the_definition_says(
    tokens: int,
    shard_tokens: int,
    B: int,
    T: int,
    block_tokens: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "BLOCK_TOKENS", block_tokens)
    text = TEXT[:tokens]
    manifest = make_data(folder, shard_tokens, train=text)
    dataset = batches(folder, manifest, "train", B, T)
    epoch = list(dataset.as_numpy_iterator())
    assert_same(epoch, expected(text, B, T))
    assert int(dataset.cardinality()) == windows_per_epoch(tokens, B, T) == len(epoch)
    # Every target once, in the order of the text, lane after lane; and nothing but padding besides.
    seen = [batch.targets_BxT[j, : batch.count_B[j]] for j in range(B) for batch in epoch]
    assert np.concatenate(seen).tobytes() == text[1:]
    assert sum(int((batch.ids_BxT > 0).sum()) for batch in epoch) == tokens - 1


@pytest.mark.parametrize("start", [0, 1, 2, 5, 8, 9])
def test_a_late_start_gives_the_rest_of_the_epoch(start: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "BLOCK_TOKENS", 60)  # blocks of 2 windows, so that starts fall inside blocks
    manifest = make_data(folder, 11, train=TEXT)
    assert windows_per_epoch(257, 3, 10) == 9
    rest = batches(folder, manifest, "train", lanes=3, window=10, start=start)
    assert int(rest.cardinality()) == 9 - start
    assert_same(list(rest.as_numpy_iterator()), expected(TEXT, 3, 10)[start:])


def test_a_late_start_reads_nothing_of_what_lies_before(folder: Path) -> None:
    manifest = make_data(folder, 10, train=TEXT)
    dataset = batches(folder, manifest, "train", lanes=1, window=16, start=15)
    for shard in manifest.splits["train"].shards[:24]:
        (folder / shard.file).unlink()
    assert_same(list(dataset.as_numpy_iterator()), expected(TEXT, 1, 16)[15:])


def test_shapes_are_static_and_the_dtype_is_the_shards(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    spec = batches(folder, manifest, "train", lanes=4, window=8).element_spec
    ids = tf.TensorSpec([4, 8], tf.uint8)
    assert spec == Batch(ids, ids, tf.TensorSpec([4], tf.int32))


def test_it_runs_inside_a_graph(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    dataset = batches(folder, manifest, "train", lanes=4, window=8)

    @tf.function
    def targets() -> tf.Tensor:
        total = tf.constant(0)
        for batch in dataset:
            total += tf.reduce_sum(batch.count_B)
        return total

    assert int(targets()) == len(TEXT) - 1


def test_replicas_get_contiguous_lanes_in_order(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    epoch = strategy.experimental_distribute_dataset(batches(folder, manifest, "train", lanes=4, window=8, start=2))
    came = [[part.numpy() for part in strategy.experimental_local_results(batch.ids_BxT)] for batch in epoch]
    wanted = [[batch.ids_BxT[:2], batch.ids_BxT[2:]] for batch in expected(TEXT, 4, 8)[2:]]
    np.testing.assert_array_equal(came, wanted)


def test_another_split(folder: Path) -> None:
    manifest = make_data(folder, 9, train=TEXT[:100], val=TEXT[100:150])
    came = list(batches(folder, manifest, "val", lanes=2, window=5).as_numpy_iterator())
    assert_same(came, expected(TEXT[100:150], 2, 5))


def test_too_short_for_lanes_and_window(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT, val=TEXT[:80])
    with pytest.raises(StageError) as error:
        batches(folder, manifest, "val", lanes=8, window=10)
    assert str(error.value) == (
        "the val split is too short for 8 lanes and a window of 10: that needs 81 tokens, it has 80; "
        "windows of 10 fit 7 lanes at most; 8 lanes fit windows of 9 at most"
    )


@pytest.mark.parametrize(
    ("tokens", "B", "T", "way_out"),
    [
        (10, 20, 5, "it has 10; windows of 5 fit 1 lanes at most"),
        (10, 3, 10, "it has 10; 3 lanes fit windows of 3 at most"),
        (10, 20, 10, "it has 10; use a longer text"),
    ],
)
def test_too_short_names_only_what_fits(tokens: int, B: int, T: int, way_out: str) -> None:
    with pytest.raises(StageError, match=way_out):
        check_fits(tokens, B, T, "train")


def test_what_just_fits_is_let_through() -> None:
    check_fits(81, 8, 10, "val")


def test_a_split_that_is_not_there(folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    with pytest.raises(StageError, match="no split 'val'; it has: train"):
        batches(folder, manifest, "val", lanes=1, window=1)


@pytest.mark.parametrize("start", [-1, 10])
def test_a_start_outside_the_epoch(start: int, folder: Path) -> None:
    manifest = make_data(folder, 100, train=TEXT)
    with pytest.raises(ValueError, match=f"start must be a window from 0 to 9, got {start}"):
        batches(folder, manifest, "train", lanes=3, window=10, start=start)
