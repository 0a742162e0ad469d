"""The search for units that follow something: every unit held against every label of a text.

A yes or no is scored by AUC, the chance that a unit is higher at a character that has the label than at one that has
not; a number by Spearman's rank correlation. Both see ranks alone, and both are kept here as a strength from -1 to 1,
of an AUC 2 AUC - 1, so that what is said below holds for either.

Units are chosen on the first half of the text and scored on the second. What chance reaches is measured: the label
turned round by some distance says nothing of the text, yet stays in one state as long as it did. A shuffled one does
not: neighbours have both label and state in common, so a text has far fewer independent places than characters, and a
shuffle, which takes them all for independent, would find chance in far too narrow a range.

Legend: N characters, U units, K distances.
"""

from typing import Any, NamedTuple

import numpy as np

from common.types import Array
from trainers.neurons.labels import Label

TURNS = 100  # distances that a label is turned by
FEWEST_RUNS = 5  # stretches of a yes-or-no that each half needs: with fewer there is nothing to be held against
UNITS = 3  # that are chosen for a label
CLEAR = 0.6  # the strength from which a unit counts as found: an AUC of 0.8, a correlation of 0.6


class Match(NamedTuple):
    """How well a unit follows a label: its strength on the half that it was not chosen on, and whether it does so the
    wrong way round, being low where the label is high: then the strength is that of its opposite."""

    unit: int
    strength: float
    inverted: bool


class Found(NamedTuple):
    """What was found of a label: the units chosen for it, the strongest on the first half first, and the strength that
    the best of all units reaches on a label that says nothing. Where the text has too little of it, no units."""

    label: Label
    matches: list[Match]
    chance: float

    @property
    def verdict(self) -> str:
        """found; in part: beyond chance, but below CLEAR; not found; not in this text, or hardly."""
        if not self.matches:
            return "not in this text"
        strength = self.matches[0].strength
        return "not found" if strength <= self.chance else "found" if strength >= CLEAR else "in part"

    def score(self, strength: float) -> float:
        """A strength as it is reported: the AUC, or of a number the correlation."""
        return strength if self.label.numeric else (1 + strength) / 2


class Half:
    """One half of a text: the ranks of every unit."""

    def __init__(self, x_NxU: Array):
        self.ranks_NxU = np.empty(x_NxU.shape, np.float32)
        for unit in range(x_NxU.shape[1]):
            self.ranks_NxU[:, unit] = ranks(x_NxU[:, unit])
        self.length_U = np.linalg.norm(self.ranks_NxU, axis=0)

    def strengths(self, values_KxN: Array) -> Array:
        """The strength of every unit on labels of this half, strength_KxU; 0 where either is always the same."""
        if values_KxN.dtype == bool:
            share_Kx1 = values_KxN.mean(1, dtype=np.float64)[:, None]
            # Sum of ranks where yes: n1 n0 (AUC - 1/2), in ranks of 1; they are in N-ths here.
            scale_KxU = 2 / np.maximum(share_Kx1 * (1 - share_Kx1), 1e-12) / values_KxN.shape[1]
            scale_KxU = np.where((share_Kx1 > 0) & (share_Kx1 < 1), scale_KxU, 0)
            return (values_KxN.astype(np.float32) @ self.ranks_NxU) * scale_KxU
        length_KxU = np.linalg.norm(values_KxN, axis=1)[:, None] * self.length_U
        products_KxU = values_KxN @ self.ranks_NxU
        return np.divide(products_KxU, length_KxU, out=np.zeros_like(products_KxU), where=length_KxU > 0)


def ranks(x_N: Array) -> Array:
    """The rank of each number, ties at the mean of theirs, around 0 and in N-ths: float32, from -1/2 to 1/2."""
    _, place_N, counts = np.unique(x_N, return_inverse=True, return_counts=True)
    middles = (2 * np.cumsum(counts) - counts - len(x_N)) / (2 * len(x_N))
    return middles.astype(np.float32)[place_N]


def search(x_NxU: Array, labels: list[Label], turns: int = TURNS, seed: int = 1) -> list[Found]:
    """What every label finds among the units, whose states along the text are x."""
    N = len(x_NxU)
    middle = N // 2
    halves = Half(x_NxU[:middle]), Half(x_NxU[middle:])
    distances = np.random.default_rng(seed).integers(N // 20, max(N - N // 20, N // 20 + 1), turns)
    return [_search(*halves, label, distances) for label in labels]


def report_of(found: list[Found], units: int) -> dict[str, Any]:
    """What the search says, as JSON has it: of each label its verdict and its best unit; of each unit that was found to
    follow something, the clearest first, what it follows best. Layers and units from 1."""
    labels: list[dict[str, Any]] = []
    neurons: dict[int, tuple[float, dict[str, Any]]] = {}
    for one in found:
        about = {"about": one.label.about, "measure": "correlation" if one.label.numeric else "auc"}
        labels.append(about | {"essay": one.label.essay, "verdict": one.verdict})
        if one.matches:
            labels[-1] |= {"chance": round(one.score(one.chance), 4)} | _place(one, one.matches[0], units)
        for match in one.matches:
            best = neurons.get(match.unit, (CLEAR, {}))[0]
            if match.strength > one.chance and match.strength >= best:
                neurons[match.unit] = match.strength, about | _place(one, match, units)
    ranked = sorted(neurons.values(), key=lambda pair: -pair[0])
    return {"neurons": [neuron for _, neuron in ranked], "labels": labels}


def _place(found: Found, match: Match, units: int) -> dict[str, Any]:
    """Where a unit is, from 1, and how well it follows a label."""
    layer, unit = divmod(match.unit, units)
    score = round(found.score(match.strength), 4)
    return {"layer": layer + 1, "unit": unit + 1, "score": score, "inverted": match.inverted}


def _search(first: Half, second: Half, label: Label, distances: Array) -> Found:
    values_N, middle = label.values_N, len(first.ranks_NxU)
    if not all(map(_enough, (values_N[:middle], values_N[middle:]))):
        return Found(label, [], 0.0)
    chosen_U, held_U = (
        half.strengths(_ready(part[None]))[0]
        for half, part in ((first, values_N[:middle]), (second, values_N[middle:]))
    )
    turned_KxN = np.stack([np.roll(values_N, distance)[middle:] for distance in distances])
    chance = float(np.abs(second.strengths(_ready(turned_KxN))).max())
    best = np.argsort(-np.abs(chosen_U), kind="stable")[:UNITS]
    matches = [
        Match(int(unit), float(held_U[unit] * np.sign(chosen_U[unit])), bool(chosen_U[unit] < 0)) for unit in best
    ]
    return Found(label, matches, chance)


def _ready(values_KxN: Array) -> Array:
    """Labels as `strengths` wants them: of numbers their ranks."""
    return values_KxN if values_KxN.dtype == bool else np.stack([ranks(values_N) for values_N in values_KxN])


def _enough(values_N: Array) -> bool:
    """Whether a half has enough of a label: FEWEST_RUNS changes, so that chance can be told from it."""
    return int((values_N[1:] != values_N[:-1]).sum()) >= 2 * FEWEST_RUNS
