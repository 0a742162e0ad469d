"""Curves of one or several runs as a picture, from run.json and metrics.jsonl alone: no TensorFlow is imported."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from common import console
from common.errors import StageError, UsageError
from common.files import whole_file
from trainers import metrics

X = Literal["step", "epoch", "seconds"]
LABELS = {"step": "step", "epoch": "epoch", "seconds": "seconds of training"}
# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow, which nobody sees on white; beside
# them each run has a marker of its own, and from the eighth on a dashed line.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"
BELOW = ("gradient_norm", "learning_rate", "per_second")  # the small panels
LONGEST = 60  # characters of a run's name in the legend


@dataclasses.dataclass(frozen=True)
class Curves:
    """What a run reported. x: of each row, in the unit that was asked for."""

    name: str
    unit: str  # byte or char
    rows: list[dict[str, Any]]
    x: list[float]

    def points(self, key: str) -> tuple[list[float], list[float]]:
        """The x and y of the rows that have `key`."""
        found = [(x, row[key]) for x, row in zip(self.x, self.rows, strict=True) if key in row]
        return [x for x, _ in found], [y for _, y in found]

    def best(self) -> tuple[float, dict[str, Any]] | None:
        """The best validation: its x, and its row."""
        found = [(x, row) for x, row in zip(self.x, self.rows, strict=True) if "val_nats" in row]
        return min(found, key=lambda pair: pair[1]["val_nats"], default=None)


def plot(folders: tuple[Path, ...], out: Path, x: X) -> None:
    """Draws the curves of runs over `x` into the picture `out`: PNG, SVG or PDF, as its name says.

    Raises StageError where there is no run, or it has reported nothing yet; UsageError where `out` cannot be a picture.
    """
    kind = out.suffix.lower().removeprefix(".")
    if out.is_dir() or kind not in ("png", "svg", "pdf"):
        raise UsageError(
            f"--out must be a file NAME.png, .svg or .pdf, got {out}{' (a folder)' if out.is_dir() else ''}"
        )
    folders = tuple(dict.fromkeys(folders))
    names = [folder.name for folder in folders]
    twins = {name for name in names if names.count(name) > 1}
    runs = [read(folder, str(folder) if folder.name in twins else folder.name, x) for folder in folders]
    figure = draw(runs, x)
    with whole_file(out) as partial:
        figure.savefig(partial, format=kind)
    console.note(f"{out}: {', '.join(run.name for run in runs)}")


def read(folder: Path, name: str, x: X) -> Curves:
    """What the run of a folder has reported. Raises StageError where there is none, or it has reported nothing yet."""
    path = folder / "run.json"
    if not path.is_file():
        raise StageError(f"there is no run in {folder} (no run.json): make one with python -m trainers train CONFIG")
    rows = metrics.read(folder)
    if not rows:
        raise StageError(f"{folder} has reported nothing yet: its {metrics.METRICS} is empty")
    try:
        unit = json.loads(path.read_text(encoding="utf-8"))["vocab"]["unit"]
    except (KeyError, TypeError, ValueError) as error:
        raise StageError(f"{path} is broken ({type(error).__name__}: {error})") from None
    # A validation takes none of the time of training: it comes at the time of the report before it.
    seconds = itertools.accumulate(row.get("seconds", 0.0) for row in rows)
    return Curves(name, unit, rows, list(seconds) if x == "seconds" else [row[x] for row in rows])


def draw(runs: list[Curves], x: X) -> Figure:
    """Losses above, in nats and bits; the gradient's norm, the learning rate and the speed below."""
    with mpl.rc_context(
        {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(10, 7.5 + 0.2 * len(runs)), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplot_mosaic([["loss"] * 3, list(BELOW)], height_ratios=[5, 2])
        for index, run in enumerate(runs):
            _draw(run, index, panels)
        _finish(figure, panels, runs, x)
    return figure


def _draw(run: Curves, index: int, panels: dict[str, Axes]) -> None:
    """The curves of one run."""
    loss, colour = panels["loss"], COLOURS[index % len(COLOURS)]
    dashes = "-" if index < len(COLOURS) else "--"
    marker = MARKERS[index % len(MARKERS)]
    looks: dict[str, Any] = {"color": colour, "linestyle": dashes}
    loss.plot(*run.points("train_nats"), linewidth=0.8, alpha=0.7, marker=_alone(run, "train_nats"), **looks)
    loss.plot(*run.points("val_nats"), linewidth=1.8, marker=marker, markersize=4, label=_legend(run), **looks)
    if best := run.best():
        loss.plot(best[0], best[1]["val_nats"], marker="*", markersize=15, color=colour, markeredgecolor="white")
    for key in BELOW:
        panels[key].plot(*run.points(key), linewidth=1, marker=_alone(run, key), **looks)


def _alone(run: Curves, key: str) -> str:
    """A marker where there is but one point, of which a line shows nothing."""
    return "." if len(run.points(key)[0]) == 1 else ""


def _legend(run: Curves) -> str:
    half = LONGEST // 2
    name = run.name if len(run.name) <= LONGEST else f"{run.name[: half - 1]}…{run.name[-half:]}"
    name = console.visible(name).replace("$", r"\$")  # else matplotlib sets what is between two as a formula
    if not (best := run.best()):
        return f"{name}: not validated yet"
    return f"{name}: best {best[1]['val_nats']:.4f} nats, {best[1]['val_bits']:.4f} bits at step {best[1]['step']:,}"


def _finish(figure: Figure, panels: dict[str, Axes], runs: list[Curves], x: X) -> None:
    """Axes, labels, legends."""
    units = {run.unit for run in runs}
    unit = units.pop() if len(units) == 1 else "token"
    loss = panels["loss"]
    loss.set_yscale("log")  # the fall from the first loss would leave all that follows flat
    loss.set_ylabel(f"nats a {unit}")
    bits = loss.secondary_yaxis("right", functions=(_to_bits, _to_nats))
    bits.set_ylabel(f"bits a {unit}")
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
    for key, title in zip(BELOW, ("gradient norm", "learning rate", f"{unit}s a second"), strict=True):
        panels[key].set_title(title, fontsize=9)
        panels[key].set_ylim(bottom=0)
        panels[key].yaxis.set_major_formatter(EngFormatter(sep="") if key == "per_second" else "{x:g}")
        if not any(key in row for run in runs for row in run.rows):
            panels[key].set_yticks([])
            panels[key].text(
                0.5, 0.5, "nothing reported yet", transform=panels[key].transAxes, ha="center", color="grey"
            )


def _legends(figure: Figure, loss: Axes) -> None:
    """Above, a line a run; inside, what the kinds of curves are."""
    figure.legend(handles=loss.get_legend_handles_labels()[0], loc="outside upper left")
    looks: dict[str, Any] = {"color": "grey"}
    kinds = [
        Line2D([], [], linewidth=0.8, alpha=0.7, label="train", **looks),
        Line2D([], [], linewidth=1.8, marker="o", markersize=4, label="validation", **looks),
        Line2D([], [], linestyle="", marker="*", markersize=12, label="best validation", **looks),
    ]
    loss.legend(handles=kinds, loc="upper right")


def _to_bits(nats: Any) -> Any:
    return nats / math.log(2)


def _to_nats(bits: Any) -> Any:
    return bits * math.log(2)
