"""An excerpt of a text, coloured by any unit: a self-contained page, and a picture for a paper.

Legend: E ids of the excerpt, C its characters, U units of all layers, K likeliest.
"""

import base64
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common import console
from common.files import whole_file
from common.pages import render
from common.printable import glyph
from common.types import Array
from pipeline.vocab import Vocab
from trainers.neurons.labels import documents_of

LISTED = 40  # units listed without a label
FLAT = 0.5  # a colour range below this, of 2, cannot be seen
PLOT = 200  # side of a plot of gates
GREEN, BLUE, RED = "#6fd3a4", "#8fbdf5", "#f08b7a"  # as in the page's light theme
DRAWN, COLUMNS = 800, 80  # maximum characters in the picture and in one of its lines
ROW = 1.7, 0.85  # heights of a character and of a prediction, in column widths


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Part of a text, with data per character, taken after the character's last byte.

    start: offset of the first id.
    characters_C: characters; "" for the end of a document.
    values_CxU: the units' values: c of an LSTM (`cells` is true), h of other cells.
    ids_CxK, p_CxK: the likeliest next ids and their probabilities.
    symbols: printable form of each id.
    """

    start: int
    characters_C: list[str]
    values_CxU: Array
    ids_CxK: Array
    p_CxK: Array
    symbols: list[str]
    cells: bool

    @property
    def colour_CxU(self) -> Array:
        """Colours of the units, -1 to 1: tanh(c), or h."""
        return np.tanh(self.values_CxU) if self.cells else self.values_CxU

    @property
    def own_CxU(self) -> Array:
        """Values scaled to each unit's own range: -1 at its minimum, 1 at its maximum."""
        low_U, high_U = self.values_CxU.min(0), self.values_CxU.max(0)
        return (2 * self.values_CxU - low_U - high_U) / np.where(high_U > low_U, high_U - low_U, 1)

    @property
    def flat_U(self) -> Array:
        """Units whose colour hardly changes, such as counters with c far from 0: these are shown by their own range."""
        return np.ptp(self.colour_CxU, axis=0) < FLAT

    @classmethod
    def of(
        cls,
        ids_E: Array,
        vocab: Vocab,
        start: int,
        values_ExU: Array,
        ids_ExK: Array,
        p_ExK: Array,
        cells: bool = False,
    ) -> "Excerpt":
        """Build an excerpt from data per id."""
        characters: list[str] = []
        lengths: list[int] = []
        for text, lengths_C, ended in documents_of(ids_E, vocab):
            characters += [*text, *[""] * ended]
            lengths += [*lengths_C.tolist(), *[1] * ended]
        last_C = np.cumsum(lengths) - 1
        by_byte = vocab.unit == "byte"
        symbols = [b.hex() if by_byte and b >= b"\x80" else glyph(b.decode()) for b in vocab.symbols]
        return cls(start, characters, values_ExU[last_C], ids_ExK[last_C], p_ExK[last_C], symbols, cells)


