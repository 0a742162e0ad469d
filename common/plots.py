"""Coordinates of plots for inline SVG, in a box of WIDTH by HEIGHT measured from its top left.

The box is small, so that labels of size 12 are at least 10 pixels high on a phone.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

WIDTH, HEIGHT = 304, 180
NARROW = " .,:fijlrt"
TILT, LINE = 40, 20  # degrees, and the distance between tilted labels
MOST_POINTS = 200


@dataclasses.dataclass(frozen=True)
class Plot:
    """Coordinates of a plot's marks and labels.

    x_ticks, y_ticks: (position, label). numbers: the data as a sentence, for screen readers. curves: the points of a
    polyline per series, "x,y x,y". bars: (x, y, width, height) per series. absent: x of the centre of each bar without
    a value. tilt: of the x labels, in degrees; below: their height.
    """

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    numbers: str
    curves: list[str] = dataclasses.field(default_factory=list)
    bars: list[list[tuple[float, float, float, float]]] = dataclasses.field(default_factory=list)
    absent: list[float] = dataclasses.field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    tilt: int = 0
    below: float = 18


def curves(series: list[list[tuple[float, float]]]) -> Plot:
    """Plot a curve per series of (x, y), all positive, on logarithmic axes."""
    points = list(itertools.chain(*series)) or [(1, 1)]
    left, right = _decades([x for x, _ in points])
    bottom, top = _decades([y for _, y in points])
    right, bottom = max(right, left + 1), min(bottom, top - 1)

    def x_of(x: float) -> float:
        return (math.log10(x) - left) / (right - left) * WIDTH

    def y_of(y: float) -> float:
        return HEIGHT - (math.log10(y) - bottom) / (top - bottom) * HEIGHT

    lines = [" ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in _thinned(curve)) for curve in series]
    x_ticks = [(x_of(10.0**power), _power(power)) for power in range(left, right + 1)]
    y_ticks = [(y_of(10.0**power), _power(power)) for power in range(bottom, top + 1)]
    values = [
        (_power(power), [f"{past[-1]:.3g}" for curve in series if (past := [y for x, y in curve if x <= 10.0**power])])
        for power in range(left, right + 1)
    ]
    return Plot(x_ticks, y_ticks, _sentence(values), curves=lines)


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def bars(series: Sequence[Sequence[float | None]], labels: list[str], tick: Callable[[float], str] = percent) -> Plot:
    """Plot a group of bars per label, one bar per series, from 0. None: a missing value. tick: formats heights."""
    highest = max((height for heights in series for height in heights if height is not None), default=0) or 1
    group = WIDTH / max(len(labels), 1)
    width = 0.8 * group / max(len(series), 1)
    boxes = [
        [
            ((index + 0.1) * group + k * width, HEIGHT * (1 - height / highest), width, HEIGHT * height / highest)
            for index, height in enumerate(heights)
            if height
        ]
        for k, heights in enumerate(series)
    ]
    absent = [
        (index + 0.1) * group + (k + 0.5) * width
        for k, heights in enumerate(series)
        for index, height in enumerate(heights)
        if height is None
    ]
    # Labels that would overlap are tilted; those that would still overlap are left out.
    tilted = any((_width(a) + _width(b)) / 2 > group for a, b in itertools.pairwise(labels))
    step = math.ceil(LINE / group) if tilted else 1
    x_ticks = [((index + 0.5) * group, label) for index, label in enumerate(labels) if index % step == 0]
    y_ticks = [(HEIGHT * (1 - part), tick(highest * part)) for part in (0, 0.5, 1)]
    numbers = _sentence(
        (label, [_formatted(heights[index], tick) for heights in series if heights])
        for index, label in enumerate(labels)
    )
    plot = Plot(x_ticks, y_ticks, numbers, bars=boxes, absent=absent)
    if not tilted:
        return plot
    below = 14 + max(map(_width, labels)) * math.sin(math.radians(TILT))
    return dataclasses.replace(plot, tilt=TILT, below=below)


def _formatted(value: float | None, tick: Callable[[float], str]) -> str:
    return "–" if value is None else tick(value)


def _width(label: str) -> float:
    """Approximate width of a label, with the space to the next."""
    return 4 + sum(4 if character in NARROW else 7.5 for character in label)


def _sentence(values: Iterable[tuple[str, list[str]]]) -> str:
    """Values of all series at each label, for screen readers."""
    return "; ".join(f"{label}: {' and '.join(formatted)}" for label, formatted in values)


def _decades(values: list[float]) -> tuple[int, int]:
    """Exponents of the powers of ten that enclose the values."""
    return math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep at most MOST_POINTS points, evenly spaced on a logarithmic axis, with the first and the last.

    A single point is repeated, since SVG draws nothing for a polyline of one point.
    """
    if len(points) <= MOST_POINTS:
        return points * 2 if len(points) == 1 else points
    indices = {round(len(points) ** (k / (MOST_POINTS - 1))) - 1 for k in range(MOST_POINTS)}
    return [points[index] for index in sorted(indices)]


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:.{-power}f}" if power >= -3 else f"1e{power}"
