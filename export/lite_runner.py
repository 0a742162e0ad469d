"""Text from a .tflite with NumPy and ai_edge_litert, no TensorFlow: what an application on a device does.

Legend: L layers, S states of a cell (2 of an LSTM, else 1), H units, V vocabulary; batch 1 throughout.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from common import console
from common.errors import StageError
from pipeline.vocab import Vocab

Floats = npt.NDArray[np.float32]
GREEDY = 1e-3  # as in trainers.generate


class LiteModel:
    """devices/NAME: model.tflite, and model.json with its vocabulary."""

    def __init__(self, folder: Path, threads: int = 1):
        try:
            about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            self.vocab = Vocab.from_json(about["vocab"])
            with console.hushed():
                self._interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=threads)
                self._interpreter.allocate_tensors()
            self._run = self._interpreter.get_signature_runner("serving_default")
        except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StageError(f"{folder} holds no whole .tflite model: {error}") from None

    @property
    def ops(self) -> set[str]:
        """The names of the ops that the file uses."""
        return {op["op_name"] for op in self._interpreter._get_ops_details()}

    def initial_carry(self) -> Floats:
        """Zeros [1, L, S, H]."""
        return np.zeros(self._run.get_input_details()["carry"]["shape"], np.float32)

    def step(self, token: int, carry: Floats) -> tuple[Floats, Floats]:
        """One character in: logits_V of the next one, and the next carry."""
        outputs = self._run(token=np.array([token], np.int32), carry=carry)
        return outputs["logits"][0], outputs["carry"]

    def generate(self, prompt: bytes, length: int, temperature: float, seed: int) -> bytes:
        """Continues `prompt` by `length` characters, or to the end of its document. The same seed, the same text."""
        draw = np.random.default_rng(seed)
        carry, drawn = self.initial_carry(), []
        for token in self.vocab.prompt_ids(prompt):
            logits_V, carry = self.step(int(token), carry)
        for _ in range(length):
            token = choose(logits_V, temperature, draw.random())
            if token == self.vocab.end_id:
                break
            drawn.append(token)
            logits_V, carry = self.step(token, carry)
        return self.vocab.decode(drawn)


def choose(logits_V: Floats, temperature: float, uniform: float) -> int:
    """Draws an id from softmax(logits / temperature): trainers.generate.choose, in NumPy, for one row."""
    if not temperature >= GREEDY:  # NaN as well
        return int(np.argmax(logits_V))
    scaled_V = logits_V.astype(np.float64) / temperature
    cumulated_V = np.cumsum(np.exp(scaled_V - scaled_V.max()))
    return min(int(np.searchsorted(cumulated_V, uniform * cumulated_V[-1], side="right")), len(logits_V) - 1)
