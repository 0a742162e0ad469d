"""The machine's own ceiling: the fastest large matrix product, over all cores, as one library's user gets it.

    python -m bench.gemm tensorflow|torch DEVICE PRECISION...

It says that it is ready, and then, for each number of seconds that it reads, the best GFLOP/s in each precision: a
ceiling is what was reached once, so the best of many products of several sizes. (On a GPU, not run so far, float32 has
TF32 products, as in bench.peers.)
"""

import sys
import time
from collections.abc import Callable, Iterator

from bench.peers import say

SIDES = {"cpu": (1024, 2048, 3072), "gpu": (4096, 8192)}  # of square matrices
AT_A_TIME = {"cpu": 1, "gpu": 10}  # products, before one waits for the device

Products = Callable[[int], object]  # makes so many; they are done when it returns


def tensorflow(device: str, precision: str, side: int) -> Products:
    from common import console

    with console.quiet():
        import tensorflow as tf
    tf.config.experimental.enable_tensor_float_32_execution(True)
    a, b = (tf.cast(tf.random.normal([side, side]), precision) for _ in range(2))

    def products(number: int) -> None:
        for _ in range(number):
            c = tf.matmul(a, b)
        float(c[0, 0])

    return products


def torch(device: str, precision: str, side: int) -> Products:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    place = "cuda" if device == "gpu" else "cpu"
    a, b = (torch.randn(side, side, device=place).to(getattr(torch, precision)) for _ in range(2))

    def products(number: int) -> None:
        for _ in range(number):
            c = a @ b
        c[0, 0].item()

    return products


LIBRARIES = {"tensorflow": tensorflow, "torch": torch}


def rates(products: Products, number: int, side: int, seconds: float) -> Iterator[float]:
    """The GFLOP/s of each `number` products in a row that are made within the seconds."""
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        products(number)
        yield number * 2 * side**3 / (time.perf_counter() - start) / 1e9


def main(library: str, device: str, *precisions: str) -> None:
    sides, number = SIDES[device], AT_A_TIME[device]
    made = {
        (precision, side): LIBRARIES[library](device, precision, side) for precision in precisions for side in sides
    }
    say({"ready": library})
    for line in sys.stdin:
        best = dict.fromkeys(precisions, 0.0)
        for (precision, side), products in made.items():
            best[precision] = max(best[precision], *rates(products, number, side, float(line) / len(made)))
        say(best)


if __name__ == "__main__":
    main(*sys.argv[1:])
