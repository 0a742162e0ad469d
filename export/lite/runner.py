"""Text from a .tflite with NumPy and ai_edge_litert, as an application on a device writes it; no TensorFlow.

Legend: L layers, S states per cell (2 for an LSTM, else 1), H units, V vocabulary, N counter values; the batch is 1.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from common import console
from common.errors import StageError, UsageError
from common.types import Floats
from export.bundle import unpack
from pipeline.vocab import Vocab

Doubles = npt.NDArray[np.float64]

# As in trainers.sampling, which this module cannot import without TensorFlow.
GREEDY = 1e-3  # temperatures below this take the likeliest character
MEMORY = 64  # characters that the repetition penalty covers, and the longest stop
LARGEST = 1e18  # limit of a penalised logit
BLOCK = 256  # counter values per call of Philox; each yields four random numbers
WORD, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings. Raises UsageError for values out of range.

    temperature: 0 is greedy, 1 leaves the model's distribution unchanged. seed: equal seeds give equal texts, and those
    of `trainers sample` unless rounding differs. top_k: 0 keeps all characters. stop: empty means no stop.
    """

    temperature: float = 0.8
    seed: int = 1
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: bytes = b""

    def __post_init__(self) -> None:
        rules = {
            "temperature: a finite number, 0 (greedy) or more": 0 <= self.temperature < math.inf,
            "seed: an integer of 64 bits": -(1 << 63) <= self.seed < 1 << 63,
            "top_k: 0 (all) or more": self.top_k >= 0,
            "top_p: more than 0, at most 1 (all)": 0 < self.top_p <= 1,
            "repetition_penalty: a finite number above 0": 0 < self.repetition_penalty < math.inf,
        }
        for rule, valid in rules.items():
            if not valid:
                raise UsageError(f"{rule}, got {getattr(self, rule.partition(':')[0])}")


