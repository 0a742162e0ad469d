"""What a model writes at a sweep of temperatures, and how good that is beside text that it has not seen: how likely,
how varied, how well it keeps the rules of its kind, and how much of it is copied from train."""

import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import Field
from rich.progress import Progress
from rich.table import Table

from common import console
from common.errors import StageError
from common.files import read_json, write_json
from common.settings import settings
from common.types import Array
from pipeline.manifest import Manifest
from pipeline.shards import read_tokens
from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.judging import coherence, copied, report
from trainers.run import data_of, read_run
from trainers.sampling.rows import Generated, Request
from trainers.sampling.sampler import Sampler

ROWS = 64  # texts that are drawn, or scored, at once
SHOWN = 1000  # characters that are kept to be looked at
STRETCH = 20  # characters that come twice, where a text repeats itself
TEXTS, LINES = 16, 1000  # at each temperature, where it is not said
Z = 1.96  # of a 95 % interval
TOLD = ("bits", "distinct_runs", "repeated", "words_known")  # of the measures, on the terminal
UNSEEN = ("test", "val")  # what the samples are held against: the first that there is


@settings
class Sweep:
    """What is drawn. texts and length: at each temperature, so many of so many units of the vocabulary."""

    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
    texts: int = Field(0, ge=0, le=100_000)  # 0: TEXTS, or where a line is a text LINES
    length: int = Field(2000, gt=0, le=1_000_000)
    seed: int = Field(1, ge=0, lt=1 << 31)
    kind: str = "auto"  # a key of coherence.KINDS; auto: by what there is in the text

    def __post_init__(self) -> None:
        if not self.temperatures or not all(0 <= one <= 10 for one in self.temperatures):
            raise ValueError(f"temperatures are one number or more from 0 to 10, got {self.temperatures}")
        if self.kind not in ("auto", *coherence.KINDS):
            raise ValueError(f"kind is auto, {', '.join(list(coherence.KINDS)[:-1])} or text, got {self.kind}")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Some texts without their ends, and how likely the model holds all of them together: log_prob in nats, of so many
    targets, an end that is a newline among them."""

    texts: list[bytes]
    targets: int
    log_prob: float

    @property
    def strings(self) -> list[str]:
        """The texts for people: U+FFFD for what is not UTF-8."""
        return [text.decode(errors="replace") for text in self.texts]


def sweep_run(folder: Path, data: Path | None, sweep: Sweep, force: bool) -> None:
    """Draws from a run's best checkpoint, measures, writes samples.json into the run's folder and its report anew.

    Raises StageError where the data is not what the run was trained on.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    data, manifest = data_of(run, data)
    end = b"" if run.vocab.end_id is None else run.vocab.symbols[run.vocab.end_id]
    lines = end == b"\n"  # each is a text
    sweep = dataclasses.replace(sweep, texts=sweep.texts or (LINES if lines else TEXTS))
    asked = {**dataclasses.asdict(sweep), "temperatures": list(sweep.temperatures)}
    inputs = {"weights_sha256": checkpoint.weights_sha256(chosen), "data_sha256": run.data_sha256, **asked}
    path, done = folder / report.SAMPLES, read_json(folder / report.SAMPLES)
    if not force and done.get("format_version") == report.SAMPLES_FORMAT and done["inputs"] == inputs:
        console.note(f"{path} is already made from checkpoint {chosen.step}")
        return
    split = next(name for name in (*UNSEEN, "train") if name in manifest.splits)
    real = _real(_read(data, manifest, split, 4 * sweep.texts * sweep.length), run.vocab, sweep, lines)
    train = run.vocab.decode(_read(data, manifest, "train", copied.SEARCHED))
    sampler = Sampler(checkpoint.load_model(run, chosen), run.vocab, frozen=True)
    with console.progress("texts") as bar:
        generate = tf.function(sampler.generate, autograph=False, reduce_retracing=True)
        score = tf.function(sampler.score, autograph=False, reduce_retracing=True)
        drawn = [_draw(generate, temperature, sweep, end, bar) for temperature in sweep.temperatures]
        groups = [_scored(score, texts, end, bar) for texts in (*drawn, real)]
    kind = sweep.kind
    if kind == "auto":
        kind = "names" if lines else coherence.kind_of("\n".join(groups[-1].strings))
    *rows, held_out = _measured(groups, kind, train)
    result = {
        "format_version": report.SAMPLES_FORMAT,
        "inputs": inputs,
        "step": chosen.step,
        "kind": kind,
        "unit": run.vocab.unit,
        "searched": len(train),
        "held_out": {"split": split, **held_out},
        "rows": [{"temperature": t, **row} for t, row in zip(sweep.temperatures, rows, strict=True)],
    }
    write_json(path, result)
    page = report.write(folder)
    _show(folder, result)
    console.note(f"{path}, {page}")


