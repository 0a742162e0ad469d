"""Ceiling of the machine: the fastest large matrix product over all cores, through a library's public API.

    python -m bench.gemm tensorflow|torch DEVICE PRECISION...

Prints lines of JSON: one when ready, then, for each number of seconds read from standard input, the best GFLOP/s per
precision. A ceiling counts if it was reached once, hence the best of many products of several sizes. tf32: float32 on a
GPU whose products are TF32.
"""

import sys
import time
from collections.abc import Callable, Iterator

from bench.peers import reply

SIDES = {"cpu": (1024, 2048, 3072), "gpu": (4096, 8192)}  # of square matrices
BATCH = {"cpu": 1, "gpu": 10}  # products between two waits for the device

Products = Callable[[int], object]  # computes this many products before it returns


def tensorflow(device: str, precision: str, side: int) -> Products:
    from common import console

    with console.quiet():
        import tensorflow as tf
    dtype = precision.replace("tf32", "float32")
    a, b = (tf.cast(tf.random.normal([side, side]), dtype) for _ in range(2))

    def products(count: int) -> None:
        tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
        for _ in range(count):
            c = tf.matmul(a, b)
        float(c[0, 0])

    return products


def torch(device: str, precision: str, side: int) -> Products:
    import torch

    place, dtype = "cuda" if device == "gpu" else "cpu", getattr(torch, precision.replace("tf32", "float32"))
    a, b = (torch.randn(side, side, device=place).to(dtype) for _ in range(2))

    def products(count: int) -> None:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        for _ in range(count):
            c = a @ b
        c[0, 0].item()

    return products


LIBRARIES = {"tensorflow": tensorflow, "torch": torch}


def rates(products: Products, count: int, side: int, seconds: float) -> Iterator[float]:
    """Yield the GFLOP/s of successive batches of `count` products for `seconds`."""
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        products(count)
        yield count * 2 * side**3 / (time.perf_counter() - start) / 1e9


def main(library: str, device: str, *precisions: str) -> None:
    sides, count = SIDES[device], BATCH[device]
    variants = {
        (precision, side): LIBRARIES[library](device, precision, side) for precision in precisions for side in sides
    }
    reply({"ready": library})
    for line in sys.stdin:
        best = dict.fromkeys(precisions, 0.0)
        for (precision, side), products in variants.items():
            best[precision] = max(best[precision], *rates(products, count, side, float(line) / len(variants)))
        reply(best)


if __name__ == "__main__":
    main(*sys.argv[1:])
