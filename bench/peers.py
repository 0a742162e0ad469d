"""Equal training steps by ours, Keras and PyTorch, one process each.

    python -m bench.peers NAME DEVICE LAYERS UNITS LANES WINDOW

Prints lines of JSON: after the first step, when warm, and then, for each number of seconds read from standard input,
the characters per second of a turn.

Equal: V = 256, LSTM layers of one width, a dense layer, Adam at one learning rate, gradients clipped by global norm,
the carry kept between steps, the same ids from memory. Each peer follows its library's documentation with the fastest
standard settings: model.fit over tf.data for Keras; fused Adam and, for 16 bits, autocast for PyTorch. torch.compile
does not compile nn.LSTM, so it is not used.

Not equal: the first layer's input. Ours is one-hot and gathers rows of the first kernel without a product. nn.LSTM and
keras.layers.LSTM cannot; one-hot input would cost them V columns, so they use an embedding, as their users do, as wide
as the layers and at most V. The results record the FLOPs per character of each, and GFLOP/s are based on them.

On a GPU all layers run through cuDNN, where ours has one-hot columns too. TF32 is on for the rows that name it, and in
ours for bfloat16, which TensorFlow's op for cuDNN computes in float32.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

VOCAB, LEARNING_RATE, CLIP = 256, 0.002, 5.0
WARM_STEPS, WARM_SECONDS = 20, 10.0  # whichever is reached first

Run = Callable[[int], object]  # trains this many steps before it returns


class Size(NamedTuple):
    """Shape of a model and of one step's batch."""

    layers: int
    units: int
    lanes: int = 50
    window: int = 50

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.units}"


class Peer(NamedTuple):
    make: Callable[[Size, str], Run]
    precision: str
    package: str  # skipped if this is not installed
    gathers: bool = False  # rows of the first layer's kernel, instead of multiplying by it
    devices: tuple[str, ...] = ("cpu", "gpu")


def weights_per_character(size: Size, gathers: bool) -> int:
    """Return the number of weights multiplied per character in the forward pass; gathered rows do not count."""
    inputs = [0 if gathers else _embedding(size), *[size.units] * (size.layers - 1)]
    return sum(4 * size.units * (width + size.units) for width in inputs) + size.units * VOCAB


def flops_per_character(size: Size, gathers: bool) -> int:
    """Return the FLOPs of a training step's matrix products: 2 per weight, each forward, for the inputs' gradient and
    for the weights' gradient."""
    return 6 * weights_per_character(size, gathers)


def _embedding(size: Size) -> int:
    """Return the width of the peers' embedding."""
    return min(size.units, VOCAB)


def windows(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return random ids and targets, lanes x window each."""
    ids = np.random.default_rng(0).integers(0, VOCAB, (size.lanes, size.window + 1))
    return ids[:, :-1], ids[:, 1:]


def ours(precision: str, deterministic: bool = True) -> Callable[[Size, str], Run]:
    """Return a factory of this project's training step. deterministic: as `trainers train` runs it on a GPU."""

    def make(size: Size, device: str) -> Run:
        from common.machine import keep_freed_memory

        keep_freed_memory()  # as `trainers train` does
        _tensorflow()
        import tensorflow as tf

        from pipeline.lanes import Batch
        from trainers.config import RunConfig
        from trainers.model.char_rnn import CharRNN
        from trainers.training.devices import prepare
        from trainers.training.optimizer import make_optimizer
        from trainers.training.step import Steps

        train = {"learning_rate": LEARNING_RATE, "clip": CLIP}
        config = RunConfig.from_tables({"units": size.units, "layers": size.layers}, train, "bench")
        devices = prepare(1, precision=precision, deterministic=deterministic)
        with devices.strategy.scope():
            model = CharRNN(config.model, VOCAB, precision=precision)
            weights, inner = model.trainable_variables, model.inner_kernels
            optimizer = make_optimizer(config.train, 1, 1, weights, inner)
        steps = Steps(devices, model, optimizer, config.train)
        ids, targets = (x.astype(np.uint8) for x in windows(size))
        full = np.full(size.lanes, size.window, np.int32)
        dataset = tf.data.Dataset.from_tensors(Batch(ids, targets, full)).repeat()
        batches, first = iter(dataset), tf.constant(0, tf.int64)
        carry = steps.scatter(model.initial_carry(size.lanes))

        def run(count: int) -> None:
            nonlocal carry
            totals, carry = steps.train(batches, carry, first, tf.constant(count))
            totals.nats.numpy()

        return run

    return make


def keras_fit(size: Size, device: str) -> Run:
    """Build keras.layers.LSTM(stateful=True) over an embedding; each turn is one model.fit with default settings, which
    include TF32 on a GPU."""
    keras, tf = _tensorflow()
    stack = [keras.layers.LSTM(size.units, return_sequences=True, stateful=True) for _ in range(size.layers)]
    inputs = keras.Input(batch_shape=(size.lanes, size.window))
    embedding, dense = keras.layers.Embedding(VOCAB, _embedding(size)), keras.layers.Dense(VOCAB)
    model = keras.Sequential([inputs, embedding, *stack, dense])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(LEARNING_RATE, global_clipnorm=CLIP), loss)
    dataset = tf.data.Dataset.from_tensors(windows(size)).repeat()
    return lambda count: model.fit(dataset, steps_per_epoch=count, verbose=0)


