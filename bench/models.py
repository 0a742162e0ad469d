"""Trained models in models/: a run as an int8-dynamic .tflite with a card, small enough for the repository.

models/NAME/int8-dynamic.tflite, model.json, report.json, neurons.json     from `export tflite`
models/NAME/step-N/                                                        snapshots of its training, the same files
models/NAME/MODEL_CARD.md                                                  from the run's results/NAME.json
models/NAME/SHA256SUMS
"""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.errors import StageError
from common.files import load_json, whole_file
from common.printable import wrapped
from common.settings import read_config
from export import checksums
from export.bundle import NEURONS
from export.lite.lite import LiteSettings, export_lite
from pipeline.corpora import CORPORA

PRECISION = "int8-dynamic"
TEMPERATURE = 0.7  # of the sample on the card
TEXTS = 10  # in the sample, if texts end with their document
MOST_BYTES = 1_200_000  # of a model's folder

# What a model of a corpus writes. Only texts with a licence that allows it may be published.
WRITES = {
    "stdlib": "Python",
    "shakespeare": "plays in the manner of Shakespeare",
    "tinyshakespeare": "plays in the manner of Shakespeare",
    "warpeace": "prose in the manner of War and Peace",
    "linux": "C in the manner of the Linux kernel",
    "linux-core": "C in the manner of the Linux kernel",
    "latex": "LaTeX in the manner of a book on algebraic geometry",
    "names": "first names",
    "makemore": "first names",
    "chinese-poetry": "poems in the manner of the Tang dynasty",
    "wikipedia-sample": "Wikipedia's XML",
}

INTRO = """A character-level {shape} that writes {writes}. After Andrej Karpathy, [The Unreasonable Effectiveness of \
Recurrent Neural Networks](https://karpathy.github.io/2015/05/21/rnn-effectiveness/)."""
CARD = """# {name}

{intro}

    python -m export run-lite models/{name} {options}

{sample}

| | |
|---|---|
| trained on | {source} |
| licence of the text | {licence} |
{vocabulary}| model | {shape}, {parameters:,} parameters, {bytes:,} bytes in 8 bits |
| loss on {judged} | {nats:.3f} nats, {bits:.3f} bits per {unit}; in 8 bits {lost:+.4f} bits |
| n-gram on the same text | {ngram} |
| training | {minutes:.0f} minutes on {machine}; {date}, commit {commit:.7} |{snapshots}
| config, figures | [configs/{run}.toml](../../configs/{run}.toml), [results/{run}.json](../../results/{run}.json) |
| weights, SHA-256 | {weights} |

The model knows this text and nothing else. It has no knowledge of facts, follows no instructions,
and nothing filters what it writes: the text resembles its source in every respect, rudeness and
names of people included. Passages may be copied from the source word for word, and then have the
source's licence.
"""
UNKNOWN = "| vocabulary | {count:,} characters; every other one is read, and sometimes written, as � |\n"


def export_model(run: Path, out: Path, results: Path, note: str = "") -> None:
    """Export a run whose figures are in `results` to `out`, with its card.

    note: description of the text, if it is not exactly the corpus. Raises StageError for a folder above MOST_BYTES.
    """
    kept = load_json(results / f"{run.name}.json")
    export_lite(run, out, LiteSettings((PRECISION,)), None, force=False)
    with whole_file(out / "MODEL_CARD.md") as partial:
        partial.write_text(card(out, kept, note), encoding="utf-8")
    checksums.write(out, leave_out=[NEURONS])
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise StageError(f"{out} has {size:,} bytes, at most {MOST_BYTES:,} are allowed: train a smaller model")


def card(folder: Path, kept: dict[str, Any], note: str) -> str:
    """Return the card of an exported model. kept: the figures of its run, as in results/NAME.json."""
    about = load_json(folder / "model.json")
    if about["weights_sha256"] != kept["weights_sha256"]:
        raise StageError(f"{folder} and the figures of {kept['name']} are of different weights: record the run again")
    (source,) = read_config(Path("configs") / f"{kept['name']}.toml", ())["data"]["source"]
    model, corpus, file = kept["config"]["model"], CORPORA[source], about["files"][PRECISION]
    vocab = about["vocab"]
    options = ["--temperature", str(TEMPERATURE), *(["--count", str(TEXTS)] if "end_id" in vocab else [])]
    command = [sys.executable, "-m", "export", "run-lite", str(folder), *options]
    text = subprocess.run(command, check=True, capture_output=True).stdout.decode(errors="replace")
    shape = f"{model['cell'].upper()} of {model['layers']} x {model['units']} units"
    ngram = f"{kept['ngram_nats']:.3f} nats" if kept["ngram_nats"] else "not counted"
    if interval := kept["ngram_ahead_interval"]:
        ngram += f"; {kept['ngram_ahead']:z.3f} ({interval[0]:z.3f} to {interval[1]:z.3f}) more than the network"
    steps = ", ".join(f"{step:,}" for step in about["config"]["train"]["snapshots"])
    return CARD.format(
        name=folder.name,
        run=kept["name"],
        intro=wrapped(INTRO.format(shape=shape, writes=WRITES[source])),
        shape=shape,
        options=" ".join(options),
        sample="\n".join(f"    {line}".rstrip() for line in text.rstrip("\n").split("\n")),
        vocabulary=UNKNOWN.format(count=len(vocab["symbols"]) - 1) if "unknown_id" in vocab else "",
        source=note or f"{source}: {corpus.about}",
        licence=corpus.licence,
        parameters=kept["parameters"],
        bytes=file["size"],
        judged=kept["judged"],
        nats=kept["nats"],
        bits=kept["nats"] / math.log(2),
        unit=vocab["unit"],
        lost=file["lost_bits"],
        ngram=ngram,
        minutes=kept["training_seconds"] / 60,
        machine=kept["machine"],
        date=kept["date"],
        commit=kept["commit"],
        snapshots=f"\n| snapshots | after {steps} of {about['step']:,} steps |" if steps else "",
        weights=about["weights_sha256"],
    )
