"""What a .tflite costs in a process that has NumPy and the runtime and nothing else: python -m export.lite.probe FILE

It writes a line of JSON: us_a_step (one thread, the median) and peak_bytes, what opening the file and running it took
above the imports.
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path

from export.lite.runner import LiteModel

WARM, STEPS = 200, 2000


def memory(field: str) -> int:
    """Bytes of this process's memory: VmRSS, as it is, or VmHWM, at its highest."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) * 1024


def main(path: Path) -> None:
    before = memory("VmRSS")
    model = LiteModel(path)
    ids = [index % model.vocab.size for index in range(WARM + STEPS)]
    _, carry = model.read(ids[: model.window], model.initial_carry())
    seconds = []
    for token in ids:
        start = time.perf_counter()
        _, carry = model.step(token, carry)
        seconds.append(time.perf_counter() - start)
    us_a_step = statistics.median(seconds[WARM:]) * 1e6
    print(json.dumps({"us_a_step": us_a_step, "peak_bytes": memory("VmHWM") - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
