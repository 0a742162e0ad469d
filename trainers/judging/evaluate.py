"""Evaluation of a finished run: its loss on a whole split, beside uniform, unigram and n-gram baselines.

The split is scored in parallel lanes, and each lane starts from an empty carry in the middle of the text, which costs
about 2 nats. So a lane has at least MIN_LANE targets, which limits the cost to 0.002 nats per target. The names corpus
(2,889 targets) scores 2.001 nats in one lane or in two, and 2.035 in 50.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from common import console
from common.errors import UsageError
from common.files import read_json, write_record
from common.types import Array
from pipeline.lanes import windows_per_epoch
from pipeline.manifest import Manifest
from pipeline.shards import read_tokens
from trainers import checkpoint
from trainers.judging import breakdown, ngram, report
from trainers.run import Run, data_of, read_run
from trainers.training import devices
from trainers.training.score import Passes, losses
from trainers.training.step import Steps

FORMAT_VERSION = 4
LANES = 50  # the same for all runs, so that their losses compare
MIN_LANE = 1000  # targets of a lane; a split of 50,000 has all of LANES
COUNTED = 8_000_000  # tokens up to which an n-gram is counted by default; that many take about 20 s and 0.5 GB
PIECE = 1 << 24  # tokens read at a time


def evaluate_run(
    folder: Path, split: str | None, data: Path | None, count: bool | None, force: bool, verify: bool = False
) -> None:
    """Score a run's best checkpoint on a split; write evaluation-SPLIT.json and report.html in the run's folder.

    split: by default test, or val if the data has no test split.
    count: whether to compare with an n-gram; by default only if that takes seconds.
    verify: read the whole data set, not only the shards that changed since they were last verified.
    Raises StageError if the data is not the data that the run was trained on, UsageError for an n-gram on train.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    data, manifest = data_of(run, data, verify)
    split = split or manifest.judged
    manifest.split(split)
    if split == "train" and count:
        raise UsageError("--ngram cannot be judged on train, which it counts: pass --split val or test")
    lanes = min(LANES, max(1, (manifest.split(split).tokens - 1) // MIN_LANE))
    read = read_by(run, manifest, chosen.step)
    tokens = sum(len(part) for part in read) + sum(manifest.split(name).tokens for name in ("val", split))
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
    saved = read_json(path)
    if not force and saved.get("format_version") == FORMAT_VERSION and _is_current(saved, inputs, count):
        console.note(f"{path} is up to date with checkpoint {chosen.step}: {saved['bits']:.3f} bits per {unit}")
        report.write(folder)  # an earlier call may have been killed before it wrote the page
        return
    if count is None and split != "train" and not compared:
        console.note(
            f"skipping the n-gram: counting {tokens / 1e6:,.0f} million tokens takes about {tokens / 5e5:,.0f} s and "
            f"{tokens * 60 / 1e9:,.1f} GB; pass --ngram to count them"
        )
    # With one replica, the number of lanes, and so the loss, does not depend on the host's devices.
    replica = devices.prepare(1)
    with replica.strategy.scope():
        model = checkpoint.load_model(run, chosen)
    with console.progress("windows") as bar:
        passes = Passes(Steps(replica, model), data, manifest, split, lanes, run.config.train.window)
        nats_N = losses(passes, bar)
    evaluation = {"format_version": FORMAT_VERSION, "inputs": inputs}
    evaluation |= figures_of(nats_N, passes.lanes, data, manifest, split, read if compared else [])
    console.out.print(
        f"{folder} at step {chosen.step} on {data}'s {split} split: {evaluation['nats']:.4f} nats = "
        f"{evaluation['bits']:.4f} bits per {unit} over {evaluation['targets']:,} {unit}s",
    )
    _show(evaluation, unit)
    write_record(path, evaluation)
    console.note(f"report: {report.write(folder)}")


def _is_current(saved: dict[str, Any], inputs: dict[str, Any], count: bool | None) -> bool:
    """Compare the inputs of a saved evaluation with the current ones. If `count` is unset, it may have an n-gram."""
    try:
        more = {"ngram": True} if count is None and saved["inputs"]["ngram"] else {}
        return isinstance(saved["bits"], float) and saved["inputs"] == inputs | more
    except (KeyError, TypeError):
        return False


def read_by(run: Run, manifest: Manifest, step: int) -> list[range]:
    """Parts of train that a checkpoint has read, for the n-gram to count the same: during the first epoch the
    beginning of each lane, then all."""
    tokens, B, T = manifest.split("train").tokens, run.config.train.lanes, run.config.train.window
    if step >= windows_per_epoch(tokens, B, T):
        return [range(tokens)]
    edges = [lane * (tokens - 1) // B for lane in range(B + 1)]
    return [range(start, min(start + step * T, stop) + 1) for start, stop in itertools.pairwise(edges)]


def read_parts(data: Path, manifest: Manifest, parts: Sequence[range]) -> Array:
    """Read parts of train, one after the other."""
    train = manifest.split("train")
    return np.concatenate([read_tokens(data, train, manifest.dtype, part.start, part.stop) for part in parts])


def figures_of(
    nats_N: Array, lanes: int, data: Path, manifest: Manifest, split: str, counted: Sequence[range]
) -> dict[str, Any]:
    """Contents of evaluation-SPLIT.json, from the loss of each target of a split and the number of lanes.

    counted: the parts of train that an n-gram counts; if there are none, there is no n-gram.
    """

    def read(split: str) -> Array:
        return read_tokens(data, manifest.split(split), manifest.dtype, 0, manifest.split(split).tokens)

    vocab, ids = manifest.vocab, read(split)
    targets_N, train_V = ids[1:], _counts(data, manifest)
    # Laplace smoothing: each symbol is counted once more than it occurs, so that none is impossible.
    unigram_V = np.log(train_V.sum() + vocab.size) - np.log(train_V + 1)
    nats = {"nats": nats_N}
    baselines: dict[str, Any] = {
        "uniform": {"nats": math.log(vocab.size)},
        "unigram": {"nats": float(breakdown.count_ids(targets_N, vocab.size) @ unigram_V) / len(targets_N)},
    }
    evaluation = breakdown.figures(nats_N, targets_N, vocab) | {"baselines": baselines}
    if counted:
        best = ngram.best(read_parts(data, manifest, counted), read("val"), ids, vocab.size, vocab.end_id)
        nats["ngram_nats"] = best.nats_Q
        baselines["ngram"] = {
            "nats": float(best.nats_Q.mean()),
            "nats_interval": breakdown.mean_interval(best.nats_Q),
            "ahead": float((best.nats_Q - nats_N).mean()),
            "ahead_interval": breakdown.mean_interval(best.nats_Q - nats_N),
            "order": best.order,
            "val_nats_of_orders": best.val_nats,
        }
        evaluation["errors"] = breakdown.compare(nats_N, best.nats_Q, targets_N, vocab)
    groups = {
        "class": breakdown.by_class(targets_N, vocab),
        "frequency": breakdown.by_frequency(targets_N, train_V),
        "position": breakdown.by_position(ids[:-1], lanes, vocab.end_id),
    }
    return evaluation | {"by": {name: breakdown.means(group, **nats) for name, group in groups.items()}}


def _counts(data: Path, manifest: Manifest) -> Array:
    """Occurrences of each id in train."""
    train, counts_V = manifest.split("train"), np.zeros(manifest.vocab.size, np.int64)
    for start in range(0, train.tokens, PIECE):
        ids = read_tokens(data, train, manifest.dtype, start, start + PIECE)
        counts_V += breakdown.count_ids(ids, len(counts_V))
    return counts_V


def _show(evaluation: dict[str, Any], unit: str) -> None:
    """Print the perplexity, and the loss beside the n-gram's; report.html has the rest."""
    console.out.print(
        f"perplexity {evaluation['perplexity']:.3f}, bits per character {evaluation['bits_per_character']:.4f}, "
        f"per byte {evaluation['bits_per_byte']:.4f}"
    )
    rows = {"model": (evaluation["nats"], evaluation["nats_interval"])}
    if counted := evaluation["baselines"].get("ngram"):
        sign, leader = (1, "model") if counted["ahead"] >= 0 else (-1, "n-gram")
        interval = counted["ahead_interval"] and sorted(sign * bound for bound in counted["ahead_interval"])
        rows[f"n-gram of order {counted['order']}"] = counted["nats"], counted["nats_interval"]
        rows[f"{leader} ahead by"] = sign * counted["ahead"], interval
    table = Table(box=None, pad_edge=False)
    for name in (f"per {unit}", "nats", "95 %", "bits", "95 %"):
        table.add_column(name, justify="left" if name.startswith("per") else "right", no_wrap=True)
    for name, (nats, bounds) in rows.items():
        cells = []
        for scale in (1, math.log(2)):
            cells += [f"{nats / scale:.4f}", " to ".join(f"{bound / scale:.4f}" for bound in bounds or ())]
        table.add_row(name, *cells)
    console.out.print(table)
