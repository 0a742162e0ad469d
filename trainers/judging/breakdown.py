"""Statistics of per-target losses: the confidence interval of their mean, and the characters that a model finds hard.

Legend: N targets in text order, G groups of targets, V vocabulary.
"""

import math
import unicodedata
from typing import Any, NamedTuple

import numpy as np

from common.printable import symbol_name
from common.types import Array
from pipeline.vocab import ASCII, CONTINUATION, Vocab

# More than 30 batches gain little, and shorter batches are less independent of each other: B. Schmeiser, "Batch size
# effects in the analysis of simulation output" (1982).
BATCHES, STUDENT = 30, 2.045  # STUDENT: the 97.5 % point of Student's t with 29 degrees of freedom
MIN_BATCH = 100  # targets
PIECE = 1 << 20  # ids counted at a time
CLASSES = ("letters", "digits", "white space", "punctuation", "other", "not ASCII", "ends of documents")
LIKELY = math.log(2)  # a loss below this many nats is a probability above one half
LISTED, MIN_LISTED = 12, 100  # characters listed per side, and the targets that each needs


class Groups(NamedTuple):
    """Groups of targets. names_G: the groups' names; group_N: the group of each target."""

    names_G: list[str]
    group_N: Array


def mean_interval(nats_N: Array) -> tuple[float, float] | None:
    """95 % confidence interval of the mean, by the method of batch means.

    Neighbouring losses are correlated, so the standard error is taken over BATCHES contiguous batches, which are long
    enough to be nearly independent. None if a batch would be shorter than MIN_BATCH.
    """
    length = len(nats_N) // BATCHES
    if length < MIN_BATCH:
        return None
    means = nats_N[: BATCHES * length].reshape(BATCHES, length).mean(1, dtype=np.float64)
    mean, half = float(nats_N.mean(dtype=np.float64)), STUDENT * float(means.std(ddof=1)) / math.sqrt(BATCHES)
    return mean - half, mean + half


def figures(nats_N: Array, targets_N: Array, vocab: Vocab) -> dict[str, Any]:
    """Mean loss in every unit.

    In a vocabulary of bytes, a character is a UTF-8 character and spans as many targets as it has bytes. The end of a
    document costs nats but counts as neither a byte nor a character.
    """
    counts_V, nats = count_ids(targets_N, vocab.size), float(nats_N.sum(dtype=np.float64))
    bytes_V = np.array([len(symbol) for symbol in vocab.symbols])
    characters_V = np.array([bool(symbol) and symbol[0] not in CONTINUATION for symbol in vocab.symbols])
    characters, mean = int(counts_V @ characters_V), nats / len(nats_N)
    return {
        "nats": mean,
        "nats_interval": mean_interval(nats_N),
        "bits": mean / math.log(2),
        "targets": len(nats_N),
        "perplexity": math.exp(mean),
        "nats_per_character": nats / max(characters, 1),
        "bits_per_character": nats / max(characters, 1) / math.log(2),
        "bits_per_byte": nats / max(int(counts_V @ bytes_V), 1) / math.log(2),
    }


def count_ids(ids_N: Array, size: int, weights_N: Array | None = None) -> Array:
    """Occurrences of each id below `size`, or the sum of its weights.

    np.bincount copies its input into wider types, so it gets one piece at a time.
    """
    total_V = np.zeros(size, np.int64)
    for start in range(0, len(ids_N), PIECE):
        piece = slice(start, start + PIECE)
        total_V = total_V + np.bincount(ids_N[piece], None if weights_N is None else weights_N[piece], size)
    return total_V


def by_class(targets_N: Array, vocab: Vocab) -> Groups:
    """Group targets by class: Unicode categories for characters, ASCII classes for bytes."""
    class_V = np.array([CLASSES.index(class_of(symbol, vocab.unit)) for symbol in vocab.symbols], np.uint8)
    return Groups(list(CLASSES), class_V[targets_N])


