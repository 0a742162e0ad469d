"""The validation report: one page of HTML that needs nothing but itself."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList as Statistics

from pipeline.manifest import Manifest

MOST_FREQUENT = 40
RAREST = 60


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong with a split: the feature that breaks a rule, and how."""

    split: str
    feature: str
    what: str


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the report says of a split. numbers: {feature: its mean, minimum and maximum over the records}."""

    name: str
    tokens: int
    records: int
    characters: Counter[str]
    numbers: dict[str, tuple[float, float, float]]

    def share(self, character: str) -> float:
        """The part of the split's characters that are this one, 0 to 1."""
        return self.characters[character] / self.characters.total()


def write_report(
    path: Path,
    title: str,
    manifest: Manifest,
    settings: dict[str, Any],
    statistics: dict[str, Statistics],
    divergence: dict[str, float],
    findings: list[Finding],
) -> None:
    """Writes the page: the verdict, the findings, the splits side by side, and their characters."""
    splits = [summary_of(name, manifest.splits[name].tokens, statistics[name]) for name in manifest.splits]
    train, *others = splits
    # The characters of all the splits together: one that only val has is shown as well.
    everywhere = sum((split.characters for split in splits), Counter[str]()).most_common()
    frequent = [character for character, _ in everywhere[:MOST_FREQUENT]]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        manifest=manifest,
        settings=settings,
        findings=findings,
        splits=splits,
        divergence=divergence,
        distinct=len(everywhere),
        frequent=frequent,
        largest_share=max(split.share(character) for split in splits for character in frequent),
        rarest=everywhere[: -RAREST - 1 : -1],
        unknown={split.name: Counter(without(split, train)).most_common() for split in others},
    )
    path.write_text(page, encoding="utf-8")


def without(split: Summary, train: Summary) -> dict[str, int]:
    """The characters of a split that train does not have, with their counts."""
    return {character: n for character, n in split.characters.items() if character not in train.characters}


def summary_of(name: str, tokens: int, statistics: Statistics) -> Summary:
    """What the report needs of TFDV's statistics of a split."""
    (dataset,) = statistics.datasets
    characters, numbers = Counter[str](), {}
    for feature in dataset.features:
        if feature.WhichOneof("stats") == "string_stats":
            ranks = feature.string_stats.rank_histogram.buckets
            characters.update({rank.label: round(rank.sample_count) for rank in ranks})
        else:
            found = feature.num_stats
            numbers[feature.path.step[0]] = (found.mean, found.min, found.max)
    return Summary(name, tokens, dataset.num_examples, characters, numbers)