def _tensorflow() -> tuple[Any, Any]:
    from common import console

    with console.quiet():
        import keras
        import tensorflow as tf
    return keras, tf


def torch_lstm(precision: str) -> Callable[[Size, str], Run]:
    """Return a factory of nn.LSTM over an embedding; 16 bits use autocast, as PyTorch documents, but without the loss
    scaling that float16 would need, which would only take time."""

    def make(size: Size, device: str) -> Run:
        import torch
        from torch import nn

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
        place = torch.device("cuda" if device == "gpu" else "cpu")
        half = getattr(torch, precision) if precision.endswith("16") else None
        model = nn.ModuleDict(
            {
                "embed": nn.Embedding(VOCAB, _embedding(size)),
                "lstm": nn.LSTM(_embedding(size), size.units, size.layers, batch_first=True),
                "dense": nn.Linear(size.units, VOCAB),
            }
        ).to(place)
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
        ids, targets = (torch.from_numpy(x).contiguous().to(place) for x in windows(size))
        carry = tuple(torch.zeros(size.layers, size.lanes, size.units, device=place) for _ in range(2))

        def step() -> Any:
            nonlocal carry
            with torch.autocast(place.type, dtype=half, enabled=half is not None):
                y, after = model["lstm"](model["embed"](ids), carry)
                loss = nn.functional.cross_entropy(model["dense"](y).reshape(-1, VOCAB).float(), targets.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            carry = tuple(x.detach().float() for x in after)
            return loss

        def run(count: int) -> None:
            for _ in range(count):
                loss = step()
            loss.item()

        return run

    return make


PEERS = {
    "ours, float32": Peer(ours("float32"), "float32", "tensorflow", gathers=True),
    "ours, tf32": Peer(ours("tf32"), "tf32", "tensorflow", gathers=True, devices=("gpu",)),
    "ours, tf32, not deterministic": Peer(
        ours("tf32", deterministic=False), "tf32", "tensorflow", gathers=True, devices=("gpu",)
    ),
    "ours, float16": Peer(ours("float16"), "float16", "tensorflow", gathers=True, devices=("gpu",)),
    "ours, bfloat16": Peer(ours("bfloat16"), "bfloat16", "tensorflow", gathers=True),
    "keras.layers.LSTM, fit": Peer(keras_fit, "float32", "tensorflow", devices=("cpu",)),
    "keras.layers.LSTM, fit, tf32": Peer(keras_fit, "tf32", "tensorflow", devices=("gpu",)),
    "torch nn.LSTM, float32": Peer(torch_lstm("float32"), "float32", "torch"),
    "torch nn.LSTM, tf32": Peer(torch_lstm("tf32"), "tf32", "torch", devices=("gpu",)),
    "torch nn.LSTM, float16": Peer(torch_lstm("float16"), "float16", "torch", devices=("gpu",)),
    "torch nn.LSTM, bfloat16": Peer(torch_lstm("bfloat16"), "bfloat16", "torch"),
}


def timed(run: Run, steps: int) -> float:
    """Return the seconds per step."""
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps


def main(name: str, device: str, size: Size) -> None:
    run = PEERS[name].make(size, device)
    run(1)
    reply({"steps": 1})
    run(1)  # the second step is slow too: TensorFlow optimises the graph further
    rest = min(WARM_STEPS - 3, max(1, round(WARM_SECONDS / timed(run, 1))))
    step_seconds = timed(run, rest)
    reply({"steps": 3 + rest})
    for line in sys.stdin:
        step_seconds = timed(run, max(1, round(float(line) / step_seconds)))
        reply({"characters_per_second": size.lanes * size.window / step_seconds})


def reply(message: dict[str, Any]) -> None:
    """Print a line of JSON at once."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Size(*(int(argument) for argument in sys.argv[3:])))
