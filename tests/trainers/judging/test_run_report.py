"""The page of a run, from files as evaluate, samples and train leave them."""

import doctest
import json
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from javascript import CHROMIUM, node

from common.files import write_json
from trainers.judging import report

ROOT = Path(__file__).parents[3]


def groups(ngram: bool) -> dict[str, list[dict[str, object]]]:
    extra = {"ngram_nats": 2.5} if ngram else {}
    rows = {"class": "letters", "frequency": "10 to 99", "position": "1"}
    return {by: [{"name": name, "targets": 99, "nats": 1.25, **extra}] for by, name in rows.items()}


def evaluation(ngram: bool) -> dict[str, object]:
    baselines: dict[str, object] = {"uniform": {"nats": 4.0}, "unigram": {"nats": 3.0}}
    figures = {"bits_per_character": 1.8034, "bits_per_byte": 1.7, "perplexity": 3.49, "targets": 99}
    found = {
        "inputs": {"step": 1234},
        "nats": 1.25,
        "nats_interval": [1.0, 1.5] if ngram else None,
        **figures,
        "baselines": baselines,
        "by": groups(ngram),
    }
    if ngram:
        counted = {"nats": 2.5, "nats_interval": [2.4, 2.6], "ahead": 1.25, "ahead_interval": [1.2, 1.3], "order": 2}
        baselines["ngram"] = counted | {"val_nats_of_orders": [3.0, 2.5, 2.75]}
        one = {"name": "<b>", "targets": 99, "p": 0.75, "ngram_p": 0.25}
        found["errors"] = {
            "both": 0.5,
            "model": 0.25,
            "ngram": 0.125,
            "neither": 0.125,
            "model_ahead": [one],
            "ngram_ahead": [],
        }
    return found


def measured(**more: object) -> dict[str, object]:
    row = {"texts": 16, "bits": 2.0, "distinct_runs": 0.5, "repeated": 0.25, "compressed": 0.5, "words_known": 0.75}
    parsed = {"share": 1 / 3, "good": 1, "of": 3}
    return {**row, "coherence": {"functions_parsed": parsed}, "copied": {"longest": 42, "copied_20": 0.125}, **more}


SAMPLES = {
    "format_version": report.SAMPLES_FORMAT,
    "kind": "c",
    "step": 1234,
    "searched": 5000,
    "inputs": {"length": 2000},
    "held_out": {"split": "test", **measured()},
    "rows": [measured(temperature=0.5, text="int <i>x</i>;\x1b"), measured(temperature=1.0, text="}", coherence={})],
}


def test_doctest() -> None:
    assert doctest.testmod(report).failed == 0


class Seen(HTMLParser):
    """The text of a page, and its elements."""

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


def made(folder: Path) -> Seen:
    return Seen(report.write(folder).read_text(encoding="utf-8"))


def test_a_run_of_which_nothing_is_known(folder: Path) -> None:
    assert "Nothing has been found out about this run yet" in made(folder).text


def test_one_epoch_is_no_epochs(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())
    run["config"]["train"]["epochs"] = 1.0
    write_json(folder / "run.json", run)
    assert "4 lanes × 3 bytes a step, 1 epoch Nothing has been" in made(folder).text


def fill(folder: Path) -> None:
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


def test_all_that_is_known_is_shown(folder: Path) -> None:
    fill(folder)
    seen = made(folder)
    for part in (
        "LSTM of 2 × 8; 4 lanes × 3 bytes a step, 1.5 epochs",
        "Loss on train 1.8034 bits a character, 1.7000 bits a byte, perplexity 3.490 a byte, over 99 bytes, by the",
        "n-gram of order 2 2.5000 3.6067 2.4000 to 2.6000",
        "by both 50.0%, by the model alone 25.0%, by the n-gram alone 12.5%, by neither 12.5%",
        "<b> 0.750 0.250 99",
        "16 texts of up to 2,000 bytes at each temperature",
        "temperature 0.5 1 test: real Bits a byte, as the model has them 2.000 2.000 2.000",
        "Functions parsed 0.333 (1 of 3) – 0.333 (1 of 3) Longest copy from train, bytes 42 42 42",
        "At temperature 0.5 int <i>x</i>;\ufffd",
        "Functions parsed 0.5: 33.3 %; 1: –; test: real: 33.3 %",
        "letters: 1.25 and 2.50",
        "Longest copy from train, bytes",
        "Stretches of 20 bytes that train has",
        "Step 100: 2.500 nats on train early Step 500: 1.875 nats on val late <script>alert(1)</script>",
    ):
        assert part in seen.text, part
    _, train, test = seen.text.split("Loss on ")
    for part in ("30 stretches", "the best on val of orders 1 to 3."):
        assert (part in train, part in test) == (False, True), part
    assert seen.text.index("Loss on train") < seen.text.index("Loss on test")
    assert "twice" not in seen.text
    assert not {"script", "link", "img", "b", "i"} & set(seen.tags)
    assert "–</text>" in (folder / "report.html").read_text(), "a bar of nothing to judge"
    # Three groups of train; of test the orders too; of the samples five measures, one of coherence, two of copies.
    assert seen.tags.count("svg") == seen.tags.count("desc") == 3 + 4 + 5 + 1 + 2


def test_what_is_of_an_older_format_is_left_out(folder: Path) -> None:
    write_json(folder / "samples.json", SAMPLES | {"format_version": 1})
    write_json(folder / "evaluation-test.json", {"format_version": 1, "nats": 1.0})
    assert "Loss on" not in made(folder).text
    assert "What it writes" not in made(folder).text


SCRIPT = """
import { axe, launch } from "./tests/web/browser.mjs";
const browser = await launch();
const said = [];
for (const colorScheme of ["light", "dark"]) for (const width of [1280, 360]) {
  const page = await browser.newPage({ colorScheme, viewport: { width, height: 900 } });
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(error.message));
  page.on("request", (request) => request.url().startsWith("file:") || said.push(request.url()));
  await page.goto(process.argv.at(-1));
  await page.addScriptTag({ path: axe });
  const { violations } = await page.evaluate(() => window.axe.run());
  said.push(...violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`));
  const sizes = await page.$$eval("svg", (all) => all.map((svg) =>
    parseFloat(getComputedStyle(svg.querySelector("text")).fontSize) * svg.getScreenCTM().a));
  if (Math.min(...sizes) < 10) said.push(`letters of ${Math.min(...sizes)} pixels at ${width}`);
  if (await page.evaluate(() => document.documentElement.scrollWidth > innerWidth)) said.push(`wider than ${width}`);
}
await browser.close();
console.log(JSON.stringify(said));
"""


def test_in_a_browser(folder: Path) -> None:
    if not CHROMIUM:
        pytest.skip("there is no Chromium, the report is not looked at (apt install chromium)")
    fill(folder)
    command = [node(), "--input-type=module", "-e", SCRIPT, report.write(folder).as_uri()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr
