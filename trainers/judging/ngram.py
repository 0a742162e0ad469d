"""Character n-grams with interpolated, modified Kneser-Ney smoothing, the baseline that a model must beat.

    p_n(w | h) = (c(hw) - D(c(hw)) + (D_1 N_1(h.) + D_2 N_2(h.) + D_3 N_3+(h.)) p_{n-1}(w | h')) / c(h.)

h is the n - 1 symbols before w, and h' is h without its first symbol. N_k(h.) is the number of symbols with count k
after h, and c(h.) is the sum of c(hw) over w. If c(h.) is 0, p_n is p_{n-1}; p_0 is uniform. At the highest order c(hw)
counts occurrences in the training text, below it the distinct symbols that precede hw. From S. F. Chen and J. Goodman,
"An empirical study of smoothing techniques for language modeling" (1998).

There is no table of contexts. The positions of all texts, training and judged, are sorted together by the symbols that
lead up to them, read backwards. The occurrences of an n-gram are then adjacent, and so, within them, are those of each
(n + 1)-gram that ends in it; an order takes a few passes over arrays.

Legend: M positions of all texts, G distinct n-grams, K distinct contexts (n-grams that are one symbol shorter),
Q judged positions of a text.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from common.types import Array

HIGHEST = 12  # order tried
DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's, for texts too small to estimate them


class NGram(NamedTuple):
    """Losses in nats. order: the best on val; val_nats: mean loss on val of each order from 1; nats_Q: loss of each
    judged target at the best order."""

    order: int
    val_nats: list[float]
    nats_Q: Array


class _Positions(NamedTuple):
    """All positions in sorted order, each with the symbols that lead up to it.

    common_M: how many of them, read backwards, it shares with the previous position. length_M: how many it has.
    train_M: whether it belongs to the training text. before_M: sorted index of the position before it in its text.
    """

    common_M: Array
    length_M: Array
    train_M: Array
    before_M: Array


class _Judged(NamedTuple):
    """Judged symbols of a text, from the second on: their sorted index, that of the symbol before, and how many symbols
    lead up to each."""

    place_Q: Array
    before_Q: Array
    length_Q: Array


class _NGrams(NamedTuple):
    """All n-grams of one length.

    first_G: first sorted index of each. which_M: the n-gram that ends at each sorted index. A shorter sequence at the
    beginning of a document is a separate n-gram, with a count of 0.
    """

    first_G: Array
    which_M: Array


def best(train: Array, val: Array, text: Array, size: int, end_id: int | None = None) -> NGram:
    """Score a text with the order, up to HIGHEST, that is best on val; of equal orders, the lowest.

    Takes the same arguments as `probabilities`.
    """
    order, nats_Q = 0, np.empty(0)
    val_nats: list[float] = []
    for val_Q, text_Q in probabilities(train, [val, text], size, end_id):
        nats = float(-np.log(val_Q).mean())
        if nats < min(val_nats, default=np.inf):
            order, nats_Q = len(val_nats) + 1, -np.log(text_Q)
        val_nats.append(nats)
    return NGram(order, val_nats, nats_Q)


def probabilities(
    train: Array, texts: list[Array], size: int, end_id: int | None = None, highest: int = HIGHEST
) -> Iterator[list[Array]]:
    """Yield, for each order from 1 to `highest`, the probability p_Q of each symbol of each text from the second on.

    Takes about 2 s and 60 MB per million ids.

    train, texts: ids below `size`, fewer than 2**31 in total.
    end_id: the end of a document. A context begins at the latest such end, or at the beginning of its text.
    """
    positions, judged = _sort([train, *texts], end_id, highest)
    contexts, ngrams = _ngrams(positions, 0), _ngrams(positions, 1)
    p_of_text = [np.full(len(text.place_Q), 1 / size) for text in judged]
    for n in range(1, highest + 1):
        longer = _ngrams(positions, n + 1)
        places_G, after_G = _counts(positions, n, ngrams, longer)
        context_G = contexts.which_M[positions.before_M[ngrams.first_G]]
        here = [(ngrams.which_M[q.place_Q], contexts.which_M[q.before_Q], q.length_Q >= n) for q in judged]
        yield [_smooth(places_G, context_G, *q, p_Q) for q, p_Q in zip(here, p_of_text, strict=True)]
        p_of_text = [_smooth(after_G, context_G, *q, p_Q) for q, p_Q in zip(here, p_of_text, strict=True)]
        contexts, ngrams = ngrams, longer


def discounts(train: Array, order: int, end_id: int | None = None) -> list[tuple[float, ...]]:
    """Discounts of each order from 1 to `order`, the highest, for counts of one, two, and three or more."""
    positions, _ = _sort([train], end_id, order)
    levels = [_ngrams(positions, n) for n in range(1, order + 2)]
    counts = [_counts(positions, n, *pair) for n, pair in enumerate(itertools.pairwise(levels), 1)]
    return [_discounts(places_G if n == order else after_G) for n, (places_G, after_G) in enumerate(counts, 1)]


def _counts(positions: _Positions, n: int, ngrams: _NGrams, longer: _NGrams) -> tuple[Array, Array]:
    """Count, for each n-gram, its occurrences in train and the distinct symbols that precede it there.

    longer: the (n + 1)-grams.
    """
    real_G = positions.length_M[ngrams.first_G] >= n
    places_G = np.add.reduceat(positions.train_M, ngrams.first_G, dtype=np.int32) * real_G
    # Nothing precedes the beginning of a document, so each occurrence there counts as a distinct symbol would.
    counted = np.logical_or.reduceat(positions.train_M, longer.first_G)
    return places_G, np.bincount(ngrams.which_M[longer.first_G[counted]], minlength=len(real_G)) * real_G


def _smooth(counts_G: Array, context_G: Array, ngram_Q: Array, context_Q: Array, real_Q: Array, p_Q: Array) -> Array:
    """Compute p_n from p_{n-1}. real_Q: whether at least n symbols lead up to each judged position."""
    discount_G = np.array([0.0, *_discounts(counts_G)])[np.minimum(counts_G, 3)]
    total_Q = np.bincount(context_G, counts_G)[context_Q]
    left_Q = np.bincount(context_G, discount_G)[context_Q]
    known_Q = real_Q & (total_Q > 0)
    taken_Q = (counts_G - discount_G)[ngram_Q] + left_Q * p_Q
    return np.where(known_Q, taken_Q / np.where(known_Q, total_Q, 1), p_Q)


def _discounts(counts_G: Array) -> tuple[float, ...]:
    """Chen and Goodman's estimates of the discounts for counts of one, two, and three or more."""
    n1, n2, n3, n4 = (float(np.count_nonzero(counts_G == k)) for k in (1, 2, 3, 4))
    if not n1 * n2 * n3 * n4:
        return DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return discounts if all(0 <= d <= k for k, d in enumerate(discounts, 1)) else DISCOUNTS


