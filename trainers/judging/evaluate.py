"""The loss over a whole split in one carried pass: every target once, none left out; and beside it what models give
that only count.

    nats a character = sum over targets of -ln p(target | all before it in its lane) / number of targets
    bits a character = nats / ln 2

Each lane starts from an empty carry, and in the middle of the text: more lanes make a far quicker pass, and more cold
starts, some 2 nats each. So a lane has SHORTEST targets at least, which keeps them to 0.002 nats a target; names, 2,889
targets, stand at 2.001 in one lane or in two, and at 2.035 in 50. Each document, in a text of documents, starts from
an empty carry too: that is part of what the model is.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from common import console
from common.errors import UsageError
from common.files import read_json, write_json
from common.types import Array
from pipeline.manifest import Manifest
from pipeline.shards import read_tokens
from trainers import checkpoint
from trainers.judging import breakdown, ngram, report
from trainers.run import data_of, read_run
from trainers.training import devices
from trainers.training.score import losses
from trainers.training.step import Steps

FORMAT_VERSION = 3
LANES = 50  # that a finished run is scored in, where they fit: one number for all, so that figures compare
SHORTEST = 1000  # targets of a lane then, so that splits from 50,000 on have all of LANES
COUNTED = 8_000_000  # tokens up to which an n-gram is counted unasked: some 20 s and half a GB
PIECE = 1 << 24  # tokens that are read at once


def evaluate_run(folder: Path, split: str | None, data: Path | None, count: bool | None, force: bool) -> None:
    """Scores a run's best checkpoint on a split and writes evaluation-SPLIT.json into the run's folder, and its report
    anew.

    split: None: the one by which the data judges a model. count: whether to compare it with an n-gram; None: where that
    takes seconds.
    Raises StageError where the data is not what the run was trained on, UsageError for an n-gram on what it counts.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    data, manifest = data_of(run, data)
    split = split or manifest.judged
    manifest.split(split)
    if split == "train" and count:
        raise UsageError("--ngram wants text that it does not count: give --split val or test")
    lanes = min(LANES, max(1, (manifest.split(split).tokens - 1) // SHORTEST))
    tokens = sum(manifest.split(name).tokens for name in ("train", "val", split))
    compared = split != "train" and (tokens <= COUNTED if count is None else count)
    inputs = {
        "step": chosen.step,
        "weights_sha256": checkpoint.weights_sha256(chosen),
        "split": split,
        "data_sha256": run.data_sha256,
        "lanes": lanes,
        "ngram": compared,
    }
    path, unit = folder / f"evaluation-{split}.json", run.vocab.unit
    done = read_json(path)
    if not force and done.get("format_version") == FORMAT_VERSION and _serves(done["inputs"], inputs, count):
        console.note(f"{path} is already made from checkpoint {chosen.step}: {done['bits']:.3f} bits per {unit}")
        return
    if count is None and split != "train" and not compared:
        console.note(
            f"no n-gram beside it: to count {tokens / 1e6:,.0f} million tokens takes some {tokens / 5e5:,.0f} s and "
            f"{tokens * 60 / 1e9:,.1f} GB; --ngram does"
        )
    # One replica: the lanes that fit, and with them the figure, must not depend on how many devices the host has.
    placed = devices.prepare(1)
    with placed.strategy.scope():
        model = checkpoint.load_model(run, chosen)
    with console.progress("windows") as bar:
        nats_N, lanes = losses(Steps(placed, model), data, manifest, split, lanes, run.config.train.window, bar)
    found = {"format_version": FORMAT_VERSION, "inputs": inputs}
    found |= figures_of(nats_N, lanes, data, manifest, split, compared)
    console.out.print(
        f"{folder} at step {chosen.step} on {data}'s {split} split: {found['nats']:.4f} nats = {found['bits']:.4f} "
        f"bits per {unit} over {found['targets']:,} {unit}s -> {path}",
    )
    _show(found, unit)
    write_json(path, found)
    console.note(f"all of it to look at: {report.write(folder)}")


def _serves(done: dict[str, Any], inputs: dict[str, Any], count: bool | None) -> bool:
    """Whether an evaluation that was made from `done` is what is asked for: one with more in it serves whoever does not
    say otherwise."""
    more = {"ngram": done["ngram"]} if count is None and done["ngram"] else {}
    return done == inputs | more


def figures_of(nats_N: Array, lanes: int, data: Path, manifest: Manifest, split: str, count: bool) -> dict[str, Any]:
    """All that evaluation-SPLIT.json says of the losses of a split's targets, read in so many lanes."""
    vocab, ids = manifest.vocab, _read(data, manifest, split)
    targets_N, train_V = ids[1:], _counts(data, manifest)
    # Laplace's: as if each symbol came once more than it does, so that none is impossible.
    unigram_V = np.log(train_V.sum() + vocab.size) - np.log(train_V + 1)
    nats = {"nats": nats_N}
    baselines: dict[str, Any] = {
        "uniform": {"nats": math.log(vocab.size)},
        "unigram": {"nats": float(breakdown.count_ids(targets_N, vocab.size) @ unigram_V) / len(targets_N)},
    }
    found = breakdown.figures(nats_N, targets_N, vocab) | {"baselines": baselines}
    if count:
        train, val = (_read(data, manifest, name) for name in ("train", "val"))
        counted = ngram.best(train, val, ids, vocab.size, vocab.end_id)
        nats["ngram_nats"] = counted.nats_Q
        baselines["ngram"] = {
            "nats": float(counted.nats_Q.mean()),
            "nats_interval": breakdown.mean_interval(counted.nats_Q),
            "ahead": float((counted.nats_Q - nats_N).mean()),
            "ahead_interval": breakdown.mean_interval(counted.nats_Q - nats_N),
            "order": counted.order,
            "val_nats_of_orders": counted.val_nats,
        }
        found["errors"] = breakdown.compare(nats_N, counted.nats_Q, targets_N, vocab)
    groups = {
        "class": breakdown.by_class(targets_N, vocab),
        "frequency": breakdown.by_frequency(targets_N, train_V),
        "position": breakdown.by_position(ids[:-1], lanes, vocab.end_id),
    }
    return found | {"by": {name: breakdown.means(group, **nats) for name, group in groups.items()}}


def _read(data: Path, manifest: Manifest, split: str) -> Array:
    """The ids of a split."""
    return read_tokens(data, manifest.split(split), manifest.dtype, 0, manifest.split(split).tokens)


def _counts(data: Path, manifest: Manifest) -> Array:
    """How often each id occurs in train."""
    train, counts_V = manifest.split("train"), np.zeros(manifest.vocab.size, np.int64)
    for start in range(0, train.tokens, PIECE):
        ids = read_tokens(data, train, manifest.dtype, start, min(start + PIECE, train.tokens))
        counts_V += breakdown.count_ids(ids, len(counts_V))
    return counts_V


def _show(found: dict[str, Any], unit: str) -> None:
    """The loss in its units, beside what only counts, and of each group of targets."""
    counted = found["baselines"].get("ngram")
    console.out.print(
        f"perplexity {found['perplexity']:.3f}, bits per character {found['bits_per_character']:.4f}, per byte "
        f"{found['bits_per_byte']:.4f}"
    )
    table = Table(title=f"Loss a {unit}", title_justify="left", box=None)
    for name in ("", "nats", "bits", "95 % of nats"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    rows = {"the model": found, "unigram": found["baselines"]["unigram"], "uniform": found["baselines"]["uniform"]}
    if counted:
        ahead = {"nats": counted["ahead"], "nats_interval": counted["ahead_interval"]}
        rows |= {f"n-gram of order {counted['order']}": counted, "which the model is ahead of by": ahead}
    for name, row in rows.items():
        between = " to ".join(f"{bound:.4f}" for bound in row.get("nats_interval") or ())
        table.add_row(name, f"{row['nats']:.4f}", f"{row['nats'] / math.log(2):.4f}", between)
    console.out.print(table)
    table = Table(title="Nats by", title_justify="left", box=None)
    for name in ("", "", f"{unit}s", "nats", *(["n-gram"] if counted else [])):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    titles = {"class": "kind", "frequency": "times in train", "position": f"{unit}s read before"}
    for by, title in titles.items():
        for index, row in enumerate(found["by"][by]):
            of_ngram = [f"{row['ngram_nats']:.4f}"] if counted else []
            table.add_row(title * (not index), row["name"], f"{row['targets']:,}", f"{row['nats']:.4f}", *of_ngram)
    console.out.print(table)
