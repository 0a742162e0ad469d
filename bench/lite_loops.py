"""Generate one text at a time with the same weights: .tflite files, the SavedModel and PyTorch, one process each.

    python -m bench.lite_loops NAME FOLDER LAYERS UNITS     FOLDER: from bench.served, next to the .tflite files

Prints lines of JSON: the logits after PROMPT when warm, then, for each number of seconds read from standard input, the
microseconds per character. Texts have LENGTH characters from an empty prompt at TEMPERATURE, including drawing and
decoding. export.lite.runner runs each .tflite in one thread.
"""

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import loops
from bench.loops import PROMPT, TEMPERATURE, Loop, LoopPeer
from bench.peers import Size, reply

LENGTH = 500
PRECISIONS = ("float32", "float16", "int8-dynamic")


def lite(precision: str) -> Callable[[Path, Size], Loop]:
    """Return a factory of the Python loop over a .tflite."""

    def make(base: Path, size: Size) -> Loop:
        from export.lite.runner import LiteModel, Sampling

        model = LiteModel(base.parent / f"{precision}.tflite")

        def write(rows: int, length: int, seed: int) -> list[bytes]:
            return [model.generate(b"", length, Sampling(TEMPERATURE, seed + row)) for row in range(rows)]

        return Loop(write, model.read(model.vocab.encode(PROMPT), model.initial_carry())[0])

    return make


PEERS = {
    **{precision: LoopPeer(lite(precision), "ai_edge_litert") for precision in PRECISIONS},
    "SavedModel": LoopPeer(loops.served, "tensorflow"),
    "torch nn.LSTM": LoopPeer(loops.torch(cells=False), "torch"),
    "torch LSTMCell": LoopPeer(loops.torch(cells=True), "torch"),
    "torch LSTMCell, 1 thread": LoopPeer(loops.torch(cells=True, threads=1), "torch"),
    "torch int8 nn.LSTM": LoopPeer(loops.torch(cells=False, int8=True), "torch"),
    "torch int8 LSTMCell": LoopPeer(loops.torch(cells=True, int8=True), "torch"),
    "torch int8 LSTMCell, 1 thread": LoopPeer(loops.torch(cells=True, threads=1, int8=True), "torch"),
}


def main(name: str, base: Path, size: Size) -> None:
    loop = PEERS[name].make(base, size)
    loop.write(1, LENGTH, 0)
    reply({"logits": loop.logits.tolist()})
    seeds = itertools.count(1)
    for line in sys.stdin:
        seconds, texts = float(line), 0
        start = time.perf_counter()
        while (now := time.perf_counter()) - start < seconds or not texts:
            loop.write(1, LENGTH, next(seeds))
            texts += 1
        reply({"us_a_step": (now - start) / (texts * LENGTH) * 1e6})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Size(*(int(argument) for argument in sys.argv[3:])))
