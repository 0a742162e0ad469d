import doctest
import math
from collections import Counter

import numpy as np
import pytest

from pipeline.vocab import byte_vocab, char_vocab
from trainers.judging import breakdown
from trainers.judging.breakdown import BLOCKS, beside, by_class, by_frequency, by_position, figures, interval, means


def test_examples() -> None:
    assert doctest.testmod(breakdown).failed == 0


def test_the_interval_holds_the_mean_nineteen_times_in_twenty() -> None:
    rng, trials, length = np.random.default_rng(2), 1000, 30 * 400
    drawn = rng.normal(size=(trials, length))
    losses = drawn.copy()  # each is like the one before it, so their mean strays three times as far
    for i in range(1, length):
        losses[:, i] = 0.8 * losses[:, i - 1] + 0.6 * drawn[:, i]
    found = [interval(2 + one) for one in losses]
    held = np.mean([low < 2 < high for low, high in filter(None, found)])
    assert 0.93 < held < 0.97
    naive = 1.96 * losses.std(1) / math.sqrt(length)
    assert np.mean(abs(losses.mean(1)) < naive) < 0.6


def test_a_short_text_has_no_interval() -> None:
    assert interval(np.zeros(BLOCKS * 100 - 1)) is None
    assert interval(np.full(BLOCKS * 100, 0.5)) == (0.5, 0.5)


def test_figures_in_every_unit() -> None:
    text = "naïve 猫\n".encode()  # 8 characters, 11 bytes
    vocab = byte_vocab(end="token")
    ids = np.append(np.frombuffer(text, np.uint8), 256)
    nats = math.log(2) * len(text)  # a bit each byte, and none for the end
    found = figures(np.append(np.full(11, math.log(2)), 0.0), ids, vocab)
    assert found["nats"] == pytest.approx(nats / 12)
    assert found["bits"] == pytest.approx(11 / 12)
    assert found["perplexity"] == pytest.approx(2 ** (11 / 12))
    assert (found["bits_per_character"], found["bits_per_byte"]) == pytest.approx((11 / 8, 1))
    assert found["nats_per_character"] == pytest.approx(nats / 8)
    assert (found["targets"], found["nats_interval"]) == (12, None)
    chars = char_vocab(Counter(text.decode()))
    found = figures(np.full(8, math.log(2)), chars.encode(text), chars)
    assert (found["bits_per_character"], found["bits_per_byte"]) == pytest.approx((1, 8 / 11))


def test_what_is_counted_in_pieces_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakdown, "PIECE", 3)
    ids = np.array([0, 2, 2, 1, 2, 0, 2], np.uint8)
    assert breakdown.count(ids, 4).tolist() == [2, 1, 4, 0]
    assert breakdown.count(ids, 4, np.arange(7, dtype=np.float32)).tolist() == [5, 3, 13, 0]
    assert breakdown.count(ids[:0], 2).tolist() == [0, 0]


def test_targets_are_grouped_by_class() -> None:
    vocab, nats = byte_vocab(), np.arange(8.0)
    targets = np.frombuffer("a b7{é\n".encode(), np.uint8)
    assert means(by_class(targets, vocab), nats=nats) == [
        {"name": "letters", "targets": 2, "nats": 1.0},
        {"name": "digits", "targets": 1, "nats": 3.0},
        {"name": "white space", "targets": 2, "nats": 4.0},
        {"name": "punctuation", "targets": 1, "nats": 4.0},
        {"name": "not ASCII", "targets": 2, "nats": 5.5},
    ]


def test_targets_are_grouped_by_how_often_train_has_them() -> None:
    found = by_frequency(np.array([0, 1, 2, 3, 4, 1]), np.array([0, 1, 9, 10, 123]))
    assert found.names_G == ["never", "1 to 9", "10 to 99", "100 to 999"]
    assert found.group_N.tolist() == [0, 1, 1, 2, 3, 1]


def test_targets_are_grouped_by_what_the_carry_has_read() -> None:
    assert by_position(np.ones(11, int), 2, None).group_N.tolist() == [0, 1, 1, 2, 2, 0, 1, 1, 2, 2, 2]
    inputs = np.array([0, 5, 5, 0, 5, 5, 5, 5])  # 0 ends a document, and is read as the first of the next
    found = by_position(inputs, 1, 0)
    assert found.group_N.tolist() == [0, 1, 1, 0, 1, 1, 2, 2]
    assert found.names_G == ["1", "2 to 3", "4 to 7"]


def test_where_a_model_and_an_n_gram_err() -> None:
    vocab, many = byte_vocab(), 100
    targets = np.repeat([ord("a"), ord("b"), ord("c"), ord("d")], [many, many, many, many - 1])
    p, ngram_p = (
        np.repeat([0.9, 0.3, 0.6, 0.9], [100, 100, 100, 99]),
        np.repeat([0.4, 0.8, 0.6, 0.1], [100, 100, 100, 99]),
    )
    found = beside(-np.log(p), -np.log(ngram_p), targets, vocab)
    shares = [round(found[name] * 399) for name in ("both", "model", "ngram", "neither")]
    assert shares == [100, 199, 100, 0]
    (a,), (b,) = found["model_ahead"], found["ngram_ahead"]  # d is too rare to tell, of c both think alike
    assert a == {"name": "a", "targets": 100, "p": pytest.approx(0.9), "ngram_p": pytest.approx(0.4)} | {
        "model_alone": 1.0,
        "ngram_alone": 0.0,
    }
    assert (b["name"], b["p"], b["ngram_p"], b["ngram_alone"]) == ("b", pytest.approx(0.3), pytest.approx(0.8), 1.0)
