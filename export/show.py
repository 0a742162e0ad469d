"""The last screen of `make demo`: the files, the bits per character, a sample per temperature, the next commands."""

import math
from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.filesize import decimal
from rich.table import Table

from common import console
from common.errors import StageError
from common.files import read_json, reading
from export import checksums
from export.lite.graph import PRECISIONS
from export.lite.runner import LiteModel, Sampling
from export.serve.saved_model import ORIGIN, latest_version
from pipeline.manifest import read_manifest
from trainers import checkpoint, metrics
from trainers.run import Run, read_run
from trainers.sampling.rows import Request
from trainers.sampling.sampler import Sampler

TEMPERATURES = (0.2, 0.5, 0.8, 1.0)
LENGTH = 240  # tokens after an empty prompt, which suits every text
LINES, COLUMNS = 3, 100  # of each sample, blank lines left out


def show(folder: Path, served: Path, devices: Path) -> None:
    """Print a run's results. Raises StageError for an export that is missing or of another checkpoint."""
    run = read_run(folder)
    chosen = checkpoint.best(run)
    weights, latest = checkpoint.weights_sha256(chosen), _latest(served)
    for path, about in ((latest, latest / ORIGIN), (devices, devices / "model.json")):
        if path.exists():
            checksums.check(path)
        if read_json(about).get("weights_sha256") != weights:
            raise StageError(f"{path} was not exported from {chosen.folder}, now the best of {folder}: export it again")
    lite = [path for name in PRECISIONS if (path := devices / f"{name}.tflite").is_file()]
    if not lite:
        raise StageError(f"{devices} has no .tflite: run python -m export tflite {folder} --force")
    texts = _from_checkpoint(run, chosen)
    others = {str(latest): _from_saved_model(latest), str(lite[0]): _from_lite(lite[0])}
    console.out.print(_files(run, served, lite))
    console.out.print(_bits(run))
    _samples(texts)
    console.out.print(_agreement(texts, others))
    console.out.print(_next(folder, devices))


def _table(*columns: str) -> Table:
    table = Table(title=columns[0], title_justify="left", title_style="bold", box=None, show_header=False)
    for index in range(len(columns)):
        table.add_column(justify="right" if index == len(columns) - 1 > 0 else "left", no_wrap=True)
    return table


def _files(run: Run, served: Path, lite: list[Path]) -> Table:
    table = _table("Files", "", "")
    report = run.folder / "report.html"
    for name, path in (
        ("data", run.data),
        ("run", run.folder),
        *([("report", report)] if report.is_file() else []),  # a run that was not evaluated has none
        ("SavedModel", served),
        *((".tflite", path) for path in lite),
    ):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        table.add_row(name, str(path), decimal(sum(file.stat().st_size for file in files)))
    return table


def _bits(run: Run) -> Table:
    table = _table(f"Bits per {run.vocab.unit} on held-out text", "")
    if rows := metrics.evaluations(run.folder):  # none without metrics.jsonl, which no result depends on
        best = min(rows, key=lambda row: row["val_nats"])
        table.add_row("before training, val", f"{rows[0]['val_bits']:.3f}")
        table.add_row(f"after step {best['step']:,}, val", f"{best['val_bits']:.3f}")
    judged = read_manifest(run.data).judged
    path = run.folder / f"evaluation-{judged}.json"
    with reading(path, f"python -m trainers evaluate {run.folder} --force"):
        if score := read_json(path):
            table.add_row(f"after step {score['inputs']['step']:,}, {judged}", f"{score['bits']:.3f}")
            if ngram := score["baselines"].get("ngram"):
                table.add_row(f"an n-gram model, {judged}", f"{ngram['nats'] / math.log(2):.3f}")
                table.caption, table.caption_justify, table.caption_style = _ahead(score), "left", "none"
    return table


def _ahead(score: dict[str, Any]) -> str:
    """State for which kinds of characters, each at least a hundredth of the text, which model is ahead."""
    ahead: dict[str, list[str]] = {"network": [], "n-gram": []}
    for kind in score["by"]["class"]:
        if kind["targets"] >= score["targets"] / 100:
            ahead["network" if kind["nats"] < kind["ngram_nats"] else "n-gram"].append(kind["name"])
    return "\n".join(f"the {name} is ahead in {', '.join(kinds)}" for name, kinds in ahead.items() if kinds)


def _samples(texts: list[bytes]) -> None:
    console.out.print("Samples, one seed each", style="bold")
    for temperature, text in zip(TEMPERATURES, texts, strict=True):
        console.out.rule(f"temperature {temperature}", align="left")
        lines = text.decode("utf-8", errors="replace").split("\n")
        for line in [line for line in lines if line.strip()][:LINES]:
            console.write_text(line[:COLUMNS].encode())


def _agreement(texts: list[bytes], others: dict[str, list[bytes]]) -> str:
    """State whether the exports write the checkpoint's texts. Quantized weights may write others."""
    same = {name: sum(a == b for a, b in zip(texts, other, strict=True)) for name, other in others.items()}
    if min(same.values()) == len(texts):
        return f"The checkpoint, {' and '.join(others)} write the same texts."
    counts = (f"{name} {count} of them" for name, count in same.items())
    return f"The checkpoint writes these {len(texts)} texts; {', '.join(counts)}."


def _next(folder: Path, devices: Path) -> Table:
    table = _table("Next")
    table.add_row(f".venv/bin/python -m export web {devices} --serve")
    table.add_row(f'.venv/bin/python -m trainers sample {folder} --prompt "def "')
    table.add_row(f".venv/bin/python -m trainers neurons {folder}")
    return table


def _inputs() -> dict[str, tf.Tensor]:
    rows = len(TEMPERATURES)
    return {
        "prompt": tf.constant([b""] * rows),
        "length": tf.constant([LENGTH] * rows),
        "temperature": tf.constant(TEMPERATURES),
        "seed": tf.range(rows, dtype=tf.int64),
    }


def _from_checkpoint(run: Run, chosen: checkpoint.Checkpoint) -> list[bytes]:
    sampler = Sampler(checkpoint.load_model(run, chosen), run.vocab)
    generate = tf.function(sampler.generate, autograph=False)
    return generate(Request(*_inputs().values())).text_bytes.numpy().tolist()


def _latest(served: Path) -> Path:
    latest = latest_version(served)
    if not latest:
        raise StageError(f"{served} has no SavedModel: run python -m export savedmodel")
    return served / str(latest)


def _from_saved_model(version: Path) -> list[bytes]:
    loaded = tf.saved_model.load(str(version))
    return loaded.signatures["serving_default"](**_inputs())["text_bytes"].numpy().tolist()


def _from_lite(path: Path) -> list[bytes]:
    lite = LiteModel(path)
    return [lite.generate(b"", LENGTH, Sampling(warm, seed)) for seed, warm in enumerate(TEMPERATURES)]
