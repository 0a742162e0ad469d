"""Kneser-Ney n-grams against a dictionary implementation and a hand calculation; probabilities sum to 1."""

import itertools
from collections import Counter

import numpy as np
import pytest

from trainers.judging.ngram import DISCOUNTS, _discounts, best, probabilities

Symbols = tuple[int, ...]


class Reference:
    """Reference by definition: dictionaries and recursion, one symbol at a time."""

    def __init__(self, train: list[int], size: int, end_id: int | None, highest: int):
        self.size, self.highest = size, highest
        self.places, self.after = Counter[Symbols](), Counter[Symbols]()
        after: dict[Symbols, set[int]] = {}
        for i in range(len(train)):
            text = document(train[: i + 1], end_id)
            for n in range(1, min(len(text), highest) + 1):
                ngram = text[-n:]
                self.places[ngram] += 1
                if n == len(text):  # at the start of the document
                    self.after[ngram] += 1
                else:
                    after.setdefault(ngram, set()).add(text[-n - 1])
        for ngram, preceding in after.items():
            self.after[ngram] += len(preceding)
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
    estimates = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
    valid = all(0 <= d <= k for k, d in enumerate(estimates, 1))
    return [0.0, *(estimates if valid else DISCOUNTS)]


def document(text: list[int], end_id: int | None) -> Symbols:
    """Return the last document of a text, with the end symbol before it."""
    starts = [i for i, symbol in enumerate(text[:-1]) if symbol == end_id]
    return tuple(text[starts[-1] if starts else 0 :])


@pytest.mark.parametrize("end_id", [None, 0])
@pytest.mark.parametrize(("size", "length", "highest"), [(3, 400, 5), (2, 60, 12), (30, 900, 3), (300, 200, 9)])
def test_probabilities_match_reference(
    rng: np.random.Generator, size: int, length: int, highest: int, end_id: int | None
) -> None:
    draw = rng.dirichlet(np.full(size, 0.3), size)  # skewed, so that some pairs are frequent and some symbols missing

    def text(length: int) -> list[int]:
        ids = [0]
        for _ in range(length - 1):
            ids.append(int(rng.choice(size, p=draw[ids[-1]])))
        return ids

    train, texts = text(length), [text(40), text(1), text(9)]
    orders = list(probabilities(np.array(train), list(map(np.array, texts)), size, end_id, highest))
    for order in {1, 2, highest - 1, highest}:
        reference = Reference(train, size, end_id, order)
        for ids, p_Q in zip(texts, orders[order - 1], strict=True):
            ngrams = [document(ids[: i + 1], end_id)[-order:] for i in range(1, len(ids))]
            expected = [reference.p(ngram[-1], ngram[:-1]) for ngram in ngrams]
            np.testing.assert_allclose(p_Q, expected, rtol=1e-12)


def test_probabilities_match_hand_calculation() -> None:
    """abracadabra has too few counts to estimate discounts, so they default to 0.5, 1 and 1.5.

    Occurrences: a 5, b 2, r 2, c 1, d 1 of 11. Order 1: p(b) = (2 - 1 + (1.5 + 1 + 1 + 0.5 + 0.5) / 5) / 11.
    """
    a, b, c, d, r = range(5)
    train = np.array([a, b, r, a, c, a, d, a, b, r, a])
    (first,), (second,) = probabilities(train, [np.array([a, b, r, d, c])], 5, highest=2)
    left = 1.5 + 1 + 1 + 0.5 + 0.5
    p = {b: (2 - 1 + left / 5) / 11, r: (2 - 1 + left / 5) / 11, d: (1 - 0.5 + left / 5) / 11}
    np.testing.assert_allclose(first, [p[b], p[r], p[d], p[d]])
    # Lower orders count distinct predecessors: a follows r, c, d and the start; b, c and d follow a; r follows b.
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
def test_probabilities_sum_to_one_in_every_context(rng: np.random.Generator, end_id: int | None) -> None:
    size, highest = 4, 3  # 3 does not occur in train
    train = rng.choice(3, 300, p=[0.6, 0.3, 0.1])
    contexts = [context for n in range(1, highest + 2) for context in itertools.product(range(size), repeat=n)]
    texts = [np.array([*context, symbol]) for context in contexts for symbol in range(size)]
    for p_of_texts in probabilities(train, texts, size, end_id, highest):
        p_CxV = np.array([p_Q[-1] for p_Q in p_of_texts]).reshape(len(contexts), size)
        assert p_CxV.min() > 0
        np.testing.assert_allclose(p_CxV.sum(1), 1, rtol=1e-12)


def test_discounts_from_counts_of_counts() -> None:
    assert _discounts(np.repeat([0, 1, 2, 3, 4], [9, 8, 4, 2, 1])) == (0.5, 1.25, 2.0)  # 0.5 = 8 / (8 + 2 * 4)
    assert _discounts(np.repeat([1, 2, 3, 4], [1, 1, 10, 1])) == DISCOUNTS  # the discount of two would be negative
    assert _discounts(np.array([1, 2, 3])) == DISCOUNTS


def test_tie_selects_lowest_order() -> None:
    ids = np.array([0, 1, 1, 0] * 4)
    ngram = best(ids, ids[:2], ids, 3)  # val has a single target, preceded by one symbol
    assert ngram.order == 3
    assert ngram.val_nats[2:] == [min(ngram.val_nats)] * 10
    orders = list(probabilities(ids, [ids], 3))
    np.testing.assert_array_equal(ngram.nats_Q, -np.log(orders[2][0]))


def test_best_order_is_chosen_on_val() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 4, 3000)
    ids[2::3] = (ids[0::3] + ids[1::3]) % 4  # every third symbol is a function of the two before it
    train, val, test = ids[:2400], ids[2400:2700], ids[2700:]
    ngram = best(train, val, test, 4)
    orders = list(probabilities(train, [val, test], 4))
    np.testing.assert_allclose(ngram.val_nats, [-np.log(val_Q).mean() for val_Q, _ in orders])
    assert ngram.order == 1 + int(np.argmin(ngram.val_nats)) > 2
    np.testing.assert_array_equal(ngram.nats_Q, -np.log(orders[ngram.order - 1][1]))
