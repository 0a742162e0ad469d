"""How this project runs Beam: in this process, and with errors that a user can read."""

import contextlib
import logging
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from common.errors import StageError


@contextlib.contextmanager
def run(stage: str) -> Iterator[beam.Pipeline]:
    """A Beam pipeline, run when the block ends. Raises StageError, in one line, for whatever failed inside it.

    FnApiRunner by name: DirectRunner first tries to download another one. It keeps elements in memory, so pipelines
    pass places in files from step to step, never text.
    """
    # Beam also logs, with its traceback, each exception that it raises.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    try:
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            yield pipeline
    except (OSError, RuntimeError) as error:
        # Where a worker's exception comes as the text of its traceback, the last line says what happened.
        reason = str(error).strip().splitlines()[-1]
        raise StageError(f"{stage} failed: {reason}") from error
