"""Is the data what a model should learn from? TFDV counts every character of every split; train sets the standard.

    data/NAME/validation/schema.pbtxt     what train is made of (tensorflow_metadata Schema, text form)
    data/NAME/validation/train.stats.pb   statistics of a split (DatasetFeatureStatisticsList)
    data/NAME/validation/report.html      all of it to look at

The manifest is stamped when nothing is wrong, and only then: a stamp means valid.
"""

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pydantic
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0.anomalies_pb2 import Anomalies
from tensorflow_metadata.proto.v0.schema_pb2 import Schema
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList as Statistics

from common import console, settings
from common.errors import StageError
from common.files import sha256_json, whole_folder
from pipeline.beam import run
from pipeline.manifest import Manifest, Split, check_hashes, read_manifest, write_manifest
from pipeline.records import CODE_POINTS, cut_at_characters, record_batch
from pipeline.report import Finding, write_report
from pipeline.shards import read_tokens

FOLDER = "validation"
RANGE_TOKENS = 1 << 20  # what a worker takes at a time


@settings.settings
class ValidateSettings:
    """[validate]

    chunk_chars: characters of a record; the shares and line lengths of the report are those of records.
    min_known: the share of the characters of val and test that must occur in train, 0 to 1.
    max_divergence: how far the distribution of characters in val or test may be from train's: Jensen-Shannon, in bits,
        0 (equal) to 1 (nothing in common). Measured: two halves of 4 MB of Python source 0.002, legal English and
        Python source 0.07, English and Greek 0.8. A split of 1000 characters is some 0.06 away by chance alone.
    """

    chunk_chars: int = pydantic.Field(4096, ge=1)
    min_known: float = pydantic.Field(0.99, ge=0, le=1)
    max_divergence: float = pydantic.Field(0.25, ge=0, le=1)

    def as_json(self) -> dict[str, Any]:
        """The settings by name, for the stamp."""
        return {name: getattr(self, name) for name in settings.field_names(ValidateSettings)}


def validate(folder: Path, settings: ValidateSettings, force: bool = False) -> Manifest:
    """Checks the data set in full, leaves the report beside it and, where nothing is wrong, the stamp in its manifest.

    A data set that bears the stamp for these settings is left alone unless `force`.
    Raises StageError where there is no data set, or naming what is wrong with it; the stamp is then taken away.
    """
    manifest = read_manifest(folder)
    report = folder / FOLDER / "report.html"
    asked = sha256_json({"settings": settings.as_json(), "data": manifest.data_sha256})
    if manifest.validation and manifest.validation["asked_sha256"] == asked and report.exists() and not force:
        console.out.print(f"{folder} is already valid under these settings; report: {report}")
        return manifest
    check_hashes(folder, manifest)
    if manifest.validation:
        # A stamp speaks of the report beside it, so it goes before the report changes.
        manifest = dataclasses.replace(manifest, validation=None)
        write_manifest(folder, manifest)
    with whole_folder(folder / FOLDER) as partial:
        statistics = count(folder, manifest, settings.chunk_chars, partial)
        schema = schema_of(statistics["train"], settings)
        (partial / "schema.pbtxt").write_text(text_format.MessageToString(schema, as_utf8=True), encoding="utf-8")
        checks = {name: check(statistics[name], statistics["train"], schema) for name in statistics if name != "train"}
        findings = [finding for name, anomalies in checks.items() for finding in findings_of(name, anomalies)]
        divergence = {name: divergence_of(anomalies) for name, anomalies in checks.items()}
        write_report(partial / report.name, folder.name, manifest, settings.as_json(), statistics, divergence, findings)
    stamp = None if findings else stamp_of(manifest, settings, asked)
    manifest = dataclasses.replace(manifest, validation=stamp)
    write_manifest(folder, manifest)
    if findings:
        for finding in findings:
            console.note(f"{finding.split}: {finding.feature}: {finding.what}")
        what = ", ".join(f"{finding.feature} of {finding.split}" for finding in findings)
        raise StageError(f"{folder} is not valid ({what}): see {report}")
    console.out.print(f"{folder} is valid; report: {report}")
    return manifest


