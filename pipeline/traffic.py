"""Compare recorded requests with train: do callers send text like the text that the model was trained on?

A log is JSON lines, as `export front --record` writes them, or TFRecords of PredictionLog, as TF Serving logs requests.
"""

import glob
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import tensorflow as tf
import tensorflow_data_validation as tfdv
from google.protobuf.message import DecodeError
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from common import console
from common.errors import StageError, UsageError
from common.files import parse_json
from common.printable import brief, one_line
from pipeline.beam import run
from pipeline.config import ValidateSettings
from pipeline.manifest import read_manifest
from pipeline.records import RECORD_CHARS, record_batch
from pipeline.report import counts_of
from pipeline.validate import (
    FOLDER,
    SCHEMA,
    Reference,
    Rules,
    Statistics,
    check,
    distances_of,
    findings_of,
    read_schema,
    statistics_options,
    train_statistics,
)

TEXTS = ("prompt", "text")  # inputs of the signatures that contain text


def compare_requests(folder: Path, log: str, settings: ValidateSettings, options: str = "") -> None:
    """Compare the requests in the files that match the pattern `log` with a validated data set.

    Their characters must be in the data set's schema, up to min_known, and their distribution within max_skew of
    train's. Raises UsageError if no file matches, and StageError for a data set without validated statistics, for a log
    without text, and, listing the findings, for requests that differ.
    """
    manifest = read_manifest(folder)
    train = Reference(folder.resolve().name, manifest.data_sha256, train_statistics(folder, manifest))
    schema, statistics = read_schema(folder / FOLDER / SCHEMA), {"requests": count(log, options)}
    rules = Rules(settings, schema, train)
    anomalies = check("requests", statistics, schema, rules)
    findings = findings_of("requests", anomalies, statistics, schema, rules)
    for finding in findings:
        console.note(f"{'waived: ' if finding.waived else ''}{finding.split}: {finding.feature}: {finding.text}")
    if failed := [finding.name for finding in findings if not finding.waived]:
        raise StageError(f"the requests in {log} differ from {folder} ({', '.join(failed)})")
    fit = f"{counts_of(statistics['requests']).total():,} characters of requests fit {folder}"
    if skew := distances_of(anomalies).get("skew"):  # none with a comparator of the schema's own
        fit += ": {:.4f} bits (Jensen-Shannon) from train, the limit is {:g}".format(*skew)
    console.out.print(fit)


def count(log: str, options: str = "") -> Statistics:
    """Compute the statistics of the requests' text with TFDV on Beam."""
    if not (paths := sorted(glob.glob(log))):
        raise UsageError(f"--requests takes a file or a quoted pattern: no file matches {log}")
    with tempfile.TemporaryDirectory() as scratch:
        path = str(Path(scratch) / "requests.stats.pb")
        with run("validate", options=options) as pipeline:
            _ = (
                pipeline
                | "logs" >> beam.Create(paths)
                | "read" >> beam.FlatMap(_records)
                | "count" >> tfdv.GenerateStatistics(statistics_options())
                | "write" >> tfdv.WriteStatisticsToBinaryFile(path)
            )
        statistics = tfdv.load_stats_binary(path)
    if not statistics.datasets[0].num_examples:
        raise StageError(f"the requests in {log} contain no text")
    return statistics


def _records(path: str) -> Iterator[pa.RecordBatch]:
    """Read a log: one record per call, or more for long texts."""
    for texts in _lines(path) if path.lower().endswith(".jsonl") else _calls(path):
        if text := b"".join(texts):
            yield record_batch(text, RECORD_CHARS)


def _lines(path: str) -> Iterator[list[bytes]]:
    """Yield the texts of each line. Others are skipped, and noted: a front that is killed may truncate its last one."""
    skipped, first = 0, ""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield [text.encode(errors="surrogateescape") for text in parse_json(line)["texts"]]
            except (ValueError, TypeError, KeyError, AttributeError):
                skipped, first = skipped + 1, first or brief(one_line(line), 80)
    if skipped:
        console.note(f"{path}: lines without texts are skipped, {skipped:,} of them; the first: {first}")


def _calls(path: str) -> Iterator[list[bytes]]:
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            inputs = PredictionLog.FromString(record).predict_log.request.inputs
            yield [text for name in TEXTS if name in inputs for text in inputs[name].string_val]
    except (DecodeError, tf.errors.DataLossError):
        raise StageError(f"{path} is corrupted or not TFRecords of PredictionLog; JSON lines end with .jsonl") from None
