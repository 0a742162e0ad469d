"""A text at a time with the same weights: by a .tflite of each precision, by the SavedModel, and by what a PyTorch user
would write, each a process that runs when told to.

    python -m bench.lite_loops NAME FOLDER LAYERS UNITS     FOLDER: of bench.served; the .tflite files lie beside it

It answers in lines of JSON: once it is warm, with the logits after PROMPT; and then, for each number of seconds that it
reads, how many microseconds a character took. A turn's texts are LENGTH characters, each from an empty prompt at
TEMPERATURE, drawing and the bytes of the text included. Each .tflite is run by export.lite.runner, in one thread.
"""

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import loops
from bench.loops import PROMPT, TEMPERATURE, Loop, Peer
from bench.peers import Size, say

LENGTH = 500
PRECISIONS = ("float32", "float16", "int8-dynamic")


def lite(precision: str) -> Callable[[Path, Size], Loop]:
    """A .tflite in Python."""

    def make(base: Path, size: Size) -> Loop:
        from export.lite.runner import LiteModel, Sampling

        model = LiteModel(base.parent / f"{precision}.tflite")

        def write(rows: int, length: int, seed: int) -> list[bytes]:
            return [model.generate(b"", length, Sampling(TEMPERATURE, seed + row)) for row in range(rows)]

        return Loop(write, model.read(model.vocab.encode(PROMPT), model.initial_carry())[0])

    return make


PEERS = {
    **{precision: Peer(lite(precision), "ai_edge_litert") for precision in PRECISIONS},
    "SavedModel": Peer(loops.served, "tensorflow"),
    "torch nn.LSTM": Peer(loops.torch(cells=False), "torch"),
    "torch LSTMCell": Peer(loops.torch(cells=True), "torch"),
    "torch LSTMCell, 1 thread": Peer(loops.torch(cells=True, threads=1), "torch"),
    "torch int8 nn.LSTM": Peer(loops.torch(cells=False, int8=True), "torch"),
    "torch int8 LSTMCell": Peer(loops.torch(cells=True, int8=True), "torch"),
    "torch int8 LSTMCell, 1 thread": Peer(loops.torch(cells=True, threads=1, int8=True), "torch"),
}


def main(name: str, base: Path, size: Size) -> None:
    loop = PEERS[name].make(base, size)
    loop.write(1, LENGTH, 0)
    say({"logits": loop.logits.tolist()})
    seeds = itertools.count(1)
    for line in sys.stdin:
        seconds, texts = float(line), 0
        start = time.perf_counter()
        while (now := time.perf_counter()) - start < seconds or not texts:
            loop.write(1, LENGTH, next(seeds))
            texts += 1
        say({"us_a_step": (now - start) / (texts * LENGTH) * 1e6})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Size(*(int(argument) for argument in sys.argv[3:])))
