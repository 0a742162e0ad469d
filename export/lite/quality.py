"""The quality of a .tflite against its checkpoint, on held-out text.

    bits       mean over characters of -log2 q(character | those before it in its lane), with q from the .tflite
    lost       bits minus the checkpoint's bits
    KL         mean over characters of sum p log2(p / q), with p from the checkpoint
    agreement  share of the characters in the checkpoint's greedy texts, from held-out prompts, that are also the
               likeliest by the .tflite; 1 means identical texts

The lanes are spread evenly over the split, and each starts from a carry of zeros.

Legend: B lanes, T characters of a lane, W of a window, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from common import console
from common.errors import StageError
from export.lite.runner import LiteModel
from pipeline.manifest import Manifest
from pipeline.shards import read_tokens
from trainers.model.char_rnn import CharRNN
from trainers.sampling.rows import Request
from trainers.sampling.sampler import Sampler

LANES, LENGTH = 20, 5000  # 100,000 characters
WINDOW = 100  # characters per lane and call of the checkpoint
PROMPTS, PROMPT, WRITTEN = 20, 100, 100  # greedy texts: count, characters of prompt, characters written

Ids = npt.NDArray[np.int32]
Read = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Quality:
    """Figures of one file, in bits per character."""

    bits: float
    lost_bits: float
    kl_bits: float
    greedy_agreement: float


@dataclasses.dataclass(frozen=True)
class HeldOutText:
    """Lanes of a split."""

    split: str
    ids_BxT: Ids

    @property
    def characters(self) -> int:
        """Predicted characters: all but the first of each lane."""
        return self.ids_BxT[:, 1:].size


def lanes(data: Path, manifest: Manifest, split: str, count: int, length: int) -> HeldOutText:
    """Read `count` lanes of `length` + 1 characters, or fewer or shorter lanes if the split is too short.

    Raises StageError for a split of fewer than two characters.
    """
    tokens = manifest.split(split).tokens
    if tokens < 2:
        raise StageError(f"{data} has {tokens} characters of {split}: measuring needs at least two")
    B = min(max(tokens // (length + 1), 1), count)
    T = min(length + 1, tokens)
    starts = [(tokens - T) * lane // max(B - 1, 1) for lane in range(B)]
    rows = [read_tokens(data, manifest.split(split), manifest.dtype, start, start + T) for start in starts]
    return HeldOutText(split, np.stack(rows).astype(np.int32))


def reader(model: CharRNN, end_id: int | None, window: int) -> Read:
    """Trace the checkpoint's own model over a window: (ids_BxW int32, carry) -> (logits_BxWxV, carry)."""

    def read(ids_BxW: tf.Tensor, carry_BxLxSxH: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return model(ids_BxW, carry_BxLxSxH, reset_BxT=None if end_id is None else ids_BxW == end_id)

    carry = tf.TensorSpec([None, *model.initial_carry(1).shape[1:]])
    return tf.function(read, autograph=False).get_concrete_function(tf.TensorSpec([None, window], tf.int32), carry)


def measure(model: CharRNN, files: dict[str, LiteModel], text: HeldOutText) -> tuple[float, dict[str, Quality]]:
    """Return the checkpoint's bits per character and the quality of each file.

    Raises StageError for a file that produces NaN or infinity.
    """
    vocab = next(iter(files.values())).vocab
    B, T = text.ids_BxT.shape
    carry_BxLxSxH = model.initial_carry(B)
    carries = {name: [file.initial_carry()] * B for name, file in files.items()}
    window, own, sums = 0, 0.0, {name: np.zeros(2) for name in files}
    agreed = _agreements(model, files, text)
    with console.progress("characters") as bar:
        task = bar.add_task("measuring", total=text.characters)
        for start in range(0, T - 1, WINDOW):
            ids_BxW = text.ids_BxT[:, start : min(start + WINDOW, T - 1)]
            targets_BxW = text.ids_BxT[:, start + 1 : start + 1 + ids_BxW.shape[1]]
            if ids_BxW.shape[1] != window:  # the first window, and a shorter last one
                window = ids_BxW.shape[1]
                read = reader(model, vocab.end_id, window)
            logits_BxWxV, carry_BxLxSxH = read(tf.constant(ids_BxW), carry_BxLxSxH)
            for lane, (ids_W, targets_W) in enumerate(zip(ids_BxW, targets_BxW, strict=True)):
                log_p_WxV = _log_softmax(logits_BxWxV[lane].numpy())
                own -= _picked(log_p_WxV, targets_W)
                for name, file in files.items():
                    logits_WxV, carries[name][lane] = _steps(file, ids_W, carries[name][lane], name)
                    log_q_WxV = _log_softmax(logits_WxV)
                    kl = float(np.sum(np.exp(log_p_WxV) * (log_p_WxV - log_q_WxV)))
                    sums[name] += (-_picked(log_q_WxV, targets_W), kl)
            bar.advance(task, ids_BxW.size)
    own, qualities = own / text.characters / math.log(2), {}
    for name, (nats, kl) in sums.items():
        bits = nats / text.characters / math.log(2)
        qualities[name] = Quality(bits, bits - own, kl / text.characters / math.log(2), agreed[name])
    return own, qualities


def _agreements(model: CharRNN, files: dict[str, LiteModel], text: HeldOutText) -> dict[str, float]:
    vocab = next(iter(files.values())).vocab
    flat = text.ids_BxT.ravel()
    starts = [len(flat) * index // PROMPTS for index in range(PROMPTS)]
    prompts = [vocab.decode(flat[start : start + PROMPT]) for start in starts]
    generate = tf.function(Sampler(model, vocab).generate, autograph=False)
    columns = (tf.constant(prompts), tf.fill([PROMPTS], WRITTEN), tf.zeros([PROMPTS]), tf.zeros([PROMPTS], tf.int64))
    written, agreed, total = generate(Request(*columns)).text_bytes.numpy().tolist(), dict.fromkeys(files, 0), 0
    for prompt, text_bytes in zip(prompts, written, strict=True):
        ids, expected = vocab.prompt_ids(prompt), vocab.encode(text_bytes)
        total += len(expected)
        for name, file in files.items():
            logits_V, carry = file.read(ids, file.initial_carry())
            for token in expected.tolist():
                agreed[name] += int(np.argmax(logits_V)) == token
                logits_V, carry = file.step(token, carry)
    return {name: count / max(total, 1) for name, count in agreed.items()}


def _steps(
    file: LiteModel, ids_W: Ids, carry: npt.NDArray[np.float32], name: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rows = []
    for token in ids_W.tolist():
        logits_V, carry = file.step(token, carry)
        rows.append(logits_V)
    logits_WxV = np.stack(rows)
    if not (np.isfinite(logits_WxV).all() and np.isfinite(carry).all()):
        raise StageError(f"the {name} .tflite produced NaN or infinity on held-out text")
    return logits_WxV, carry


def _log_softmax(logits_WxV: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    below = logits_WxV.astype(np.float64)
    below -= below.max(axis=1, keepdims=True)
    return below - np.log(np.sum(np.exp(below), axis=1, keepdims=True))


def _picked(log_p_WxV: npt.NDArray[np.float64], ids_W: Ids) -> float:
    return float(np.sum(log_p_WxV[np.arange(len(ids_W)), ids_W]))
