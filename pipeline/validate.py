"""Is the data what a model should learn from? TFDV counts every character of every split; train sets the standard.

    data/NAME/validation/schema.pbtxt     what train is made of (tensorflow_metadata Schema, text form)
    data/NAME/validation/train.stats.pb   statistics of a split (DatasetFeatureStatisticsList)
    data/NAME/validation/report.html      all of it to look at

The manifest is stamped when nothing is wrong that is not waived, and only then: a stamp means valid.
"""

import dataclasses
import datetime
import importlib.metadata
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pydantic
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_data_validation.statistics.generators.basic_stats_generator import BasicStatsGenerator
from tensorflow_data_validation.statistics.generators.top_k_uniques_sketch_stats_generator import (
    TopKUniquesSketchStatsGenerator,
)
from tensorflow_metadata.proto.v0.anomalies_pb2 import Anomalies, AnomalyInfo, DriftSkewInfo
from tensorflow_metadata.proto.v0.schema_pb2 import Schema
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList as Statistics

from common import console, settings
from common.errors import StageError, UsageError
from common.files import sha256_file, sha256_json, whole_folder
from pipeline.beam import advance, run
from pipeline.manifest import Manifest, Split, check_hashes, read_manifest, write_manifest
from pipeline.records import FEATURES, read_text, record_batch
from pipeline.report import Finding, Report, counts_of, rarest, write_report
from pipeline.splits import SPLITS
from pipeline.survey import Survey, survey
from pipeline.vocab import CODE_POINTS

FOLDER = "validation"
SCHEMA = "schema.pbtxt"
REPORT = "report.html"
RANGE_TOKENS = 1 << 20  # what a worker takes at a time
JENSEN_SHANNON = DriftSkewInfo.Measurement.JENSEN_SHANNON_DIVERGENCE
NAMED = 5  # unknown characters that a finding lists


