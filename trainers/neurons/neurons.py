"""Activations of every unit of a run along a text, and the labels that units follow.

OUT.json     the units that follow a label, the scores of all labels, and the saturation of the gates
OUT.html     a page with an excerpt, coloured by any unit (trainers.neurons.page)

The text is read in one carried pass, WINDOW characters at a time. Only its first SEARCHED characters stay in memory,
for the search and the page, so activations can be written for a text of any length (trainers.neurons.activations).

Legend: N ids of the text, n of a window, S searched ids, T length of a window, L layers, H units of a layer,
U = L H units of all layers, V vocabulary, K likeliest.
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
from common.files import read_json, write_record
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
SEARCHED = 100_000  # characters; they need 4 bytes per unit of memory
SHOWN = 3000  # characters of the page's excerpt
LIKELIEST = 5  # predictions shown per character
GATES = ("input", "forget", "output", "update", "reset")
LEFT, RIGHT = 0.1, 0.9  # a gate beyond these is saturated, as in arXiv 1506.02078


@dataclasses.dataclass(frozen=True)
class NeuronOptions:
    """Options of `trainers neurons`. Raises UsageError for invalid ones.

    text: a file; default: the run's test split.
    data: folder of the run's data set, if it has moved.
    language: language of the code in the text; default: detected from file names.
    length: maximum characters to read.
    unit: layer and unit, from 1, to show first; default: the one with the clearest label.
    excerpt: first character, from 0, and length.
    out: the page; the JSON file is written beside it.
    png: picture of the excerpt.
    activations: .npz of all activations.
    verify: read the whole data set, not only the shards that changed since they were last verified.
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
    verify: bool = False

    def __post_init__(self) -> None:
        if self.text and self.data:
            raise UsageError("--data locates the run's own text: pass either --data or --text, not both")
        for option, path, suffixes in (
            ("--out", self.out, (".html",)),
            ("--png", self.png, (".png", ".svg", ".pdf")),
            ("--activations", self.activations, (".npz",)),
        ):
            if path and (path.suffix.lower() not in suffixes or path.is_dir()):
                raise UsageError(f"{option} must be a file NAME{' or '.join(suffixes)}, got {path}")


class Passage(NamedTuple):
    """Text to read.

    first: id to feed before the text, if any.
    """

    name: str
    ids_N: Array
    language: str
    first: int | None = None


class Trace(NamedTuple):
    """Activations of every layer after each id of a window, by name, nxH, and the logits."""

    activations: list[dict[str, Array]]
    logits_nxV: Array


class Recording:
    """Measurements along a text.

    state: name of the units' values: "c" of an LSTM, "h" of other cells.
    values_SxU: the units' values in the first SEARCHED characters.
    ids_SxK, p_SxK: the likeliest next ids there, and their probabilities.
    gates: saturation of the gates over the whole text.
    """

    def __init__(self, model: CharRNN, N: int):
        S, K = min(N, SEARCHED), min(LIKELIEST, model.vocab_size)
        self.state, self.read = "c" if model.cell.states == 2 else "h", 0
        self.values_SxU = np.empty((S, model.config.layers * model.config.units), np.float32)
        self.ids_SxK, self.p_SxK = np.empty((S, K), np.int32), np.empty((S, K), np.float32)
        self._saturated: dict[tuple[int, str], Array] = {}  # by layer and gate, counts left and right, 2xH

    def append(self, trace: Trace) -> None:
        part = slice(self.read, min(self.read + len(trace.logits_nxV), len(self.values_SxU)))
        n = max(part.stop - part.start, 0)
        self.values_SxU[part] = np.concatenate([by_name[self.state][:n] for by_name in trace.activations], 1)
        self.ids_SxK[part], self.p_SxK[part] = likeliest(trace.logits_nxV[:n])
        for layer, by_name in enumerate(trace.activations, 1):
            for gate in filter(by_name.__contains__, GATES):
                count_2xH = np.stack([(by_name[gate] < LEFT).sum(0), (by_name[gate] > RIGHT).sum(0)])
                self._saturated[layer, gate] = self._saturated.get((layer, gate), 0) + count_2xH
        self.read += len(trace.logits_nxV)

    @property
    def colour_SxU(self) -> Array:
        """Colours of the units, -1 to 1: tanh(c), or h."""
        return np.tanh(self.values_SxU) if self.state == "c" else self.values_SxU

    @property
    def gates(self) -> list[dict[str, Any]]:
        """Shares of the text at which each unit's gate is saturated, left and right, per layer and gate."""
        shares = {key: (count_2xH / self.read).round(4).tolist() for key, count_2xH in self._saturated.items()}
        return [
            {"layer": layer, "gate": gate, "left": left, "right": right}
            for (layer, gate), (left, right) in shares.items()
        ]


