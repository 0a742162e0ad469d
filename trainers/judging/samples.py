"""The quality of a model's samples over a sweep of temperatures, compared with held-out text: how likely and how varied
they are, how well they follow the rules of their kind, and how much they copy from train."""

import dataclasses
import itertools
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.progress import Progress
from rich.table import Table

from common import console
from common.files import read_json, reading, write_record
from common.settings import settings
from common.types import Array
from pipeline.shards import read_tokens
from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.judging import coherence, copied, report, typeset
from trainers.judging.evaluate import read_by, read_parts
from trainers.judging.ngram_writer import NGramWriter
from trainers.run import data_of, read_run
from trainers.sampling import batch
from trainers.sampling.sampler import Sampler

SHOWN = 1000  # characters of text kept per temperature
STRETCH = 20  # characters of a repeat
TEXTS, LINES = 16, 1000  # default number of texts per temperature; LINES if each line is a text
Z = 1.96  # for a 95 % interval
COLUMNS = ("bits", "distinct_runs", "repeated", "words_known")  # measures shown on the terminal


@settings
class Sweep:
    """Sweep over temperatures: at each, `texts` texts of up to `length` bytes or characters."""

    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
    texts: int = Field(0, ge=0, le=100_000)  # 0: TEXTS or LINES
    length: int = Field(2000, gt=0, le=1_000_000)
    seed: int = Field(1, ge=0, lt=1 << 31)
    kind: str = "auto"  # a key of coherence.KINDS; auto detects it from held-out text

    def __post_init__(self) -> None:
        if not self.temperatures or not all(0 <= value <= 10 for value in self.temperatures):
            raise ValueError(f"temperatures must be one or more numbers from 0 to 10, got {self.temperatures}")
        if self.kind not in ("auto", *coherence.KINDS):
            raise ValueError(f"kind must be auto, {', '.join(list(coherence.KINDS)[:-1])} or text, got {self.kind}")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of a group, without their ends, and their score.

    log_prob: log-likelihood of all texts together, in nats. targets: how many symbols it sums over, with the newline
    that ends a text if the vocabulary ends texts that way.
    """

    texts: list[bytes]
    targets: int
    log_prob: float

    @property
    def strings(self) -> list[str]:
        """Texts decoded as UTF-8, with U+FFFD for invalid bytes."""
        return [text.decode(errors="replace") for text in self.texts]


def sweep_run(folder: Path, data: Path | None, sweep: Sweep, force: bool, verify: bool = False) -> None:
    """Sample a run's best checkpoint, measure the samples, and write samples.json and report.html in the run's folder.

    Raises StageError if the data is not the data that the run was trained on.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    data, manifest = data_of(run, data, verify)
    end = b"" if run.vocab.end_id is None else run.vocab.symbols[run.vocab.end_id]
    lines = end == b"\n"  # each line is a text
    sweep = dataclasses.replace(sweep, texts=sweep.texts or (LINES if lines else TEXTS))
    values = {**dataclasses.asdict(sweep), "temperatures": list(sweep.temperatures)}
    split = next(name for name in ("test", "val", "train") if name in manifest.splits)
    inputs = {"weights_sha256": checkpoint.weights_sha256(chosen), "data_sha256": run.data_sha256, **values}
    inputs["engine"] = typeset.available()
    inputs["ngram"] = order = _order(folder, split, inputs["weights_sha256"])
    path, saved = folder / report.SAMPLES, read_json(folder / report.SAMPLES)
    if not force and saved.get("format_version") == report.SAMPLES_FORMAT and saved.get("inputs") == inputs:
        console.note(f"{path} is up to date with checkpoint {chosen.step}")
        report.write(folder)  # an earlier call may have been killed before it wrote the page
        return

    def read(split: str, limit: int) -> Array:
        return read_tokens(data, manifest.split(split), manifest.dtype, 0, limit)

    held_out = _held_out(read(split, 4 * sweep.texts * sweep.length), run.vocab, sweep, lines)
    train = run.vocab.decode(read("train", copied.SEARCHED))
    sampler = Sampler(checkpoint.load_model(run, chosen), run.vocab, frozen=True)
    with console.progress("texts") as bar:
        drawn = _sample(sampler, sweep, end, bar)
        if order:
            counted = read_parts(data, manifest, read_by(run, manifest, chosen.step))
            writer = NGramWriter(counted, run.vocab.size, order, run.vocab.end_id)
            drawn.append(_written(writer, run.vocab, sweep, bar))
        groups = _score(sampler, [*drawn, held_out], end, bar)
    kind = sweep.kind
    if kind == "auto":
        kind = "names" if lines else coherence.kind_of("\n".join(groups[-1].strings))
    *rows, real = _measure(groups, kind, train)
    counting = [{"order": order, **rows.pop()}] if order else []
    result = {
        "format_version": report.SAMPLES_FORMAT,
        "inputs": inputs,
        "step": chosen.step,
        "kind": kind,
        "unit": run.vocab.unit,
        "searched": len(train),
        "held_out": {"split": split, **real},
        "rows": [{"temperature": t, **row} for t, row in zip(sweep.temperatures, rows, strict=True)],
        "ngram": counting,
    }
    write_record(path, result)
    page = report.write(folder)
    _show(folder, result)
    console.note(f"report: {page}")