def count(folder: Path, manifest: Manifest, chunk_chars: int, out: Path) -> dict[str, Statistics]:
    """Statistics of every split over all of its text, by TFDV on Beam; each is left in `out` as <split>.stats.pb."""
    # A rank for every character there is: the schema's domain and the divergence come from these counts, all of them.
    options = tfdv.StatsOptions(num_rank_histogram_buckets=CODE_POINTS)
    tokens = sum(split.tokens for split in manifest.splits.values())
    with console.err.status(f"counting the characters of {tokens:,} bytes"), run("validate") as pipeline:
        for name, split in manifest.splits.items():
            starts = range(0, split.tokens, RANGE_TOKENS)
            _ = (
                pipeline
                | f"{name}: plan" >> beam.Create(starts)
                | f"{name}: spread" >> beam.Reshuffle()
                | f"{name}: read" >> beam.FlatMap(_records, folder, manifest, split, chunk_chars)
                | f"{name}: count" >> tfdv.GenerateStatistics(options)
                | f"{name}: write" >> tfdv.WriteStatisticsToBinaryFile(str(_statistics_file(out, name)))
            )
    return {name: tfdv.load_stats_binary(str(_statistics_file(out, name))) for name in manifest.splits}


def _records(start: int, folder: Path, manifest: Manifest, split: Split, chunk_chars: int) -> Iterator[pa.RecordBatch]:
    stop = min(start + RANGE_TOKENS, split.tokens)
    # Three bytes more than the range: its last character may end there.
    tokens = read_tokens(folder, split, manifest.dtype, start, min(stop + 3, split.tokens))
    text = cut_at_characters(manifest.vocab.decode(tokens), stop - start, at_start=start == 0)
    if text:  # a last range of a byte or two may be all of its neighbour's last character
        yield record_batch(text, chunk_chars)


def _statistics_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.stats.pb"


def schema_of(train: Statistics, settings: ValidateSettings) -> Schema:
    """What train is made of, as inferred by TFDV, and how far another split may be from it."""
    schema = tfdv.infer_schema(train, infer_feature_shape=False, max_string_domain_size=CODE_POINTS)
    for feature in schema.feature:
        # Inferred from accidents of train, such as records all of one length, or with one newline at most.
        feature.ClearField("value_count")
        feature.ClearField("bool_domain")
    char = tfdv.get_feature(schema, "char")
    char.distribution_constraints.min_domain_mass = settings.min_known
    char.drift_comparator.jensen_shannon_divergence.threshold = settings.max_divergence
    return schema


def check(statistics: Statistics, train: Statistics, schema: Schema) -> Anomalies:
    """What TFDV finds when it holds a split against train and its schema."""
    return tfdv.validate_statistics(statistics, schema, previous_statistics=train)


def findings_of(name: str, anomalies: Anomalies) -> list[Finding]:
    """The rules that a split breaks, by the features' names."""
    return [
        Finding(name, feature, reason.description or reason.short_description)
        for feature, info in sorted(anomalies.anomaly_info.items())
        for reason in info.reason
    ]


def divergence_of(anomalies: Anomalies) -> float:
    """The Jensen-Shannon divergence, in bits, of a split's characters from train's."""
    (char,) = anomalies.drift_skew_info
    (measured,) = char.drift_measurements
    return measured.value


def stamp_of(manifest: Manifest, settings: ValidateSettings, asked: str) -> dict[str, Any]:
    """The stamp of a valid data set: what was asked of which data, when, and by which program."""
    return {
        "result": "valid",
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "checked": {name: split.tokens for name, split in manifest.splits.items()},
        "settings": settings.as_json(),
        "asked_sha256": asked,
        "tools": {"tensorflow-data-validation": importlib.metadata.version("tensorflow-data-validation")},
    }