def neurons_run(folder: Path, options: NeuronOptions) -> None:
    """Read a text with a run's best checkpoint; write the report, the page and the optional files.

    Raises StageError for a missing run or text, UsageError for a unit or an excerpt out of range.
    """
    run = read_run(folder)
    chosen, config = checkpoint.best(run), run.config.model
    passage = _passage(run, options)
    searched_S = passage.ids_N[:SEARCHED]
    _check_ranges(options, folder, config, len(searched_S))
    html = options.out or folder / "neurons.html"
    _check_replaceable(html.with_suffix(".json"))
    model = checkpoint.load_model(run, chosen)
    recording = record(model, run.vocab, passage, options.activations)
    with console.err.status("searching"):
        labels = labels_of(searched_S, run.vocab, passage.language)
        results = search(recording.values_SxU, labels)
    text = {"name": passage.name, "language": passage.language, "read": len(passage.ids_N), "searched": len(searched_S)}
    report = {
        "format_version": FORMAT_VERSION,
        "step": chosen.step,
        "weights_sha256": checkpoint.weights_sha256(chosen),
        "text": text,
        "colour": "tanh(c)" if recording.state == "c" else "h",
        **report_of(results, config.units),
        "gates": recording.gates,
    }
    variance_U = recording.colour_SxU.var(0)
    page = Page(folder.name, run.vocab.unit, config.layers, config.units, variance_U, report)
    unit = options.unit or page.first
    clearest = next((label for label in labels if label.about == page.about(*unit)), labels[0])
    start, length = options.excerpt or (_most_varied(searched_S, run.vocab, clearest), SHOWN)
    part = slice(start, start + length)
    data = (recording.values_SxU[part], recording.ids_SxK[part], recording.p_SxK[part])
    excerpt = Excerpt.of(searched_S[part], run.vocab, start, *data, cells=recording.state == "c")
    write_page(html, page, excerpt, unit)
    write_record(html.with_suffix(".json"), report)
    console.out.print(_table(report, run.vocab.unit))
    console.out.print(f"{report['followers']} of {config.layers * config.units} units follow a label clearly")
    console.out.print(f"{folder} at step {chosen.step} on {passage.name}: {html}, {html.with_suffix('.json').name}")
    if options.png:
        draw(options.png, page, excerpt, *unit)


def record(model: CharRNN, vocab: Vocab, passage: Passage, path: Path | None = None) -> Recording:
    """Read a passage. path: also write all activations to this .npz."""
    recording = Recording(model, len(passage.ids_N))
    with console.progress(f"{vocab.unit}s") as bar, contextlib.ExitStack() as stack:
        task = bar.add_task("reading", total=len(passage.ids_N))
        writer = None
        for trace in read(model, vocab, passage):
            if path and not writer:
                layers, names = len(trace.activations), list(trace.activations[0])
                file = activations_file(path, passage.ids_N, layers, model.config.units, names)
                writer = stack.enter_context(file)
            if writer:
                writer.append(trace.activations)
            recording.append(trace)
            bar.update(task, completed=recording.read)
    return recording


def read(model: CharRNN, vocab: Vocab, passage: Passage) -> Iterator[Trace]:
    """Read a passage in windows, from an empty carry, which is reset at the end of each document."""
    ahead = 0 if passage.first is None else 1
    ids_M = np.concatenate([np.array([passage.first] * ahead, passage.ids_N.dtype), passage.ids_N])
    T, internals = min(WINDOW, len(ids_M)), tf.function(model.internals, autograph=False)
    carry_1xLxSxH = model.initial_carry(1)
    layers = {layer.name: index for index, layer in enumerate(model.rnns)}
    for start in range(0, len(ids_M), T):
        part = ids_M[start : start + T].astype(np.int32)
        ids_1xT = np.pad(part, (0, T - len(part)))[None]  # all windows share a shape, and one trace
        reset_1xT = None if vocab.end_id is None else tf.constant(ids_1xT == vocab.end_id)
        logits_1xTxV, carry_1xLxSxH, tensors = internals(tf.constant(ids_1xT), carry_1xLxSxH, reset_1xT)
        own = slice(ahead if start == 0 else 0, len(part))
        activations: list[dict[str, Array]] = [{} for _ in model.rnns]
        for path, x_1xTxH in tensors.items():
            layer, _, name = path.partition("/")
            activations[layers[layer]][name] = x_1xTxH.numpy()[0, own]
        yield Trace(activations, logits_1xTxV.numpy()[0, own])


