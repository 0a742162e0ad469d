"""A run's report: one page of HTML of what was found out about it, which needs nothing but itself. Made from the files
in the run's folder alone, whenever one of them is new; no TensorFlow is imported."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from common import console
from common.files import read_json, whole_file
from common.pages import render
from common.plots import Plot, bars, percent
from trainers import metrics

FILE, SAMPLES = "report.html", "samples.json"
SAMPLES_FORMAT = 2  # format_version
MODEL, NGRAM = "the model", "n-gram"
GROUPS = {"class": "by kind", "frequency": "by how often it occurs in train", "position": "by how much was read before"}
SWEPT = {  # of samples.json: what is drawn over the temperatures, and what it is
    "bits": "Bits a {unit}, as the model has them",
    "distinct_runs": "Distinct among the runs of three words",
    "repeated": "Stretches of 20 characters that came before in their text",
    "compressed": "Size when compressed, as a share of their own",
    "words_known": "Words that train has",
}


def write(folder: Path) -> Path:
    """Writes the run's report.html, of whatever of these its folder has: evaluation-SPLIT.json, samples.json, what it
    wrote while it was trained."""
    evaluations = {
        path.stem.removeprefix("evaluation-"): found
        for path in sorted(folder.glob("evaluation-*.json"), reverse=True)
        if "by" in (found := read_json(path))  # of this format
    }
    samples, about = read_json(folder / SAMPLES), read_json(folder / "run.json")
    if samples.get("format_version") != SAMPLES_FORMAT:
        samples = {}
    page = render(
        "trainers.judging",
        "report.html.j2",
        {"bits": lambda nats: nats / math.log(2), "visible": lambda text: console.visible(text, keep="\n\t")},
        name=folder.name,
        unit=about["vocab"]["unit"],
        model=about["config"]["model"],
        train=about["config"]["train"],
        evaluations={split: (found, plots_of(found)) for split, found in evaluations.items()},
        groups=GROUPS,
        series=[MODEL, NGRAM],
        samples=samples,
        sweeps=sweeps_of(samples, about["vocab"]["unit"]) if samples else [],
        columns=columns_of(samples) if samples else [],
        growth=list({row["step"]: row for row in metrics.read(folder) if "sample" in row}.values()),
    )
    with whole_file(folder / FILE) as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / FILE


def plots_of(found: dict[str, Any]) -> dict[str, Plot]:
    """The plots of an evaluation: nats by group, the model's beside the n-gram's, and the n-gram's by its order."""
    plots = {}
    for by in GROUPS:
        rows = found["by"][by]
        series = [[row[key] for row in rows] for key in ("nats", "ngram_nats") if key in rows[0]]
        plots[by] = bars(series, [row["name"].split(" to ")[0] for row in rows], "{:.2f}".format)
    if counted := found["baselines"].get("ngram"):
        orders = counted["val_nats_of_orders"]
        plots["orders"] = bars([orders], [str(order) for order in range(1, len(orders) + 1)], "{:.2f}".format)
    return plots


class Measure(NamedTuple):
    """What is told of the samples, and last of real text: as a plot, a bar a temperature, and in words."""

    title: str
    plot: Plot
    told: list[str]


def columns_of(samples: dict[str, Any]) -> list[str]:
    """What the bars stand for: the temperatures, and last real text."""
    return [*(f"{row['temperature']:g}" for row in samples["rows"]), f"{samples['held_out']['split']}: real"]


def sweeps_of(samples: dict[str, Any], unit: str) -> list[Measure]:
    """Each measure of the samples."""
    rows, columns = [*samples["rows"], samples["held_out"]], columns_of(samples)
    found = []
    for key, title in SWEPT.items():
        if key not in rows[0]:
            continue
        values = [row[key] for row in rows]
        tick = "{:.2f}".format if key == "bits" else percent
        told = [f"{value:.3f}" for value in values]
        found.append(Measure(title.format(unit=unit), bars([values], columns, tick), told))
    for key in dict.fromkeys(key for row in rows for key in row["coherence"]):
        shares = [row["coherence"].get(key) for row in rows]
        plot = bars([[share and share["share"] for share in shares]], columns)
        found.append(Measure(key.replace("_", " ").capitalize(), plot, [counted(share) for share in shares]))
    for key in dict.fromkeys(key for row in rows for key in row["copied"]):
        values = [row["copied"].get(key) for row in rows]
        tick, form = ("{:,.0f}".format, "{:,}") if key == "longest" else (percent, "{:.3f}")
        told = ["–" if value is None else form.format(value) for value in values]
        length = key.removeprefix("copied_")
        title = "Longest copy from train, bytes" if key == "longest" else f"Stretches of {length} bytes that train has"
        found.append(Measure(title, bars([values], columns, tick), told))
    return found


def counted(share: dict[str, Any] | None) -> str:
    """A share of trainers.judging.coherence with its counts; of nothing there is none.

    >>> counted({"share": 1 / 3, "good": 1, "of": 3}), counted(None)
    ('0.333 (1 of 3)', '–')
    """
    return f"{share['share']:.3f} ({share['good']:,} of {share['of']:,})" if share else "–"
