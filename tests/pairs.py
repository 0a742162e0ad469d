"""Combinations of parameters, most of them slow."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def pairwise(*axes: Iterable[Any]) -> list[Any]:
    """Combine all values of the axes. Those that together cover each pair of values are quick, the others slow."""
    combinations = list(itertools.product(*axes))
    pairs = [set(itertools.combinations(enumerate(combination), 2)) for combination in combinations]
    missing, quick = set().union(*pairs), set[int]()
    while missing:
        best = max(range(len(pairs)), key=lambda i: len(pairs[i] & missing))
        missing -= pairs[best]
        quick.add(best)
    return [
        pytest.param(*combination, marks=[] if i in quick else pytest.mark.slow)
        for i, combination in enumerate(combinations)
    ]