def _order(folder: Path, split: str, weights_sha256: str) -> int:
    """Order of the n-gram that `evaluate` compared with these weights on the split; 0 if there is none."""
    path = folder / f"evaluation-{split}.json"
    with reading(path, f"python -m trainers evaluate {folder} --force"):
        evaluation = read_json(path)
        if evaluation and evaluation["inputs"]["weights_sha256"] == weights_sha256:
            return int(evaluation["baselines"].get("ngram", {}).get("order", 0))
    return 0


def _held_out(ids_N: Array, vocab: Vocab, sweep: Sweep, lines: bool) -> list[bytes]:
    """Real texts, as many and as long as the samples if there are enough, with their ends.

    Each comes from a single document: the beginnings of lines, or consecutive stretches of longer documents.
    """
    documents = np.split(ids_N, np.flatnonzero(ids_N == vocab.end_id) + 1)
    starts = ((ids, start) for ids in documents for start in range(0, 1 if lines else len(ids), sweep.length))
    texts = (vocab.decode(ids[start : start + sweep.length]) for ids, start in starts)
    return list(itertools.islice(filter(None, texts), sweep.texts))


def _sample(sampler: Sampler, sweep: Sweep, end: bytes, bar: Progress) -> list[list[bytes]]:
    """Sample the texts of each temperature, with the end of those that reached it.

    Seeds count up from the sweep's, and are the same at each temperature.
    """
    seeds = range(sweep.seed, sweep.seed + sweep.texts)
    starts = [batch.Start(b"", seed, temperature) for temperature in sweep.temperatures for seed in seeds]
    drawn = batch.draw(sampler, starts, sweep.length)
    tracked = bar.track(drawn, len(starts), description="sampling")
    texts = [text + (end if reason == "stop" else b"") for text, _, reason in tracked]
    return [texts[first : first + sweep.texts] for first in range(0, len(texts), sweep.texts)]


def _written(writer: NGramWriter, vocab: Vocab, sweep: Sweep, bar: Progress) -> list[bytes]:
    """Texts of an n-gram, with their ends, from the state that sampling starts in."""
    seeds = bar.track(range(sweep.seed, sweep.seed + sweep.texts), description="n-gram")
    start = vocab.prompt_ids(b"").tolist()
    return [vocab.decode(np.array(writer.write(start, sweep.length, seed))) for seed in seeds]


def _score(sampler: Sampler, groups: list[list[bytes]], end: bytes, bar: Progress) -> list[Texts]:
    """Score groups of texts, sampled or real, from the state that sampling starts in."""
    ids_of_texts = [sampler.vocab.encode(text) for texts in groups for text in texts]
    nats_of_texts = dict(bar.track(batch.score(sampler, ids_of_texts), len(ids_of_texts), description="scoring"))
    rows = iter([(len(ids), nats_of_texts[index]) for index, ids in enumerate(ids_of_texts)])
    scored = []
    for texts in groups:
        targets, nats = map(sum, zip(*itertools.islice(rows, len(texts)), strict=True))
        scored.append(Texts([text.removesuffix(end) for text in texts], targets, -nats))
    return scored


