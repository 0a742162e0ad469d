"""Validate a data set: TFDV counts every character of every split, and train sets the standard.

    data/NAME/validation/schema.pbtxt     schema of train (tensorflow_metadata Schema, text form)
    data/NAME/validation/train.stats.pb   statistics of a split (DatasetFeatureStatisticsList)
    data/NAME/validation/report.html      all of it on one page

The manifest is stamped only if every finding is waived, so a stamp means valid.
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
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.errors import NotFoundError
from tensorflow_data_validation.statistics.generators.basic_stats_generator import BasicStatsGenerator
from tensorflow_data_validation.statistics.generators.top_k_uniques_sketch_stats_generator import (
    TopKUniquesSketchStatsGenerator,
)
from tensorflow_metadata.proto.v0.anomalies_pb2 import Anomalies, AnomalyInfo, DriftSkewInfo
from tensorflow_metadata.proto.v0.schema_pb2 import Schema
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList as Statistics

from common import console
from common.errors import StageError, UsageError
from common.files import WRONG_SHAPE, recover, sha256_file, sha256_json, whole_folder
from common.printable import brief, one_line
from pipeline.beam import advance, run
from pipeline.config import ValidateSettings
from pipeline.manifest import Manifest, Split, check_hashes, read_manifest, write_manifest
from pipeline.records import RECORD_CHARS, read_text, record_batch
from pipeline.report import Finding, Report, counts_of, rarest, write_report
from pipeline.survey import Survey, survey
from pipeline.vocab import CODE_POINTS

FOLDER = "validation"
SCHEMA = "schema.pbtxt"
REPORT = "report.html"
RANGE_TOKENS = 1 << 20  # one Beam element
JENSEN_SHANNON = DriftSkewInfo.Measurement.JENSEN_SHANNON_DIVERGENCE
NAMED = 5  # unknown characters listed in a finding


@dataclasses.dataclass(frozen=True)
class Reference:
    """Data set named by --against, with the statistics of its train split."""

    name: str
    data_sha256: str
    train: Statistics


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules that a data set is checked against. schema: passed with --schema, or None."""

    settings: ValidateSettings
    schema: Schema | None
    earlier: Reference | None

    def sha256_with(self, manifest: Manifest) -> str:
        """Hash of these rules and the data: if it is unchanged, so are the findings."""
        inputs = {
            "settings": self.settings.as_json(),
            "data": manifest.data_sha256,
            "schema": text_format.MessageToString(self.schema) if self.schema else None,
            "against": self.earlier.data_sha256 if self.earlier else None,
        }
        return sha256_json(inputs)


def validate(
    folder: Path,
    settings: ValidateSettings,
    force: bool = False,
    schema: Path | None = None,
    against: Path | None = None,
    options: str = "",
) -> Manifest:
    """Validate a data set: write the report and, if it is valid, stamp the manifest.

    schema: schema that every split must match, train too; by default it is inferred from train.
    against: a validated data set; train is compared with its train for drift, val and test for skew.
    options: Beam's own (pipeline.beam).
    A data set already stamped for all of these is skipped unless `force`. The stamp of an invalid one is removed.
    Raises UsageError for an invalid schema and for an `against` with the same data; StageError for a missing data set,
    for an edited schema that `schema` does not name, unless `force`, and, listing the findings, for an invalid one.
    """
    manifest = read_manifest(folder)
    earlier = read_earlier(against, folder, manifest) if against else None
    rules = Rules(settings, read_schema(schema) if schema else None, earlier)
    if not (schema or force):
        _check_unedited(folder / FOLDER)
    report, digest = folder / FOLDER / REPORT, rules.sha256_with(manifest)
    if manifest.validation and manifest.validation.get("asked_sha256") == digest and report.exists() and not force:
        recover(folder)  # of a process killed after it wrote the stamp
        console.out.print(f"{folder} is already valid for these settings; report: {report}")
        return manifest
    check_hashes(folder, manifest)
    if manifest.validation:
        # The stamp vouches for the report, so remove it before the report changes.
        manifest = dataclasses.replace(manifest, validation=None)
        write_manifest(folder, manifest)
    with whole_folder(folder / FOLDER) as partial:
        findings = _examine(folder, manifest, rules, partial, options)
        stamp = stamp_of(manifest, rules, findings, partial)
    for finding in findings:
        console.note(f"{'waived: ' if finding.waived else ''}{finding.split}: {finding.feature}: {finding.text}")
    failed = [finding.name for finding in findings if not finding.waived]
    if read_manifest(folder).data_sha256 != manifest.data_sha256:
        raise StageError(f"{folder} was rebuilt during validation: run validate again")
    manifest = dataclasses.replace(manifest, validation=None if failed else stamp)
    write_manifest(folder, manifest)
    if failed:
        raise StageError(f"{folder} is not valid ({', '.join(failed)}): see {report}")
    console.out.print(f"{folder} is valid; report: {report}")
    return manifest


