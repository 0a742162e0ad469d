"""A run's report: one page of HTML of what was found out about it, which needs nothing but itself. Made from the files
in the run's folder alone, whenever one of them is new; no TensorFlow is imported."""

import math
from pathlib import Path
from typing import Any

from common import console
from common.files import read_json, whole_file
from common.pages import render
from common.plots import Plot, bars, percent
from trainers import metrics

FILE, SAMPLES = "report.html", "samples.json"
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
    page = render(
        "trainers",
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


def sweeps_of(samples: dict[str, Any], unit: str) -> list[tuple[str, Plot]]:
    """A title and a plot for each measure of the samples: a bar a temperature, and last that of real text."""
    rows = [*samples["rows"], samples["held_out"]]
    labels = [*(f"{row['temperature']:g}" for row in samples["rows"]), f"{samples['held_out']['split']}: real"]
    found = []
    for key, title in SWEPT.items():
        if key not in rows[0]:
            continue
        tick = "{:.2f}".format if key == "bits" else percent
        found.append((title.format(unit=unit), bars([[row[key] for row in rows]], labels, tick)))
    for part in ("coherence", "copied"):
        for key in dict.fromkeys(key for row in rows for key in row[part]):
            tick = "{:,.0f}".format if key == "longest" else percent
            found.append((_title(part, key), bars([[row[part].get(key, 0) for row in rows]], labels, tick)))
    return found


def _title(part: str, key: str) -> str:
    if part == "coherence":
        return key.replace("_", " ").capitalize()
    length = key.removeprefix("copied_")
    return "Longest copy from train, bytes" if key == "longest" else f"Stretches of {length} bytes that train has"
