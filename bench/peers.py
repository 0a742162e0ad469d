"""The same training step by ours and by what a user would pick instead, each a process that runs when it is told to.

    python -m bench.peers NAME UNITS LAYERS LANES WINDOW

It says "ready" once it is warm; then, for each number of seconds that it reads, it trains that long and says how many
characters a second. The work is alike: V = 256, LSTM layers of one width, dense, Adam, the carry kept. Not equal: ours
takes one-hot input as the project does, the peers an embedding as their users do; ours also clips the gradient.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

VOCAB = 256
Step = Callable[[], object]


def windows(lanes: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, VOCAB, (lanes, window + 1))
    return ids[:, :-1], ids[:, 1:]


def ours(precision: str) -> Callable[..., Step]:
    def make(units: int, layers: int, lanes: int, window: int) -> Step:
        from common import console

        with console.hushed():
            import keras
            import tensorflow as tf

            from pipeline.lanes import Batch
            from trainers.config import ModelConfig
            from trainers.devices import prepare
            from trainers.model import CharRNN
            from trainers.step import Steps

        devices = prepare(1)
        with devices.strategy.scope():
            model = CharRNN(ModelConfig(units=units, layers=layers), VOCAB, precision=precision)
            optimizer = keras.optimizers.Adam(0.002)
            optimizer.build(model.trainable_variables)
        steps = Steps(devices, model, optimizer)
        ids, targets = (x.astype(np.uint8) for x in windows(lanes, window))
        dataset = tf.data.Dataset.from_tensors(Batch(ids, targets, np.full(lanes, window, np.int32))).repeat()
        batches, count = iter(steps.distribute(dataset)), tf.constant(0, tf.int64)
        carry = steps.scatter(model.initial_carry(lanes))

        def step() -> None:
            nonlocal carry
            totals, carry = steps.train(next(batches), carry, count)
            float(totals.nats)

        return step

    return make


def keras_fit(units: int, layers: int, lanes: int, window: int) -> Step:
    """keras.layers.LSTM(stateful=True), an embedding, train_on_batch: fit without its epochs."""
    import keras

    stack = [keras.layers.LSTM(units, return_sequences=True, stateful=True) for _ in range(layers)]
    embed = keras.layers.Embedding(VOCAB, units)
    model = keras.Sequential([keras.Input(batch_shape=(lanes, window)), embed, *stack, keras.layers.Dense(VOCAB)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.002), loss)
    ids, targets = windows(lanes, window)
    return lambda: model.train_on_batch(ids, targets)


def torch_lstm(bfloat16: bool) -> Callable[..., Step]:
    """nn.LSTM over an embedding; in bfloat16 under autocast, as PyTorch's documentation has it for a CPU."""

    def make(units: int, layers: int, lanes: int, window: int) -> Step:
        import torch
        from torch import nn

        embed, lstm, dense = (
            nn.Embedding(VOCAB, units),
            nn.LSTM(units, units, layers, batch_first=True),
            nn.Linear(units, VOCAB),
        )
        optimizer = torch.optim.Adam([*embed.parameters(), *lstm.parameters(), *dense.parameters()], 0.002)
        ids, targets = (torch.from_numpy(x) for x in windows(lanes, window))
        carry = tuple(torch.zeros(layers, lanes, units) for _ in range(2))

        def step() -> None:
            nonlocal carry
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                y, after = lstm(embed(ids), carry)
                loss = nn.functional.cross_entropy(dense(y).reshape(-1, VOCAB).float(), targets.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            carry = tuple(x.detach().float() for x in after)
            loss.item()

        return step

    return make


PEERS: dict[str, Callable[..., Step]] = {
    "ours, float32": ours("float32"),
    "ours, bfloat16": ours("bfloat16"),
    "keras.layers.LSTM": keras_fit,
    "torch nn.LSTM, float32": torch_lstm(bfloat16=False),
    "torch nn.LSTM, bfloat16": torch_lstm(bfloat16=True),
}


def main(name: str, units: int, layers: int, lanes: int, window: int) -> None:
    step = PEERS[name](units, layers, lanes, window)
    for _ in range(20):  # TensorFlow still optimises the graph, and everything fills its caches
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < float(line):
            step()
            steps += 1
        print(steps * lanes * window / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
