"""What the losses of single targets tell: how sure their mean is, and which characters a model finds hard.

Legend: N targets, in the order of the text; G groups of them, V vocabulary.
"""

import math
import unicodedata
from typing import Any, NamedTuple

import numpy as np

from common.types import Array
from pipeline.vocab import ASCII, Vocab

# B. Schmeiser, "Batch size effects in the analysis of simulation output" (1982): more than 30 blocks gain little, and
# the fewer there are, the longer each, the less one tells of the next.
BLOCKS, STUDENT = 30, 2.045  # and the 97.5 % point of Student's t with 29 degrees of freedom
SHORTEST = 100  # targets of a block
PIECE = 1 << 20  # targets that are counted at once
CLASSES = ("letters", "digits", "white space", "punctuation", "other", "not ASCII", "ends of documents")
CONTINUATION = range(0x80, 0xC0)  # the bytes of a character in UTF-8 but for the first
LIKELY = math.log(2)  # nats below which a target was held likelier than all others together
LISTED, FEWEST = 12, 100  # characters that are listed at either end, and their targets


class Groups(NamedTuple):
    """names_G of the groups, and group_N, which of them each target is in."""

    names_G: list[str]
    group_N: Array


def interval(nats_N: Array) -> tuple[float, float] | None:
    """A 95 % interval of the mean, by batch means: contiguous blocks, long enough to hold what neighbours have in
    common, are taken for independent of each other. None where they would be shorter than SHORTEST."""
    length = len(nats_N) // BLOCKS
    if length < SHORTEST:
        return None
    means = nats_N[: BLOCKS * length].reshape(BLOCKS, length).mean(1, dtype=np.float64)
    mean, half = float(nats_N.mean(dtype=np.float64)), STUDENT * float(means.std(ddof=1)) / math.sqrt(BLOCKS)
    return mean - half, mean + half


def figures(nats_N: Array, targets_N: Array, vocab: Vocab) -> dict[str, Any]:
    """The loss in every unit. Of a vocabulary of bytes a character is one of UTF-8, of as many targets as it has bytes;
    ends of documents cost nats, and are neither a byte nor a character."""
    counts_V, nats = count(targets_N, vocab.size), float(nats_N.sum(dtype=np.float64))
    bytes_V = np.array([len(symbol) for symbol in vocab.symbols])
    characters_V = np.array([bool(symbol) and symbol[0] not in CONTINUATION for symbol in vocab.symbols])
    characters, mean = int(counts_V @ characters_V), nats / len(nats_N)
    return {
        "nats": mean,
        "nats_interval": interval(nats_N),
        "bits": mean / math.log(2),
        "targets": len(nats_N),
        "perplexity": math.exp(mean),
        "nats_per_character": nats / max(characters, 1),
        "bits_per_character": nats / max(characters, 1) / math.log(2),
        "bits_per_byte": nats / max(int(counts_V @ bytes_V), 1) / math.log(2),
    }


def count(ids_N: Array, size: int, weights_N: Array | None = None) -> Array:
    """How often each id below `size` occurs, or the sum of its weights: np.bincount, which copies into wider types, of
    a piece at a time."""
    total_V = np.zeros(size, np.int64)
    for start in range(0, len(ids_N), PIECE):
        piece = slice(start, start + PIECE)
        total_V = total_V + np.bincount(ids_N[piece], None if weights_N is None else weights_N[piece], size)
    return total_V


def by_class(targets_N: Array, vocab: Vocab) -> Groups:
    """By what a character is: of characters by Unicode's categories, of bytes by ASCII's."""
    class_V = np.array([CLASSES.index(class_of(symbol, vocab.unit)) for symbol in vocab.symbols], np.uint8)
    return Groups(list(CLASSES), class_V[targets_N])


def class_of(symbol: bytes, unit: str) -> str:
    """The one of CLASSES that a symbol is in.

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
    """By how often the character occurs in train: never, and powers of ten."""
    power_V = np.array([len(str(count)) if count else 0 for count in train_V.tolist()], np.uint8)
    names = ["never", *(f"{10 ** (k - 1):,} to {10**k - 1:,}" for k in range(1, power_V.max() + 1))]
    return Groups(names, power_V[targets_N])


def by_position(inputs_N: Array, lanes: int, end_id: int | None) -> Groups:
    """By how many characters the carry has read: since its lane began, or a document, in powers of two."""
    N = len(inputs_N)
    power_N = np.empty(N, np.uint8)
    for lane in range(lanes):
        part = slice(lane * N // lanes, (lane + 1) * N // lanes)
        place = np.arange(part.stop - part.start)
        begin = np.maximum.accumulate(np.where(inputs_N[part] == end_id, place, 0))
        power_N[part] = np.frexp(place - begin + 1)[1] - 1
    return Groups(["1", *(f"{2**k:,} to {2 ** (k + 1) - 1:,}" for k in range(1, power_N.max() + 1))], power_N)


def means(groups: Groups, **nats: Array) -> list[dict[str, Any]]:
    """Of each group that has targets its name, their number, and the mean of each of the losses."""
    names_G, group_N = groups
    counts_G = count(group_N, len(names_G))
    sums = {key: count(group_N, len(names_G), one_N) for key, one_N in nats.items()}
    return [
        {"name": names_G[g], "targets": int(counts_G[g]), **{key: float(sums[key][g] / counts_G[g]) for key in sums}}
        for g in np.flatnonzero(counts_G)
    ]


def beside(nats_N: Array, ngram_N: Array, targets_N: Array, vocab: Vocab) -> dict[str, Any]:
    """Where a model and an n-gram err: shares of the targets that both, one alone or neither hold likely (above one
    half), and the characters to which one gives most more on the mean than the other. After A. Karpathy, J. Johnson and
    L. Fei-Fei, "Visualizing and understanding recurrent networks" (arXiv 1506.02078)."""
    ours_N, theirs_N = nats_N < LIKELY, ngram_N < LIKELY
    sides = {"both": ours_N & theirs_N, "model": ours_N & ~theirs_N, "ngram": theirs_N & ~ours_N}
    symbols = Groups([name_of(symbol, vocab.unit) for symbol in vocab.symbols], targets_N)
    found = means(
        symbols, p=np.exp(-nats_N), ngram_p=np.exp(-ngram_N), model_alone=sides["model"], ngram_alone=sides["ngram"]
    )
    found = sorted((one for one in found if one["targets"] >= FEWEST), key=lambda one: one["ngram_p"] - one["p"])
    shares = {name: float(side_N.mean()) for name, side_N in sides.items()}
    return {
        **shares,
        "neither": float((~ours_N & ~theirs_N).mean()),
        "model_ahead": [one for one in found if one["p"] > one["ngram_p"]][:LISTED],
        "ngram_ahead": [one for one in found[::-1] if one["p"] < one["ngram_p"]][:LISTED],
    }


def name_of(symbol: bytes, unit: str) -> str:
    r"""A symbol as it can be shown.

    >>> [name_of(b" ", "byte"), name_of(b"\n", "byte"), name_of("é".encode(), "char"), name_of(b"\xff", "byte")]
    ['space', '\\n', 'é', '\\xff']
    """
    if symbol in (b"", b" "):
        return "space" if symbol else "end"
    return repr(symbol)[2:-1] if unit == "byte" else repr(symbol.decode())[1:-1]
