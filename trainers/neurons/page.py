"""An excerpt of a text, to be coloured by any unit: a page that needs nothing but itself, and a picture for a paper.

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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common import console
from common.files import whole_file
from common.pages import render
from common.printable import glyph
from common.types import Array
from pipeline.vocab import ASCII, Vocab
from trainers.neurons.labels import pieces_of

LISTED = 40  # units that no label was found for, those that vary most
FLAT = 0.5  # the range of a colour, of 2, that shows nothing
PLOT = 200  # the side of a plot of gates
GREEN, BLUE, RED = (
    "#6fd3a4",
    "#8fbdf5",
    "#f08b7a",
)  # of the picture; the page has the first two, and its own for the dark
DRAWN, COLUMNS = 800, 80  # characters of the picture, at most, and of a line of it
ROW = 1.7, 0.85  # heights of a character and of an expectation, in widths of a column


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A stretch of the text. start: of its first id; characters_C, those that end a document empty; held_CxU, what the
    units hold, and what is expected next, ids_CxK and p_CxK, all after the last byte of each character; symbols: of the
    ids, as they are shown; cells: what is held is c of an LSTM."""

    start: int
    characters_C: list[str]
    held_CxU: Array
    ids_CxK: Array
    p_CxK: Array
    symbols: list[str]
    cells: bool

    @property
    def colour_CxU(self) -> Array:
        """What the units are coloured by, -1 to 1: tanh(c), or h."""
        return np.tanh(self.held_CxU) if self.cells else self.held_CxU

    @property
    def own_CxU(self) -> Array:
        """The same by each unit's own range, from its least, -1, to its most, 1."""
        low_U, high_U = self.held_CxU.min(0), self.held_CxU.max(0)
        return (2 * self.held_CxU - low_U - high_U) / np.where(high_U > low_U, high_U - low_U, 1)

    @property
    def flat_U(self) -> Array:
        """Which units hardly change their colour: those of c far from 0 may still count on. They are shown by their own
        range."""
        return np.ptp(self.colour_CxU, axis=0) < FLAT

    @classmethod
    def of(
        cls,
        ids_E: Array,
        vocab: Vocab,
        start: int,
        held_ExU: Array,
        ids_ExK: Array,
        p_ExK: Array,
        cells: bool = False,
    ) -> "Excerpt":
        """What is known after each id, at the characters that they make."""
        characters: list[str] = []
        lengths: list[int] = []
        for text, lengths_C, ended in pieces_of(ids_E, vocab):
            characters += [*text, *[""] * ended]
            lengths += [*lengths_C.tolist(), *[1] * ended]
        last_C = np.cumsum(lengths) - 1
        symbols = [glyph(symbol.decode("utf-8" if vocab.unit == "char" else "latin-1")) for symbol in vocab.symbols]
        if vocab.unit == "byte":
            symbols = [f"{b[0]:02x}" if b and b[0] >= ASCII else glyph(b.decode()) for b in vocab.symbols]
        return cls(start, characters, held_ExU[last_C], ids_ExK[last_C], p_ExK[last_C], symbols, cells)