def likeliest(logits_nxV: Array) -> tuple[Array, Array]:
    """Return the LIKELIEST next ids, or all V if fewer, in descending order, and their probabilities."""
    logits_nxV = logits_nxV - logits_nxV.max(1, keepdims=True, initial=-np.inf)
    p_nxV = np.exp(logits_nxV)
    p_nxV /= p_nxV.sum(1, keepdims=True)
    ids = np.argsort(-p_nxV, axis=1, kind="stable")[:, :LIKELIEST]
    return ids, np.take_along_axis(p_nxV, ids, 1)


def _passage(run: Run, options: NeuronOptions) -> Passage:
    """Return the beginning of the given file, or of the run's test split (val if there is none)."""
    language = known_language(options.language) if options.language else None
    if options.text:
        path = options.text
        try:
            ids_N = run.vocab.encode(_beginning(path, options.length, run.vocab.unit))
        except StageError as error:
            raise StageError(f"{path}: {error}") from None
        passage = Passage(path.name, ids_N, language or language_of([(path.name, 1)]), run.vocab.start_id)
    else:
        folder, manifest = data_of(run, options.data, options.verify)
        name = "test" if "test" in manifest.splits else "val"
        split = manifest.split(name)
        ids_N = read_tokens(folder, split, manifest.dtype, 0, min(options.length, split.tokens))
        passage = Passage(f"{folder.name}'s {name} split", ids_N, language or language_of_data(manifest))
    if not len(passage.ids_N):
        raise StageError(f"{passage.name} is empty: pass another file with --text")
    return passage


def _beginning(path: Path, length: int, unit: str) -> bytes:
    """Read the first `length` bytes or characters of a file."""
    if unit == "byte":
        with path.open("rb") as file:
            return file.read(length)
    try:
        with path.open(encoding="utf-8", newline="") as text:
            return text.read(length).encode()
    except UnicodeDecodeError as error:
        raise StageError(f"not UTF-8 ({error.reason}); convert it, for example with iconv") from None


def _check_ranges(options: NeuronOptions, folder: Path, config: ModelConfig, S: int) -> None:
    """Raise UsageError for a unit that the model lacks, or an excerpt outside the text."""
    layer, unit = options.unit or (1, 1)
    if not (1 <= layer <= config.layers and 1 <= unit <= config.units):
        raise UsageError(
            f"{folder} has layers 1 to {config.layers} and units 1 to {config.units}, got --layer {layer} --unit {unit}"
        )
    start, length = options.excerpt or (0, 1)
    if not (0 <= start < S and length > 0):
        raise UsageError(
            f"--excerpt must be a start from 0 to {S - 1} and a length of at least 1, got {start} {length}"
        )


def _check_replaceable(path: Path) -> None:
    """Raise StageError if the JSON file exists and is not a report of this command."""
    if path.exists() and not {"format_version", "neurons"} <= read_json(path).keys():
        raise StageError(f"{path} exists and was not written by `trainers neurons`: move it, or pass another --out")


def _most_varied(ids_S: Array, vocab: Vocab, label: Label) -> int:
    """Find the line of the second half from which a label varies most over the length of a picture."""
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
    """Tabulate the best unit of each label; labels from the essay come first."""
    title = f"Best unit per label, by {report['colour']} over {report['text']['searched']:,} {unit}s"
    caption = "* a unit in Karpathy's essay"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=None)
    for name in ("", "", "unit", "score", "chance"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for label in report["labels"]:
        row = [f"{label['about']}{' *' if label['essay'] else ''}", label["verdict"]]
        if "unit" in label:
            measure = {"auc": "AUC", "correlation": "rho"}[label["measure"]]
            row += [f"{label['layer']}.{label['unit']}", f"{measure} {label['score']:.3f}", f"{label['chance']:.3f}"]
        table.add_row(*row)
    return table