def class_of(symbol: bytes, unit: str) -> str:
    """Classify a symbol, as one of CLASSES.

    >>> [class_of(symbol, "char") for symbol in (b"a", "é".encode(), b"7", b"\\n", b"{", b"\\x00", b"")]
    ['letters', 'letters', 'digits', 'white space', 'punctuation', 'other', 'ends of documents']
    >>> class_of("é".encode()[:1], "byte")
    'not ASCII'
    """
    if not symbol:
        return "ends of documents"
    if unit == "byte" and symbol[0] >= ASCII:
        return "not ASCII"
    character = symbol.decode()
    kinds = {"L": "letters", "M": "letters", "N": "digits", "P": "punctuation", "S": "punctuation"}
    return "white space" if character.isspace() else kinds.get(unicodedata.category(character)[0], "other")


def by_frequency(targets_N: Array, train_V: Array) -> Groups:
    """Group targets by the character's count in train: zero, then powers of ten."""
    power_V = np.array([len(str(count)) if count else 0 for count in train_V.tolist()], np.uint8)
    names = ["never", *(f"{10 ** (k - 1):,} to {10**k - 1:,}" for k in range(1, power_V.max() + 1))]
    return Groups(names, power_V[targets_N])


def by_position(inputs_N: Array, lanes: int, end_id: int | None) -> Groups:
    """Group targets by how many characters the carry has read since its lane or document began, in powers of two."""
    N = len(inputs_N)
    power_N = np.empty(N, np.uint8)
    for lane in range(lanes):
        part = slice(lane * N // lanes, (lane + 1) * N // lanes)
        position = np.arange(part.stop - part.start)
        begin = np.maximum.accumulate(np.where(inputs_N[part] == end_id, position, 0))
        power_N[part] = np.frexp(position - begin + 1)[1] - 1
    return Groups(["1", *(f"{2**k:,} to {2 ** (k + 1) - 1:,}" for k in range(1, power_N.max() + 1))], power_N)


def means(groups: Groups, **values_N: Array) -> list[dict[str, Any]]:
    """Return a row per group with targets: name, number of targets, and the mean of each array in `values_N`."""
    names_G, group_N = groups
    counts_G = count_ids(group_N, len(names_G))
    sums = {key: count_ids(group_N, len(names_G), value_N) for key, value_N in values_N.items()}
    return [
        {"name": names_G[g], "targets": int(counts_G[g]), **{key: float(sums[key][g] / counts_G[g]) for key in sums}}
        for g in np.flatnonzero(counts_G)
    ]


def compare(nats_N: Array, ngram_N: Array, targets_N: Array, vocab: Vocab) -> dict[str, Any]:
    """Compare the errors of a model and an n-gram.

    Returns the shares of targets to which both, only one or neither gives a probability above one half, and the
    characters with the largest difference in mean probability. After A. Karpathy, J. Johnson and L. Fei-Fei,
    "Visualizing and understanding recurrent networks" (arXiv 1506.02078).
    """
    model_N, ngram_likely_N = nats_N < LIKELY, ngram_N < LIKELY
    alone = {"model": model_N & ~ngram_likely_N, "ngram": ngram_likely_N & ~model_N}
    symbols = Groups([symbol_name(symbol, vocab.unit) for symbol in vocab.symbols], targets_N)
    rows = means(
        symbols, p=np.exp(-nats_N), ngram_p=np.exp(-ngram_N), model_alone=alone["model"], ngram_alone=alone["ngram"]
    )
    rows = sorted((row for row in rows if row["targets"] >= MIN_LISTED), key=lambda row: row["ngram_p"] - row["p"])
    return {
        "both": float((model_N & ngram_likely_N).mean()),
        "model": float(alone["model"].mean()),
        "ngram": float(alone["ngram"].mean()),
        "neither": float((~model_N & ~ngram_likely_N).mean()),
        "model_ahead": [row for row in rows if row["p"] > row["ngram_p"]][:LISTED],
        "ngram_ahead": [row for row in rows[::-1] if row["p"] < row["ngram_p"]][:LISTED],
    }