@dataclasses.dataclass(frozen=True)
class Page:
    """Contents of the page for a run; layers and units count from 1.

    unit: "byte" or "char".
    variance_U: variance of each unit's colour over the text.
    report: contents of the JSON file.
    """

    run: str
    unit: str
    layers: int
    units: int
    variance_U: Array
    report: dict[str, Any]

    @property
    def first(self) -> tuple[int, int]:
        """Layer and unit to show first: the first of those listed."""
        neuron = self.listed()[0]
        return neuron["layer"], neuron["unit"]

    def listed(self) -> list[dict[str, Any]]:
        """Units to choose from: those that follow a label, then LISTED others by variance."""
        neurons = self.report["neurons"]
        labelled = {(neuron["layer"], neuron["unit"]) for neuron in neurons}
        by_variance = [(int(k) // self.units + 1, int(k) % self.units + 1) for k in np.argsort(-self.variance_U)]
        rest = [{"layer": layer, "unit": unit} for layer, unit in by_variance if (layer, unit) not in labelled]
        return neurons + rest[:LISTED]

    def about(self, layer: int, unit: int) -> str:
        """Description of the label that a unit follows; empty if there is none."""
        return next((n["about"] for n in self.report["neurons"] if (n["layer"], n["unit"]) == (layer, unit)), "")


def write_page(path: Path, page: Page, excerpt: Excerpt, first: tuple[int, int]) -> None:
    """Write the page atomically. first: layer and unit to show first."""
    data = {
        "characters": [c if c == " " else glyph(c) for c in excerpt.characters_C],
        "breaks": [k for k, c in enumerate(excerpt.characters_C) if c in ("\n", "")],
        "colour": _packed(excerpt.colour_CxU),
        "own": _packed(excerpt.own_CxU),
        "low": excerpt.values_CxU.min(0).round(3).tolist(),
        "high": excerpt.values_CxU.max(0).round(3).tolist(),
        "flat": excerpt.flat_U.tolist(),
        "symbols": excerpt.symbols,
        "ids": excerpt.ids_CxK.ravel().tolist(),
        "p": np.round(100 * excerpt.p_CxK.ravel()).astype(int).tolist(),
        "layers": page.layers,
        "units": page.units,
    }
    html = render(
        "trainers.neurons",
        "neurons.html.j2",
        page=page,
        excerpt=excerpt,
        report=page.report,
        data=data,
        first=first,
        side=PLOT,
    )
    with whole_file(path) as partial:
        partial.write_text(html, encoding="utf-8")


def _packed(x_CxU: Array) -> str:
    """Pack numbers from -1 to 1 for the page: one byte each, unit by unit, in base64."""
    return base64.b64encode(np.round(x_CxU.T * 127).astype(np.int8).tobytes()).decode()


def draw(path: Path, page: Page, excerpt: Excerpt, layer: int, unit: int) -> None:
    """Draw the beginning of an excerpt: characters coloured by a unit, each above its likeliest next characters, where
    a deeper red is likelier."""
    index = (layer - 1) * page.units + unit - 1
    flat = bool(excerpt.flat_U[index])
    lines = _lines(excerpt.characters_C[:DRAWN])
    height = ROW[0] + excerpt.ids_CxK.shape[1] * ROW[1] + 0.7
    with mpl.rc_context({"font.family": "monospace", "svg.fonttype": "none"}):
        figure = Figure(figsize=(COLUMNS * 0.13, (len(lines) * height + 1.5) * 0.13), dpi=200)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(-0.5, COLUMNS + 0.5), ylim=(len(lines) * height + 1, -0.5))
        axes.axis("off")
        values_C = (excerpt.own_CxU if flat else excerpt.colour_CxU)[:, index]
        for row, line in enumerate(lines):
            for column, k in enumerate(line):
                _draw(axes, column, row * height, excerpt, k, float(values_C[k]))
        with whole_file(path) as partial, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # characters missing from the font are drawn as boxes
            figure.savefig(partial, format=path.suffix.lower().removeprefix("."))
    cut = len(excerpt.characters_C) > DRAWN
    about = page.about(layer, unit)
    title = f"unit {unit} of layer {layer}{f' ({about})' if about else ''}{' by its own range' if flat else ''}"
    console.note(f"{path}: {title}{f', the first {DRAWN} characters of the excerpt' if cut else ''}")


def _draw(axes: Axes, x: float, y: float, excerpt: Excerpt, k: int, value: float) -> None:
    """Draw one character and its predictions."""

    def cell(y: float, height: float, colour: str, weight: float, text: str, size: float) -> None:
        shade = tuple(1 - weight * (1 - c) for c in to_rgb(colour))
        axes.add_patch(Rectangle((x, y), 1, height, facecolor=shade, linewidth=0))
        axes.text(x + 0.5, y + height / 2, text.replace("$", r"\$"), ha="center", va="center", fontsize=size)

    character = excerpt.characters_C[k]
    cell(y, ROW[0], GREEN if value > 0 else BLUE, abs(value), character if character == " " else glyph(character), 9)
    for index, (token, p) in enumerate(zip(excerpt.ids_CxK[k], excerpt.p_CxK[k], strict=True)):
        cell(y + ROW[0] + index * ROW[1], ROW[1], RED, float(p), excerpt.symbols[token], 5)


def _lines(characters: list[str]) -> list[list[int]]:
    """Break characters into lines of indices, at newlines and at COLUMNS."""
    lines: list[list[int]] = [[]]
    for k, character in enumerate(characters):
        if len(lines[-1]) == COLUMNS:
            lines.append([])
        lines[-1].append(k)
        if character == "\n":
            lines.append([])
    return [line for line in lines if line]
