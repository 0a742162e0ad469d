import dataclasses
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tensorflow_metadata.proto.v0 import statistics_pb2
from tiny_data import make_data

from pipeline import report as module
from pipeline.manifest import Manifest, Source, Split
from pipeline.records import NUMBERS
from pipeline.report import Finding, Report, counts_of, rarest, spread, summary_of, write_report
from pipeline.survey import survey

SETTINGS = {
    "min_known": 0.99,
    "max_divergence": 0.1,
    "max_drift": 0.2,
    "max_skew": 0.3,
    "waive": ["val.char.drift"],
}
VOID = ("meta", "br", "line", "rect", "polyline")


def statistics_of(
    counts: dict[str, int], least: float = 0, most: float = 1
) -> statistics_pb2.DatasetFeatureStatisticsList:
    """Build the parts of TFDV's statistics that the report reads, with numbers uniform from `least` to `most`."""
    result = statistics_pb2.DatasetFeatureStatisticsList()
    dataset = result.datasets.add(num_examples=3 if counts else 0)
    if not counts:
        return result
    char = dataset.features.add(path={"step": ["char"]})
    for label, n in counts.items():
        char.string_stats.rank_histogram.buckets.add(label=label, sample_count=n)
    for feature in NUMBERS:
        number = dataset.features.add(path={"step": [feature]}).num_stats
        number.min, number.median, number.mean, number.max = least, (least + most) / 2, most / 3, most
        histogram = number.histograms.add(type=statistics_pb2.Histogram.QUANTILES)
        tenths = [least + (most - least) * k / 10 for k in range(11)]
        for low, high in itertools.pairwise(tenths):
            histogram.buckets.add(low_value=low, high_value=high)
    return result


