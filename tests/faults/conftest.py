"""Trials of one kind of fault per test. Each test is a row of docs/reliability.md."""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator

import click
import pytest

from common.errors import StageError, Stopped, UsageError, tensorflow_cause

EXPECTED = (StageError, UsageError, Stopped, OSError, click.ClickException)


class Trials:
    """Counts of a test's trials. All of them run; the test fails at its end if any failed."""

    def __init__(self) -> None:
        self.tried, self.failures, self.limits = 0, list[str](), Counter[str]()

    @contextlib.contextmanager
    def trial(self, name: str) -> Iterator[None]:
        """Run the block as one trial; an exception from it is a failure."""
        self.tried += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.failures.append(f"{name}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})")

    def limit(self, reason: str) -> None:
        """Count the current trial as a known limit."""
        self.limits[reason] += 1

    def check(self) -> None:
        """Fail if any trial failed, or if none ran."""
        assert self.tried
        assert not self.failures, "\n".join(self.failures)


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Iterator[Trials]:
    """Trials of the kind and subject in the marker `faults`."""
    trials = Trials()
    yield trials
    kind, *rest = request.node.get_closest_marker("faults").args
    subject = rest[0] if rest else request.node.callspec.params["stage"]
    survived = trials.tried - len(trials.failures)
    row = {"kind": kind, "subject": subject, "tried": trials.tried, "survived": survived, "limits": dict(trials.limits)}
    request.node.user_properties.append(("trials", row))
    trials.check()


@contextlib.contextmanager
def reported() -> Iterator[list[str]]:
    """Expect the block to succeed, or to raise an error that a command prints in one line. Yields a list, to which
    the message is appended."""
    messages: list[str] = []
    try:
        yield messages
    except Exception as error:
        if isinstance(error, OSError) and not error.filename:
            raise AssertionError(f"an error without its file: {error!r}") from error
        if not (isinstance(error, EXPECTED) or tensorflow_cause(error)):
            raise
        messages.append(str(error))