def _read(data: Path, manifest: Manifest, split: str, most: int) -> Array:
    """The ids of a split's beginning, up to so many."""
    part = manifest.split(split)
    return read_tokens(data, part, manifest.dtype, 0, min(part.tokens, most))


def _real(ids_N: Array, vocab: Vocab, sweep: Sweep, lines: bool) -> list[bytes]:
    """Texts as many and as long as those that are drawn, or as many as there are, each of one document, with its end:
    of lines the beginnings, of longer documents one stretch after the other."""
    documents = np.split(ids_N, np.flatnonzero(ids_N == vocab.end_id) + 1)
    starts = ((one, start) for one in documents for start in range(0, 1 if lines else len(one), sweep.length))
    pieces = (vocab.decode(one[start : start + sweep.length]) for one, start in starts)
    return list(itertools.islice(filter(None, pieces), sweep.texts))


def _draw(
    generate: Callable[[Request], Generated], temperature: float, sweep: Sweep, end: bytes, bar: Progress
) -> list[bytes]:
    """The texts of one temperature, with the end of those that came to it; their seeds go on from the sweep's, and are
    the same at each temperature."""
    seeds = range(sweep.seed, sweep.seed + sweep.texts)
    task = bar.add_task(f"drawing at {temperature:g}", total=len(seeds))
    texts: list[bytes] = []
    for rows in _batches(seeds):
        columns = [[b""] * len(rows), [sweep.length] * len(rows), [temperature] * len(rows), list(rows)]
        kinds = (tf.string, tf.int32, tf.float32, tf.int64)
        written = generate(Request(*(tf.constant(one, kind) for one, kind in zip(columns, kinds, strict=True))))
        reasons = _fine(written.finish_reason)
        found = zip(written.text_bytes.numpy(), reasons, strict=True)
        texts += [text + (end if reason == b"stop" else b"") for text, reason in found]
        bar.advance(task, len(rows))
    return texts


def _scored(score: Callable[[tf.Tensor], Any], texts: list[bytes], end: bytes, bar: Progress) -> Texts:
    """How likely texts are, drawn or real, each begun as those that are drawn are."""
    task = bar.add_task("judging", total=len(texts))
    targets, log_prob = 0, 0.0
    for rows in _batches(texts):
        log_prob_BxP, count_B, problem_B = score(tf.constant(rows))
        _fine(problem_B)
        targets, log_prob = targets + int(count_B.numpy().sum()), log_prob + float(log_prob_BxP.numpy().sum())
        bar.advance(task, len(rows))
    return Texts([text.removesuffix(end) for text in texts], targets, log_prob)


def _fine(said_B: tf.Tensor) -> list[bytes]:
    """What a call said of its rows. Raises StageError where that is "error: ..." of any."""
    said: list[bytes] = said_B.numpy().tolist()
    if wrong := next((one for one in said if one.startswith(b"error: ")), None):
        raise StageError(wrong.decode().removeprefix("error: "))
    return said


def _batches(rows: Any) -> Iterator[Any]:
    return (rows[k : k + ROWS] for k in range(0, len(rows), ROWS))


