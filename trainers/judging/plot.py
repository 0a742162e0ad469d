"""Training curves of one or more runs as a picture, read from run.json and metrics.jsonl without TensorFlow."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from common import console
from common.errors import StageError, UsageError
from common.files import load_json, whole_file
from common.printable import visible
from trainers import metrics

X = Literal["step", "epoch", "seconds"]
LABELS = {"step": "step", "epoch": "epoch", "seconds": "seconds of training"}
# Okabe and Ito's palette for colour-blind readers, without its yellow, which is invisible on white. Each run also has
# its own marker, and a dashed line from the eighth run on.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"
BELOW = ("gradient_norm", "learning_rate", "per_second")  # the small panels
LONGEST_NAME = 60  # characters of a run's name in the legend


@dataclasses.dataclass(frozen=True)
class Curves:
    """Metrics of a run. x: the horizontal position of each row."""

    name: str
    unit: str  # byte or char
    rows: list[dict[str, Any]]
    x: list[float]

    def points(self, key: str) -> tuple[list[float], list[float]]:
        """x and y of the rows that have `key`."""
        points = [(x, row[key]) for x, row in zip(self.x, self.rows, strict=True) if key in row]
        return [x for x, _ in points], [y for _, y in points]

    def best(self) -> tuple[float, dict[str, Any]] | None:
        """x and row of the best validation; None before the first."""
        validations = [(x, row) for x, row in zip(self.x, self.rows, strict=True) if "val_nats" in row]
        return min(validations, key=lambda pair: pair[1]["val_nats"], default=None)


def plot(folders: tuple[Path, ...], out: Path, x: X) -> None:
    """Plot the curves of runs over `x` into `out`, a PNG, SVG or PDF by its suffix.

    Raises StageError if a folder holds no run or no metrics yet, UsageError if `out` has another suffix or is a folder.
    """
    kind = out.suffix.lower().removeprefix(".")
    if out.is_dir() or kind not in ("png", "svg", "pdf"):
        raise UsageError(
            f"--out must be a file NAME.png, .svg or .pdf, got {out}{' (a folder)' if out.is_dir() else ''}"
        )
    folders = tuple(dict.fromkeys(folders))
    names = [folder.name for folder in folders]
    repeated = {name for name in names if names.count(name) > 1}
    runs = [read(folder, str(folder) if folder.name in repeated else folder.name, x) for folder in folders]
    figure = draw(runs, x)
    with whole_file(out) as partial:
        figure.savefig(partial, format=kind)
    console.note(f"{out}: {', '.join(run.name for run in runs)}")


def read(folder: Path, name: str, x: X) -> Curves:
    """Read the metrics of the run in a folder. Raises StageError if it holds no run or no metrics yet."""
    path = folder / "run.json"
    if not path.is_file():
        raise StageError(f"no run in {folder} (run.json is missing): train one with python -m trainers train CONFIG")
    rows = metrics.read(folder)
    if not rows:
        raise StageError(f"{folder} has no metrics yet: {metrics.METRICS} is empty")
    try:
        unit = load_json(path)["vocab"]["unit"]
    except (KeyError, TypeError, ValueError) as error:
        raise StageError(f"{path} is corrupted ({type(error).__name__}: {error})") from None
    # Validation is not training time, so it is plotted at the time of the preceding report.
    seconds = itertools.accumulate(row.get("seconds", 0.0) for row in rows)
    return Curves(name, unit, rows, list(seconds) if x == "seconds" else [row[x] for row in rows])


def draw(runs: list[Curves], x: X) -> Figure:
    """Draw the losses above, in nats and bits, and the gradient norm, learning rate and speed below."""
    with mpl.rc_context(
        {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(10, 7.5 + 0.2 * len(runs)), dpi=120, layout="constrained")
        panels = figure.subplot_mosaic([["loss"] * 3, list(BELOW)], height_ratios=[5, 2])
        for index, run in enumerate(runs):
            _draw(run, index, panels)
        _finish(figure, panels, runs, x)
    return figure


def _draw(run: Curves, index: int, panels: dict[str, Axes]) -> None:
    """Draw the curves of one run."""
    loss, colour = panels["loss"], COLOURS[index % len(COLOURS)]
    dashes = "-" if index < len(COLOURS) else "--"
    marker = MARKERS[index % len(MARKERS)]
    style: dict[str, Any] = {"color": colour, "linestyle": dashes}
    loss.plot(*run.points("train_nats"), linewidth=0.8, alpha=0.7, marker=_point_marker(run, "train_nats"), **style)
    loss.plot(*run.points("val_nats"), linewidth=1.8, marker=marker, markersize=4, label=_legend(run), **style)
    if best := run.best():
        loss.plot(best[0], best[1]["val_nats"], marker="*", markersize=15, color=colour, markeredgecolor="white")
    for key in BELOW:
        panels[key].plot(*run.points(key), linewidth=1, marker=_point_marker(run, key), **style)


def _point_marker(run: Curves, key: str) -> str:
    """Marker for a curve of a single point, which a line would not show."""
    return "." if len(run.points(key)[0]) == 1 else ""


def _legend(run: Curves) -> str:
    half = LONGEST_NAME // 2
    name = run.name if len(run.name) <= LONGEST_NAME else f"{run.name[: half - 1]}…{run.name[-half:]}"
    name = visible(name).replace("$", r"\$")  # matplotlib would read text between two $ as a formula
    if not (best := run.best()):
        return f"{name}: not validated yet"
    return f"{name}: best {best[1]['val_nats']:.4f} nats, {best[1]['val_bits']:.4f} bits at step {best[1]['step']:,}"


def _finish(figure: Figure, panels: dict[str, Axes], runs: list[Curves], x: X) -> None:
    """Set axes, labels and legends."""
    units = {run.unit for run in runs}
    unit = units.pop() if len(units) == 1 else "token"
    loss = panels["loss"]
    loss.set_yscale("log")  # on a linear axis the first drop would flatten the rest
    loss.set_ylabel(f"nats per {unit}")
    bits = loss.secondary_yaxis("right", functions=(_to_bits, _to_nats))
    bits.set_ylabel(f"bits per {unit}")
    for axis in (loss.yaxis, bits.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), numticks=100))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    right = max(max(run.x) for run in runs) or 1
    for axes in panels.values():
        axes.set_xlabel(LABELS[x])
        axes.set_xlim(-0.02 * right, 1.03 * right)
        if x == "step":
            axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _finish_below(panels, runs, unit)
    _legends(figure, loss)


def _finish_below(panels: dict[str, Axes], runs: list[Curves], unit: str) -> None:
    for key, title in zip(BELOW, ("gradient norm", "learning rate", f"{unit}s per second"), strict=True):
        panels[key].set_title(title, fontsize=9)
        panels[key].set_ylim(bottom=0)
        panels[key].yaxis.set_major_formatter(EngFormatter(sep="") if key == "per_second" else "{x:g}")
        if not any(key in row for run in runs for row in run.rows):
            panels[key].set_yticks([])
            panels[key].text(0.5, 0.5, "no data yet", transform=panels[key].transAxes, ha="center", color="grey")


def _legends(figure: Figure, loss: Axes) -> None:
    """Add a legend of runs above the plot, and one of line styles inside it."""
    figure.legend(handles=loss.get_legend_handles_labels()[0], loc="outside upper left")
    style: dict[str, Any] = {"color": "grey"}
    kinds = [
        Line2D([], [], linewidth=0.8, alpha=0.7, label="train", **style),
        Line2D([], [], linewidth=1.8, marker="o", markersize=4, label="validation", **style),
        Line2D([], [], linestyle="", marker="*", markersize=12, label="best validation", **style),
    ]
    loss.legend(handles=kinds, loc="upper right")


def _to_bits(nats: Any) -> Any:
    return nats / math.log(2)


def _to_nats(bits: Any) -> Any:
    return bits * math.log(2)