@settings.settings
class ValidateSettings:
    """[validate]

    chunk_chars: characters of a record; the shares and line lengths of the statistics are those of records.
    min_known: the share of a split's characters that must occur in train, or in the schema that is given, 0 to 1.
    max_divergence: how far the distribution of characters in val or test may be from train's: Jensen-Shannon, in bits,
        0 (equal) to 1 (nothing in common). Measured: two halves of 4 MB of Python source 0.002, legal English and
        Python source 0.07, English and Greek 0.8. A split of 1000 characters is some 0.06 away by chance alone.
    max_drift: how far train may be from the train of --against, likewise.
    max_skew: how far val and test may be from the train of --against, likewise: a model trained there would meet them.
    waive: findings that fail nothing, by name: "char" (any of that feature), "val.char" (of that split) or
        "val.char.drift" (by that rule), as the report names them. They are still found, shown, and kept in the stamp.
    """

    chunk_chars: int = pydantic.Field(4096, ge=1)
    min_known: float = pydantic.Field(0.99, ge=0, le=1)
    max_divergence: float = pydantic.Field(0.25, ge=0, le=1)
    max_drift: float = pydantic.Field(0.05, ge=0, le=1)
    max_skew: float = pydantic.Field(0.1, ge=0, le=1)
    waive: list[str] = pydantic.Field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.waive:
            first, _, rest = name.partition(".")
            feature = rest.partition(".")[0] if first in SPLITS else name
            if feature not in FEATURES:
                rule = "'waive' takes FEATURE, SPLIT.FEATURE or SPLIT.FEATURE.RULE"
                raise ValueError(f"{rule}, got '{name}'; splits: {', '.join(SPLITS)}; features: {', '.join(FEATURES)}")

    def as_json(self) -> dict[str, Any]:
        """The settings by name, for the stamp."""
        return {name: getattr(self, name) for name in settings.field_names(ValidateSettings)}


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What --against names: another data set, and the statistics of its train."""

    name: str
    data_sha256: str
    train: Statistics


@dataclasses.dataclass(frozen=True)
class Rules:
    """All that a data set is held against. schema: the one that was given, if one was."""

    settings: ValidateSettings
    schema: Schema | None
    earlier: Earlier | None

    def sha256_with(self, manifest: Manifest) -> str:
        """A hash of these rules and of the data: with equal ones there is nothing new to be found."""
        asked = {
            "settings": self.settings.as_json(),
            "data": manifest.data_sha256,
            "schema": text_format.MessageToString(self.schema) if self.schema else None,
            "against": self.earlier.data_sha256 if self.earlier else None,
        }
        return sha256_json(asked)


def validate(
    folder: Path,
    settings: ValidateSettings,
    force: bool = False,
    schema: Path | None = None,
    against: Path | None = None,
    options: str = "",
) -> Manifest:
    """Checks the data set in full, leaves the report beside it and, where nothing is wrong, the stamp in its manifest.

    schema: the schema that every split must fit, train too; without one it is inferred from train.
    against: a validated data set; train is held against its train for drift, val and test for skew.
    options: Beam's (pipeline.beam).
    A data set that bears the stamp for all of these is left alone unless `force`.
    Raises UsageError for a schema that is none and for an `against` that is the same data; StageError where there is no
    data set, or naming what is wrong with it; the stamp is then taken away.
    """
    manifest = read_manifest(folder)
    earlier = read_earlier(against, folder, manifest) if against else None
    rules = Rules(settings, read_schema(schema) if schema else None, earlier)
    report, asked = folder / FOLDER / REPORT, rules.sha256_with(manifest)
    if manifest.validation and manifest.validation.get("asked_sha256") == asked and report.exists() and not force:
        console.out.print(f"{folder} is already valid under these settings; report: {report}")
        return manifest
    check_hashes(folder, manifest)
    if manifest.validation:
        # A stamp speaks of the report beside it, so it goes before the report changes.
        manifest = dataclasses.replace(manifest, validation=None)
        write_manifest(folder, manifest)
    with whole_folder(folder / FOLDER) as partial:
        findings = _examine(folder, manifest, rules, partial, options)
        stamp = stamp_of(manifest, rules, findings, partial)
    for finding in findings:
        console.note(f"{'waived: ' if finding.waived else ''}{finding.split}: {finding.feature}: {finding.what}")
    wrong = [finding.name for finding in findings if not finding.waived]
    if read_manifest(folder).data_sha256 != manifest.data_sha256:
        raise StageError(f"{folder} was made anew while it was checked: run it again")
    manifest = dataclasses.replace(manifest, validation=None if wrong else stamp)
    write_manifest(folder, manifest)
    if wrong:
        raise StageError(f"{folder} is not valid ({', '.join(wrong)}): see {report}")
    console.out.print(f"{folder} is valid; report: {report}")
    return manifest


def _examine(folder: Path, manifest: Manifest, rules: Rules, out: Path, options: str) -> list[Finding]:
    """Counts every split and holds it against the rules; leaves statistics, schema and report in `out`."""
    statistics = count(folder, manifest, rules.settings.chunk_chars, out, options)
    schema = rules.schema or schema_of(statistics["train"])
    (out / SCHEMA).write_text(text_format.MessageToString(schema, as_utf8=True), encoding="utf-8")
    checks = {name: check(name, statistics, schema, rules) for name in statistics}
    report = Report(
        title=folder.resolve().name,
        manifest=manifest,
        settings=rules.settings.as_json(),
        statistics=statistics,
        surveys=surveys_of(folder, manifest, rarest(statistics)),
        distances={name: distances_of(anomalies) for name, anomalies in checks.items()},
        findings=[finding for name in checks for finding in findings_of(name, checks[name], statistics, schema, rules)],
        schema_given=rules.schema is not None,
        against=rules.earlier.name if rules.earlier else None,
    )
    write_report(out / REPORT, report)
    return report.findings


def read_schema(path: Path) -> Schema:
    """The schema in a file. Raises UsageError where there is none, or none of a text."""
    wanted = f"--schema wants a schema that validate wrote, such as data/NAME/{FOLDER}/{SCHEMA}"
    try:
        schema = text_format.Parse(path.read_text(encoding="utf-8"), Schema())
    except OSError as error:
        raise UsageError(f"{wanted}; {path}: {error.strerror}") from None
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise UsageError(f"{wanted}; {path} is none: {_printable(str(error))[:200]}") from None
    if "char" not in {feature.name for feature in schema.feature}:
        raise UsageError(f"{wanted}; {path} has no feature 'char'")
    char = tfdv.get_feature(schema, "char")
    if not (char.domain or char.HasField("string_domain")):
        raise UsageError(f"{wanted}; {path} says nothing of the characters: its feature 'char' has no domain")
    return schema


def read_earlier(against: Path, folder: Path, manifest: Manifest) -> Earlier:
    """The data set that another one is held against.

    Raises UsageError where it is the same one; StageError where it has no statistics that were made of its data.
    """
    other = read_manifest(against)
    if other.data_sha256 == manifest.data_sha256:
        raise UsageError(f"--against wants another data set than {folder}: {against} holds the same data")
    path, stamp = _statistics_file(against / FOLDER, "train"), other.validation or {}
    wanted = stamp.get("statistics", {}).get("train")
    if not (wanted and path.is_file() and sha256_file(path) == wanted):
        way_out = f"run python -m pipeline validate {against} --force"
        raise StageError(f"{against} has no statistics that a stamp vouches for: {way_out}")
    return Earlier(against.resolve().name, other.data_sha256, tfdv.load_stats_binary(os.fspath(path)))


def count(folder: Path, manifest: Manifest, chunk_chars: int, out: Path, options: str = "") -> dict[str, Statistics]:
    """Statistics of every split over all of its text, by TFDV on Beam; each is left in `out` as <split>.stats.pb.

    Raises StageError where train is empty.
    """
    total = sum(split.tokens for split in manifest.splits.values())
    with run("validate", "counting", total, options) as pipeline:
        for name, split in manifest.splits.items():
            starts = range(0, split.tokens, RANGE_TOKENS)
            _ = (
                pipeline
                | f"{name}: plan" >> beam.Create(starts)
                | f"{name}: spread" >> beam.Reshuffle()
                | f"{name}: read" >> beam.FlatMap(_records, folder, manifest, split, chunk_chars)
                | f"{name}: count" >> tfdv.GenerateStatistics(_statistics_options())
                | f"{name}: write" >> tfdv.WriteStatisticsToBinaryFile(str(_statistics_file(out, name)))
            )
    statistics = {name: tfdv.load_stats_binary(str(_statistics_file(out, name))) for name in manifest.splits}
    if not statistics["train"].datasets[0].num_examples:
        raise StageError(f"the split 'train' of {folder} is empty: run ingest again with more text")
    return statistics


def _statistics_options() -> tfdv.StatsOptions:
    # TFDV's own generators. That of its defaults which counts values sends each one through a GroupByKey, some 300 ns
    # apiece; the sketch counts in place, a sixth of that, and with room for every character there is, it is exact.
    buckets = {"num_rank_histogram_buckets": CODE_POINTS, "num_kmv_buckets": CODE_POINTS}
    values = TopKUniquesSketchStatsGenerator(num_top_values=20, length_counter_sampling_rate=0, **buckets)
    # Beam keeps 128 accumulators of a key; with a batch of one record none of them holds text back.
    return tfdv.StatsOptions(
        generators=[BasicStatsGenerator(), values], add_default_generators=False, desired_batch_size=1
    )


def _records(start: int, folder: Path, manifest: Manifest, split: Split, chunk_chars: int) -> Iterator[pa.RecordBatch]:
    text = read_text(folder, manifest, split, start, start + RANGE_TOKENS)
    if text:  # a last range of a byte or two may be all of its neighbour's last character
        yield record_batch(text, chunk_chars)
    advance(min(RANGE_TOKENS, split.tokens - start))


def _statistics_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.stats.pb"


def surveys_of(folder: Path, manifest: Manifest, wanted: list[int]) -> dict[str, Survey]:
    """What a reading from end to end shows of every split, with the places of the `wanted` code points."""
    with console.progress(f"{manifest.vocab.unit}s") as bar:
        total = sum(split.tokens for split in manifest.splits.values())
        task = bar.add_task("looking for the rarest characters", total=total)

        def texts(split: Split) -> Iterator[bytes]:
            for start in range(0, split.tokens, RANGE_TOKENS):
                yield read_text(folder, manifest, split, start, start + RANGE_TOKENS)
                bar.advance(task, min(RANGE_TOKENS, split.tokens - start))

        return {name: survey(texts(split), wanted) for name, split in manifest.splits.items()}


def schema_of(train: Statistics) -> Schema:
    """What train is made of, as inferred by TFDV; how far a split may be from it is for `check` to say."""
    schema = tfdv.infer_schema(train, infer_feature_shape=False, max_string_domain_size=CODE_POINTS)
    for feature in schema.feature:
        # Inferred from accidents of train, such as records all of one length, or with one line at most.
        feature.ClearField("value_count")
        feature.ClearField("bool_domain")
    return schema


def check(name: str, statistics: dict[str, Statistics], schema: Schema, rules: Rules) -> Anomalies:
    """What TFDV finds in a split.

    Its domain must be the schema's, up to min_known. TFDV's drift comparator (previous_statistics) holds val and test
    against train, and train against the earlier train; its skew comparator (serving_statistics) holds val and test
    against the earlier train. A limit that the schema itself sets goes before that of the settings.
    """
    earlier, settings = rules.earlier and rules.earlier.train, rules.settings
    limited = Schema()
    limited.CopyFrom(schema)
    char = tfdv.get_feature(limited, "char")
    if not char.HasField("distribution_constraints"):
        char.distribution_constraints.min_domain_mass = settings.min_known
    if not char.HasField("drift_comparator"):
        limit = settings.max_drift if name == "train" else settings.max_divergence
        char.drift_comparator.jensen_shannon_divergence.threshold = limit
    if not char.HasField("skew_comparator"):
        char.skew_comparator.jensen_shannon_divergence.threshold = settings.max_skew
    return tfdv.validate_statistics(
        statistics[name],
        limited,
        previous_statistics=earlier if name == "train" else statistics["train"],
        # Jensen-Shannon is symmetric: it does not matter which of the two is called serving.
        serving_statistics=None if name == "train" else earlier,
    )


def findings_of(
    name: str, anomalies: Anomalies, statistics: dict[str, Statistics], schema: Schema, rules: Rules
) -> list[Finding]:
    """The rules that a split breaks, in words where they are rules of ours, else in TFDV's."""
    if anomalies.data_missing:
        return [_finding(name, "char", "empty", "the split holds no text", rules)]
    findings = []
    for feature, info in sorted(anomalies.anomaly_info.items()):
        for reason in info.reason:
            kind = AnomalyInfo.Type.Name(reason.type)
            rule, what = kind.lower(), reason.description or reason.short_description
            if (feature, kind) == ("char", "ENUM_TYPE_UNEXPECTED_STRING_VALUES"):
                whose = "the schema does" if rules.schema else "train does"
                rule, what = "unknown", _unknown(counts_of(statistics[name]), schema, whose)
            elif (feature, kind) == ("char", "COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH"):
                rule = "skew" if "serving" in reason.description else "drift" if name == "train" else "divergence"
                whose = "train" if rule == "divergence" else f"the train of {rules.earlier and rules.earlier.name}"
                value, limit = distances_of(anomalies)["skew" if rule == "skew" else "drift"]
                what = f"the characters lie {value:.4f} bits (Jensen-Shannon) from {whose}, the limit is {limit:g}"
            findings.append(_finding(name, feature, rule, what, rules))
    return findings


