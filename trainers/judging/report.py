"""The report of a run: one self-contained HTML page, made from the files in the run's folder without TensorFlow."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from common.errors import StageError
from common.files import read_json, recover, whole_file
from common.pages import render
from common.plots import Plot, bars, percent
from common.printable import visible
from trainers import metrics

FILE, SAMPLES = "report.html", "samples.json"
SAMPLES_FORMAT = 3  # format_version
SERIES = ("model", "n-gram")
GROUPS = {  # of evaluation-SPLIT.json: title, and title of the axis
    "class": ("by class", ""),
    "frequency": ("by frequency", "count in train, from"),
    "position": ("by position", "{unit}s since the carry was empty, from"),
}
MEASURES = {  # of samples.json
    "bits": "Bits per {unit} under the model",
    "distinct_runs": "Distinct sequences of three words",
    "repeated": "Stretches of 20 characters that repeat within a text",
    "compressed": "Compressed size, relative to the text",
    "words_known": "Words that occur in train",
}


def write(folder: Path) -> Path:
    """Write report.html from the run's evaluation-SPLIT.json, samples.json and metrics.jsonl, if it has them."""
    recover(folder)  # of a killed process, whose JSON may be complete and so is not written again
    evaluations = {
        path.stem.removeprefix("evaluation-"): evaluation
        for path in sorted(folder.glob("evaluation-*.json"), reverse=True)
        if "by" in (evaluation := read_json(path))  # missing in older formats
    }
    samples, run = read_json(folder / SAMPLES), read_json(folder / "run.json")
    if samples.get("format_version") != SAMPLES_FORMAT:
        samples = {}
    try:
        page = _page(folder, run, evaluations, samples)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, jinja2.UndefinedError) as error:
        names = ", ".join([*(f"evaluation-{split}.json" for split in evaluations), *([SAMPLES] if samples else [])])
        reason = f"{type(error).__name__}: {error}"
        raise StageError(
            f"a file of {folder} is corrupted ({reason}): remove {names}, then evaluate and judge again"
        ) from None
    with whole_file(folder / FILE) as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / FILE


def _page(folder: Path, run: dict[str, Any], evaluations: dict[str, dict[str, Any]], samples: dict[str, Any]) -> str:
    """Render the page. Corrupted files lead to errors of many kinds, which `write` handles."""
    return render(
        "trainers.judging",
        "report.html.j2",
        {"bits": lambda nats: nats / math.log(2), "visible": lambda text: visible(text, keep="\n\t")},
        name=folder.name,
        unit=run["vocab"]["unit"],
        model=run["config"]["model"],
        train=run["config"]["train"],
        evaluations={split: (evaluation, plots_of(evaluation)) for split, evaluation in evaluations.items()},
        groups=GROUPS,
        series=SERIES,
        samples=samples,
        measures=measures_of(samples, run["vocab"]["unit"]) if samples else [],
        columns=[label for label, _ in rows_of(samples)] if samples else [],
        progress=list({row["step"]: row for row in metrics.read(folder) if "sample" in row}.values()),
    )


def plots_of(evaluation: dict[str, Any]) -> dict[str, Plot]:
    """Plots of an evaluation: nats by group, beside the n-gram's if there is one, and the n-gram's nats by order."""
    plots = {}
    for by in GROUPS:
        rows = evaluation["by"][by]
        series = [[row[key] for row in rows] for key in ("nats", "ngram_nats") if key in rows[0]]
        plots[by] = bars(series, [row["name"].split(" to ")[0] for row in rows], "{:.2f}".format)
    if ngram := evaluation["baselines"].get("ngram"):
        orders = ngram["val_nats_of_orders"]
        plots["orders"] = bars([orders], [str(order) for order in range(1, len(orders) + 1)], "{:.2f}".format)
    return plots


class Measure(NamedTuple):
    """Row of the samples' measures, with one bar and one cell per group of texts."""

    title: str
    plot: Plot
    cells: list[str]


def rows_of(samples: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Groups of texts with their labels: the temperatures, an n-gram if there is one, and held-out text."""
    rows = [(f"{row['temperature']:g}", row) for row in samples["rows"]]
    rows += [("n-gram", row) for row in samples["ngram"]]
    return [*rows, (samples["held_out"]["split"], samples["held_out"])]


def measures_of(samples: dict[str, Any], unit: str) -> list[Measure]:
    """Every measure of the samples: likelihood and variety, then coherence, then copies."""
    columns, rows = map(list, zip(*rows_of(samples), strict=True))
    measures = []
    for key, title in MEASURES.items():
        if key not in rows[0]:
            continue
        values = [row[key] for row in rows]
        tick = "{:.2f}".format if key == "bits" else percent
        cells = [f"{value:.3f}" for value in values]
        measures.append(Measure(title.format(unit=unit), bars([values], columns, tick), cells))
    for key in dict.fromkeys(key for row in rows for key in row["coherence"]):
        shares = [row["coherence"].get(key) for row in rows]
        plot = bars([[share and share["share"] for share in shares]], columns)
        title = key.replace("_", " ").capitalize()
        measures.append(Measure(title, plot, [share_with_counts(share) for share in shares]))
    for key in dict.fromkeys(key for row in rows for key in row["copied"]):
        values = [row["copied"].get(key) for row in rows]
        tick, form = ("{:,.0f}".format, "{:,}") if key == "longest" else (percent, "{:.3f}")
        cells = ["–" if value is None else form.format(value) for value in values]
        length = key.removeprefix("copied_")
        title = (
            "Longest copy from train, bytes" if key == "longest" else f"Stretches of {length} bytes copied from train"
        )
        measures.append(Measure(title, bars([values], columns, tick), cells))
    return measures


def share_with_counts(share: dict[str, Any] | None) -> str:
    """Format a share of trainers.judging.coherence with its counts, or a dash if there was nothing to judge.

    >>> share_with_counts({"share": 1 / 3, "good": 1, "of": 3}), share_with_counts(None)
    ('0.333 (1 of 3)', '–')
    """
    return f"{share['share']:.3f} ({share['good']:,} of {share['of']:,})" if share else "–"
