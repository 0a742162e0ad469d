"""How fast one core reads and copies memory while others do the same: python -m bench.reading BYTES

A process a core, each with a buffer of its own (NumPy, float32), which stays in the caches where it fits there, as a
model's weights do between two steps. It says that it is ready, and then, for each number of seconds that it reads, the
bytes a second that np.max read (its vector instructions keep up with the caches; np.sum's and BLAS's do not), and that
np.copyto moved, those read and those written.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from bench.peers import say

AT_A_TIME = 1 << 22  # bytes, before one looks at the clock


def rate(work: Callable[[], object], size: int, seconds: float) -> float:
    """The bytes a second, at `size` bytes a time."""
    number, done = -(-AT_A_TIME // size), 0
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds or not done:
        for _ in range(number):
            work()
        done += number
    return done * size / (now - start)


def main(size: int) -> None:
    x = np.random.default_rng(0).random(max(size // 4, 1), np.float32)
    y = np.empty_like(x)
    say({"ready": size})
    for line in sys.stdin:
        half = float(line) / 2
        say({"read": rate(x.max, x.nbytes, half), "copy": rate(lambda: np.copyto(y, x), 2 * x.nbytes, half)})


if __name__ == "__main__":
    main(int(sys.argv[1]))
