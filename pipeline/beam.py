"""How this project runs Beam: any runner, in this process unless one is named, and with errors that a user can read."""

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
from common.files import write_json

RESULTS = ".results.json"

_advance: Callable[[int], None] | None = None


def advance(amount: int) -> None:
    """Moves the progress bar of the stage that runs. For workers: in another process than the bar's it does nothing."""
    if _advance:
        _advance(amount)


@contextlib.contextmanager
def run(stage: str, what: str = "", total: int = 0, options: str = "") -> Iterator[beam.Pipeline]:
    """A Beam pipeline, run when the block ends, under a progress bar `what` over `total` bytes.

    options: Beam's own, as on a command line ("--runner=FlinkRunner --parallelism=8"); without a runner, it is
    FnApiRunner: the DirectRunner first tries to download another one. It keeps elements in memory, so pipelines pass
    places in files from step to step, never text.
    Raises UsageError for options that Beam does not take and for a runner that it does not have; StageError, in one
    line, for whatever failed inside.
    """
    parsed, runner = _parsed(options)
    # Beam also logs, with its traceback, each exception that it raises.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    try:
        with _bar(what, total), beam.Pipeline(runner=runner, options=parsed) as pipeline:
            yield pipeline
        if client := getattr(pipeline.result, "client", None):
            client.close()  # Dask's: Beam leaves it open
    except StageError as error:
        raise StageError(_reason(error)) from None
    except (OSError, RuntimeError, UnicodeError) as error:
        reason = _reason(error)
        known = reason.startswith(f"{StageError.__module__}.{StageError.__name__}: ")
        raise StageError(reason.partition(": ")[2] if known else f"{stage} failed: {reason}") from error


def each(
    stage: str, work: Callable[..., Any], places: Iterable[Any], folder: Path, what: str, total: int, options: str
) -> list[Any]:
    """[work(place) for place in places], in any order, by Beam's workers. What `work` gives must be JSON.

    It comes back through a file in `folder`, which all workers must see: a pipeline has no other way out.
    """
    with run(stage, what, total, options) as pipeline:
        _ = (
            pipeline
            | "Places" >> beam.Create(list(places), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Work" >> beam.Map(work)
            | "Gather" >> beam.combiners.ToList()
            | "Report" >> beam.Map(lambda results: write_json(folder / RESULTS, results))
        )
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    (folder / RESULTS).unlink()
    return results


def _reason(error: Exception) -> str:
    """What happened: a worker's exception may come as its whole traceback, and Beam adds at which step it was."""
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return re.sub(r" \[while running '[^']*'\]$", "", last)


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[None]:
    global _advance
    with console.progress("bytes") as bar:
        task = bar.add_task(what, total=total, visible=bool(what))
        _advance = lambda amount: bar.advance(task, amount)  # noqa: E731
        try:
            yield
        finally:
            _advance = None


def _parsed(options: str) -> tuple[PipelineOptions, PipelineRunner]:
    """Beam's options, and the runner that they name, else FnApiRunner."""
    complaint, name = io.StringIO(), None
    try:
        # Beam reads options when it is asked for them, and then argparse ends the process over one that is wrong.
        with contextlib.redirect_stderr(complaint):
            parsed = PipelineOptions(shlex.split(options))
            parsed.get_all_options()
            name = parsed.view_as(StandardOptions).runner
            return parsed, create_runner(name) if name else FnApiRunner()
    except (AttributeError, ImportError, SystemExit, ValueError) as error:
        said = complaint.getvalue().strip().splitlines()
        what = f"Beam has no runner {name!r}" if name else f"--beam does not take {options!r}"
        raise UsageError(f"{what}: {said[-1] if said else error}") from None