@dataclasses.dataclass(frozen=True)
class Page:
    """What the page says of a run. unit: byte or char; variance_U: of what a unit is coloured by; report: as JSON has
    it. Layers and units from 1."""

    run: str
    unit: str
    layers: int
    units: int
    variance_U: Array
    report: dict[str, Any]

    @property
    def first(self) -> tuple[int, int]:
        """The layer and unit that are shown first: those found clearest, or that vary most."""
        one = self.listed()[0]
        return one["layer"], one["unit"]

    def listed(self) -> list[dict[str, Any]]:
        """The units to choose from: those found, then those that vary most."""
        found = self.report["neurons"]
        known = {(neuron["layer"], neuron["unit"]) for neuron in found}
        places = [(int(k) // self.units + 1, int(k) % self.units + 1) for k in np.argsort(-self.variance_U)]
        rest = [{"layer": layer, "unit": unit} for layer, unit in places if (layer, unit) not in known]
        return found + rest[:LISTED]

    def about(self, layer: int, unit: int) -> str:
        """What a unit was found to follow; empty: nothing."""
        return next((n["about"] for n in self.report["neurons"] if (n["layer"], n["unit"]) == (layer, unit)), "")


def write_page(path: Path, page: Page, excerpt: Excerpt, first: tuple[int, int]) -> None:
    """Writes the page, whole or not at all. first: the layer and unit that it opens with."""
    data = {
        "characters": [c if c == " " else glyph(c) for c in excerpt.characters_C],
        "breaks": [k for k, c in enumerate(excerpt.characters_C) if c in ("\n", "")],
        "colour": _packed(excerpt.colour_CxU),
        "own": _packed(excerpt.own_CxU),
        "low": excerpt.held_CxU.min(0).round(3).tolist(),
        "high": excerpt.held_CxU.max(0).round(3).tolist(),
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
    """Numbers from -1 to 1 as the page takes them: a byte each, unit after unit, in base64."""
    return base64.b64encode(np.round(x_CxU.T * 127).astype(np.int8).tobytes()).decode()


def draw(path: Path, page: Page, excerpt: Excerpt, place: tuple[int, int]) -> None:
    """Draws the excerpt's beginning as a picture: its characters, coloured by a unit, and below each what was expected
    next, the redder the likelier."""
    layer, unit = place
    index = (layer - 1) * page.units + unit - 1
    flat = bool(excerpt.flat_U[index])
    lines = _lines(excerpt.characters_C[:DRAWN])
    below = excerpt.ids_CxK.shape[1]
    height = ROW[0] + below * ROW[1] + 0.7
    with mpl.rc_context({"font.family": "monospace", "svg.fonttype": "none"}):
        figure = Figure(figsize=(COLUMNS * 0.13, (len(lines) * height + 1.5) * 0.13), dpi=200)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(-0.5, COLUMNS + 0.5), ylim=(len(lines) * height + 1, -0.5))
        axes.axis("off")
        values_C = (excerpt.own_CxU if flat else excerpt.colour_CxU)[:, index]
        for row, line in enumerate(lines):
            for column, k in enumerate(line):
                _draw(axes, column, row * height, excerpt, k, float(values_C[k]))
        with whole_file(path) as partial, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a character that the font has not is drawn as a box
            figure.savefig(partial, format=path.suffix.lower().removeprefix("."))
    cut = len(excerpt.characters_C) > DRAWN
    about = page.about(layer, unit)
    what = f"unit {unit} of layer {layer}{f' ({about})' if about else ''}{' by its own range' if flat else ''}"
    console.note(f"{path}: {what}{f', the first {DRAWN} characters of the excerpt' if cut else ''}")


def _draw(axes: Axes, x: float, y: float, excerpt: Excerpt, k: int, value: float) -> None:
    """One character and what is below it."""

    def cell(y: float, height: float, colour: str, weight: float, text: str, size: float) -> None:
        shade = tuple(1 - weight * (1 - c) for c in to_rgb(colour))
        axes.add_patch(Rectangle((x, y), 1, height, facecolor=shade, linewidth=0))
        axes.text(x + 0.5, y + height / 2, text.replace("$", r"\$"), ha="center", va="center", fontsize=size)

    character = excerpt.characters_C[k]
    cell(y, ROW[0], GREEN if value > 0 else BLUE, abs(value), character if character == " " else glyph(character), 9)
    for index, (token, p) in enumerate(zip(excerpt.ids_CxK[k], excerpt.p_CxK[k], strict=True)):
        cell(y + ROW[0] + index * ROW[1], ROW[1], RED, float(p), excerpt.symbols[token], 5)


def _lines(characters: list[str]) -> list[list[int]]:
    """The places of the characters, a line each: as long as COLUMNS, or to the newline."""
    lines: list[list[int]] = [[]]
    for k, character in enumerate(characters):
        if len(lines[-1]) == COLUMNS:
            lines.append([])
        lines[-1].append(k)
        if character == "\n":
            lines.append([])
    return [line for line in lines if line]
