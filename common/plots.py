"""Plots as the numbers that an inline SVG needs: places in a box of WIDTH by HEIGHT, measured from its top left. It is
small, so that letters of 12 are 10 pixels or more where it is drawn as wide as a phone."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

WIDTH, HEIGHT = 304, 180
NARROW = " .,:fijlrt"
TILT, LINE = 40, 20  # degrees, and how far labels that are tilted must be apart
MOST_POINTS = 200


@dataclasses.dataclass(frozen=True)
class Plot:
    """curves: for each series the points of a polyline, "x,y x,y". bars: for each series (x, y, width, height).
    x_ticks, y_ticks: (place, label). absent: the middles, from the left, of bars that there are none of. numbers: what
    is drawn, in words. tilt: of the labels below, in degrees; below: the height that they take."""

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
    """A curve for each series of (x, y), all positive, on axes in powers of ten."""
    points = [point for one in series for point in one] or [(1, 1)]
    left, right = _decades([x for x, _ in points])
    bottom, top = _decades([y for _, y in points])
    right, bottom = max(right, left + 1), min(bottom, top - 1)

    def x_of(x: float) -> float:
        return (math.log10(x) - left) / (right - left) * WIDTH

    def y_of(y: float) -> float:
        return HEIGHT - (math.log10(y) - bottom) / (top - bottom) * HEIGHT

    lines = [" ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in _thinned(one)) for one in series]
    x_ticks = [(x_of(10.0**power), _power(power)) for power in range(left, right + 1)]
    y_ticks = [(y_of(10.0**power), _power(power)) for power in range(bottom, top + 1)]
    reached = [
        (_power(power), [f"{last[-1]:.3g}" for one in series if (last := [y for x, y in one if x <= 10.0**power])])
        for power in range(left, right + 1)
    ]
    return Plot(x_ticks, y_ticks, _words(reached), curves=lines)


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def bars(series: Sequence[Sequence[float | None]], labels: list[str], tick: Callable[[float], str] = percent) -> Plot:
    """A group of bars for each label, one bar a series; heights are from 0, and as `tick` names them. None: unknown."""
    most = max((share for one in series for share in one if share is not None), default=0) or 1
    group = WIDTH / max(len(labels), 1)
    width = 0.8 * group / max(len(series), 1)
    drawn = [
        [
            ((index + 0.1) * group + k * width, HEIGHT * (1 - share / most), width, HEIGHT * share / most)
            for index, share in enumerate(one)
            if share
        ]
        for k, one in enumerate(series)
    ]
    absent = [
        (index + 0.1) * group + (k + 0.5) * width
        for k, one in enumerate(series)
        for index, share in enumerate(one)
        if share is None
    ]
    # Labels that would run into each other are tilted, and left out where they would even so.
    tilted = any((_width(a) + _width(b)) / 2 > group for a, b in itertools.pairwise(labels))
    step = math.ceil(LINE / group) if tilted else 1
    x_ticks = [((index + 0.5) * group, label) for index, label in enumerate(labels) if index % step == 0]
    y_ticks = [(HEIGHT * (1 - part), tick(most * part)) for part in (0, 0.5, 1)]
    numbers = _words((label, [_told(one[index], tick) for one in series if one]) for index, label in enumerate(labels))
    plot = Plot(x_ticks, y_ticks, numbers, bars=drawn, absent=absent)
    if not tilted:
        return plot
    below = 14 + max(map(_width, labels)) * math.sin(math.radians(TILT))
    return dataclasses.replace(plot, tilt=TILT, below=below)


def _told(value: float | None, tick: Callable[[float], str]) -> str:
    """A height as `tick` names it, or that there is none."""
    return "–" if value is None else tick(value)


def _width(label: str) -> float:
    """How wide a label is, about, and what keeps it apart from the next."""
    return 4 + sum(4 if character in NARROW else 7.5 for character in label)


def _words(values: Iterable[tuple[str, list[str]]]) -> str:
    """What each series has at each place, to be read aloud."""
    return "; ".join(f"{label}: {' and '.join(said)}" for label, said in values)


def _decades(values: list[float]) -> tuple[int, int]:
    """The powers of ten that values lie between."""
    return math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them, as evenly as powers are, with the first and the last; one alone twice, as SVG draws
    none."""
    if len(points) <= MOST_POINTS:
        return points * 2 if len(points) == 1 else points
    wanted = {round(len(points) ** (k / (MOST_POINTS - 1))) - 1 for k in range(MOST_POINTS)}
    return [points[index] for index in sorted(wanted)]


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:.{-power}f}" if power >= -3 else f"1e{power}"
