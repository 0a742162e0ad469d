import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tensorflow_metadata.proto.v0 import statistics_pb2
from tiny_data import make_data

from pipeline.report import Finding, write_report

FEATURES = ("newlines", "longest_line", "space", "digit", "non_ascii", "not_utf8")


def statistics_of(counts: dict[str, int]) -> statistics_pb2.DatasetFeatureStatisticsList:
    """What TFDV gives, as far as the report reads it."""
    result = statistics_pb2.DatasetFeatureStatisticsList()
    dataset = result.datasets.add(num_examples=3)
    char = dataset.features.add(path={"step": ["char"]})
    for label, n in counts.items():
        char.string_stats.rank_histogram.buckets.add(label=label, sample_count=n)
    for feature in FEATURES:
        dataset.features.add(path={"step": [feature]}).num_stats.mean = 0.5
    return result


class Page(HTMLParser):
    """The page's text, and its tags; fails where tags do not pair."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", set[str](), list[str]()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.mark.parametrize("findings", [[], [Finding("val", "char", "<b>too</b> strange")]])
def test_the_page(findings: list[Finding], folder: Path) -> None:
    manifest = make_data(folder, 10, train=b"aaa<", val=b"a!!")
    statistics = {"train": statistics_of({"a": 3, "<": 1}), "val": statistics_of({"!": 2, "a": 1})}
    settings = {"chunk_chars": 4, "min_known": 0.99, "max_divergence": 0.1}
    path = folder / "report.html"
    write_report(path, "<name>", manifest, settings, statistics, {"val": 0.25}, findings)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    words = " ".join(page.text.split())
    assert ("Valid: nothing was found wrong" in words) == (not findings)
    assert ("Not valid: 1 finding " in words) == bool(findings)
    assert ("val char <b>too</b> strange" in words) == bool(findings)
    assert words.startswith("<name>: ")
    assert "characters known from train 33.333%" in words
    assert "divergence from train, bits 0.2500" in words
    assert "Characters of val that train does not have ! 2 The rarest" in words
    # 4, 2 and 1 of 7 characters: in the order of their counts over both splits.
    assert re.findall(r'<div class="row"><span class="char">(.*?)</span>', html) == ["a", "!", "&lt;"]
    bars = ["100.00", "44.44", "0", "88.89", "33.33", "0"]
    assert re.findall(r'style="width: (?:max\(1px, ([\d.]+)%\)|(0))"', html) == [
        ("", bar) if bar == "0" else (bar, "") for bar in bars
    ]
    # Self-contained: nothing to run, nothing to fetch.
    assert page.tags.isdisjoint({"script", "link", "img", "iframe"})
    assert "//" not in html
