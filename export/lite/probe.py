"""What a .tflite costs in a process that has NumPy and the runtime and nothing else: python -m export.lite.probe FILE

It writes a line of JSON: us_a_step (one thread, the median) and peak_bytes, what opening the file and running it took
above the imports.
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
    ids = [index % model.vocab.size for index in range(WARM + STEPS)]
    _, carry = model.read(ids[: model.window], model.initial_carry())
    seconds = []
    for token in ids:
        start = time.perf_counter()
        _, carry = model.step(token, carry)
        seconds.append(time.perf_counter() - start)
    us_a_step = statistics.median(seconds[WARM:]) * 1e6
    print(json.dumps({"us_a_step": us_a_step, "peak_bytes": memory(peak=True) - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
