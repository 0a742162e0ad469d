"""Speed and memory of a .tflite in a process with NumPy and the runtime only: python -m export.lite.probe FILE

Prints one line of JSON: us_a_step, the median microseconds per step in one thread, and peak_bytes, the memory that
opening and running the file added to that of the imports.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from common.machine import memory
from export.lite.runner import LiteModel

WARM, STEPS = 200, 2000


def main(path: Path) -> None:
    before = memory()
    model = LiteModel(path)
    carry, seconds = model.initial_carry(), []
    for index in range(WARM + STEPS):
        start = time.perf_counter()
        _, carry = model.step(index % model.vocab.size, carry)
        seconds.append(time.perf_counter() - start)
    us_a_step = statistics.median(seconds[WARM:]) * 1e6
    print(json.dumps({"us_a_step": us_a_step, "peak_bytes": memory(peak=True) - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
