"""Read and copy bandwidth of one core while other cores do the same: python -m bench.reading BYTES

Run one process per core, each with its own NumPy float32 buffer; a buffer that fits into the caches stays there, like a
model's weights between steps. Prints lines of JSON: one when ready, then, for each number of seconds read from standard
input, the bytes per second that np.max reads (its vector instructions keep up with the caches; those of np.sum and BLAS
do not) and that np.copyto moves, counting reads and writes.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from bench.peers import reply

BATCH_BYTES = 1 << 22  # between two readings of the clock


def rate(work: Callable[[], object], size: int, seconds: float) -> float:
    """Return the bytes per second of `work`, which moves `size` bytes per call."""
    count, done = -(-BATCH_BYTES // size), 0
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds or not done:
        for _ in range(count):
            work()
        done += count
    return done * size / (now - start)


def main(size: int) -> None:
    x = np.random.default_rng(0).random(max(size // 4, 1), np.float32)
    y = np.empty_like(x)
    reply({"ready": size})
    for line in sys.stdin:
        half = float(line) / 2
        reply({"read": rate(x.max, x.nbytes, half), "copy": rate(lambda: np.copyto(y, x), 2 * x.nbytes, half)})


if __name__ == "__main__":
    main(int(sys.argv[1]))
