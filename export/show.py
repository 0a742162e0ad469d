"""What a run came to: what was made and where, its bits per character, and text from each thing that was made."""

from pathlib import Path

import tensorflow as tf
from rich.table import Table

from common import console
from common.errors import StageError
from common.files import read_json
from export.lite.graph import PRECISIONS
from export.lite.runner import LiteModel, Sampling
from export.serve.saved_model import MADE_FROM, latest_version
from trainers import checkpoint, metrics
from trainers.run import Run, read_run
from trainers.sampling.rows import Request
from trainers.sampling.sampler import Sampler

TEMPERATURES = (0.5, 0.8, 1.0)
LENGTH = 240  # characters, after an empty prompt: it suits every text


def show(folder: Path, served: Path, devices: Path) -> None:
    """Prints the table and the samples. Raises StageError for a part that has not been made."""
    run = read_run(folder)
    chosen = checkpoint.best(run)
    weights, latest = checkpoint.weights_sha256(chosen), _latest(served)
    for made, about in ((latest, latest / MADE_FROM), (devices, devices / "model.json")):
        if read_json(about).get("weights_sha256") != weights:
            raise StageError(f"{made} was not made from {chosen.folder}, the best of {folder} now: export it again")
    lite = [path for name in PRECISIONS if (path := devices / f"{name}.tflite").is_file()]
    if not lite:
        raise StageError(f"there is no .tflite in {devices}: make it with python -m export tflite --force")
    _samples(
        {
            f"checkpoint  {chosen.folder}": _from_checkpoint(run, chosen),
            f"SavedModel  {latest}": _from_saved_model(latest),
            f".tflite  {lite[0]}": _from_lite(lite[0]),
        }
    )
    console.out.print(_made(run, chosen, served, lite))
    console.out.print(_bits(folder, run))


def _made(run: Run, chosen: checkpoint.Checkpoint, served: Path, lite: list[Path]) -> Table:
    table = Table(title="What was made", title_justify="left", box=None)
    for name in ("", "where", "MB"):
        table.add_column(name, justify="right" if name == "MB" else "left", overflow="fold")
    for name, path in (
        ("data", run.data),
        ("data report", run.data / "validation" / "report.html"),
        ("run", run.folder),
        ("run report", run.folder / "report.html"),
        (f"checkpoint, step {chosen.step:,}", chosen.folder),
        ("SavedModel", served),
        *((".tflite", path) for path in lite),
    ):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        if files:  # a run that was not evaluated has no report
            table.add_row(name, str(path), f"{sum(file.stat().st_size for file in files) / 1e6:.1f}")
    return table


def _bits(folder: Path, run: Run) -> Table:
    table = Table(title=f"Bits per {run.vocab.unit} on held-out text", title_justify="left", box=None)
    for name in ("", "bits", "nats"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    rows = metrics.evaluations(run.folder)
    best = min(rows, key=lambda row: row["val_nats"])
    table.add_row("before training (val)", f"{rows[0]['val_bits']:.3f}", f"{rows[0]['val_nats']:.3f}")
    table.add_row(f"after step {best['step']:,} (val)", f"{best['val_bits']:.3f}", f"{best['val_nats']:.3f}")
    if score := read_json(folder / "evaluation-test.json"):
        table.add_row(f"after step {score['inputs']['step']:,} (test)", f"{score['bits']:.3f}", f"{score['nats']:.3f}")
    return table


def _samples(sources: dict[str, list[bytes]]) -> None:
    for name, texts in sources.items():
        for temperature, text in zip(TEMPERATURES, texts, strict=True):
            console.out.rule(f"{name}  temperature {temperature}", align="left")
            # For people, so text: a character that the cut at LENGTH bytes broke is shown as broken.
            console.write_text(text.decode("utf-8", errors="replace").encode())


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
        raise StageError(f"there is no SavedModel in {served}: make it with python -m export savedmodel")
    return served / str(latest)


def _from_saved_model(version: Path) -> list[bytes]:
    loaded = tf.saved_model.load(str(version))
    return loaded.signatures["serving_default"](**_inputs())["text_bytes"].numpy().tolist()


def _from_lite(path: Path) -> list[bytes]:
    lite = LiteModel(path)
    return [lite.generate(b"", LENGTH, Sampling(warm, seed)) for seed, warm in enumerate(TEMPERATURES)]
