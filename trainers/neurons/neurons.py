"""What every unit of a run holds along a text, and what it follows there.

OUT.json     the units that were found to follow something, how well, and what was not found; the gates' saturation
OUT.html     a page of an excerpt, to be coloured by any unit (trainers.neurons.page)

The text is read in one carried pass, WINDOW characters at a time; what the search and the page want is kept of its
first SEARCHED alone, so that a text of any length can go into the files of trainers.neurons.activations.

Legend: N ids of the text, n of a stretch, S of what is searched, T of a window, L layers, H units of a layer, U = L H
units in all, V vocabulary, K likeliest.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from rich.table import Table

from common import console
from common.errors import StageError, UsageError
from common.files import read_json, write_json
from common.types import Array
from pipeline.shards import read_tokens
from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.config import ModelConfig
from trainers.model.char_rnn import CharRNN
from trainers.neurons.activations import activations_file
from trainers.neurons.labels import Label, known_language, labels_of, language_of, language_of_data
from trainers.neurons.page import DRAWN, Excerpt, Page, draw, write_page
from trainers.neurons.search import report_of, search
from trainers.run import Run, data_of, read_run

FORMAT_VERSION = 1
WINDOW = 1000  # T
SEARCHED = 100_000  # characters that units are searched in: their states are held in memory, 4 bytes each
SHOWN = 3000  # characters of the page's excerpt
LIKELIEST = 5  # that are shown of what is expected next
GATES = ("input", "forget", "output", "update", "reset")  # what is shut at 0 and open at 1
LEFT, RIGHT = 0.1, 0.9  # beyond which a gate counts as saturated, as in arXiv 1506.02078


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked for. Raises UsageError for what cannot be.

    text: a file; None: the run's own test split, with its data where they lie now. language: of its code, None: as its
    name says. length: characters that are read. unit: layer and unit, from 1, that page and picture show first; None:
    the one that was found clearest. excerpt: its first character, from 0, and how many. out: the page; the JSON lies
    beside it. png: a picture of the excerpt. activations: as trainers.neurons.activations has it.
    """

    text: Path | None = None
    data: Path | None = None
    language: str | None = None
    length: int = SEARCHED
    unit: tuple[int, int] | None = None
    excerpt: tuple[int, int] | None = None
    out: Path | None = None
    png: Path | None = None
    activations: Path | None = None

    def __post_init__(self) -> None:
        if self.text and self.data:
            raise UsageError("--data is where the run's own text lies: give it, or --text, not both")
        for option, path, suffixes in (
            ("--out", self.out, (".html",)),
            ("--png", self.png, (".png", ".svg", ".pdf")),
            ("--activations", self.activations, (".npz",)),
        ):
            if path and (path.suffix.lower() not in suffixes or path.is_dir()):
                raise UsageError(f"{option} must be a file NAME{' or '.join(suffixes)}, got {path}")


class Text(NamedTuple):
    """A text to read. ids_N: all of it; first: an id that is read ahead of it, since the text begins after it."""

    name: str
    ids_N: Array
    language: str
    first: int | None = None


class Seen(NamedTuple):
    """A stretch of the text as it was read: what every layer held after each id, by name, nxH, and logits_nxV."""

    held: list[dict[str, Array]]
    logits_nxV: Array


class Watched:
    """What is kept of a text: of its beginning, what its units held, c of an LSTM and h of other cells, and what was
    expected after each id; of all of it, how often each gate was saturated."""

    def __init__(self, model: CharRNN, N: int):
        S, K = min(N, SEARCHED), min(LIKELIEST, model.vocab_size)
        self.what, self.read = "c" if model.cell.states == 2 else "h", 0
        self.held_SxU = np.empty((S, model.config.layers * model.config.units), np.float32)
        self.ids_SxK, self.p_SxK = np.empty((S, K), np.int32), np.empty((S, K), np.float32)
        self._saturated: dict[tuple[int, str], Array] = {}  # of each layer and gate, how often left and right, 2xH

    def take(self, seen: Seen) -> None:
        """Takes the next stretch."""
        part = slice(self.read, min(self.read + len(seen.logits_nxV), len(self.held_SxU)))
        n = max(part.stop - part.start, 0)
        self.held_SxU[part] = np.concatenate([held[self.what][:n] for held in seen.held], 1)
        self.ids_SxK[part], self.p_SxK[part] = likeliest(seen.logits_nxV[:n])
        for layer, held in enumerate(seen.held, 1):
            for gate in filter(held.__contains__, GATES):
                now_2xH = np.stack([(held[gate] < LEFT).sum(0), (held[gate] > RIGHT).sum(0)])
                self._saturated[layer, gate] = self._saturated.get((layer, gate), 0) + now_2xH
        self.read += len(seen.logits_nxV)

    @property
    def gates(self) -> list[dict[str, Any]]:
        """Of each layer and gate the shares of the text at which each unit's was saturated, left and right."""
        shares = {place: (sum_2xH / self.read).round(4).tolist() for place, sum_2xH in self._saturated.items()}
        return [
            {"layer": layer, "gate": gate, "left": left, "right": right}
            for (layer, gate), (left, right) in shares.items()
        ]


