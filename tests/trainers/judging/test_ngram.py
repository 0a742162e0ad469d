"""The n-gram in arrays against one in dictionaries, against numbers worked out by hand, and against its own sum."""

import itertools
from collections import Counter

import numpy as np
import pytest

from trainers.judging.ngram import DISCOUNTS, _discounts, best, probabilities

Symbols = tuple[int, ...]


class Slow:
    """The same model, as its definition reads: dictionaries, recursion, a symbol at a time."""

    def __init__(self, train: list[int], size: int, end_id: int | None, highest: int):
        self.size, self.highest = size, highest
        self.places, self.after = Counter[Symbols](), Counter[Symbols]()
        after: dict[Symbols, set[int]] = {}
        for i in range(len(train)):
            text = document(train[: i + 1], end_id)
            for n in range(1, min(len(text), highest) + 1):
                ngram = text[-n:]
                self.places[ngram] += 1
                if n == len(text):  # it begins the document
                    self.after[ngram] += 1
                else:
                    after.setdefault(ngram, set()).add(text[-n - 1])
        for ngram, found in after.items():
            self.after[ngram] += len(found)
        self.cut: dict[int, list[float]] = {}
        for n in range(1, highest + 1):
            counts = self.places if n == highest else self.after
            self.cut[n] = discounts([c for ngram, c in counts.items() if len(ngram) == n])

    def p(self, symbol: int, context: Symbols) -> float:
        below = self.p(symbol, context[1:]) if context else 1 / self.size
        counts = self.places if len(context) + 1 == self.highest else self.after
        count = {w: counts[(*context, w)] for w in range(self.size)}
        total = sum(count.values())
        if not total:
            return below
        cut = self.cut[len(context) + 1]
        left = sum(cut[min(c, 3)] for c in count.values())
        return (count[symbol] - cut[min(count[symbol], 3)] + left * below) / total


def discounts(counts: list[int]) -> list[float]:
    n = [counts.count(k) for k in range(5)]
    if 0 in n[1:]:
        return [0.0, *DISCOUNTS]
    y = n[1] / (n[1] + 2 * n[2])
    found = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
    good = all(0 <= d <= k for k, d in enumerate(found, 1))
    return [0.0, *(found if good else DISCOUNTS)]


def document(text: list[int], end_id: int | None) -> Symbols:
    """The part of a text that its last symbol may depend on: from the last end of a document before it."""
    begins = [i for i, symbol in enumerate(text[:-1]) if symbol == end_id]
    return tuple(text[begins[-1] if begins else 0 :])


@pytest.mark.parametrize("end_id", [None, 0])
@pytest.mark.parametrize(("size", "length", "highest"), [(3, 400, 5), (2, 60, 12), (30, 900, 3), (300, 200, 9)])
def test_it_is_the_model_of_its_definition(
    rng: np.random.Generator, size: int, length: int, highest: int, end_id: int | None
) -> None:
    draw = rng.dirichlet(np.full(size, 0.3), size)  # so that some follow others, and some never come

    def text(length: int) -> list[int]:
        ids = [0]
        for _ in range(length - 1):
            ids.append(int(rng.choice(size, p=draw[ids[-1]])))
        return ids

    train, texts = text(length), [text(40), text(1), text(9)]
    found = list(probabilities(np.array(train), [np.array(one) for one in texts], size, end_id, highest))
    for order in {1, 2, highest - 1, highest}:
        slow = Slow(train, size, end_id, order)
        for one, p_Q in zip(texts, found[order - 1], strict=True):
            context = [document(one[: i + 1], end_id)[-order:] for i in range(1, len(one))]
            expected = [slow.p(seen[-1], seen[:-1]) for seen in context]
            np.testing.assert_allclose(p_Q, expected, rtol=1e-12)