def _finding(split: str, feature: str, rule: str, what: str, rules: Rules) -> Finding:
    names = {feature, f"{split}.{feature}", f"{split}.{feature}.{rule}"}
    waived = not names.isdisjoint(rules.settings.waive)
    return Finding(split, _printable(feature), rule, _printable(what), waived)


def _printable(text: str) -> str:
    """One line that cannot drive a terminal: a schema of the user's may hold anything."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def _unknown(counts: Counter[str], schema: Schema, whose: str) -> str:
    """The characters of a split that are not in the schema, the most frequent of them by name."""
    known = set(tfdv.get_domain(schema, "char").value)
    unknown = [(name, n) for name, n in counts.most_common() if name not in known]
    share = sum(n for _, n in unknown) / counts.total()
    named = ", ".join(f"'{name}' ({n:,})" for name, n in unknown[:NAMED]) + (", ..." if len(unknown) > NAMED else "")
    which = f"{len(unknown):,} character{'s' if len(unknown) > 1 else ''} that {whose} not have"
    return f"{which}, {share:.3%} of the text: {named}"


def distances_of(anomalies: Anomalies) -> dict[str, tuple[float, float]]:
    """{"drift": ..., "skew": ...}, as far as measured: the Jensen-Shannon divergence of a split's characters from those
    it was held against, and its limit, in bits."""
    distances: dict[str, tuple[float, float]] = {}
    for info in anomalies.drift_skew_info:
        if list(info.path.step) == ["char"]:
            for kind, measured in (("drift", info.drift_measurements), ("skew", info.skew_measurements)):
                distances.update((kind, (one.value, one.threshold)) for one in measured if one.type == JENSEN_SHANNON)
    return distances


def stamp_of(manifest: Manifest, rules: Rules, findings: list[Finding], out: Path) -> dict[str, Any]:
    """The stamp of a data set in which all that was found is waived: what was asked of which data, what was let pass,
    when, and by which program."""
    earlier = rules.earlier
    return {
        "result": "valid",
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "checked": {name: split.tokens for name, split in manifest.splits.items()},
        "waived": {finding.name: finding.what for finding in findings},
        "settings": rules.settings.as_json(),
        "schema": {"sha256": sha256_file(out / SCHEMA), "given": rules.schema is not None},
        "against": {"name": earlier.name, "data_sha256": earlier.data_sha256} if earlier else None,
        "statistics": {name: sha256_file(_statistics_file(out, name)) for name in manifest.splits},
        "asked_sha256": rules.sha256_with(manifest),
        "tools": {"tensorflow-data-validation": importlib.metadata.version("tensorflow-data-validation")},
    }