def _examine(folder: Path, manifest: Manifest, rules: Rules, out: Path, options: str) -> list[Finding]:
    """Count every split and apply the rules; write statistics, schema and report to `out`."""
    statistics = count(folder, manifest, out, options)
    schema = rules.schema or schema_of(statistics["train"])
    (out / SCHEMA).write_text(_text(schema), encoding="utf-8")
    checks = {name: check(name, statistics, schema, rules) for name in statistics}
    report = Report(
        title=folder.resolve().name,
        manifest=manifest,
        record_chars=RECORD_CHARS,
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


def _check_unedited(out: Path) -> None:
    """Raise StageError if the schema in `out` is not the one inferred from train: an edit would be lost."""
    path, statistics = out / SCHEMA, _statistics_file(out, "train")
    if not path.is_file():
        return
    reason = "is not the schema inferred from train"
    try:
        if path.read_bytes() == _text(schema_of(tfdv.load_stats_binary(os.fspath(statistics)))).encode():
            return
    except (NotFoundError, IndexError, DecodeError, *WRONG_SHAPE):
        reason = f"may have been edited, and {statistics} is missing or corrupted"
    raise StageError(f"{path} {reason}: pass --schema {path} to use it, or --force to replace it")


def _text(schema: Schema) -> str:
    return text_format.MessageToString(schema, as_utf8=True)


def read_schema(path: Path) -> Schema:
    """Read a schema. Raises UsageError for a missing, invalid or unsuitable file."""
    rule = f"--schema takes a schema written by validate, such as data/NAME/{FOLDER}/{SCHEMA}"
    try:
        schema = text_format.Parse(path.read_text(encoding="utf-8"), Schema())
    except OSError as error:
        raise UsageError(f"{rule}; {path}: {error.strerror}") from None
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise UsageError(f"{rule}; {path} is invalid: {brief(one_line(str(error)))}") from None
    if "char" not in {feature.name for feature in schema.feature}:
        raise UsageError(f"{rule}; {path} has no feature 'char'")
    char = tfdv.get_feature(schema, "char")
    if not (char.domain or char.HasField("string_domain")):
        raise UsageError(f"{rule}; {path} lists no characters: its feature 'char' has no domain")
    return schema


def read_earlier(against: Path, folder: Path, manifest: Manifest) -> Reference:
    """Read the data set to compare with.

    Raises UsageError if it has the same data; StageError if it has no valid statistics.
    """
    other = read_manifest(against)
    if other.data_sha256 == manifest.data_sha256:
        raise UsageError(f"--against takes a different data set: {against} has the same data as {folder}")
    return Reference(against.resolve().name, other.data_sha256, train_statistics(against, other))


def train_statistics(folder: Path, manifest: Manifest) -> Statistics:
    """Read the statistics of a validated data set's train split. Raises StageError if there are none."""
    path, stamp = _statistics_file(folder / FOLDER, "train"), manifest.validation or {}
    sha256 = stamp.get("statistics", {}).get("train")
    if not (sha256 and path.is_file() and sha256_file(path) == sha256):
        fix = f"run python -m pipeline validate {folder} --force"
        raise StageError(f"{folder} has no validated statistics: {fix}")
    return tfdv.load_stats_binary(os.fspath(path))


def count(folder: Path, manifest: Manifest, out: Path, options: str = "") -> dict[str, Statistics]:
    """Compute the statistics of every split with TFDV on Beam, and write them to `out` as <split>.stats.pb.

    Raises StageError if train is empty.
    """
    total = sum(split.tokens for split in manifest.splits.values())
    with run("validate", "counting", total, options) as pipeline:
        for name, split in manifest.splits.items():
            starts = range(0, split.tokens, RANGE_TOKENS)
            _ = (
                pipeline
                | f"{name}: plan" >> beam.Create(starts)
                | f"{name}: spread" >> beam.Reshuffle()
                | f"{name}: read" >> beam.FlatMap(_records, folder, manifest, split)
                | f"{name}: count" >> tfdv.GenerateStatistics(statistics_options())
                | f"{name}: write" >> tfdv.WriteStatisticsToBinaryFile(str(_statistics_file(out, name)))
            )
    statistics = {name: tfdv.load_stats_binary(str(_statistics_file(out, name))) for name in manifest.splits}
    if not statistics["train"].datasets[0].num_examples:
        raise StageError(f"the split 'train' of {folder} is empty: run ingest again with more text")
    return statistics


def statistics_options() -> tfdv.StatsOptions:
    """Return TFDV's options: counts of every character, and basic statistics of the other features."""
    # TFDV's default value counter sends each value through a GroupByKey, some 300 ns each. The sketch counts in place,
    # in a sixth of the time, and is exact here because it has room for every code point.
    buckets = {"num_rank_histogram_buckets": CODE_POINTS, "num_kmv_buckets": CODE_POINTS}
    values = TopKUniquesSketchStatsGenerator(num_top_values=20, length_counter_sampling_rate=0, **buckets)
    # Beam keeps 128 accumulators per key; with batches of one record, none of them buffers text.
    return tfdv.StatsOptions(
        generators=[BasicStatsGenerator(), values], add_default_generators=False, desired_batch_size=1
    )


def _records(start: int, folder: Path, manifest: Manifest, split: Split) -> Iterator[pa.RecordBatch]:
    text = read_text(folder, manifest, split, start, start + RANGE_TOKENS)
    if text:  # a last range of a byte or two may belong to the previous range's last character
        yield record_batch(text, RECORD_CHARS)
    advance(min(RANGE_TOKENS, split.tokens - start))


def _statistics_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.stats.pb"


def surveys_of(folder: Path, manifest: Manifest, codes: list[int]) -> dict[str, Survey]:
    """Survey every split from end to end, locating the code points `codes`."""
    with console.progress(f"{manifest.vocab.unit}s") as bar:
        total = sum(split.tokens for split in manifest.splits.values())
        task = bar.add_task("looking for the rarest characters", total=total)

        def texts(split: Split) -> Iterator[bytes]:
            for start in range(0, split.tokens, RANGE_TOKENS):
                yield read_text(folder, manifest, split, start, start + RANGE_TOKENS)
                bar.advance(task, min(RANGE_TOKENS, split.tokens - start))

        return {name: survey(texts(split), codes) for name, split in manifest.splits.items()}


def schema_of(train: Statistics) -> Schema:
    """Infer the schema of train with TFDV. `check` adds the limits."""
    schema = tfdv.infer_schema(train, infer_feature_shape=False, max_string_domain_size=CODE_POINTS)
    for feature in schema.feature:
        # Inferred from accidents of train, such as records of equal length.
        feature.ClearField("value_count")
        feature.ClearField("bool_domain")
    return schema


def check(name: str, statistics: dict[str, Statistics], schema: Schema, rules: Rules) -> Anomalies:
    """Check a split with TFDV.

    Its characters must be in the schema's domain, up to min_known. TFDV's drift comparator (previous_statistics)
    compares val and test with train, and train with the earlier train; its skew comparator (serving_statistics)
    compares all other splits with the earlier train. Limits in the schema take precedence over the settings.
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
        previous_statistics=earlier if name == "train" else statistics.get("train"),
        # Jensen-Shannon is symmetric, so either side may be called serving.
        serving_statistics=None if name == "train" else earlier,
    )


def findings_of(
    name: str, anomalies: Anomalies, statistics: dict[str, Statistics], schema: Schema, rules: Rules
) -> list[Finding]:
    """List the rules that a split breaks, with our message for our own rules and TFDV's for the others."""
    if anomalies.data_missing:
        return [_finding(name, "char", "empty", "the split contains no text", rules)]
    findings = []
    for feature, info in sorted(anomalies.anomaly_info.items()):
        for reason in info.reason:
            kind = AnomalyInfo.Type.Name(reason.type)
            rule, text = kind.lower(), reason.description or reason.short_description
            if (feature, kind) == ("char", "ENUM_TYPE_UNEXPECTED_STRING_VALUES"):
                source = "the schema" if rules.schema else "train"
                rule, text = "unknown", _unknown(counts_of(statistics[name]), schema, source)
            elif (feature, kind) == ("char", "COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH"):
                rule = "skew" if "serving" in reason.description else "drift" if name == "train" else "divergence"
                source = "train" if rule == "divergence" else f"the train of {rules.earlier and rules.earlier.name}"
                value, limit = distances_of(anomalies)["skew" if rule == "skew" else "drift"]
                text = f"the characters are {value:.4f} bits (Jensen-Shannon) from {source}, the limit is {limit:g}"
            findings.append(_finding(name, feature, rule, text, rules))
    return findings


def _finding(split: str, feature: str, rule: str, text: str, rules: Rules) -> Finding:
    names = {feature, f"{split}.{feature}", f"{split}.{feature}.{rule}"}
    waived = not names.isdisjoint(rules.settings.waive)
    return Finding(split, one_line(feature), rule, one_line(text), waived)


def _unknown(counts: Counter[str], schema: Schema, source: str) -> str:
    """Describe the characters of a split that are not in the schema, naming the most frequent."""
    known = set(tfdv.get_domain(schema, "char").value)
    unknown = [(name, n) for name, n in counts.most_common() if name not in known]
    share = sum(n for _, n in unknown) / counts.total()
    named = ", ".join(f"'{name}' ({n:,})" for name, n in unknown[:NAMED]) + (", ..." if len(unknown) > NAMED else "")
    missing = f"{len(unknown):,} character{'s' if len(unknown) > 1 else ''} missing from {source}"
    return f"{missing}, {share:.3%} of the text: {named}"


def distances_of(anomalies: Anomalies) -> dict[str, tuple[float, float]]:
    """Measured Jensen-Shannon divergences and their limits, in bits: {"drift": (value, limit), "skew": ...}."""
    distances: dict[str, tuple[float, float]] = {}
    for info in anomalies.drift_skew_info:
        if list(info.path.step) == ["char"]:
            for kind, measured in (("drift", info.drift_measurements), ("skew", info.skew_measurements)):
                distances.update((kind, (m.value, m.threshold)) for m in measured if m.type == JENSEN_SHANNON)
    return distances


def stamp_of(manifest: Manifest, rules: Rules, findings: list[Finding], out: Path) -> dict[str, Any]:
    """Stamp of a data set whose findings are all waived: the rules, the data, the waived findings, time and tools."""
    earlier = rules.earlier
    return {
        "result": "valid",
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "checked": {name: split.tokens for name, split in manifest.splits.items()},
        "waived": {finding.name: finding.text for finding in findings},
        "settings": rules.settings.as_json(),
        "schema": {"sha256": sha256_file(out / SCHEMA), "given": rules.schema is not None},
        "against": {"name": earlier.name, "data_sha256": earlier.data_sha256} if earlier else None,
        "statistics": {name: sha256_file(_statistics_file(out, name)) for name in manifest.splits},
        "asked_sha256": rules.sha256_with(manifest),
        "tools": {"tensorflow-data-validation": importlib.metadata.version("tensorflow-data-validation")},
    }
