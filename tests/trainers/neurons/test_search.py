"""The search: AUC beside a count of pairs, a planted unit found, noise not."""

import numpy as np
import pytest

from trainers.neurons import search as module
from trainers.neurons.labels import Label
from trainers.neurons.search import Found, Half, Match, ranks, report_of, search

Array = np.ndarray


def stretches(rng: np.random.Generator, N: int, mean: int) -> Array:
    """A yes or no that stays as it is for some `mean` characters."""
    return np.cumsum(rng.random(N) < 1 / mean) % 2 == 1


def drifting(rng: np.random.Generator, N: int, U: int, keep: float = 0.95) -> Array:
    """Units that remember, as a network's do: each is a random walk that is drawn back to 0."""
    x_NxU = rng.normal(size=(N, U))
    for t in range(1, N):
        x_NxU[t] += keep * x_NxU[t - 1]
    return x_NxU.astype(np.float32)


def test_auc_is_the_share_of_pairs_with_ties_for_half(rng: np.random.Generator) -> None:
    x_NxU = rng.integers(0, 6, (41, 5)).astype(np.float32)
    x_NxU[:, 4] = 3  # a unit that does not move
    labels_KxN = rng.random((3, 41)) < 0.3
    labels_KxN[2] = False
    found_KxU = Half(x_NxU).strengths(labels_KxN)
    for label_N, found_U in zip(labels_KxN[:2], found_KxU, strict=False):
        yes, no = x_NxU[label_N][:, None], x_NxU[~label_N][None]
        auc_U = ((yes > no) + 0.5 * (yes == no)).mean((0, 1))
        np.testing.assert_allclose((1 + found_U) / 2, auc_U, atol=1e-6)
    assert found_KxU[2].tolist() == [0] * 5


def test_correlation_is_pearson_s_of_the_ranks(rng: np.random.Generator) -> None:
    x_NxU, label_N = rng.integers(0, 9, (50, 3)).astype(np.float32), rng.integers(0, 4, 50).astype(np.float32)
    x_NxU[:, 2] = 1

    def ranked(x_N: Array) -> Array:
        return ((x_N[:, None] > x_N) + 0.5 * (x_N[:, None] == x_N)).sum(1)

    expected = [np.corrcoef(ranked(x_NxU[:, unit]), ranked(label_N))[0, 1] for unit in (0, 1)]
    np.testing.assert_allclose(Half(x_NxU).strengths(ranks(label_N)[None])[0], [*expected, 0], atol=1e-6)


def test_a_planted_unit_is_found_on_the_half_that_it_was_not_chosen_on(rng: np.random.Generator) -> None:
    N, U = 4000, 12
    x_NxU, label_N = drifting(rng, N, U), stretches(rng, N, 40)
    depth_N = np.cumsum(rng.integers(-1, 2, N)).astype(np.float32)
    x_NxU[:, 7] = 2 - 4 * label_N + rng.normal(size=N)  # low inside
    x_NxU[:, 3] = depth_N + rng.normal(size=N)
    nothing_N = np.zeros(N, bool)
    x_NxU[N // 2 :, 7] = np.where(
        rng.random(N // 2) < 0.1, x_NxU[N // 2 :, 5], x_NxU[N // 2 :, 7]
    )  # worse where scored
    labels = [Label("quotes", label_N, "quote"), Label("depth", depth_N), Label("comment", nothing_N, "comment")]
    quotes, depth, comment = search(x_NxU, labels)
    yes, no = -x_NxU[N // 2 :, 7][label_N[N // 2 :]][:, None], -x_NxU[N // 2 :, 7][~label_N[N // 2 :]][None]
    best = quotes.matches[0]
    assert (best.unit, best.inverted, quotes.verdict) == (7, True, "found")
    assert quotes.score(best.strength) == pytest.approx((yes > no).mean(), abs=1e-6)
    assert (depth.matches[0].unit, depth.matches[0].inverted, depth.verdict) == (3, False, "found")
    assert (comment.matches, comment.verdict) == ([], "not in this text")


def test_what_no_unit_follows_is_not_found() -> None:
    """Fifty times fresh; units and labels that both stay as they are for a while fit each other by chance."""
    wrong = 0
    for _ in range(50):
        rng = np.random.default_rng()
        x_NxU = drifting(rng, 3000, 20)
        depth_N = drifting(rng, 3000, 1)[:, 0].round()
        found = search(x_NxU, [Label("quotes", stretches(rng, 3000, 60)), Label("depth", depth_N)], turns=40)
        wrong += sum(one.verdict != "not found" for one in found)
        assert all(0 < one.chance < 1 for one in found)
    assert wrong <= 3, "each is wrong once in some hundreds"


def test_a_shuffled_label_would_find_chance(rng: np.random.Generator) -> None:
    """Why labels are turned round: shuffled, they would say that chance reaches far less than it does."""
    x_NxU, label_N = drifting(rng, 4000, 30, keep=0.99), stretches(rng, 4000, 100)
    chance = search(x_NxU, [Label("quotes", label_N)])[0].chance
    shuffled_KxN = np.stack([rng.permutation(label_N[2000:]) for _ in range(100)])
    assert chance > 2 * np.abs(Half(x_NxU[2000:]).strengths(shuffled_KxN)).max()


def test_a_text_of_few_stretches_tells_nothing(rng: np.random.Generator) -> None:
    label_N = np.arange(1000) % 250 < 125  # four stretches a half
    for N in (1000, 2, 1):
        assert search(drifting(rng, N, 3), [Label("quotes", label_N[:N])])[0].matches == []


def test_the_report_names_each_unit_once_by_what_it_follows_best(monkeypatch: pytest.MonkeyPatch) -> None:
    yes, number = np.array([True, False]), np.array([1.0, 2.0], np.float32)
    found = [
        Found(Label("strings", yes, "quote"), [Match(5, 0.7, True), Match(6, 0.1, False)], 0.2),
        Found(
            Label("column", number, "line length"),
            [Match(5, 0.5, False), Match(0, 0.9, False), Match(2, 0.59, False)],
            0.3,
        ),
        Found(Label("links", yes), [Match(1, 0.1, False)], 0.4),
        Found(Label("comments", yes, "comment"), [], 0.0),
    ]
    strings = {"about": "strings", "measure": "auc", "layer": 2, "unit": 2, "score": 0.85, "inverted": True}
    column = {"about": "column", "measure": "correlation"}
    assert report_of(found, units=4) == {
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
    }
    monkeypatch.setattr(module, "CLEAR", 0.4)
    assert found[1].verdict == "found"
