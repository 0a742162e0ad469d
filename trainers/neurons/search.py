"""The search for units that follow a label: every unit is scored on every label of a text.

A binary label is scored by AUC, the probability that a unit is higher at a random character inside the label than at
one outside; a numeric label by Spearman's rank correlation. Both use ranks only. Here each is a strength from -1 to 1;
for an AUC it is 2 AUC - 1.

Units are chosen on the first half of the text and scored on the second. The chance level is measured by circularly
shifting the label: a shifted label is unrelated to the text but keeps its autocorrelation. A shuffled label would
not: it treats characters as independent although neighbours are similar, and so underestimates chance.

Legend: N characters, U units, K shifts.
"""

from typing import Any, NamedTuple

import numpy as np

from common.types import Array
from trainers.neurons.labels import Label

SHIFTS = 100
FEWEST_RUNS = 5  # runs of a label's value that each half needs for a score
UNITS = 3  # units chosen per label
CLEAR = 0.6  # minimum strength to count as found: an AUC of 0.8, a correlation of 0.6


class Match(NamedTuple):
    """Unit that follows a label.

    strength: on the second half of the text.
    inverted: the unit is low where the label is high; the strength is that of the negated unit.
    """

    unit: int
    strength: float
    inverted: bool


class LabelResult(NamedTuple):
    """Result of the search for one label.

    matches: the chosen units, the strongest on the first half first; empty if the text has too little of the label.
    chance: best strength of any unit on any shifted label.
    followers: all units that follow the label above chance and at CLEAR or more, on both halves.
    """

    label: Label
    matches: list[Match]
    chance: float
    followers: frozenset[int] = frozenset()

    @property
    def verdict(self) -> str:
        """One of "found", "in part" (above chance, below CLEAR), "not found" and "not in this text" (too little)."""
        if not self.matches:
            return "not in this text"
        strength = self.matches[0].strength
        return "not found" if strength <= self.chance else "found" if strength >= CLEAR else "in part"

    def score(self, strength: float) -> float:
        """Convert a strength to the reported measure: AUC, or correlation for a numeric label."""
        return strength if self.label.numeric else (1 + strength) / 2


class RankedHalf:
    """Ranks of every unit in one half of a text."""

    def __init__(self, x_NxU: Array):
        self.ranks_NxU = np.empty(x_NxU.shape, np.float32)
        for unit in range(x_NxU.shape[1]):
            self.ranks_NxU[:, unit] = ranks(x_NxU[:, unit])
        self.length_U = np.linalg.norm(self.ranks_NxU, axis=0)

    def strengths(self, values_KxN: Array) -> Array:
        """Score every unit on labels of this half: strength_KxU, 0 if the unit or the label is constant."""
        if values_KxN.dtype == bool:
            share_Kx1 = values_KxN.mean(1, dtype=np.float64)[:, None]
            # The sum of ranks inside the label is n1 n0 (AUC - 1/2), for ranks in steps of 1; here a step is 1/N.
            scale_KxU = 2 / np.maximum(share_Kx1 * (1 - share_Kx1), 1e-12) / values_KxN.shape[1]
            scale_KxU = np.where((share_Kx1 > 0) & (share_Kx1 < 1), scale_KxU, 0)
            return (values_KxN.astype(np.float32) @ self.ranks_NxU) * scale_KxU
        length_KxU = np.linalg.norm(values_KxN, axis=1)[:, None] * self.length_U
        products_KxU = values_KxN @ self.ranks_NxU
        return np.divide(products_KxU, length_KxU, out=np.zeros_like(products_KxU), where=length_KxU > 0)


def ranks(x_N: Array) -> Array:
    """Rank numbers in steps of 1/N, centred on 0, with ties at their mean: float32, from -1/2 to 1/2."""
    _, index_N, counts = np.unique(x_N, return_inverse=True, return_counts=True)
    middles = (2 * np.cumsum(counts) - counts - len(x_N)) / (2 * len(x_N))
    return middles.astype(np.float32)[index_N]


def search(x_NxU: Array, labels: list[Label], shifts: int = SHIFTS) -> list[LabelResult]:
    """Find the units that follow each label, given their activations x along the text."""
    N = len(x_NxU)
    middle = N // 2
    halves = RankedHalf(x_NxU[:middle]), RankedHalf(x_NxU[middle:])
    offsets = np.random.default_rng(1).integers(N // 20, max(N - N // 20, N // 20 + 1), shifts)
    return [_search(*halves, label, offsets) for label in labels]


def report_of(results: list[LabelResult], units: int) -> dict[str, Any]:
    """Build the report for JSON; layers and units count from 1.

    labels: the verdict and the best unit of each label.
    neurons: each chosen unit that follows a label, with the label it follows best; the strongest first.
    followers: number of units that follow some label clearly.
    """
    labels: list[dict[str, Any]] = []
    neurons: dict[int, tuple[float, dict[str, Any]]] = {}
    for result in results:
        about = {"about": result.label.about, "measure": "correlation" if result.label.numeric else "auc"}
        labels.append(about | {"essay": result.label.essay, "verdict": result.verdict})
        if result.matches:
            chance = round(result.score(result.chance), 4)
            labels[-1] |= {"chance": chance} | _match_entry(result, result.matches[0], units)
        for match in result.matches:
            best = neurons.get(match.unit, (CLEAR, {}))[0]
            if match.strength > result.chance and match.strength >= best:
                neurons[match.unit] = match.strength, about | _match_entry(result, match, units)
    ranked = sorted(neurons.values(), key=lambda pair: -pair[0])
    followers = frozenset[int]().union(*(result.followers for result in results))
    return {"neurons": [neuron for _, neuron in ranked], "labels": labels, "followers": len(followers)}


def _match_entry(result: LabelResult, match: Match, units: int) -> dict[str, Any]:
    layer, unit = divmod(match.unit, units)
    score = round(result.score(match.strength), 4)
    return {"layer": layer + 1, "unit": unit + 1, "score": score, "inverted": match.inverted}


def _search(first: RankedHalf, second: RankedHalf, label: Label, offsets: Array) -> LabelResult:
    values_N, middle = label.values_N, len(first.ranks_NxU)
    if not all(map(_has_enough_runs, (values_N[:middle], values_N[middle:]))):
        return LabelResult(label, [], 0.0)
    first_U, second_U = (
        half.strengths(_ranked(part[None]))[0]
        for half, part in ((first, values_N[:middle]), (second, values_N[middle:]))
    )
    shifted_KxN = np.stack([np.roll(values_N, offset)[middle:] for offset in offsets])
    chance = float(np.abs(second.strengths(_ranked(shifted_KxN))).max())
    best = np.argsort(-np.abs(first_U), kind="stable")[:UNITS]
    matches = [
        Match(int(unit), float(second_U[unit] * np.sign(first_U[unit])), bool(first_U[unit] < 0)) for unit in best
    ]
    least_U = np.minimum(np.abs(first_U), second_U * np.sign(first_U))
    return LabelResult(label, matches, chance, frozenset(np.flatnonzero(least_U >= max(CLEAR, chance)).tolist()))


def _ranked(values_KxN: Array) -> Array:
    """Replace numeric labels by their ranks; binary labels stay as they are."""
    return values_KxN if values_KxN.dtype == bool else np.stack([ranks(values_N) for values_N in values_KxN])


def _has_enough_runs(values_N: Array) -> bool:
    return int((values_N[1:] != values_N[:-1]).sum()) >= 2 * FEWEST_RUNS