def neurons_run(folder: Path, wanted: Wanted) -> None:
    """Reads a text with a run's best checkpoint and writes all that is wanted of it.

    Raises StageError where there is no such run or text, UsageError for a unit or an excerpt that it does not have.
    """
    run = read_run(folder)
    chosen, config = checkpoint.best(run), run.config.model
    text = _text(run, wanted)
    searched_S = text.ids_N[:SEARCHED]
    _check(wanted, folder, config, len(searched_S))
    html = wanted.out or folder / "neurons.html"
    _check_replaceable(html.with_suffix(".json"))
    model = checkpoint.load_model(run, chosen)
    watched = watch(model, run.vocab, text, wanted.activations)
    with console.err.status("searching"):
        labels = labels_of(searched_S, run.vocab, text.language)
        found = search(watched.held_SxU, labels)
    report = {
        "format_version": FORMAT_VERSION,
        "step": chosen.step,
        "weights_sha256": checkpoint.weights_sha256(chosen),
        "text": {"name": text.name, "language": text.language, "read": len(text.ids_N), "searched": len(searched_S)},
        "colour": "tanh(c)" if watched.what == "c" else "h",
        **report_of(found, config.units),
        "gates": watched.gates,
    }
    variance_U = (np.tanh(watched.held_SxU) if watched.what == "c" else watched.held_SxU).var(0)
    page = Page(folder.name, run.vocab.unit, config.layers, config.units, variance_U, report)
    unit = wanted.unit or page.first
    clearest = next((label for label in labels if label.about == page.about(*unit)), labels[0])
    start, length = wanted.excerpt or (_telling(searched_S, run.vocab, clearest), SHOWN)
    part = slice(start, start + length)
    shown = (watched.held_SxU[part], watched.ids_SxK[part], watched.p_SxK[part])
    excerpt = Excerpt.of(searched_S[part], run.vocab, start, *shown, cells=watched.what == "c")
    write_json(html.with_suffix(".json"), report)
    write_page(html, page, excerpt, unit)
    console.out.print(_table(report, run.vocab.unit))
    console.out.print(f"{folder} at step {chosen.step} on {text.name}: {html}, {html.with_suffix('.json').name}")
    if wanted.png:
        draw(wanted.png, page, excerpt, unit)


def watch(model: CharRNN, vocab: Vocab, text: Text, path: Path | None = None) -> Watched:
    """Read a text. path: also write all activations to this .npz."""
    watched = Watched(model, len(text.ids_N))
    with console.progress(f"{vocab.unit}s") as bar, contextlib.ExitStack() as stack:
        task = bar.add_task("reading", total=len(text.ids_N))
        writer = None
        for seen in read(model, vocab, text):
            if path and not writer:
                file = activations_file(path, text.ids_N, model.config.layers, model.config.units, list(seen.held[0]))
                writer = stack.enter_context(file)
            if writer:
                writer.append(seen.held)
            watched.take(seen)
            bar.update(task, completed=watched.read)
    return watched


def read(model: CharRNN, vocab: Vocab, text: Text) -> Iterator[Seen]:
    """The text in stretches, from an empty carry; so is every document, where there are such."""
    ahead = 0 if text.first is None else 1
    ids_M = np.concatenate([np.array([text.first] * ahead, text.ids_N.dtype), text.ids_N])
    T, inside = min(WINDOW, len(ids_M)), tf.function(model.inside, autograph=False)
    carry_1xLxSxH = model.initial_carry(1)
    for start in range(0, len(ids_M), T):
        part = ids_M[start : start + T].astype(np.int32)
        ids_1xT = np.pad(part, (0, T - len(part)))[None]  # of one length, that is traced once
        reset_1xT = None if vocab.end_id is None else tf.constant(ids_1xT == vocab.end_id)
        logits_1xTxV, carry_1xLxSxH, found = inside(tf.constant(ids_1xT), carry_1xLxSxH, reset_1xT)
        own = slice(ahead if start == 0 else 0, len(part))
        held: list[dict[str, Array]] = [{} for _ in model.rnns]
        names = {layer.name: index for index, layer in enumerate(model.rnns)}
        for name, x_1xTxH in found.items():
            layer, _, what = name.partition("/")
            held[names[layer]][what] = x_1xTxH.numpy()[0, own]
        yield Seen(held, logits_1xTxV.numpy()[0, own])