def _ngrams(positions: _Positions, n: int) -> _NGrams:
    first_M = positions.common_M < n
    first_M[0] = True
    return _NGrams(np.flatnonzero(first_M), np.cumsum(first_M, dtype=np.int32) - 1)


def _sort(texts: list[Array], end_id: int | None, highest: int) -> tuple[_Positions, list[_Judged]]:
    """Sort the positions of all texts. The first is the training text, the others are judged."""
    ids_M, edges = np.concatenate(texts), np.cumsum([0, *map(len, texts)])
    M, length_M = len(ids_M), _lengths(ids_M, edges, end_id, highest)
    # Number the symbols that occur from 1 on; 0 means none. Sort by as many symbols as fit into 64 bits; the next round
    # sorts by the following symbols within equal keys.
    symbols_M = np.cumsum(np.bincount(ids_M) > 0)[ids_M].astype(np.min_scalar_type(int(ids_M.max()) + 1))
    bits, done = int(symbols_M.max()).bit_length(), 0
    key_M, common_M = np.zeros(M, np.uint64), np.zeros(M, np.uint8)
    while done < highest:
        more = min((64 - int(key_M.max()).bit_length()) // bits, highest - done)
        for back in range(done, done + more):
            key_M <<= np.uint64(bits)
            key_M[back:] |= np.where(length_M[back:] > back, symbols_M[: M - back], 0)
        order_M = np.argsort(key_M)
        key_M = key_M[order_M]
        key_M[1:] ^= key_M[:-1]
        for rest in range(more):
            common_M[1:] += key_M[1:] >> np.uint64(bits * rest) == 0
        key_M[order_M] = np.cumsum(key_M != 0)
        done += more
    sorted_M, place_M = length_M[order_M], np.empty(M, np.int32)
    common_M[1:] = np.minimum(common_M[1:], sorted_M[1:])  # two short positions share at most their length
    place_M[order_M] = np.arange(M, dtype=np.int32)
    judged = [
        _Judged(place_M[a + 1 : b], place_M[a : b - 1], length_M[a + 1 : b]) for a, b in itertools.pairwise(edges[1:])
    ]
    return _Positions(common_M, sorted_M, order_M < edges[1], place_M[order_M - 1]), judged


def _lengths(ids_M: Array, edges: Array, end_id: int | None, highest: int) -> Array:
    """Number of symbols that lead up to each position, itself included; at most `highest`."""
    M = len(ids_M)
    begin_M = np.zeros(M, np.int32)
    if end_id is not None:
        begin_M[1:] = np.where(ids_M[:-1] == end_id, np.arange(M - 1), 0)
    begin_M[edges[:-1]] = edges[:-1]
    return np.minimum(np.arange(1, M + 1) - np.maximum.accumulate(begin_M), highest).astype(np.uint8)
