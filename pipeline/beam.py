"""Run Beam pipelines: in this process or on any runner, with a progress bar and one-line errors."""

import contextlib
import io
import json
import logging
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

from common import console
from common.errors import StageError, UsageError
from common.files import whole_file
from common.processes import last_line

RESULTS = ".results.json"

_advance: Callable[[int], None] | None = None


def advance(amount: int) -> None:
    """Advance the progress bar of the running stage. In another process, as on a remote worker, this does nothing."""
    if _advance:
        _advance(amount)


@contextlib.contextmanager
def run(stage: str, title: str = "", total: int = 0, options: str = "") -> Iterator[beam.Pipeline]:
    """Yield a Beam pipeline that runs when the block ends, under a progress bar `title` over `total` bytes.

    options: Beam's own, as on a command line ("--runner=FlinkRunner --parallelism=8"). The default runner is
    FnApiRunner, since DirectRunner first tries to download another runner. It keeps elements in memory, so pipelines
    pass file positions between steps, never text.
    Raises UsageError for options or runners that Beam does not know; StageError, in one line, for any failure inside.
    """
    # Beam logs each exception with its traceback, as well as raising it.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    parsed, runner = _parsed(options)
    try:
        with _bar(title, total), beam.Pipeline(runner=runner, options=parsed) as pipeline:
            yield pipeline
        if client := getattr(pipeline.result, "client", None):
            client.close()  # Beam leaves Dask's client open
    except StageError as error:
        raise StageError(_reason(error)) from None
    except (OSError, RuntimeError, UnicodeError) as error:
        reason = _reason(error)
        known = reason.startswith(f"{StageError.__module__}.{StageError.__name__}: ")
        raise StageError(reason.partition(": ")[2] if known else f"{stage} failed: {reason}") from error


def each(
    stage: str, work: Callable[..., Any], items: Iterable[Any], folder: Path, title: str, total: int, options: str
) -> list[Any]:
    """Compute [work(item) for item in items] on Beam's workers, in any order. Results must be JSON.

    They return through a file in `folder`, which all workers must see: a pipeline has no other output.
    """

    def named(item: Any) -> tuple[None, Any]:
        try:
            return None, work(item)
        except OSError as error:  # Beam passes on its text alone, which may name no file
            raise StageError(f"{error.filename or folder}: {error.strerror or error}") from None

    items = list(items)
    if not items:
        return []
    with run(stage, title, total, options) as pipeline:
        _ = (
            pipeline
            | "Items" >> beam.Create(items, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Work" >> beam.Map(named)
            | "Gather" >> beam.GroupByKey()  # combiners.ToList would double Beam's own work
            | "Report" >> beam.MapTuple(lambda _, results: _write(folder / RESULTS, list(results)))
        )
    results = json.loads((folder / RESULTS).read_bytes())  # of any size: it is ours
    (folder / RESULTS).unlink()
    return results


def _write(path: Path, results: list[Any]) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(results), encoding="utf-8")


def _reason(error: Exception) -> str:
    """Last line of an error, without the step that Beam appends: a worker's error may be a whole traceback."""
    return re.sub(r" \[while running '[^']*'\]$", "", last_line(str(error) or type(error).__name__))


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator[None]:
    global _advance
    with console.progress("bytes") as bar:
        task = bar.add_task(title, total=total, visible=bool(title))
        _advance = lambda amount: bar.advance(task, amount)  # noqa: E731
        try:
            yield
        finally:
            _advance = None


def _parsed(options: str) -> tuple[PipelineOptions, PipelineRunner]:
    """Parse Beam's options. Returns them and the runner they name, by default FnApiRunner."""
    stderr, name = io.StringIO(), None
    try:
        # Beam parses options on first use, and argparse then exits the process on an invalid one.
        with contextlib.redirect_stderr(stderr):
            parsed = PipelineOptions(shlex.split(options))
            known = parsed.get_all_options()
            name = parsed.view_as(StandardOptions).runner
            if name:
                return parsed, create_runner(name)  # which may have options of its own
            unknown = parsed.get_all_options(retain_unknown_options=True).keys() - known
            if unknown:
                raise ValueError(f"without a --runner, there is no --{min(unknown)}")
            return parsed, FnApiRunner()
    except (AttributeError, ImportError, SystemExit, ValueError) as error:
        rule = f"Beam has no runner {name!r}" if name else f"invalid --beam options {options!r}"
        raise UsageError(f"{rule}: {last_line(stderr.getvalue() or str(error))}") from None