def likeliest(logits_nxV: Array) -> tuple[Array, Array]:
    """The ids that are expected next, the likeliest first, and their probabilities: nxLIKELIEST, or as many as V is."""
    logits_nxV = logits_nxV - logits_nxV.max(1, keepdims=True, initial=-np.inf)
    p_nxV = np.exp(logits_nxV)
    p_nxV /= p_nxV.sum(1, keepdims=True)
    ids = np.argsort(-p_nxV, axis=1, kind="stable")[:, :LIKELIEST]
    return ids, np.take_along_axis(p_nxV, ids, 1)


def _text(run: Run, wanted: Wanted) -> Text:
    """The text that is wanted: a file's beginning, or of the split that the run was not trained on."""
    language = known_language(wanted.language) if wanted.language else None
    if wanted.text:
        path = wanted.text
        if run.vocab.unit == "byte":
            with path.open("rb") as file:
                data = file.read(wanted.length)
        else:
            try:
                with path.open(encoding="utf-8", newline="") as text:
                    data = text.read(wanted.length).encode()
            except UnicodeDecodeError as error:
                raise StageError(f"{path} is not UTF-8 ({error.reason})") from None
        try:
            ids_N = run.vocab.encode(data)
        except StageError as error:
            raise StageError(f"{path}: {error}") from None
        found = Text(path.name, ids_N, language or language_of([(path.name, 1)]), run.vocab.start_id)
    else:
        folder, manifest = data_of(run, wanted.data)
        name = "test" if "test" in manifest.splits else "val"
        split = manifest.split(name)
        ids_N = read_tokens(folder, split, manifest.dtype, 0, min(wanted.length, split.tokens))
        found = Text(f"{folder.name}'s {name} split", ids_N, language or language_of_data(manifest))
    if not len(found.ids_N):
        raise StageError(f"{found.name} is empty: give another --text")
    return found


def _check(wanted: Wanted, folder: Path, config: ModelConfig, S: int) -> None:
    """Raises UsageError for a unit that the model has not, or an excerpt that the text has not."""
    layer, unit = wanted.unit or (1, 1)
    if not (1 <= layer <= config.layers and 1 <= unit <= config.units):
        raise UsageError(
            f"{folder} has layers 1 to {config.layers} and units 1 to {config.units}, got --layer {layer} --unit {unit}"
        )
    start, length = wanted.excerpt or (0, 1)
    if not (0 <= start < S and length > 0):
        raise UsageError(f"--excerpt wants a first character, 0 to {S - 1}, and how many, got {start} {length}")


def _check_replaceable(path: Path) -> None:
    """Raises StageError where the JSON's place is taken by a file that no call of this wrote."""
    found = read_json(path)
    if path.exists() and not {"format_version", "neurons"} <= found.keys():
        raise StageError(f"{path} is in the way and is no list of neurons of ours: move it, or give another --out")


def _telling(ids_S: Array, vocab: Vocab, label: Label) -> int:
    """Where the excerpt begins: at the line, in the half that units are scored on, from which on, as far as a picture
    shows, a label varies most."""
    S, newline = len(ids_S), vocab.symbols.index(b"\n") if b"\n" in vocab.symbols else -1
    starts = np.flatnonzero(ids_S[: max(S - DRAWN, 0)] == newline) + 1
    starts = starts[starts >= S // 2]
    if not len(starts):
        return S // 2
    x_S = label.values_N.astype(np.float64)
    sums_2xS = np.cumsum([np.append(0, x_S), np.append(0, x_S**2)], axis=1)
    mean, mean_square = (sums_2xS[:, starts + DRAWN] - sums_2xS[:, starts]) / DRAWN
    return int(starts[np.argmax(mean_square - mean**2)])


def _table(report: dict[str, Any], unit: str) -> Table:
    """What became of every label; the essay's units come first."""
    title = f"What units follow, by {report['colour']} over {report['text']['searched']:,} {unit}s"
    table = Table(title=title, title_justify="left", caption="* a unit of the essay", caption_justify="left", box=None)
    for name in ("", "", "unit", "score", "chance"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for label in report["labels"]:
        row = [f"{label['about']}{' *' if label['essay'] else ''}", label["verdict"]]
        if "unit" in label:
            measure = {"auc": "AUC", "correlation": "rho"}[label["measure"]]
            row += [f"{label['layer']}.{label['unit']}", f"{measure} {label['score']:.3f}", f"{label['chance']:.3f}"]
        table.add_row(*row)
    return table
