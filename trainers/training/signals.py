"""Deferred Ctrl-C and SIGTERM: the handler sets a flag; the loop stops at the next safe point."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class StopRequest:
    """The signal that requested a stop; 0 while none has."""

    signal = 0


@contextlib.contextmanager
def deferred() -> Iterator[StopRequest]:
    """Record the first SIGINT or SIGTERM of the block in a StopRequest; a second one raises KeyboardInterrupt.

    Outside the main thread, where Python handles no signals, this changes nothing.
    """
    request = StopRequest()

    def record(number: int, _: Any) -> None:
        if request.signal:
            raise KeyboardInterrupt
        request.signal = number

    with _handled(record):
        yield request


def immediate() -> contextlib.AbstractContextManager[None]:
    """Let SIGINT and SIGTERM end the process at once: while TensorFlow waits, no Python handler would run."""
    return _handled(signal.SIG_DFL)


@contextlib.contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """Send SIGINT and SIGTERM to `handler` for the block."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
