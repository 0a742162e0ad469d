"""Validation report: one self-contained HTML page."""

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
LISTED = 20_000  # rows in the table of all characters; more would slow a browser down

# Numeric features of a record (pipeline.records), with their labels.
LABELS = {
    "bytes": "in UTF-8",
    "characters": "code points",
    "lines": "whole and partial",
    "longest_line": "in characters",
    "repeated_lines": "share of non-blank lines",
    "entropy": "bits per character",
    "non_ascii": "share of the characters",
    "control": "share of the characters, excluding tabs and line ends",
    "space": "share of the characters",
    "digit": "share of the characters",
    "not_utf8": "share of the characters",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Violation of a rule in a split: feature, rule, description, and whether it is waived."""

    split: str
    feature: str
    rule: str
    text: str
    waived: bool = False

    @property
    def name(self) -> str:
        """Name for a config's `waive`."""
        return f"{self.split}.{self.feature}.{self.rule}"


@dataclasses.dataclass(frozen=True)
class Report:
    """Contents of the page.

    distances: {split: {"drift" or "skew": (measured, limit)}}, in bits. schema_given: it was passed by the user rather
    than inferred from train. against: name of the data set compared with.
    """

    title: str
    manifest: Manifest
    record_chars: int
    settings: dict[str, Any]
    statistics: dict[str, Statistics]
    surveys: dict[str, Survey]
    distances: dict[str, dict[str, tuple[float, float]]]
    findings: list[Finding]
    schema_given: bool = False
    against: str | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
    """Summary of a split for the page. numbers: {feature: TFDV's statistics over the records}."""

    name: str
    tokens: int
    records: int
    characters: Counter[str]
    char: FeatureNameStatistics
    numbers: dict[str, NumericStatistics]
    survey: Survey

    def share(self, character: str) -> float:
        """Share of a character in the split, 0 to 1."""
        return self.characters[character] / max(self.characters.total(), 1)


@dataclasses.dataclass(frozen=True)
class Character:
    """Row of the page's tables. count: in all splits; counts: per split; places: the first few, as (split, place)."""

    name: str
    code: str
    unicode: str
    count: int
    counts: list[int]
    places: list[tuple[str, Place]]


def write_report(path: Path, report: Report) -> None:
    """Write the page: verdict, findings, splits side by side, characters, TFDV's statistics."""
    splits = [summary_of(report, name) for name in report.statistics]
    # Over all splits, so that a character that only val has is shown as well.
    counts = sum((split.characters for split in splits), Counter[str]())
    everywhere = [name for name, _ in counts.most_common()]
    frequent = everywhere[:MOST_FREQUENT]
    page = render(
        "pipeline",
        "report.html.j2",
        {"escaped": escaped, "spread": spread},
        report=report,
        manifest=report.manifest,
        splits=splits,
        labels=LABELS,
        frequent=frequent,
        largest_share=max((split.share(name) for split in splits for name in frequent), default=1),
        unknown={split.name: missing_from(splits[0], split) for split in splits[1:]},
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
    """Count each character of a split, by name. Sorted by name, so that `most_common` breaks ties by name."""
    buckets = char_of(statistics).string_stats.rank_histogram.buckets
    return Counter(dict(sorted((bucket.label, round(bucket.sample_count)) for bucket in buckets)))


def char_of(statistics: Statistics) -> FeatureNameStatistics:
    """TFDV's statistics of the feature `char`; empty if the split is."""
    (dataset,) = statistics.datasets
    return next((feature for feature in dataset.features if feature.path.step[0] == "char"), FeatureNameStatistics())


def rarest(statistics: dict[str, Statistics]) -> list[int]:
    """Least frequent code points over all splits, rarest first."""
    counts = sum((counts_of(split) for split in statistics.values()), Counter[str]())
    return sorted(map(code_of, counts), key=lambda code: (counts[name_of(code)], code))[:RAREST]


def missing_from(train: Summary, split: Summary) -> list[tuple[str, int]]:
    """Characters of a split that are missing from train, with counts, most frequent first."""
    return [(name, n) for name, n in split.characters.most_common() if name not in train.characters]


def summary_of(report: Report, name: str) -> Summary:
    """Summarize a split for the page."""
    (dataset,) = report.statistics[name].datasets
    numeric = {entry.path.step[0]: entry.num_stats for entry in dataset.features if entry.HasField("num_stats")}
    numbers = {feature: numeric.get(feature, NumericStatistics()) for feature in LABELS}
    tokens, statistics = report.manifest.splits[name].tokens, report.statistics[name]
    counts, char = counts_of(statistics), char_of(statistics)
    return Summary(name, tokens, dataset.num_examples, counts, char, numbers, report.surveys[name])


def character_of(name: str, splits: list[Summary]) -> Character:
    """Build a row of the tables of characters."""
    code = code_of(name)
    escaped = is_escaped_byte(code)
    unicode = "a byte that is not UTF-8" if escaped else unicodedata.name(chr(code), "")
    counts = [split.characters[name] for split in splits]
    places = [(split.name, place) for split in splits for place in split.survey.places if place.code == code]
    return Character(name, "" if escaped else f"U+{code:04X}", unicode, sum(counts), counts, places[:PLACES])


def ranks_plot(splits: list[Summary]) -> Plot:
    """Share of the text by rank of the character, on logarithmic axes."""
    ranked = [[n / split.characters.total() for _, n in split.characters.most_common()] for split in splits]
    return curves([list(enumerate(shares, 1)) for shares in ranked])


def lines_plot(splits: list[Summary]) -> Plot:
    """Share of the lines by length."""
    last = max(i for split in splits for i, n in enumerate((1, *split.survey.line_lengths)) if n)
    shares = [[n / max(split.survey.lines, 1) for n in split.survey.line_lengths[:last]] for split in splits]
    return bars(shares, [f"{length:,}" for length in LENGTHS[:last].tolist()])


def spread(feature: str, splits: list[Summary]) -> list[dict[str, float] | None]:
    """Compute least, tenth, median, ninth and most of each split with text, in percent of the range over all splits. A
    tenth of the records are below `tenth`, a tenth above `ninth`."""
    numbers = [split.numbers[feature] if split.records else None for split in splits]
    least = min((stats.min for stats in numbers if stats), default=0)
    width = max((stats.max for stats in numbers if stats), default=0) - least

    def percent(value: float) -> float:
        return round(100 * min(max((value - least) / width, 0), 1), 2) if width else 50

    return [stats and {name: percent(value) for name, value in _quantiles(stats).items()} for stats in numbers]


def _quantiles(stats: NumericStatistics) -> dict[str, float]:
    (tenths,) = [histogram.buckets for histogram in stats.histograms if histogram.type == Histogram.QUANTILES]
    return {
        "least": stats.min,
        "tenth": tenths[0].high_value,
        "median": stats.median,
        "ninth": tenths[-1].low_value,
        "most": stats.max,
    }


def escaped(text: str) -> str:
    r"""Escape the characters that control a terminal or a page.

    >>> print(escaped("a\tb é\x1b[1m" + chr(0xDCFF)))
    a\tb é\x1b[1m<0xff>
    """
    return "".join(c if c == " " else name_of(ord(c)) for c in text)
