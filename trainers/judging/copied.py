"""The share of a text that is copied verbatim from the training text, whether memorised or in common use.

Legend: M bytes of all texts and train, N bytes of the texts.
"""

import numpy as np
import pydivsufsort

from common.types import Array

SEARCHED = 100_000_000  # bytes of train searched; each takes 18 bytes of memory and about 0.3 us
LENGTHS = (20, 50, 100)  # bytes of a stretch


def longest(train: bytes, texts: list[bytes]) -> list[Array]:
    """Length of the longest copy from train that begins at each byte of each text: the matching statistics of W. I.
    Chang and E. L. Lawler (1994).

    All suffixes are sorted together (libdivsufsort). The suffix of train that shares the longest prefix with a suffix
    of a text is its nearest neighbour from train on either side; that prefix is as long as the shortest common prefix
    of the neighbours in between (Kasai's algorithm).
    """
    # Train comes last so that its suffixes end with it. Copies that run past the end of their text are cut below.
    ends = np.cumsum([len(text) for text in texts])
    all_M = np.frombuffer(b"".join(texts) + train, np.uint8).copy()
    order_M = pydivsufsort.divsufsort(all_M)
    common_M = pydivsufsort.kasai(all_M, order_M)  # common prefix of each suffix and the next
    ranks_N = np.flatnonzero(order_M < ends[-1])
    longest_N = np.empty(len(ranks_N), np.int64)
    after_N = _common_before(len(order_M) - 1 - ranks_N[::-1], common_M[-2::-1])[::-1]
    longest_N[order_M[ranks_N]] = np.maximum(_common_before(ranks_N, common_M), after_N)
    rest_N = np.repeat(ends, [len(text) for text in texts]) - np.arange(len(longest_N))
    return np.split(np.minimum(longest_N, rest_N), ends[:-1])


def _common_before(ranks_N: Array, common_M: Array) -> Array:
    """Length of the common prefix of each suffix of the texts and the last suffix of train before it.

    ranks_N: ranks of the texts' suffixes, ascending. common_M: common prefix of each suffix and the next.
    """
    lengths: list[int] = []
    shortest, last = 0, -1
    for rank, common in zip(ranks_N.tolist(), common_M[ranks_N - 1].tolist(), strict=True):
        # In a run of suffixes of texts, the shortest common prefix so far carries over.
        shortest = min(shortest, common) if rank == last + 1 and lengths else common
        lengths.append(shortest if rank else 0)
        shortest, last = lengths[-1], rank
    return np.array(lengths, np.int64)


def shares(longest_of_texts: list[Array]) -> dict[str, float]:
    """Length of the longest copy in bytes, and the share of stretches of each of LENGTHS that are copies.

    Lengths that no text reaches are left out.
    """
    result: dict[str, float] = {"longest": max((int(copy_N.max(initial=0)) for copy_N in longest_of_texts), default=0)}
    for length in LENGTHS:
        starts = [copy_N[: max(len(copy_N) - length + 1, 0)] for copy_N in longest_of_texts]
        if total := sum(map(len, starts)):
            result[f"copied_{length}"] = sum(int((copy_N >= length).sum()) for copy_N in starts) / total
    return result
