"""Throughput of lanes, in a separate process: python -m bench.lanes data/NAME LANES WINDOW SECONDS

Prints JSON: tokens per second, peak bytes on top of the memory in use before the first batch, and the seconds to the
first batch at the first and at the last step of an epoch.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

from common import console
from common.machine import memory

with console.quiet():
    import tensorflow as tf

    from pipeline.lanes import batches, windows_per_epoch
    from pipeline.manifest import Manifest, read_manifest
    from pipeline.vocab import byte_vocab


def main(folder: Path, lanes: int, window: int, seconds: float) -> dict[str, float]:
    """Measure lanes over the train split of a data set of bytes."""
    # One document per line, so that batches contain resets.
    manifest = dataclasses.replace(read_manifest(folder), vocab=byte_vocab("newline"))
    steps = windows_per_epoch(manifest.split("train").tokens, lanes, window)
    tf.constant(0) + 1  # initialise TensorFlow
    before = memory(peak=True)
    _first_batch(folder, manifest, lanes, window, 0)  # trace the graph, which later starts reuse
    first, last = (_first_batch(folder, manifest, lanes, window, start) for start in (0, steps - 1))
    count, start = 0, time.perf_counter()
    for _ in batches(folder, manifest, "train", lanes, window):
        count += 1
        if count % 100 == 0 and time.perf_counter() - start > seconds:
            break
    rate = count * lanes * window / (time.perf_counter() - start)
    return {
        "tokens_per_second": rate,
        "bytes": memory(peak=True) - before,
        "first_batch_s": first,
        "last_batch_s": last,
    }


def _first_batch(folder: Path, manifest: Manifest, lanes: int, window: int, start: int) -> float:
    begin = time.perf_counter()
    next(iter(batches(folder, manifest, "train", lanes, window, start)))
    return time.perf_counter() - begin


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