def _measure(groups: list[Texts], kind: str, train: bytes) -> list[dict[str, Any]]:
    """Measure each group of texts; one row per group."""
    longest = iter(copied.longest(train, [text for group in groups for text in group.texts]))
    text = train.decode(errors="replace")
    words, known = set(_words(text)), coherence.known_of(kind, text)
    compiled = typeset.accepted([group.strings for group in groups], text) if kind == "latex" else None
    rows = []
    for number, group in enumerate(groups):
        texts = group.strings
        joined = "\n".join(texts)
        row = {
            "texts": len(texts),
            "targets": group.targets,
            "bits": abs(group.log_prob) / max(group.targets, 1) / math.log(2),  # abs, since -0.0 has a sign
            **({} if kind == "names" else variety(texts, words)),
            # Names are judged as one list, to find duplicates.
            "coherence": {
                **coherence.coherence(kind, [joined] if kind == "names" else texts, known),
                **({"paragraphs_compiled": compiled[number]} if compiled and compiled[number]["of"] else {}),
            },
            "copied": copied.shares([next(longest) for _ in texts]),
            "text": joined[:SHOWN],
        }
        rows.append(row)
    return rows


def variety(texts: list[str], known: set[str]) -> dict[str, float]:
    """Measure how varied texts are.

    distinct_runs: share of distinct sequences among all sequences of three words.
    repeated: share of stretches of STRETCH characters that occur earlier in the same text.
    compressed: size after zlib compression, relative to the text.
    words_known: share of words that are in `known`.
    """
    words_of_texts = [_words(text) for text in texts]
    runs = [run for words in words_of_texts for run in zip(*(words[k:] for k in range(3)), strict=False)]
    hits = [word in known for words in words_of_texts for word in words]
    stretches = distinct = 0
    for text in texts:
        pieces = [text[k : k + STRETCH] for k in range(len(text) - STRETCH + 1)]
        stretches, distinct = stretches + len(pieces), distinct + len(set(pieces))
    joined = "\n".join(texts).encode()
    return {
        "distinct_runs": len(set(runs)) / max(len(runs), 1),
        "repeated": (stretches - distinct) / max(stretches, 1),
        "compressed": len(zlib.compress(joined, 9)) / max(len(joined), 1),
        "words_known": sum(hits) / max(len(hits), 1),
    }


def share_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` trials: the Wilson score interval (1927), which holds near 0 and 1 as well.

    >>> [round(bound, 3) for bound in share_interval(0.9, 100)]
    [0.826, 0.945]
    """
    middle, spread = share + Z**2 / 2 / count, Z * math.sqrt(share * (1 - share) / count + Z**2 / 4 / count**2)
    return (middle - spread) / (1 + Z**2 / count), (middle + spread) / (1 + Z**2 / count)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _show(folder: Path, result: dict[str, Any]) -> None:
    """Print one row per temperature, one for an n-gram, and one for held-out text."""
    rows = report.rows_of(result)
    measures = [name for name in COLUMNS if any(name in row for _, row in rows)]
    copied = list(dict.fromkeys(name for _, row in rows for name in row["copied"] if name != "longest"))
    console.out.print(f"{folder} at step {result['step']:,}, {result['rows'][0]['texts']:,} texts per temperature")
    table = _table("", [*measures, "longest_copy", *copied])
    for name, row in rows:
        left, right = (row.get(key) for key in measures), (row["copied"].get(key) for key in copied)
        table.add_row(name, *map(_cell, left), f"{row['copied']['longest']:,}", *map(_cell, right))
    console.out.print(table)
    if names := list(dict.fromkeys(name for _, row in rows for name in row["coherence"])):
        table = _table(f"Rules of {result['kind']}", names)
        for name, row in rows:
            table.add_row(name, *(report.share_with_counts(row["coherence"].get(key)) for key in names))
        console.out.print(table)
    if result["kind"] == "names":
        for name, row in rows[: len(result["rows"])]:
            if (new := row["coherence"].get("new")) is None:
                continue  # every sampled name is empty
            low, high = share_interval(new["share"], new["of"])
            console.out.print(f"temperature {name}: {new['share']:.1%} new ({low:.1%} to {high:.1%})")


def _table(title: str, columns: list[str]) -> Table:
    table = Table("", title=title, title_justify="left", box=None)
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    return table


def _cell(share: float | None) -> str:
    return "–" if share is None else f"{share:.3f}"
