"""Report page of a run, from files like those that train, evaluate and judge write."""

import json
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from javascript import CHROMIUM, node

from common.files import load_json, write_json
from trainers.judging import report

ROOT = Path(__file__).parents[3]


def groups(ngram: bool) -> dict[str, list[dict[str, object]]]:
    extra = {"ngram_nats": 2.5} if ngram else {}
    rows = {"class": "letters", "frequency": "10 to 99", "position": "1"}
    return {by: [{"name": name, "targets": 99, "nats": 1.25, **extra}] for by, name in rows.items()}


def evaluation(ngram: bool) -> dict[str, object]:
    baselines: dict[str, object] = {"uniform": {"nats": 4.0}, "unigram": {"nats": 3.0}}
    figures = {"bits_per_character": 1.8034, "bits_per_byte": 1.7, "perplexity": 3.49, "targets": 99}
    value = {
        "inputs": {"step": 1234},
        "nats": 1.25,
        "nats_interval": [1.0, 1.5] if ngram else None,
        **figures,
        "baselines": baselines,
        "by": groups(ngram),
    }
    if ngram:
        ngram_nats = {"nats": 2.5, "nats_interval": [2.4, 2.6], "ahead": 1.25, "ahead_interval": [1.2, 1.3], "order": 2}
        baselines["ngram"] = ngram_nats | {"val_nats_of_orders": [3.0, 2.5, 2.75]}
        row = {"name": "<b>", "targets": 99, "p": 0.75, "ngram_p": 0.25}
        value["errors"] = {
            "both": 0.5,
            "model": 0.25,
            "ngram": 0.125,
            "neither": 0.125,
            "model_ahead": [row],
            "ngram_ahead": [],
        }
    return value


def sample_measures(**more: object) -> dict[str, object]:
    row = {"texts": 16, "bits": 2.0, "distinct_runs": 0.5, "repeated": 0.25, "compressed": 0.5, "words_known": 0.75}
    parsed = {"share": 1 / 3, "good": 1, "of": 3}
    return {**row, "coherence": {"functions_parsed": parsed}, "copied": {"longest": 42, "copied_20": 0.125}, **more}


SAMPLES = {
    "format_version": report.SAMPLES_FORMAT,
    "kind": "c",
    "step": 1234,
    "searched": 5000,
    "inputs": {"length": 2000},
    "held_out": {"split": "test", **sample_measures()},
    "rows": [
        sample_measures(temperature=0.5, text="int <i>x</i>;\x1b"),
        sample_measures(temperature=1.0, text="}", coherence={}),
    ],
    "ngram": [sample_measures(order=7, text="static &amp;", bits=3.5)],
}


