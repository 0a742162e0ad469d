"""How much of a text stands in the text that a model was trained on, word for word: memorised, or common phrases.

Legend: M bytes of both, N bytes of the text.
"""

import numpy as np
import pydivsufsort

from common.types import Array

SEARCHED = 100_000_000  # bytes of train that are searched: 18 bytes of memory and some 0.3 us for each
LENGTHS = (20, 50, 100)  # bytes


def longest(train: bytes, texts: list[bytes]) -> list[Array]:
    """Of each byte of each text, how many from it on, within its text, stand in train somewhere: matching statistics
    (Chang and Lawler 1994).

    All suffixes are sorted together (libdivsufsort). The suffix of train that has most in common with another is the
    next one before it or behind it, and has with it what the least of the neighbours between have in common (Kasai).
    """
    # Train last, so that its suffixes end with it; what ours have beyond their own text is taken off.
    ends = np.cumsum([len(text) for text in texts])
    both_M = np.frombuffer(b"".join(texts) + train, np.uint8).copy()
    order_M = pydivsufsort.divsufsort(both_M)
    common_M = pydivsufsort.kasai(both_M, order_M)  # of each in the order with the next
    ours_N = np.flatnonzero(order_M < ends[-1])
    found_N = np.empty(len(ours_N), np.int64)
    behind_N = _before(len(order_M) - 1 - ours_N[::-1], common_M[-2::-1])[::-1]
    found_N[order_M[ours_N]] = np.maximum(_before(ours_N, common_M), behind_N)
    left_N = np.repeat(ends, [len(text) for text in texts]) - np.arange(len(found_N))
    return np.split(np.minimum(found_N, left_N), ends[:-1])


def _before(ours_N: Array, common_M: Array) -> Array:
    """What each of our places in an order has in common with the last place before it that is not ours. common_M: of
    each place with the next."""
    found: list[int] = []
    least, last = 0, -1
    for place, common in zip(ours_N.tolist(), common_M[ours_N - 1].tolist(), strict=True):
        # Ours next to each other: what they have in common with what lies before them all.
        least = min(least, common) if place == last + 1 and found else common
        found.append(least if place else 0)
        least, last = found[-1], place
    return np.array(found, np.int64)


def shares(longest_of_texts: list[Array]) -> dict[str, float]:
    """The longest stretch that stands in train, in bytes, and of all stretches of a length, within their texts, the
    share that does; nothing of a length that no text has."""
    found: dict[str, float] = {"longest": max((int(one.max(initial=0)) for one in longest_of_texts), default=0)}
    for length in LENGTHS:
        starts = [one[: max(len(one) - length + 1, 0)] for one in longest_of_texts]
        if total := sum(map(len, starts)):
            found[f"copied_{length}"] = sum(int((one >= length).sum()) for one in starts) / total
    return found