def test_it_is_what_is_worked_out_by_hand() -> None:
    """abracadabra, a to e as 0 to 4; too few counts to tell the discounts, so they are 0.5, 1 and 1.5.

    Places: a 5, b 2, r 2, c 1, d 1 of 11. Order 1: p(b) = (2 - 1 + (1.5 + 1 + 1 + 0.5 + 0.5) / 5) / 11.
    """
    a, b, c, d, r = range(5)
    train = np.array([a, b, r, a, c, a, d, a, b, r, a])
    (first,), (second,) = probabilities(train, [np.array([a, b, r, d, c])], 5, highest=2)
    left = 1.5 + 1 + 1 + 0.5 + 0.5
    p = {b: (2 - 1 + left / 5) / 11, r: (2 - 1 + left / 5) / 11, d: (1 - 0.5 + left / 5) / 11}
    np.testing.assert_allclose(first, [p[b], p[r], p[d], p[d]])
    # Below the highest order: a comes after r, c, d and at the beginning, b after a, r after b, c after a, d after a.
    left = 1.5 + 4 * 0.5
    low = {b: (1 - 0.5 + left / 5) / 8}
    # After a: b twice, c and d once. After b: r twice. After r: a twice. After d: a once.
    expected = [
        (2 - 1 + (1 + 0.5 + 0.5) * low[b]) / 4,
        (2 - 1 + 1 * low[b]) / 2,
        (0 - 0 + 1 * low[b]) / 2,
        (0 - 0 + 0.5 * low[b]) / 1,
    ]
    np.testing.assert_allclose(second, expected)


@pytest.mark.parametrize("end_id", [None, 2])
def test_the_probabilities_after_every_context_sum_to_one(rng: np.random.Generator, end_id: int | None) -> None:
    size, highest = 4, 3  # 3 does not occur in train
    train = rng.choice(3, 300, p=[0.6, 0.3, 0.1])
    contexts = [seen for n in range(1, highest + 2) for seen in itertools.product(range(size), repeat=n)]
    texts = [np.array([*seen, symbol]) for seen in contexts for symbol in range(size)]
    for found in probabilities(train, texts, size, end_id, highest):
        p_CxV = np.array([p_Q[-1] for p_Q in found]).reshape(len(contexts), size)
        assert p_CxV.min() > 0
        np.testing.assert_allclose(p_CxV.sum(1), 1, rtol=1e-12)


def test_discounts_are_told_by_the_counts_of_counts() -> None:
    assert _discounts(np.repeat([0, 1, 2, 3, 4], [9, 8, 4, 2, 1])) == (0.5, 1.25, 2.0)  # 0.5 = 8 / (8 + 2 * 4)
    assert _discounts(np.repeat([1, 2, 3, 4], [1, 1, 10, 1])) == DISCOUNTS  # that of two would be below 0
    assert _discounts(np.array([1, 2, 3])) == DISCOUNTS


def test_of_orders_that_are_equally_good_it_is_the_lowest() -> None:
    ids = np.array([0, 1, 1, 0] * 4)
    found = best(ids, ids[:2], ids, 3)  # what is foretold in val has one symbol before it
    assert found.order == 3
    assert found.val_nats[2:] == [min(found.val_nats)] * 10
    every = list(probabilities(ids, [ids], 3))
    np.testing.assert_array_equal(found.nats_Q, -np.log(every[2][0]))


def test_the_best_order_is_that_of_validation() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 4, 3000)
    ids[2::3] = (ids[0::3] + ids[1::3]) % 4  # a symbol in three follows from the two before it
    train, val, test = ids[:2400], ids[2400:2700], ids[2700:]
    found = best(train, val, test, 4)
    every = list(probabilities(train, [val, test], 4))
    np.testing.assert_allclose(found.val_nats, [-np.log(val_Q).mean() for val_Q, _ in every])
    assert found.order == 1 + int(np.argmin(found.val_nats)) > 2
    np.testing.assert_array_equal(found.nats_Q, -np.log(every[found.order - 1][1]))
