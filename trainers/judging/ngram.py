"""Character n-grams with interpolated, modified Kneser-Ney smoothing: what a model must beat that only counts.

    p_n(w | h) = (c(hw) - D(c(hw)) + (D_1 N_1(h.) + D_2 N_2(h.) + D_3 N_3+(h.)) p_{n-1}(w | h')) / c(h.)

h is the n - 1 symbols before w, h' all of them but the first; N_k(h.) is how many symbols are counted k times after h,
c(h.) the sum of c(hw) over w. Where that is 0, p_n is p_{n-1}; p_0 is uniform. At the highest order c(hw) counts places
of the training text, below it the different symbols that hw comes after. From S. F. Chen and J. Goodman, "An empirical
study of smoothing techniques for language modeling" (1998).

No table of contexts is kept. All texts, the one that is counted and those that are judged, are sorted together, each
position by the symbols up to it, read backwards. So the places of an n-gram lie side by side, within them those of each
(n + 1)-gram that ends in it, and an order is a few passes over arrays.

Legend: M positions of all texts, G different n-grams, K different contexts, which are the n-grams one shorter, Q judged
positions of a text.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from common.types import Array

HIGHEST = 12  # order that is tried
DISCOUNTS = (0.5, 1.0, 1.5)  # where counts of one to four do not all occur, which tell them otherwise; KenLM's


class NGram(NamedTuple):
    """The order that is best on validation, the loss there of each order from 1, and that of every judged target, in
    nats."""

    order: int
    val_nats: list[float]
    nats_Q: Array


class _Positions(NamedTuple):
    """All positions, in the order of sorting. common_M: how many symbols a position's text shares with that of the one
    ahead, read backwards; length_M: how many it has; train_M: whether it is counted; before_M: where the position
    before it is."""

    common_M: Array
    length_M: Array
    train_M: Array
    before_M: Array


class _Judged(NamedTuple):
    """Of each symbol of a text from the second on: where it is in the order of sorting, where the one before it is, and
    how many symbols its text has."""

    place_Q: Array
    before_Q: Array
    length_Q: Array


class _NGrams(NamedTuple):
    """All n-grams of a length. first_G: the first place of each; which_M: which of them ends at a place. What is
    shorter, being at the beginning of a document, is one of its own, without a count."""

    first_G: Array
    which_M: Array


def best(train: Array, val: Array, text: Array, size: int, end_id: int | None = None) -> NGram:
    """Judges a text by what is counted in train, in the order, of up to HIGHEST, that is best on val, the lowest of
    equals; arguments as of `probabilities`."""
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
    """Yields for each order, from 1 to `highest`, what it gives each symbol of each text from the second on, p_Q.

    train, texts: ids below `size`, fewer than 2**31 together. end_id: what ends a document; a context reaches no
    further back than to such an end, or to the beginning of its text. A million ids take some 2 s and 60 MB.
    """
    positions, judged = _sort([train, *texts], end_id, highest)
    contexts, ngrams = _ngrams(positions, 0), _ngrams(positions, 1)
    p_of_text = [np.full(len(text.place_Q), 1 / size) for text in judged]
    for n in range(1, highest + 1):
        longer, real_G = _ngrams(positions, n + 1), positions.length_M[ngrams.first_G] >= n
        places_G = np.add.reduceat(positions.train_M, ngrams.first_G, dtype=np.int32) * real_G
        # What begins a document comes after nothing: each place of it counts, as a symbol before it would.
        counted = np.logical_or.reduceat(positions.train_M, longer.first_G)
        after_G = np.bincount(ngrams.which_M[longer.first_G[counted]], minlength=len(real_G)) * real_G
        context_G = contexts.which_M[positions.before_M[ngrams.first_G]]
        here = [(ngrams.which_M[q.place_Q], contexts.which_M[q.before_Q], q.length_Q >= n) for q in judged]
        yield [_smooth(places_G, context_G, *q, p_Q) for q, p_Q in zip(here, p_of_text, strict=True)]
        p_of_text = [_smooth(after_G, context_G, *q, p_Q) for q, p_Q in zip(here, p_of_text, strict=True)]
        contexts, ngrams = ngrams, longer


def _smooth(counts_G: Array, context_G: Array, ngram_Q: Array, context_Q: Array, real_Q: Array, p_Q: Array) -> Array:
    """p_n from p_{n-1}: counts_G of every n-gram, each in its context; real_Q: whether the text has so many symbols."""
    discount_G = np.array([0.0, *_discounts(counts_G)])[np.minimum(counts_G, 3)]
    total_Q = np.bincount(context_G, counts_G)[context_Q]
    left_Q = np.bincount(context_G, discount_G)[context_Q]
    known_Q = real_Q & (total_Q > 0)
    taken_Q = (counts_G - discount_G)[ngram_Q] + left_Q * p_Q
    return np.where(known_Q, taken_Q / np.where(known_Q, total_Q, 1), p_Q)


def _discounts(counts_G: Array) -> tuple[float, ...]:
    """What is taken from a count of one, of two, and of more: Chen and Goodman's estimates."""
    one, two, three, four = (float(np.count_nonzero(counts_G == k)) for k in (1, 2, 3, 4))
    if not one * two * three * four:
        return DISCOUNTS
    y = one / (one + 2 * two)
    found = (1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three)
    return found if all(0 <= d <= k for k, d in enumerate(found, 1)) else DISCOUNTS


def _ngrams(positions: _Positions, n: int) -> _NGrams:
    first_M = positions.common_M < n
    first_M[0] = True
    return _NGrams(np.flatnonzero(first_M), np.cumsum(first_M, dtype=np.int32) - 1)


def _sort(texts: list[Array], end_id: int | None, highest: int) -> tuple[_Positions, list[_Judged]]:
    """Sorts the positions of all texts, the first of which is the one that is counted."""
    ids_M, edges = np.concatenate(texts), np.cumsum([0, *map(len, texts)])
    M, length_M = len(ids_M), _lengths(ids_M, edges, end_id, highest)
    # Symbols that occur, from 1 on; 0 is none. As many as fit a number are compared at once, and equal ones go on.
    symbols_M = np.cumsum(np.bincount(ids_M) > 0)[ids_M].astype(np.min_scalar_type(ids_M.max() + 1))
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
    common_M[1:] = np.minimum(common_M[1:], sorted_M[1:])  # of two that are shorter, no more than they have
    place_M[order_M] = np.arange(M, dtype=np.int32)
    judged = [
        _Judged(place_M[a + 1 : b], place_M[a : b - 1], length_M[a + 1 : b]) for a, b in itertools.pairwise(edges[1:])
    ]
    return _Positions(common_M, sorted_M, order_M < edges[1], place_M[order_M - 1]), judged


def _lengths(ids_M: Array, edges: Array, end_id: int | None, highest: int) -> Array:
    """How many symbols of its text, itself included, end at each position, `highest` at most."""
    M = len(ids_M)
    begin_M = np.zeros(M, np.int32)
    if end_id is not None:
        begin_M[1:] = np.where(ids_M[:-1] == end_id, np.arange(M - 1), 0)
    begin_M[edges[:-1]] = edges[:-1]
    return np.minimum(np.arange(1, M + 1) - np.maximum.accumulate(begin_M), highest).astype(np.uint8)
