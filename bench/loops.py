"""Sampling loops over the same weights, ours and those of a PyTorch user, one process each.

    python -m bench.loops NAME FOLDER LAYERS UNITS      FOLDER: from bench.served, the model next to its weights

Prints lines of JSON: when warm, the logits after PROMPT and the seconds to load and to finish the first text; then, for
each {"rows": B, "seconds": S} read from standard input, the microseconds per step of B characters. The calls of a turn
cycle through LENGTHS, sample each row from an empty prompt at TEMPERATURE, and return text as bytes.

ours         the SavedModel's serving_default in a Session, as TF Serving's C++ loads and runs it: text in, text out
ours, ids    the same stepper and drawing in a graph of static shapes, ids out: no strings, checks or unknown shapes
ours, XLA    that graph under jit_compile, which no stock server runs
torch        eager loops under inference_mode: a one-hot row of an identity matrix, one step of nn.LSTM or LSTMCells,
             softmax, multinomial; LSTMCells also with one thread, which suffers less on a busy machine
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.peers import Size, reply
from bench.random_model import VOCAB, WEIGHTS, model_of
from common.errors import StageError

ROWS = (1, 16)
LENGTHS = (200, 500, 1000)
TEMPERATURE = 0.8
TOLERANCE = 1e-4  # largest difference between logits of equal weights
PROMPT = b"def read(self):"

Write = Callable[[int, int, int], list[bytes]]  # rows, length, seed


class Loop(NamedTuple):
    write: Write
    logits: np.ndarray  # after PROMPT


class LoopPeer(NamedTuple):
    make: Callable[[Path, Size], Loop]
    package: str


def check_logits(logits: dict[str, np.ndarray], own: str, rounded: Collection[str] = ()) -> dict[str, float]:
    """Return each peer's largest difference from our logits. Raises StageError for different weights.

    rounded: peers whose weights are rounded, and so may differ.
    """
    off = {name: float(np.max(np.abs(each - logits[own]))) for name, each in logits.items()}
    for name, difference in off.items():
        if name not in rounded and not difference <= TOLERANCE:
            rule = f"at most {TOLERANCE:g} is allowed"
            raise StageError(f"{name} has different weights: its logits differ by {difference:.1g}, {rule}")
    return off


def served(base: Path, size: Size) -> Loop:
    """Return the loop over the SavedModel in base/1."""
    tf = _tensorflow()
    with tf.Graph().as_default():
        session = tf.compat.v1.Session()
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], str(base / "1")).signature_def

    def function(name: str, inputs: list[str], output: str) -> Callable[..., Any]:
        signature = signatures[name]
        feeds = [signature.inputs[key].name for key in inputs]
        return session.make_callable(signature.outputs[output].name, feeds)

    generate = function("serving_default", ["prompt", "length", "temperature", "seed"], "text_bytes")
    start = function("start", ["prompt"], "logits")

    def write(rows: int, length: int, seed: int) -> list[bytes]:
        seeds = [*range(seed, seed + rows)]
        return generate([b""] * rows, [length] * rows, [TEMPERATURE] * rows, seeds).tolist()

    return Loop(write, start([PROMPT])[0])


def draw_ids(model: Any, weights: Any, seed_B: Any, rows: int, length: int) -> tuple[Any, Any]:
    """Draw ids and their log-probabilities like the sampler, `length` per row, in turns of DRAW_TURN steps."""
    import tensorflow as tf

    from trainers.model.char_rnn import split_carry
    from trainers.sampling import draw
    from trainers.sampling.loop import DRAW_TURN
    from trainers.sampling.stepper import Stepper

    stepper, turns = Stepper(model, None, weights), -(-length // DRAW_TURN)
    cumulate = draw.cumulation(stepper.weights.dense_bias_V.shape[0])
    sharpness_B = draw.sharpness(tf.fill([rows], TEMPERATURE))
    uniform = draw.uniforms(seed_B, tf.zeros([rows], tf.int64), sharpness_B, turns * DRAW_TURN)
    uniform_KxTxBx1 = tf.reshape(uniform, [turns, DRAW_TURN, rows, 1])

    def body(index: Any, states: Any, arrays: Any) -> tuple[Any, ...]:
        logits_TxBxV, ids_TxB = [], []
        for uniform_Bx1 in tf.unstack(tf.gather(uniform_KxTxBx1, index)):
            logits_TxBxV.append(stepper.logits(states))
            ids_TxB.append(draw.choose(logits_TxBxV[-1] * sharpness_B[:, None], uniform_Bx1, cumulate))
            states = stepper.read(ids_TxB[-1], states)
        log_prob = draw.log_probability(tf.concat(logits_TxBxV, axis=0), tf.concat(ids_TxB, axis=0))
        drawn = tf.stack(ids_TxB), tf.reshape(log_prob, [DRAW_TURN, rows])
        return index + 1, states, [array.write(index, x) for array, x in zip(arrays, drawn, strict=True)]

    arrays = [tf.TensorArray(kind, turns, element_shape=[DRAW_TURN, rows]) for kind in (tf.int32, tf.float32)]
    states = stepper.read(tf.fill([rows], VOCAB.start_id), split_carry(model.initial_carry(rows)))
    _, _, arrays = tf.while_loop(lambda index, *_: index < turns, body, (0, states, arrays))
    ids, log_prob = (tf.reshape(array.stack(), [-1, rows])[:length] for array in arrays)
    return ids, log_prob


def ids(xla: bool) -> Callable[[Path, Size], Loop]:
    """Return a factory of the loop over ids, without strings, optionally compiled by XLA."""

    def make(base: Path, size: Size) -> Loop:
        tf = _tensorflow()
        from trainers.model.char_rnn import split_carry
        from trainers.sampling.stepper import Stepper, pack_weights

        model = model_of(size)
        weights = tf.nest.map_structure(lambda weight: weight.numpy(), pack_weights(model))
        symbols = np.array(VOCAB.symbols, object)
        graph = tf.Graph()
        with graph.as_default():
            weights = tf.nest.map_structure(tf.Variable, weights)
            session = tf.compat.v1.Session()
            session.run(tf.compat.v1.global_variables_initializer())

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            return tf.function(function, autograph=False, jit_compile=xla)

        def make_callable(rows: int, length: int) -> Callable[..., Any]:
            with graph.as_default():
                seed_B = tf.compat.v1.placeholder(tf.int64, [rows])
                tensors = tf.nest.map_structure(tf.convert_to_tensor, weights)
                draw = compiled(lambda weights, seed_B: draw_ids(model, weights, seed_B, rows, length))
                outputs = draw(tensors, seed_B)
            return session.make_callable(list(outputs), [seed_B])

        functions = {(rows, length): make_callable(rows, length) for rows in ROWS for length in LENGTHS}

        def write(rows: int, length: int, seed: int) -> list[bytes]:
            ids_NxB, _ = functions[rows, length]([*range(seed, seed + rows)])
            return [b"".join(row) for row in symbols[ids_NxB.T]]

        def prompt_logits(weights: Any) -> Any:
            stepper, states = Stepper(model, None, weights), split_carry(model.initial_carry(1))
            for token in VOCAB.encode(PROMPT).tolist():
                states = stepper.read(tf.constant([token]), states)
            return stepper.logits(states)[:, : VOCAB.size]

        with graph.as_default():
            logits = compiled(prompt_logits)(tf.nest.map_structure(tf.convert_to_tensor, weights))
        return Loop(write, session.run(logits)[0])

    return make


def torch_modules(weights: Path, size: Size, cells: bool, int8: bool) -> tuple[list[Any], Any]:
    """Load the weights into LSTMCells, or an nn.LSTM, and a dense layer, dynamically quantized with `int8`."""
    import torch
    from torch import nn

    *lstm, dense_HxV, bias_V = (torch.from_numpy(w) for w in np.load(weights).values())
    V, dense = VOCAB.size, nn.Linear(size.units, VOCAB.size)
    if cells:
        modules: list[Any] = [nn.LSTMCell(size.units if index else V, size.units) for index in range(size.layers)]
        owners = [(cell, "") for cell in modules]
    else:
        modules = [nn.LSTM(V, size.units, size.layers)]
        owners = [(modules[0], f"_l{index}") for index in range(size.layers)]
    with torch.no_grad():
        # Keras's gate columns i, f, c, o are PyTorch's i, f, g, o; one of PyTorch's two biases stays zero.
        for (owner, end), kernel, recurrent, bias in zip(owners, lstm[::3], lstm[1::3], lstm[2::3], strict=True):
            getattr(owner, f"weight_ih{end}").copy_(kernel.T)
            getattr(owner, f"weight_hh{end}").copy_(recurrent.T)
            getattr(owner, f"bias_ih{end}").copy_(bias)
            getattr(owner, f"bias_hh{end}").zero_()
        dense.weight.copy_(dense_HxV.T)
        dense.bias.copy_(bias_V)
    if int8:
        kinds, all_modules = {nn.LSTM, nn.LSTMCell, nn.Linear}, nn.ModuleList([*modules, dense])
        *modules, dense = torch.ao.quantization.quantize_dynamic(all_modules, kinds, dtype=torch.qint8)
    return modules, dense


def torch(cells: bool, threads: int | None = None, int8: bool = False) -> Callable[[Path, Size], Loop]:
    """Return a factory of the loop over nn.LSTM, step by step, or over LSTMCells.

    `threads`: None keeps PyTorch's default. `int8`: apply PyTorch's dynamic quantization to the weights.
    """

    def make(base: Path, size: Size) -> Loop:
        import torch

        if threads:
            torch.set_num_threads(threads)
        modules, dense = torch_modules(base.parent / WEIGHTS, size, cells, int8)
        identity = torch.eye(VOCAB.size)

        def step_cells(ids_B: Any, state: Any) -> tuple[Any, Any]:
            y, after = identity[ids_B], []
            for index, cell in enumerate(modules):
                y, c = cell(y, state[index] if state else None)
                after.append((y, c))
            return dense(y), after

        def step_lstm(ids_B: Any, state: Any) -> tuple[Any, Any]:
            y_1xBxH, state = modules[0](identity[ids_B][None], state)
            return dense(y_1xBxH[0]), state

        step = step_cells if cells else step_lstm

        @torch.inference_mode()
        def write(rows: int, length: int, seed: int) -> list[bytes]:
            torch.manual_seed(seed)
            ids_B, state, drawn = torch.full([rows], VOCAB.start_id), None, []
            for _ in range(length):
                logits_BxV, state = step(ids_B, state)
                ids_B = torch.multinomial(torch.softmax(logits_BxV / TEMPERATURE, dim=-1), 1)[:, 0]
                drawn.append(ids_B)
            return [b"".join(VOCAB.symbols[token] for token in row) for row in torch.stack(drawn, 1).tolist()]

        @torch.inference_mode()
        def read() -> np.ndarray:
            state = None
            for token in VOCAB.encode(PROMPT).tolist():
                logits_BxV, state = step(torch.tensor([token]), state)
            return logits_BxV[0].numpy()

        return Loop(write, read())

    return make


def _tensorflow() -> Any:
    from common import console

    with console.quiet():
        import tensorflow as tf
    tf.get_logger().setLevel("ERROR")  # silence the deprecation warning of the Session's loader
    return tf


PEERS = {
    "ours": LoopPeer(served, "tensorflow"),
    "ours, ids": LoopPeer(ids(xla=False), "tensorflow"),
    "ours, XLA": LoopPeer(ids(xla=True), "tensorflow"),
    "torch nn.LSTM": LoopPeer(torch(cells=False), "torch"),
    "torch LSTMCell": LoopPeer(torch(cells=True), "torch"),
    "torch LSTMCell, 1 thread": LoopPeer(torch(cells=True, threads=1), "torch"),
}


def main(name: str, base: Path, size: Size) -> None:
    start = time.perf_counter()
    loop = PEERS[name].make(base, size)
    loaded = time.perf_counter()
    loop.write(ROWS[0], LENGTHS[0], 0)
    first = time.perf_counter()
    for rows, length in itertools.product(ROWS, LENGTHS):
        loop.write(rows, length, 0)
    reply({"logits": loop.logits.tolist(), "load_seconds": loaded - start, "first_seconds": first - start})
    seeds = itertools.count(1)
    for line in sys.stdin:
        request, cycles = json.loads(line), 0
        start = time.perf_counter()
        while (now := time.perf_counter()) - start < request["seconds"] or not cycles:
            for length in LENGTHS:
                loop.write(request["rows"], length, next(seeds))
            cycles += 1
        reply({"us_a_step": (now - start) / (cycles * sum(LENGTHS)) * 1e6})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Size(*(int(argument) for argument in sys.argv[3:])))
