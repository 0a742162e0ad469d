"""Combinations of parameters, most of them slow."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def combined(*axes: Iterable[Any]) -> list[Any]:
    """Combine all values of the axes. A few combinations, which together cover each value, are quick; the others are
    marked slow."""
    values = [list(axis) for axis in axes]
    quick = {tuple(i % len(axis) for axis in values) for i in range(max(map(len, values)))}
    return [
        pytest.param(*map(list.__getitem__, values, places), marks=[] if places in quick else pytest.mark.slow)
        for places in itertools.product(*(range(len(axis)) for axis in values))
    ]