class LiteModel:
    """Exported .tflite. Raises StageError for a corrupted file and for one from another program.

    about: the contents of its vocab.json.
    """

    def __init__(self, path: Path, threads: int = 1):
        flatbuffer, self.about = unpack(path)
        try:
            self.vocab = Vocab.from_json(self.about["vocab"])
            with console.quiet():
                self._interpreter = Interpreter(model_content=flatbuffer, num_threads=threads)
                self._interpreter.allocate_tensors()
                self._step = self._interpreter.get_signature_runner("step")
            self.shape = tuple(self._step.get_input_details()["carry"]["shape"].tolist())
            _, V = self._step.get_output_details()["logits"]["shape"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StageError(f"{path} cannot be run: {error}; export it again") from None
        if self.vocab.size != V:
            raise StageError(f"{path} has {V} logits for a vocabulary of {self.vocab.size} symbols: export it again")

    def initial_carry(self) -> Floats:
        """Return zeros [1, L, S, H]."""
        return np.zeros(self.shape, np.float32)

    def step(self, token: int, carry: Floats) -> tuple[Floats, Floats]:
        """Read one token. Returns the logits_V of the next one, and the new carry."""
        outputs = self._step(token=np.array([token], np.int32), carry=carry)
        return outputs["logits"][0], outputs["carry"]

    def read(self, ids: npt.ArrayLike, carry: Floats) -> tuple[Floats, Floats]:
        """Read one or more tokens. Returns what `step` returns for the last of them."""
        for token in np.asarray(ids).tolist():
            logits_V, carry = self.step(token, carry)
        return logits_V, carry

    def generate(self, prompt: bytes, length: int, sampling: Sampling = Sampling()) -> bytes:
        """Continue `prompt` by `length` characters, or up to the stop or the end of the document."""
        return b"".join(self.stream(prompt, length, sampling))

    def stream(self, prompt: bytes, length: int, sampling: Sampling = Sampling()) -> Iterator[bytes]:
        """Yield the text of `generate` character by character, holding back any that may begin the stop.

        Raises StageError for a prompt or stop with characters outside the vocabulary, or a stop longer than MEMORY.
        """
        prompt_ids, stop = self.vocab.encode(prompt).tolist(), self.vocab.encode(sampling.stop).tolist()
        if len(stop) > MEMORY:
            raise StageError(f"stop: at most {MEMORY} characters are read, got {len(stop)}")
        random, recent = uniforms(sampling.seed), collections.deque(prompt_ids, MEMORY)
        logits_V, carry = self.read(self.vocab.prompt_ids(prompt), self.initial_carry())
        held: list[int] = []  # drawn but not yet yielded
        for _ in range(length):
            token = choose(logits_V, sampling, recent, next(random))
            if token == self.vocab.end_id:
                break
            recent.append(token)
            held.append(token)
            if stop and held[-len(stop) :] == stop:
                held = held[: -len(stop)]
                break
            while len(held) >= max(len(stop), 1):
                yield self.vocab.decode([held.pop(0)])
            logits_V, carry = self.step(token, carry)
        yield self.vocab.decode(held)


def choose(logits_V: Floats, sampling: Sampling, recent: Iterable[int], uniform: float) -> int:
    """Draw an id as trainers.sampling.draw does: penalty, temperature, top-k, then top-p among the rest."""
    scaled_V = logits_V.astype(np.float64)
    if sampling.repetition_penalty != 1:
        scaled_V = penalised(scaled_V, recent, sampling.repetition_penalty)
    if sampling.temperature < GREEDY:
        return int(np.argmax(scaled_V))
    scaled_V /= sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        scaled_V = narrowed(scaled_V, sampling.top_k, sampling.top_p)
    cumulated_V = np.cumsum(np.exp(scaled_V - scaled_V.max()))
    return int(np.searchsorted(cumulated_V, uniform * cumulated_V[-1], side="right"))


def penalised(logits_V: Doubles, recent: Iterable[int], penalty: float) -> Doubles:
    """Return the logits with those of recent ids divided by the penalty, or multiplied if negative."""
    ids, changed_V = sorted(set(recent)), logits_V.copy()
    changed = np.where(logits_V[ids] > 0, logits_V[ids] / penalty, logits_V[ids] * penalty)
    changed_V[ids] = np.clip(changed, -LARGEST, LARGEST)
    return changed_V


def narrowed(scaled_V: Doubles, top_k: int, top_p: float) -> Doubles:
    """Return the logits with -inf outside the `top_k` largest, and outside the smallest set with `top_p` of the rest's
    probability. Ties with the last one kept are kept."""
    sorted_V = np.sort(scaled_V)[::-1][: top_k or None]
    if top_p < 1:
        weights = np.exp(sorted_V - sorted_V[0])
        before = np.cumsum(weights / weights.sum()) - weights / weights.sum()
        sorted_V = sorted_V[: max(int(np.sum(before < top_p)), 1)]
    return np.where(scaled_V >= sorted_V[-1], scaled_V, -np.inf)


def uniforms(seed: int) -> Iterator[float]:
    """Yield a seed's numbers in [0, 1), as trainers.sampling.draw.uniforms computes them."""
    for first in itertools.count(0, BLOCK):
        yield from philox(seed, first, BLOCK).ravel().tolist()


def philox(key: int, first: int, count: int) -> Doubles:
    """Return numbers_Nx4 in [0, 1), of 23 bits: Philox4x32-10 (Salmon et al. 2011) at counters from `first` on."""
    counter_N = np.arange(first, first + count, dtype=np.uint64)
    a, b, c, d = counter_N & WORD, counter_N >> HALF, 0 * counter_N, 0 * counter_N
    low, high = (np.uint64(key >> shift & 0xFFFFFFFF) for shift in (0, 32))
    for _ in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (right >> HALF) ^ b ^ low, right & WORD, (left >> HALF) ^ d ^ high, left & WORD
        low, high = (low + np.uint64(0x9E3779B9)) & WORD, (high + np.uint64(0xBB67AE85)) & WORD
    return (np.stack([a, b, c, d], 1) & np.uint64(0x7FFFFF)) / 2.0**23
