"""The same training step by ours and by what a user would pick instead, each a process that runs when it is told to.

    python -m bench.peers NAME DEVICE LAYERS UNITS LANES WINDOW

It answers in lines of JSON: once its first step is made, once it is warm, and then, for each number of seconds that it
reads, how many characters a second it trained.

Equal work: V = 256, LSTM layers of one width, a dense layer, Adam at one rate, the gradient clipped by its global norm,
the carry kept from step to step, the same ids from memory. Each peer is written as its documentation has it, with the
fastest of its standard settings: model.fit over tf.data for Keras; fused Adam and, for bfloat16, autocast for PyTorch.
torch.compile leaves nn.LSTM as it is, and so brings nothing here.

Not equal: the peers read ids through an embedding, as their users do, and multiply it by the first layer's kernel.
Ours is one-hot: it gathers that kernel's rows and multiplies nothing there, for which neither nn.LSTM nor
keras.layers.LSTM has a way; one-hot input would cost them V columns. So the embedding is as wide as the layers, and V
at most. What each multiplies a character is in the results, and GFLOP/s are counted by it.

Not run so far: DEVICE gpu. TF32 products are on for all there, which is TensorFlow's default and cuDNN's in PyTorch.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

VOCAB, RATE, CLIP = 256, 0.002, 5.0
WARM_STEPS, WARM_SECONDS = 20, 20.0  # whichever is reached first
FEWEST_STEPS = 3  # of a turn

Run = Callable[[int], object]  # trains so many steps; they are done when it returns


class Size(NamedTuple):
    """Of a model, and of the work of one step."""

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
    package: str  # without which it is left out
    gathers: bool = False  # the first layer's kernel, instead of multiplying by it
    gpu: bool = True  # whether it runs there


def weights_a_character(size: Size, gathers: bool) -> int:
    """The weights that each character is multiplied by on its way forward: rows that are gathered are not."""
    inputs = [0 if gathers else _embedding(size), *[size.units] * (size.layers - 1)]
    return sum(4 * size.units * (width + size.units) for width in inputs) + size.units * VOCAB


def flops_a_character(size: Size, gathers: bool) -> int:
    """Of the matrix products of a training step: a multiplication and an addition for each weight, forward, and as much
    again for the gradient of the inputs, and for that of the weights."""
    return 6 * weights_a_character(size, gathers)


def _embedding(size: Size) -> int:
    return min(size.units, VOCAB)


def windows(size: Size) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, VOCAB, (size.lanes, size.window + 1))
    return ids[:, :-1], ids[:, 1:]


def ours(precision: str) -> Callable[[Size, str], Run]:
    def make(size: Size, device: str) -> Run:
        from common.machine import keep_freed_memory

        keep_freed_memory()  # as `trainers train` does
        _, tf = _tensorflow()
        from pipeline.lanes import Batch
        from trainers.config import ModelConfig, TrainConfig
        from trainers.model.char_rnn import CharRNN
        from trainers.training.devices import prepare
        from trainers.training.optimizer import make_optimizer
        from trainers.training.step import Steps

        devices, config = prepare(1), TrainConfig(learning_rate=RATE, clip=CLIP)
        with devices.strategy.scope():
            model = CharRNN(ModelConfig(units=size.units, layers=size.layers), VOCAB, precision=precision)
            optimizer = make_optimizer(config, 1, 1, model.trainable_variables, model.inner_kernels)
        steps = Steps(devices, model, optimizer, config)
        ids, targets = (x.astype(np.uint8) for x in windows(size))
        full = np.full(size.lanes, size.window, np.int32)
        dataset = tf.data.Dataset.from_tensors(Batch(ids, targets, full)).repeat()
        batches, first = steps.distribute(lambda _: dataset, size.lanes), tf.constant(0, tf.int64)
        carry = steps.scatter(model.initial_carry(size.lanes))

        def run(number: int) -> None:
            nonlocal carry
            totals, carry = steps.train(batches, carry, first, tf.constant(number))
            totals.nats.numpy()

        return run

    return make


def keras_fit(size: Size, device: str) -> Run:
    """keras.layers.LSTM(stateful=True) and an embedding; one call of model.fit a turn, all settings its defaults."""
    keras, tf = _tensorflow()
    stack = [keras.layers.LSTM(size.units, return_sequences=True, stateful=True) for _ in range(size.layers)]
    ends = keras.Input(batch_shape=(size.lanes, size.window)), keras.layers.Dense(VOCAB)
    model = keras.Sequential([ends[0], keras.layers.Embedding(VOCAB, _embedding(size)), *stack, ends[1]])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE, global_clipnorm=CLIP), loss)
    dataset = tf.data.Dataset.from_tensors(windows(size)).repeat()
    return lambda number: model.fit(dataset, steps_per_epoch=number, verbose=0)


def _tensorflow() -> tuple[Any, Any]:
    from common import console

    with console.quiet():
        import keras
        import tensorflow as tf
    tf.config.experimental.enable_tensor_float_32_execution(True)  # of a GPU: a CPU has none
    return keras, tf


def torch_lstm(precision: str) -> Callable[[Size, str], Run]:
    """nn.LSTM over an embedding; in bfloat16 under autocast, as PyTorch's documentation has it for a CPU."""

    def make(size: Size, device: str) -> Run:
        import torch
        from torch import nn

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        place = torch.device("cuda" if device == "gpu" else "cpu")
        model = nn.ModuleDict(
            {
                "embed": nn.Embedding(VOCAB, _embedding(size)),
                "lstm": nn.LSTM(_embedding(size), size.units, size.layers, batch_first=True),
                "dense": nn.Linear(size.units, VOCAB),
            }
        ).to(place)
        optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
        ids, targets = (torch.from_numpy(x).contiguous().to(place) for x in windows(size))
        carry = tuple(torch.zeros(size.layers, size.lanes, size.units, device=place) for _ in range(2))

        def step() -> Any:
            nonlocal carry
            with torch.autocast(place.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                y, after = model["lstm"](model["embed"](ids), carry)
                loss = nn.functional.cross_entropy(model["dense"](y).reshape(-1, VOCAB).float(), targets.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            carry = tuple(x.detach().float() for x in after)
            return loss

        def run(number: int) -> None:
            for _ in range(number):
                loss = step()
            loss.item()

        return run

    return make


PEERS = {
    "ours, float32": Peer(ours("float32"), "float32", "tensorflow", gathers=True),
    "ours, bfloat16": Peer(ours("bfloat16"), "bfloat16", "tensorflow", gathers=True, gpu=False),
    "keras.layers.LSTM, fit": Peer(keras_fit, "float32", "tensorflow"),
    "torch nn.LSTM, float32": Peer(torch_lstm("float32"), "float32", "torch"),
    "torch nn.LSTM, bfloat16": Peer(torch_lstm("bfloat16"), "bfloat16", "torch", gpu=False),
}


def timed(run: Run, steps: int) -> float:
    """The seconds a step."""
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps


def main(name: str, device: str, size: Size) -> None:
    run = PEERS[name].make(size, device)
    run(1)
    say({"steps": 1})
    run(1)  # slow as well: TensorFlow optimises the graph further
    rest = min(WARM_STEPS - 3, max(1, round(WARM_SECONDS / timed(run, 1))))
    a_step = timed(run, rest)
    say({"steps": 3 + rest})
    for line in sys.stdin:
        a_step = timed(run, max(FEWEST_STEPS, round(float(line) / a_step)))
        say({"characters_per_second": size.lanes * size.window / a_step})


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Size(*(int(argument) for argument in sys.argv[3:])))