class PageText(HTMLParser):
    """Text and tags of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags = "", []  # type: ignore[var-annotated]
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {"model": {"cell": "lstm", "layers": 2, "units": 8}, "train": {"lanes": 4, "window": 3, "epochs": 1.5}}
    write_json(folder / "run.json", {"vocab": {"unit": "byte"}, "config": config})
    return folder


def write_report(folder: Path) -> PageText:
    return PageText(report.write(folder).read_text(encoding="utf-8"))


def test_run_without_results(folder: Path) -> None:
    assert "No results yet" in write_report(folder).text


def test_one_epoch_is_singular(folder: Path) -> None:
    run = load_json(folder / "run.json")
    run["config"]["train"]["epochs"] = 1.0
    write_json(folder / "run.json", run)
    assert "trained for 1 epoch in batches of 4 lanes × 3 bytes No results yet" in write_report(folder).text


def add_results(folder: Path) -> None:
    write_json(folder / "evaluation-test.json", evaluation(ngram=True))
    write_json(folder / "evaluation-train.json", evaluation(ngram=False))
    write_json(folder / "samples.json", SAMPLES)
    rows = [
        {"step": 100, "train_nats": 2.5, "sample": "early"},
        {"step": 200, "train_nats": 2.25},
        {"step": 500, "train_nats": 2.0, "sample": "twice"},
        {"step": 500, "val_nats": 1.875, "sample": "late <script>alert(1)</script>"},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_report_shows_all_results(folder: Path) -> None:
    add_results(folder)
    page = write_report(folder)
    for part in (
        "LSTM, 2 × 8 units; trained for 1.5 epochs in batches of 4 lanes × 3 bytes",
        "Loss on train 1.8034 bits per character, 1.7000 bits per byte, perplexity 3.490 per byte, over all 99 bytes.",
        "n-gram of order 2 2.5000 2.4000 to 2.6000 3.6067",
        "difference, n-gram − model 1.2500 1.2000 to 1.3000 1.8034",
        "letters 99 1.2500 2.5000",
        "by both 50.0%, by the model alone 25.0%, by the n-gram alone 12.5%, by neither 12.5%",
        "<b> 99 0.750 0.250",
        "16 texts of up to 2,000 bytes per temperature",
        "temperature 0.5 1 n-gram test Bits per byte under the model 2.000 2.000 3.500 2.000",
        "Functions parsed 0.333 (1 of 3) – 0.333 (1 of 3) 0.333 (1 of 3) Longest copy from train, bytes 42 42 42 42",
        "Temperature 0.5 int <i>x</i>;\ufffd",
        "N-gram of order 7 static &amp;",
        "Functions parsed 0.5: 33.3 %; 1: –; n-gram: 33.3 %; test: 33.3 %",
        "letters: 1.25 and 2.50",
        "Longest copy from train, bytes",
        "Stretches of 20 bytes copied from train",
        "Step 100: 2.500 nats on train early Step 500: 1.875 nats on val late <script>alert(1)</script>",
    ):
        assert part in page.text, part
    _, train, test = page.text.split("Loss on ")
    for part in ("30 contiguous stretches", "the best order on val from 1 to 3."):
        assert (part in train, part in test) == (False, True), part
    assert page.text.index("Loss on train") < page.text.index("Loss on test")
    assert "twice" not in page.text
    assert not {"script", "link", "img", "b", "i"} & set(page.tags)
    assert "–</text>" in (folder / "report.html").read_text(), "missing values have no bar"
    # 3 groupings for train; these and the orders for test; samples: 5 measures, 1 of coherence, 2 of copying.
    assert page.tags.count("svg") == page.tags.count("desc") == 3 + 4 + 5 + 1 + 2


def test_older_formats_are_ignored(folder: Path) -> None:
    write_json(folder / "samples.json", SAMPLES | {"format_version": 1})
    write_json(folder / "evaluation-test.json", {"format_version": 1, "nats": 1.0})
    text = write_report(folder).text
    assert "Loss on" not in text
    assert "Kind of text" not in text


SCRIPT = """
import { axe, launch } from "./tests/export/web/browser.mjs";
const browser = await launch();
const problems = [];
for (const colorScheme of ["light", "dark"]) for (const width of [1280, 360]) {
  const page = await browser.newPage({ colorScheme, viewport: { width, height: 900 } });
  page.on("console", (message) => problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("request", (request) => request.url().startsWith("file:") || problems.push(request.url()));
  await page.goto(process.argv.at(-1));
  await page.addScriptTag({ path: axe });
  const { violations } = await page.evaluate(() => window.axe.run());
  problems.push(...violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`));
  const sizes = await page.$$eval("svg", (all) => all.map((svg) =>
    parseFloat(getComputedStyle(svg.querySelector("text")).fontSize) * svg.getScreenCTM().a));
  if (Math.min(...sizes) < 10) problems.push(`text of ${Math.min(...sizes)} pixels at ${width}`);
  if (await page.evaluate(() => document.documentElement.scrollWidth > innerWidth)) problems.push(`over ${width}`);
}
await browser.close();
console.log(JSON.stringify(problems));
"""


@pytest.mark.processes
def test_report_is_accessible_and_self_contained(folder: Path) -> None:
    if not CHROMIUM:
        pytest.skip("Chromium is missing (apt install chromium)")
    add_results(folder)
    command = [node(), "--input-type=module", "-e", SCRIPT, report.write(folder).as_uri()]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.stdout == "[]\n", process.stdout + process.stderr
