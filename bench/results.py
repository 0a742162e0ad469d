"""Finished runs as JSON files with config, data, machine, commit and date, and the tables built from them."""

import json
import math
from pathlib import Path
from typing import Any

from bench.machine import provenance
from common.errors import StageError
from common.files import write_json
from pipeline.manifest import Manifest, read_manifest
from trainers import checkpoint, metrics
from trainers.run import read_run

BEGIN, END = "<!-- made by python -m bench results -->", "<!-- end -->"
# Published nats, and the model's size if it differs from ours. Sources: A. Karpathy, J. Johnson and L. Fei-Fei (arXiv
# 1506.02078, table 1); nanoGPT's README, its best model and its three-minute CPU run.
PUBLISHED = {
    "tinyshakespeare": ("1.88", ""),
    "tinyshakespeare-best": ("1.470", "10.65 M"),
    "tinyshakespeare-nanogpt": ("1.88", "0.8 M"),
    "warpeace-1x64": ("1.449", ""),
    "warpeace-1x128": ("1.277", ""),
    "warpeace-2x128": ("1.227", ""),
    "warpeace-2x192": ("1.092", "2 x 512"),
    "warpeace-2x240": ("1.092", "2 x 512"),
    "warpeace-2x320": ("1.092", "2 x 512"),
}
# Rows of README.md.
HEADLINES = {
    "tinyshakespeare": "tinyshakespeare, three minutes with AMX",
    "tinyshakespeare-best": "tinyshakespeare",
    "warpeace-2x320": "War and Peace",
    "chinese-poetry": "Tang poems",
    "linux-core": "Linux, kernel/",
    "latex": "a book in LaTeX",
    "wikipedia-sample": "Wikipedia, a sample",
    "stdlib-best": "Python's standard library",
}


def record(folder: Path, out: Path) -> dict[str, Any]:
    """Write out/NAME.json for a run that was trained and evaluated on test, or on val if there is no test split.

    Commit and date are recorded now, so call this at the commit that trained the run. The machine is the run's.
    Raises StageError for uncommitted code, or if the evaluation is missing or of another checkpoint.
    """
    run = read_run(folder)
    chosen = checkpoint.best(run)
    manifest = read_manifest(run.data)
    judged = folder / f"evaluation-{manifest.judged}.json"
    if not judged.is_file():
        raise StageError(f"{folder} has not been evaluated: run python -m trainers evaluate {folder}")
    score = json.loads(judged.read_text(encoding="utf-8"))
    if score["inputs"]["weights_sha256"] != checkpoint.weights_sha256(chosen):
        raise StageError(
            f"{judged} evaluates another checkpoint than {chosen.folder}: run python -m trainers evaluate {folder}"
        )
    rows = metrics.read(run.folder)
    trained = [row for row in rows if "seconds" in row]
    result = {
        "format_version": 4,
        "name": folder.name,
        "sources": [source.name for source in manifest.sources[:5]],
        "split": _split(manifest),
        "tokens": {name: split.tokens for name, split in manifest.splits.items()},
        "data_sha256": run.data_sha256,
        "config": run.config.to_json(),
        "parameters": run.build().count_params(),
        "step": chosen.step,
        "weights_sha256": checkpoint.weights_sha256(chosen),
        "steps": rows[-1]["step"],
        "seen": round(rows[-1]["epoch"] * manifest.split("train").tokens),  # tokens, up to the last step
        "training_seconds": sum(row["seconds"] for row in trained),
        "val_nats_before": metrics.evaluations(run.folder)[0]["val_nats"],
        "val_nats": chosen.val_nats,
        "judged": manifest.judged,
        "nats": score["nats"],
        "interval": score["nats_interval"],
        **{
            f"ngram_{name}": score["baselines"].get("ngram", {}).get(name)
            for name in ("nats", "ahead", "ahead_interval")
        },
        **provenance(),
        **({"machine": run.machine} if run.machine else {}),
    }
    write_json(out / f"{folder.name}.json", result)
    return result


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the results of runs in a folder, by name. Raises StageError if there are none."""
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not (runs := [result for result in kept if "judged" in result]):
        raise StageError(f"{folder} contains no results of runs: run python -m bench results runs/NAME")
    return runs


def table(results: list[dict[str, Any]]) -> str:
    """Return the table of docs/results.md, one row per result."""
    names = ["config", "split", "model, parameters", "read, millions", "val, nats", "test, nats (95 %)", "bits"]
    names += ["n-gram, nats", "n-gram minus network (95 %)", "published", "training", "machine", "date, commit, seed"]
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *map(row, results)])


def headlines(results: list[dict[str, Any]]) -> str:
    """Return the table of README.md, in bits per character."""
    lines = ["| corpus | model | held-out bits per character | n-gram | published |", "|---|---|---|---|---|"]
    named = {result["name"]: result for result in results}
    for name, corpus in HEADLINES.items():
        if result := named.get(name):
            model, (nats, size) = result["config"]["model"], PUBLISHED.get(name, ("", ""))
            published = f"{float(nats) / math.log(2):.2f}" + (f" ({size})" if size else "") if nats else ""
            shape = f"{model['cell'].upper()} {model['layers']} x {model['units']}"
            counted = f"{result['ngram_nats'] / math.log(2):.2f}" if result["ngram_nats"] else ""
            lines.append(f"| {corpus} | {shape} | {result['nats'] / math.log(2):.2f} | {counted} | {published} |")
    return "\n".join(lines)


def row(result: dict[str, Any]) -> str:
    """Return the row of docs/results.md for a result."""
    model, train = result["config"]["model"], result["config"]["train"]
    counted = result["ngram_nats"]
    published, size = PUBLISHED.get(result["name"], ("", ""))
    judged = _with_interval(result["nats"], result["interval"])
    minutes, seconds = divmod(round(result["training_seconds"]), 60)
    cells = [
        f"[{result['name']}](../configs/{result['name']}.toml)",
        result["split"],
        f"{model['cell'].upper()} {model['layers']} x {model['units']}, {result['parameters']:,}",
        f"{result['seen'] / 1e6:,.0f}",
        *([f"{result['val_nats']:.3f}", judged] if result["judged"] == "test" else [judged, ""]),
        f"{result['nats'] / math.log(2):.3f}",
        f"{counted:.3f}" if counted else "",
        _with_interval(ahead, result.get("ngram_ahead_interval")) if (ahead := result.get("ngram_ahead")) else "",
        published + (f" ({size})" if size else ""),
        f"{minutes}:{seconds:02} min",
        f"{result['machine']}, {train['precision']}",
        f"{result['date']}, {result['commit'][:7]}, {train['seed']}",
    ]
    return f"| {' | '.join(cells)} |"


def _with_interval(nats: float, interval: list[float] | None) -> str:
    return f"{nats:z.3f}" + (f" ({interval[0]:z.3f} to {interval[1]:z.3f})" if interval else "")


def put(page: Path, table: str) -> None:
    """Replace the table between a page's markers. Raises StageError if they are missing."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise StageError(f"{page} has no markers for the table: add the lines {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def _split(manifest: Manifest) -> str:
    """Describe the split: unit, percentages of train, val and test, and method."""
    tokens = {name: split.tokens for name, split in manifest.splits.items()}
    percents = [100 * part / sum(tokens.values()) for part in tokens.values()]
    shares = "/".join(f"{percent:.{0 if percent >= 1 else 1}f}" for percent in percents)
    method = {"document": "by hash", "contiguous": f"the end is {manifest.judged}"}.get(
        kind := manifest.settings["split"], f"as {kind}"
    )
    return f"{manifest.vocab.unit}s, {shares}, {method}"
