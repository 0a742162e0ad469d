"""The validation report: one page of HTML that needs nothing but itself."""

import dataclasses
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList as Statistics
from tensorflow_metadata.proto.v0.statistics_pb2 import FeatureNameStatistics, Histogram, NumericStatistics

from common.pages import render
from common.plots import Plot, bars, curves
from pipeline.manifest import Manifest
from pipeline.records import code_of, is_escaped_byte, name_of
from pipeline.survey import LENGTHS, PLACES, Place, Survey

MOST_FREQUENT = 40
RAREST = 40
UNKNOWN = 60
LISTED = 20_000  # rows of the table of all characters; with more, a browser gets slow

# The numbers of a record, as pipeline.records counts them.
LABELS = {
    "bytes": "in UTF-8",
    "characters": "code points",
    "lines": "whole or in part",
    "longest_line": "in characters",
    "repeated_lines": "share of its lines",
    "entropy": "bits a character",
    "non_ascii": "share of the characters",
    "control": "share, without tabs and ends of lines",
    "space": "share of the characters",
    "digit": "share of the characters",
    "not_utf8": "share of the characters",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong with a split: the feature, the rule that it breaks, how, and whether that is waived."""

    split: str
    feature: str
    rule: str
    what: str
    waived: bool = False

    @property
    def name(self) -> str:
        """What a config's `waive` calls it."""
        return f"{self.split}.{self.feature}.{self.rule}"


@dataclasses.dataclass(frozen=True)
class Report:
    """All that the page shows. distances: {split: {"drift" or "skew": (measured, limit)}}, in bits; schema_given: it is
    not inferred from train; against: the name of the data set that this one was held against."""

    title: str
    manifest: Manifest
    settings: dict[str, Any]
    statistics: dict[str, Statistics]
    surveys: dict[str, Survey]
    distances: dict[str, dict[str, tuple[float, float]]]
    findings: list[Finding]
    schema_given: bool = False
    against: str | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the page says of a split. numbers: {feature: TFDV's statistics of it over the records}."""

    name: str
    tokens: int
    records: int
    characters: Counter[str]
    char: FeatureNameStatistics
    numbers: dict[str, NumericStatistics]
    survey: Survey

    def share(self, character: str) -> float:
        """The part of the split's characters that are this one, 0 to 1."""
        return self.characters[character] / max(self.characters.total(), 1)


@dataclasses.dataclass(frozen=True)
class Character:
    """A row of the page's tables. count: in all splits; counts: in each; places: (split, place), the first few."""

    name: str
    code: str
    unicode: str
    count: int
    counts: list[int]
    places: list[tuple[str, Place]]


def write_report(path: Path, report: Report) -> None:
    """Writes the page: the verdict, the findings, the splits side by side, their characters, and TFDV's statistics."""
    splits = [summary_of(report, name) for name in report.statistics]
    # The characters of all the splits together: one that only val has is shown as well.
    counts = sum((split.characters for split in splits), Counter[str]())
    everywhere = [name for name, _ in counts.most_common()]
    frequent = everywhere[:MOST_FREQUENT]
    page = render(
        "pipeline",
        "report.html.j2",
        {"visible": visible, "spread": spread},
        report=report,
        manifest=report.manifest,
        splits=splits,
        labels=LABELS,
        frequent=frequent,
        largest_share=max((split.share(name) for split in splits for name in frequent), default=1),
        unknown={split.name: without(split, splits[0]) for split in splits[1:]},
        listed=[character_of(name, splits) for name in everywhere[:LISTED]],
        distinct=len(everywhere),
        rarest=[character_of(name_of(code), splits) for code in rarest(report.statistics)],
        ranks=ranks_plot(splits),
        lines=lines_plot(splits),
        most_unknown=UNKNOWN,
        most_places=PLACES,
    )
    path.write_text(page, encoding="utf-8")


def counts_of(statistics: Statistics) -> Counter[str]:
    """How often each character, by name, occurs in a split: exact, since every one has a rank of its own. In the order
    of names, so that of equal counts the lower name comes first in `most_common`."""
    buckets = char_of(statistics).string_stats.rank_histogram.buckets
    return Counter(dict(sorted((bucket.label, round(bucket.sample_count)) for bucket in buckets)))


def char_of(statistics: Statistics) -> FeatureNameStatistics:
    """TFDV's statistics of the feature `char`; empty where the split is."""
    (dataset,) = statistics.datasets
    return next((found for found in dataset.features if found.path.step[0] == "char"), FeatureNameStatistics())


def rarest(statistics: dict[str, Statistics]) -> list[int]:
    """The code points that are fewest in all splits together, the rarest first."""
    counts = sum((counts_of(one) for one in statistics.values()), Counter[str]())
    return sorted(map(code_of, counts), key=lambda code: (counts[name_of(code)], code))[:RAREST]


def without(split: Summary, train: Summary) -> list[tuple[str, int]]:
    """The characters of a split that train does not have, with their counts, the most frequent first."""
    return [(name, n) for name, n in split.characters.most_common() if name not in train.characters]


def summary_of(report: Report, name: str) -> Summary:
    """What the page needs of a split."""
    (dataset,) = report.statistics[name].datasets
    found = {one.path.step[0]: one.num_stats for one in dataset.features if one.HasField("num_stats")}
    numbers = {feature: found.get(feature, NumericStatistics()) for feature in LABELS}
    tokens, statistics = report.manifest.splits[name].tokens, report.statistics[name]
    counts, char = counts_of(statistics), char_of(statistics)
    return Summary(name, tokens, dataset.num_examples, counts, char, numbers, report.surveys[name])


def character_of(name: str, splits: list[Summary]) -> Character:
    """A row of the tables of characters."""
    code = code_of(name)
    escaped = is_escaped_byte(code)
    unicode = "a byte that is not UTF-8" if escaped else unicodedata.name(chr(code), "")
    counts = [split.characters[name] for split in splits]
    places = [(split.name, place) for split in splits for place in split.survey.places if place.code == code]
    return Character(name, "" if escaped else f"U+{code:04X}", unicode, sum(counts), counts, places[:PLACES])


def ranks_plot(splits: list[Summary]) -> Plot:
    """The share of a split's characters that the most frequent one has, the second, and so on: both axes in powers."""
    ranked = [[n / split.characters.total() for _, n in split.characters.most_common()] for split in splits]
    return curves([list(enumerate(shares, 1)) for shares in ranked])


def lines_plot(splits: list[Summary]) -> Plot:
    """The share of a split's lines that are of each length."""
    last = max(i for split in splits for i, n in enumerate((1, *split.survey.line_lengths)) if n)
    shares = [[n / max(split.survey.lines, 1) for n in split.survey.line_lengths[:last]] for split in splits]
    return bars(shares, [f"{length:,}" for length in LENGTHS[:last].tolist()])


def spread(feature: str, splits: list[Summary]) -> list[dict[str, float] | None]:
    """For each split that has text, in percent of the way from the least to the most that any has: least, most, median,
    and the bounds that a tenth of the records lie below and a tenth above."""
    found = [split.numbers[feature] if split.records else None for split in splits]
    least = min((one.min for one in found if one), default=0)
    width = max((one.max for one in found if one), default=0) - least

    def place(value: float) -> float:
        return round(100 * min(max((value - least) / width, 0), 1), 2) if width else 50

    return [one and {name: place(value) for name, value in _five(one).items()} for one in found]


def _five(found: NumericStatistics) -> dict[str, float]:
    (tenths,) = [one.buckets for one in found.histograms if one.type == Histogram.QUANTILES]
    return {
        "least": found.min,
        "tenth": tenths[0].high_value,
        "median": found.median,
        "ninth": tenths[-1].low_value,
        "most": found.max,
    }


def visible(text: str) -> str:
    r"""A text in which nothing drives a terminal or a page.

    >>> print(visible("a\tb é\x1b[1m" + chr(0xDCFF)))
    a\tb é\x1b[1m<0xff>
    """
    return "".join(c if c == " " else name_of(ord(c)) for c in text)
