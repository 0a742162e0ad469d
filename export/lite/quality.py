"""What a .tflite loses against its checkpoint, on text that the model has not been trained on.

    bits       mean over characters of -log2 p(character | all before it in its lane), by the file
    lost       the same less the checkpoint's bits
    KL         mean over characters of sum p log2(p / q): p the checkpoint's, q the file's
    agreement  of what the checkpoint writes after prompts from that text, always taking the likeliest character: the
               share of characters that the file finds likeliest, too, at the same place; 1: it writes the same

The text is cut into lanes that lie spread over the split, each read from an empty carry.

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
WINDOW = 100  # characters of every lane that the checkpoint reads at a time
PROMPTS, PROMPT, WRITTEN = 20, 100, 100  # greedy texts: how many, what they begin with, what they go on with: 2,000

Ids = npt.NDArray[np.int32]
Read = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a file is worth; bits a character."""

    bits: float
    lost_bits: float
    kl_bits: float
    greedy_agreement: float


@dataclasses.dataclass(frozen=True)
class Text:
    """The text that is read: so many lanes, ids_BxT, of a split."""

    split: str
    ids_BxT: Ids

    @property
    def characters(self) -> int:
        """How many of them are predicted: in every lane all but the first."""
        return self.ids_BxT[:, 1:].size


def lanes(data: Path, manifest: Manifest, split: str, count: int, length: int) -> Text:
    """So many lanes of so many characters and one more, spread over a split; fewer, or shorter ones, where it is short.

    Raises StageError for a split of fewer than two characters.
    """
    tokens = manifest.split(split).tokens
    if tokens < 2:
        raise StageError(f"{data} has {tokens} characters of {split}: two or more are wanted, to measure by")
    B = min(max(tokens // (length + 1), 1), count)
    T = min(length + 1, tokens)
    starts = [(tokens - T) * lane // max(B - 1, 1) for lane in range(B)]
    rows = [read_tokens(data, manifest.split(split), manifest.dtype, start, start + T) for start in starts]
    return Text(split, np.stack(rows).astype(np.int32))


def samples(model: CharRNN, end_id: int | None, ids_BxT: Ids) -> list[dict[str, npt.NDArray[np.generic]]]:
    """Inputs of a step as the text brings them: every token with the carry ahead of it, from an empty one on."""
    read = reader(model, end_id, 1)
    carry_BxLxSxH, found = model.initial_carry(len(ids_BxT)), []
    for ids_B in ids_BxT.T:
        for token, carry in zip(ids_B, carry_BxLxSxH.numpy(), strict=True):
            found.append({"token": token[None], "carry": carry[None]})
        _, carry_BxLxSxH = read(tf.constant(ids_B[:, None]), carry_BxLxSxH)
    return found


def reader(model: CharRNN, end_id: int | None, window: int) -> Read:
    """The checkpoint itself, over a window: (ids_BxW, int32, carry) -> (logits_BxWxV, carry)."""

    def read(ids_BxW: tf.Tensor, carry_BxLxSxH: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return model(ids_BxW, carry_BxLxSxH, reset_BxT=None if end_id is None else ids_BxW == end_id)

    carry = tf.TensorSpec([None, *model.initial_carry(1).shape[1:]])
    return tf.function(read, autograph=False).get_concrete_function(tf.TensorSpec([None, window], tf.int32), carry)


def measure(model: CharRNN, files: dict[str, LiteModel], text: Text) -> tuple[float, dict[str, Quality]]:
    """The checkpoint's own bits a character, and what each file is worth.

    Raises StageError where a file gives what is no number.
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
            if ids_BxW.shape[1] != window:  # the first one, and a last one that is shorter
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
    own, each = own / text.characters / math.log(2), {}
    for name, (nats, kl) in sums.items():
        bits = nats / text.characters / math.log(2)
        each[name] = Quality(bits, bits - own, kl / text.characters / math.log(2), agreed[name])
    return own, each


def _agreements(model: CharRNN, files: dict[str, LiteModel], text: Text) -> dict[str, float]:
    vocab = next(iter(files.values())).vocab
    flat = text.ids_BxT.ravel()
    starts = [len(flat) * index // PROMPTS for index in range(PROMPTS)]
    prompts = [vocab.decode(flat[start : start + PROMPT]) for start in starts]
    generate = tf.function(Sampler(model, vocab).generate, autograph=False)
    asked = (tf.constant(prompts), tf.fill([PROMPTS], WRITTEN), tf.zeros([PROMPTS]), tf.zeros([PROMPTS], tf.int64))
    written, agreed, total = generate(Request(*asked)).text_bytes.numpy().tolist(), dict.fromkeys(files, 0), 0
    for prompt, more in zip(prompts, written, strict=True):
        ids, expected = vocab.prompt_ids(prompt), vocab.encode(more)
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
        raise StageError(f"the {name} .tflite gives what is no number (NaN or infinity) on held-out text")
    return logits_WxV, carry


def _log_softmax(logits_WxV: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    below = logits_WxV.astype(np.float64)
    below -= below.max(axis=1, keepdims=True)
    return below - np.log(np.sum(np.exp(below), axis=1, keepdims=True))


def _picked(log_p_WxV: npt.NDArray[np.float64], ids_W: Ids) -> float:
    return float(np.sum(log_p_WxV[np.arange(len(ids_W)), ids_W]))
