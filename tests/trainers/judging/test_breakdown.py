import math
from collections import Counter

import numpy as np
import pytest

from pipeline.vocab import byte_vocab, char_vocab
from trainers.judging import breakdown
from trainers.judging.breakdown import (
    BATCHES,
    by_class,
    by_frequency,
    by_position,
    compare,
    figures,
    mean_interval,
    means,
)


def test_interval_covers_mean_in_95_percent_of_trials() -> None:
    rng, trials, length = np.random.default_rng(2), 1000, 30 * 400
    noise = rng.normal(size=(trials, length))
    losses = noise.copy()  # an AR(1) process: correlation triples the error of the mean
    for i in range(1, length):
        losses[:, i] = 0.8 * losses[:, i - 1] + 0.6 * noise[:, i]
    intervals = [mean_interval(2 + trial) for trial in losses]
    coverage = np.mean([low < 2 < high for low, high in filter(None, intervals)])
    assert 0.93 < coverage < 0.97
    naive = 1.96 * losses.std(1) / math.sqrt(length)
    assert np.mean(abs(losses.mean(1)) < naive) < 0.6


def test_short_text_has_no_interval() -> None:
    assert mean_interval(np.zeros(BATCHES * 100 - 1)) is None
    assert mean_interval(np.full(BATCHES * 100, 0.5)) == (0.5, 0.5)


def test_figures_in_every_unit() -> None:
    text = "naïve 猫\n".encode()  # 8 characters, 11 bytes
    vocab = byte_vocab(end="token")
    ids = np.append(np.frombuffer(text, np.uint8), 256)
    nats = math.log(2) * len(text)  # one bit per byte, zero for the end token
    result = figures(np.append(np.full(11, math.log(2)), 0.0), ids, vocab)
    assert result["nats"] == pytest.approx(nats / 12)
    assert result["bits"] == pytest.approx(11 / 12)
    assert result["perplexity"] == pytest.approx(2 ** (11 / 12))
    assert (result["bits_per_character"], result["bits_per_byte"]) == pytest.approx((11 / 8, 1))
    assert result["nats_per_character"] == pytest.approx(nats / 8)
    assert (result["targets"], result["nats_interval"]) == (12, None)
    chars = char_vocab(Counter(text.decode()))
    result = figures(np.full(8, math.log(2)), chars.encode(text), chars)
    assert (result["bits_per_character"], result["bits_per_byte"]) == pytest.approx((1, 8 / 11))


def test_count_ids_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakdown, "PIECE", 3)
    ids = np.array([0, 2, 2, 1, 2, 0, 2], np.uint8)
    assert breakdown.count_ids(ids, 4).tolist() == [2, 1, 4, 0]
    assert breakdown.count_ids(ids, 4, np.arange(7, dtype=np.float32)).tolist() == [5, 3, 13, 0]
    assert breakdown.count_ids(ids[:0], 2).tolist() == [0, 0]


def test_group_by_class() -> None:
    vocab, nats = byte_vocab(), np.arange(8.0)
    targets = np.frombuffer("a b7{é\n".encode(), np.uint8)
    assert means(by_class(targets, vocab), nats=nats) == [
        {"name": "letters", "targets": 2, "nats": 1.0},
        {"name": "digits", "targets": 1, "nats": 3.0},
        {"name": "white space", "targets": 2, "nats": 4.0},
        {"name": "punctuation", "targets": 1, "nats": 4.0},
        {"name": "not ASCII", "targets": 2, "nats": 5.5},
    ]


def test_group_by_frequency_in_train() -> None:
    groups = by_frequency(np.array([0, 1, 2, 3, 4, 1]), np.array([0, 1, 9, 10, 123]))
    assert groups.names_G == ["never", "1 to 9", "10 to 99", "100 to 999"]
    assert groups.group_N.tolist() == [0, 1, 1, 2, 3, 1]


def test_group_by_position() -> None:
    assert by_position(np.ones(11, int), 2, None).group_N.tolist() == [0, 1, 1, 2, 2, 0, 1, 1, 2, 2, 2]
    inputs = np.array([0, 5, 5, 0, 5, 5, 5, 5])  # 0 ends a document and is the first input of the next one
    groups = by_position(inputs, 1, 0)
    assert groups.group_N.tolist() == [0, 1, 1, 0, 1, 1, 2, 2]
    assert groups.names_G == ["1", "2 to 3", "4 to 7"]


def test_compare_model_with_n_gram() -> None:
    targets = np.repeat([ord("a"), ord("b"), ord("c"), ord("d")], [100, 100, 100, 99])
    p, ngram_p = (
        np.repeat([0.9, 0.3, 0.6, 0.9], [100, 100, 100, 99]),
        np.repeat([0.4, 0.8, 0.6, 0.1], [100, 100, 100, 99]),
    )
    result = compare(-np.log(p), -np.log(ngram_p), targets, byte_vocab())
    shares = [round(result[name] * 399) for name in ("both", "model", "ngram", "neither")]
    assert shares == [100, 199, 100, 0]
    (a,), (b,) = result["model_ahead"], result["ngram_ahead"]  # d is too rare to be listed; c is a tie
    assert a == {"name": "a", "targets": 100, "p": pytest.approx(0.9), "ngram_p": pytest.approx(0.4)} | {
        "model_alone": 1.0,
        "ngram_alone": 0.0,
    }
    assert (b["name"], b["p"], b["ngram_p"], b["ngram_alone"]) == ("b", pytest.approx(0.3), pytest.approx(0.8), 1.0)
