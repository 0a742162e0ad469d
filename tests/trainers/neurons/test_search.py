"""Neuron search: strengths against their definitions, recall of planted units, and false positives."""

import numpy as np
import pytest

from common.types import Array
from trainers.neurons import search as module
from trainers.neurons.labels import Label
from trainers.neurons.search import LabelResult, Match, RankedHalf, ranks, report_of, search


def binary_runs(rng: np.random.Generator, N: int, mean: int) -> Array:
    """Return a binary label with runs of `mean` characters on average."""
    return np.cumsum(rng.random(N) < 1 / mean) % 2 == 1


def random_units(rng: np.random.Generator, N: int, U: int, keep: float = 0.95) -> Array:
    """Return units with memory, as in a network: autoregressive noise."""
    x_NxU = rng.normal(size=(N, U))
    for t in range(1, N):
        x_NxU[t] += keep * x_NxU[t - 1]
    return x_NxU.astype(np.float32)


def test_auc_counts_ordered_pairs_and_half_of_ties(rng: np.random.Generator) -> None:
    x_NxU = rng.integers(0, 6, (41, 5)).astype(np.float32)
    x_NxU[:, 4] = 3  # constant
    labels_KxN = rng.random((3, 41)) < 0.3
    labels_KxN[2] = False
    strength_KxU = RankedHalf(x_NxU).strengths(labels_KxN)
    for label_N, strength_U in zip(labels_KxN[:2], strength_KxU, strict=False):
        inside, outside = x_NxU[label_N][:, None], x_NxU[~label_N][None]
        auc_U = ((inside > outside) + 0.5 * (inside == outside)).mean((0, 1))
        np.testing.assert_allclose((1 + strength_U) / 2, auc_U, atol=1e-6)
    assert strength_KxU[2].tolist() == [0] * 5


def test_correlation_is_pearson_of_ranks(rng: np.random.Generator) -> None:
    x_NxU, label_N = rng.integers(0, 9, (50, 3)).astype(np.float32), rng.integers(0, 4, 50).astype(np.float32)
    x_NxU[:, 2] = 1

    def ranked(x_N: Array) -> Array:
        return ((x_N[:, None] > x_N) + 0.5 * (x_N[:, None] == x_N)).sum(1)

    expected = [np.corrcoef(ranked(x_NxU[:, unit]), ranked(label_N))[0, 1] for unit in (0, 1)]
    np.testing.assert_allclose(RankedHalf(x_NxU).strengths(ranks(label_N)[None])[0], [*expected, 0], atol=1e-6)


def test_planted_units_are_found_and_scored_on_the_second_half(rng: np.random.Generator) -> None:
    N, U = 4000, 12
    x_NxU, label_N = random_units(rng, N, U), binary_runs(rng, N, 40)
    depth_N = np.cumsum(rng.integers(-1, 2, N)).astype(np.float32)
    x_NxU[:, 7] = 2 - 4 * label_N + rng.normal(size=N)  # low inside the label
    x_NxU[:, 3] = depth_N + rng.normal(size=N)
    absent_N = np.zeros(N, bool)
    # Degrade the unit in the second half, so that the halves' scores differ.
    x_NxU[N // 2 :, 7] = np.where(rng.random(N // 2) < 0.1, x_NxU[N // 2 :, 5], x_NxU[N // 2 :, 7])
    labels = [Label("quotes", label_N, "quote"), Label("depth", depth_N), Label("comment", absent_N, "comment")]
    quotes, depth, comment = search(x_NxU, labels)
    inside, outside = -x_NxU[N // 2 :, 7][label_N[N // 2 :]][:, None], -x_NxU[N // 2 :, 7][~label_N[N // 2 :]][None]
    best = quotes.matches[0]
    assert (best.unit, best.inverted, quotes.verdict) == (7, True, "found")
    assert quotes.score(best.strength) == pytest.approx((inside > outside).mean(), abs=1e-6)
    assert (depth.matches[0].unit, depth.matches[0].inverted, depth.verdict) == (3, False, "found")
    assert (comment.matches, comment.verdict) == ([], "not in this text")
    assert [result.followers for result in (quotes, depth, comment)] == [{7}, {3}, frozenset()]


@pytest.mark.parametrize(
    ("repetitions", "allowed"), [(5, 2), pytest.param(50, 3, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_unrelated_labels_have_no_match(rng: np.random.Generator, repetitions: int, allowed: int) -> None:
    """Count chance matches of units and labels that both have memory. allowed: about one per hundreds of labels."""
    errors = 0
    for _ in range(repetitions):
        x_NxU = random_units(rng, 3000, 20)
        depth_N = random_units(rng, 3000, 1)[:, 0].round()
        labels = [Label("quotes", binary_runs(rng, 3000, 40)), Label("depth", depth_N)]  # each changes often enough
        results = search(x_NxU, labels, shifts=40)
        errors += sum(result.verdict != "not found" for result in results)
        assert all(0 < result.chance < 1 for result in results)
    assert errors <= allowed


def test_shuffled_labels_underestimate_chance(rng: np.random.Generator) -> None:
    """Show why the search shifts labels: shuffling destroys their runs."""
    x_NxU, label_N = random_units(rng, 8000, 30, keep=0.99), binary_runs(rng, 8000, 100)
    chance = search(x_NxU, [Label("quotes", label_N)])[0].chance
    shuffled_KxN = np.stack([rng.permutation(label_N[4000:]) for _ in range(100)])
    assert chance > 2 * np.abs(RankedHalf(x_NxU[4000:]).strengths(shuffled_KxN)).max()


def test_labels_with_few_runs_have_no_matches(rng: np.random.Generator) -> None:
    label_N = np.arange(1000) % 250 < 125  # four runs per half
    for N in (1000, 2, 1):
        assert search(random_units(rng, N, 3), [Label("quotes", label_N[:N])])[0].matches == []


def test_report_lists_each_unit_once_with_its_best_label(monkeypatch: pytest.MonkeyPatch) -> None:
    binary, number = np.array([True, False]), np.array([1.0, 2.0], np.float32)
    results = [
        LabelResult(
            Label("strings", binary, "quote"), [Match(5, 0.7, True), Match(6, 0.1, False)], 0.2, frozenset({5, 6})
        ),
        LabelResult(
            Label("column", number, "line length"),
            [Match(5, 0.5, False), Match(0, 0.9, False), Match(2, 0.59, False)],
            0.3,
            frozenset({0, 5}),
        ),
        LabelResult(Label("links", binary), [Match(1, 0.1, False)], 0.4),
        LabelResult(Label("comments", binary, "comment"), [], 0.0),
    ]
    strings = {"about": "strings", "measure": "auc", "layer": 2, "unit": 2, "score": 0.85, "inverted": True}
    column = {"about": "column", "measure": "correlation"}
    assert report_of(results, units=4) == {
        "neurons": [column | {"layer": 1, "unit": 1, "score": 0.9, "inverted": False}, strings],
        "labels": [
            strings | {"essay": "quote", "verdict": "found", "chance": 0.6},
            column
            | {"essay": "line length", "verdict": "in part", "chance": 0.3}
            | {"layer": 2, "unit": 2, "score": 0.5, "inverted": False},
            {"about": "links", "measure": "auc", "essay": "", "verdict": "not found", "chance": 0.7}
            | {"layer": 1, "unit": 2, "score": 0.55, "inverted": False},
            {"about": "comments", "measure": "auc", "essay": "comment", "verdict": "not in this text"},
        ],
        "followers": 3,
    }
    monkeypatch.setattr(module, "CLEAR", 0.4)
    assert results[1].verdict == "found"