class Page(HTMLParser):
    """Text, tags and attributes of a page; parsing fails on unbalanced tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.attributes, self.open = "", set[str](), set[str](), list[str]()
        self.feed(html)
        assert self.open == []
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture
def report(folder: Path) -> Report:
    return Report(
        title="<name>",
        manifest=make_data(folder, 10, train=b"aaa<", val=b"a!\x1b!"),
        record_chars=4,
        settings=SETTINGS,
        statistics={"train": statistics_of({"a": 3, "<": 1}), "val": statistics_of({"!": 2, "a": 1, "\\x1b": 1})},
        surveys={
            "train": survey([b"aaa<"], [ord("<"), 0x1B]),
            "val": survey([b"a!\x1b!"], [ord("!"), 0x1B]),
        },
        distances={"train": {"drift": (0.125, 0.2)}, "val": {"drift": (0.25, 0.1), "skew": (0.5, 0.3)}},
        findings=[],
    )


def render(report: Report, path: Path) -> tuple[str, Page]:
    write_report(path / "report.html", report)
    html = (path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    # The page is self-contained: no scripts, no requests, no links, no control characters.
    assert page.tags.isdisjoint({"script", "link", "img", "image", "iframe", "object", "embed", "use", "base"})
    assert page.attributes.isdisjoint({"src", "srcset", "xlink:href", "action", "data"})
    assert re.findall(r"""href=["']?([^"' >]*)""", html) == []
    assert not re.search(r"url\(|@import|[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)
    return html, page


def test_page_shows_statistics(report: Report, folder: Path) -> None:
    html, page = render(report, folder)
    words = page.words
    assert words.startswith("<name>: valid")
    assert "Valid: no findings Every character" in words
    assert "val and test were compared with train." in words
    assert "share of characters that occur in train 25.000%" in words
    assert (
        "divergence from train, bits 0.2500 lines 1 1 longest line, characters 4 4 mean line, characters 4.0 4.0"
        in words
    )
    assert "Characters of val missing from train ! 2 \\x1b 1 The rarest" in words
    # 4, 2, 1 and 1 of 8 characters, in descending order of their counts in both splits.
    assert re.findall(r'<div class="row"><span class="char"><bdi>(.*?)</bdi>', html) == ["a", "!", "&lt;", "\\x1b"]
    bars = ["100.00", "33.33", "0", "66.67", "33.33", "0", "0", "33.33"]
    assert re.findall(r'style="width: (?:max\(1px, ([\d.]+)%\)|(0))"', html) == [
        ("", bar) if bar == "0" else (bar, "") for bar in bars
    ]
    rarest_section = words[words.index("The rarest characters") : words.index("TFDV's statistics")]
    assert rarest_section.endswith(
        "where \\x1b U+001B 1 val, line 1, character 2 a! \\x1b ! "
        "< U+003C LESS-THAN SIGN 1 train, line 1, character 3 aaa < "
        "! U+0021 EXCLAMATION MARK 2 val, line 1, character 1 a ! \\x1b! val, line 1, character 3 a!\\x1b ! "
        "a U+0061 LATIN SMALL LETTER A 4 "  # its places were not requested
    )
    counts_section = words[words.index("All 4 characters with their counts") :]
    assert (
        "a U+0061 LATIN SMALL LETTER A 3 1 ! U+0021 EXCLAMATION MARK 0 2 < U+003C LESS-THAN SIGN 1 0 \\x1b"
        in counts_section
    )
    for feature in NUMBERS:
        label = " ".join(module.LABELS[feature].split())
        assert f" {feature} {label} train 0 0 0.3333 0 0 0 0.5 1 val 0 0 0.3333 0 0 0 0.5 1 " in words
    assert "Waived: val.char.drift ." in words


@pytest.mark.parametrize(
    ("waived", "verdict"),
    [
        ((False, False), "Not valid: 2 findings"),
        ((True, False), "Not valid: 1 finding "),
        ((True, True), "Valid: no findings that are not waived"),
    ],
)
def test_page_shows_verdict_and_findings(report: Report, folder: Path, waived: tuple[bool, bool], verdict: str) -> None:
    findings = [
        Finding("val", feature, "high", "<b>too</b> strange", waived=is_waived)
        for feature, is_waived in zip("xy", waived, strict=True)
    ]
    _, page = render(dataclasses.replace(report, findings=findings), folder)
    assert verdict in page.words
    for finding in findings:
        assert f"{finding.name} <b>too</b> strange {'waived ' if finding.waived else ''}" in page.words
    assert page.words.count(" waived val.") + page.words.count(" waived Data set") == sum(waived)


def test_page_describes_the_data_set(report: Report, folder: Path) -> None:
    manifest = report.manifest
    splits = {
        name: Split(split.tokens, split.shards, {"documents": 7, "outside": 1234})
        for name, split in manifest.splits.items()
    }
    manifest = Manifest(
        sources=tuple(Source(f"<{n}>\x1b", 1000, "") for n in range(7)),
        settings={
            "source": ["secret"],
            "documents": "line",
            "encodings": ["a", "b"],
            "splits": {"train": 0.9},
            "streams": None,
        },
        vocab=manifest.vocab,
        splits=splits,
        tools={},
        cleaned={"bytes replaced": 1003},
        provenance=({"name": "poems", "address": "https://example.org/?a=<b>"},),
    )
    _, page = render(dataclasses.replace(report, manifest=manifest, schema_given=True, against="old"), folder)
    words = page.words
    assert (
        "sources 7 files, 7,000 bytes: <0>\\x1b , <1>\\x1b , <2>\\x1b , <3>\\x1b , <4>\\x1b and 2 more vocabulary"
        in words
    )
    assert "256 bytes settings documents line, encodings a, b, splits {'train': 0.9} bytes replaced 1,003 on" in words
    assert "streams" not in words
    assert "secret" not in words
    assert "provenance name: poems ; address: https://example.org/?a=<b>" in words
    assert "documents 7 7 outside 1,234 1,234" in words
    assert "compared with train and with the given schema, and all splits with old." in words
    assert "old: drift of train, skew of the others, bits 0.1250 0.5000" in words
    assert "must occur in the schema" in words


def test_empty_split_and_invalid_bytes(report: Report, folder: Path) -> None:
    statistics = {"train": statistics_of({"<0xff>": 1}, 5, 5), "val": statistics_of({})}
    surveys = {"train": survey([b"\xff"], [0xDCFF]), "val": survey([], [])}
    replaced = dataclasses.replace(report, statistics=statistics, surveys=surveys, distances={"train": {}, "val": {}})
    _, page = render(replaced, folder)
    assert "<0xff> a byte that is not UTF-8 1 train, line 1, character 0 <0xff>" in page.words
    assert "The 1 most frequent of 1 characters" in page.words


def test_spreads_share_one_scale(report: Report) -> None:
    statistics = {"train": statistics_of({"a": 1}, 0, 10), "val": statistics_of({"a": 1}, 5, 20)}
    splits = [summary_of(dataclasses.replace(report, statistics=statistics), name) for name in statistics]
    assert spread("lines", splits) == [
        {"least": 0, "tenth": 5, "median": 25, "ninth": 45, "most": 50},
        {"least": 25, "tenth": 32.5, "median": 62.5, "ninth": 92.5, "most": 100},
    ]
    alone = {"train": statistics_of({"a": 1}, 3, 3), "val": statistics_of({})}
    splits = [summary_of(dataclasses.replace(report, statistics=alone), name) for name in alone]
    assert spread("lines", splits) == [dict.fromkeys(("least", "tenth", "median", "ninth", "most"), 50), None]


def test_rarest_characters_are_sorted_by_count_then_code() -> None:
    statistics = {"train": statistics_of({"b": 2, "a": 1, "<space>": 3}), "val": statistics_of({"a": 1, "é": 1})}
    assert rarest(statistics) == [ord("é"), ord("a"), ord("b"), ord(" ")]
    many = {"train": statistics_of({chr(0x4E00 + n): 1 for n in range(100)})}
    assert rarest(many) == list(range(0x4E00, 0x4E00 + module.RAREST))


def test_equal_counts_are_sorted_by_name() -> None:
    assert counts_of(statistics_of({"b": 1, "c": 2, "a": 1})).most_common() == [("c", 2), ("a", 1), ("b", 1)]
