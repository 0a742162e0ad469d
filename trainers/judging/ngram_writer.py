"""Text drawn from an n-gram, to compare with a network's samples.

Legend: V vocabulary, K occurrences of a context in train.
"""

import bisect
import functools

import numpy as np
import pydivsufsort

from common.types import Array
from trainers.judging import ngram

CACHE = 1 << 16  # contexts whose probabilities are kept


class NGramWriter:
    """The n-gram of trainers.judging.ngram, one context at a time.

    train: ids below `size`. order: of the n-gram, at least 1. end_id: the end of a document.
    """

    def __init__(self, train: Array, size: int, order: int, end_id: int | None = None):
        self.size, self.order, self.end_id = size, order, end_id
        self.train = np.array(train)  # pydivsufsort refuses arrays that are read-only
        self.in_order = train.dtype.newbyteorder(">")  # sorts as bytes as it does as numbers
        self.text = train.astype(self.in_order).tobytes()
        self.discounts = [np.array([0.0, *each]) for each in ngram.discounts(train, order, end_id)]
        self.suffixes = pydivsufsort.divsufsort(self.train)
        self.probabilities = functools.lru_cache(CACHE)(self._probabilities)

    def write(self, start: list[int], length: int, seed: int) -> list[int]:
        """Draw up to `length` ids after those of `start`; a text ends with the end of its document."""
        ids, first = list(start), len(start)
        for uniform in np.random.default_rng(seed).random(length):
            cumulated_V = np.cumsum(self.probabilities(self._context(ids)))
            ids.append(int(np.searchsorted(cumulated_V, uniform * cumulated_V[-1], side="right")))
            if ids[-1] == self.end_id:
                break
        return ids[first:]

    def _context(self, ids: list[int]) -> tuple[int, ...]:
        """The last ids that the next one depends on, which begin no earlier than the latest end of a document."""
        context = ids[max(len(ids) - self.order + 1, 0) :]
        return tuple(context[next((k for k in reversed(range(len(context))) if context[k] == self.end_id), 0) :])

    def _probabilities(self, context: tuple[int, ...]) -> Array:
        """p_V of the symbol after a context, shorter than the order."""
        lower_V = self.probabilities(context[1:]) if context else np.full(self.size, 1 / self.size)
        next_K, before_K = self._occurrences(context)
        if len(context) + 1 < self.order:  # count the distinct symbols before
            distinct_K = np.unique(before_K.astype(np.int64) * self.size + next_K, return_index=True)[1]
            next_K = next_K[distinct_K]
        if not len(next_K):
            return lower_V
        counts_V = np.bincount(next_K, minlength=self.size)
        discount_V = self.discounts[len(context)][np.minimum(counts_V, 3)]
        return (counts_V - discount_V + discount_V.sum() * lower_V) / counts_V.sum()

    def _occurrences(self, context: tuple[int, ...]) -> tuple[Array, Array]:
        """The symbols after each occurrence of a context in train, and those before it.

        Nothing precedes the beginning of a document; a number of its own, from `size` on, stands for the symbol.
        """
        sought, width = np.array(context, self.in_order).tobytes(), self.in_order.itemsize

        def beginning(place: int) -> bytes:
            return self.text[int(place) * width : int(place) * width + len(sought)]

        first = bisect.bisect_left(self.suffixes, sought, key=beginning)
        places_K = self.suffixes[first : bisect.bisect_right(self.suffixes, sought, first, key=beginning)]
        places_K = places_K[places_K + len(context) < len(self.train)]
        begins_K = (places_K == 0) | bool(context and context[0] == self.end_id)
        before_K = np.where(begins_K, self.size + places_K, self.train[places_K - 1])
        return self.train[places_K + len(context)], before_K