def _measured(groups: list[Texts], kind: str, train: bytes) -> list[dict[str, Any]]:
    """All that is told of each group of texts."""
    longest = iter(copied.longest(train, [text for group in groups for text in group.texts]))
    text = train.decode(errors="replace")
    words, known = set(_words(text)), coherence.known_of(kind, text)
    rows = []
    for group in groups:
        texts = group.strings
        joined = "\n".join(texts)
        row = {
            "texts": len(texts),
            "targets": group.targets,
            "bits": abs(group.log_prob) / max(group.targets, 1) / math.log(2),  # of no sign: -0.0 is 0
            **({} if kind == "names" else varied(texts, words)),
            # Names are one list, of which some may come twice.
            "coherence": coherence.coherence(kind, [joined] if kind == "names" else texts, known),
            "copied": copied.shares([next(longest) for _ in texts]),
            "text": joined[:SHOWN],
        }
        rows.append(row)
    return rows


def varied(texts: list[str], known: set[str]) -> dict[str, float]:
    """How varied texts are: the share of their runs of three words that are distinct; of their stretches of STRETCH
    characters, the share that came before in the same text; their size when compressed (zlib), as a share. And the
    share of their words that are known."""
    words = [_words(text) for text in texts]
    runs = [run for one in words for run in zip(*(one[k:] for k in range(3)), strict=False)]
    old = [word in known for one in words for word in one]
    stretches = distinct = 0
    for text in texts:
        found = [text[k : k + STRETCH] for k in range(len(text) - STRETCH + 1)]
        stretches, distinct = stretches + len(found), distinct + len(set(found))
    joined = "\n".join(texts).encode()
    return {
        "distinct_runs": len(set(runs)) / max(len(runs), 1),
        "repeated": (stretches - distinct) / max(stretches, 1),
        "compressed": len(zlib.compress(joined, 9)) / max(len(joined), 1),
        "words_known": sum(old) / max(len(old), 1),
    }


def interval(share: float, count: int) -> tuple[float, float]:
    """A 95 % interval of a share of so many: E. B. Wilson (1927), which holds near 0 and 1 as well.

    >>> [round(bound, 3) for bound in interval(0.9, 100)]
    [0.826, 0.945]
    """
    middle, spread = share + Z**2 / 2 / count, Z * math.sqrt(share * (1 - share) / count + Z**2 / 4 / count**2)
    return (middle - spread) / (1 + Z**2 / count), (middle + spread) / (1 + Z**2 / count)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _show(folder: Path, result: dict[str, Any]) -> None:
    """A row a temperature, and one for real text."""
    rows = [(f"{row['temperature']:g}", row) for row in result["rows"]]
    rows.append((result["held_out"]["split"], result["held_out"]))
    told = [name for name in TOLD if any(name in row for _, row in rows)]
    copied = list(dict.fromkeys(name for _, row in rows for name in row["copied"] if name != "longest"))
    console.out.print(f"{folder} at step {result['step']:,}, {result['rows'][0]['texts']:,} texts at each temperature")
    table = _table("", [*told, "longest_copy", *copied])
    for name, row in rows:
        shares = [row.get(one) for one in told], [row["copied"].get(one) for one in copied]
        table.add_row(name, *map(_shown, shares[0]), f"{row['copied']['longest']:,}", *map(_shown, shares[1]))
    console.out.print(table)
    if names := list(dict.fromkeys(name for _, row in rows for name in row["coherence"])):
        table = _table(f"As {result['kind']}", names)
        for name, row in rows:
            table.add_row(name, *(report.share_with_counts(row["coherence"].get(one)) for one in names))
        console.out.print(table)
    if result["kind"] == "names":
        for name, row in rows[:-1]:
            if (new := row["coherence"].get("new")) is None:
                continue  # all names that were drawn are empty
            low, high = interval(new["share"], new["of"])
            console.out.print(f"temperature {name}: {new['share']:.1%} new ({low:.1%} to {high:.1%})")


def _table(title: str, columns: list[str]) -> Table:
    table = Table("", title=title, title_justify="left", box=None)
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    return table


def _shown(share: float | None) -> str:
    return "–" if share is None else f"{share:.3f}"
