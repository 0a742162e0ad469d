"""Ctrl-C and SIGTERM as wishes: whoever is at work looks now and then, and stops where all is in order."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Wish:
    """The signal that asked for an end; 0 while none has."""

    signal = 0


@contextlib.contextmanager
def wished() -> Iterator[Wish]:
    """For the block, a first SIGINT or SIGTERM is noted in the wish that is given. A second ends the block at once.

    Outside the main thread, where Python has no signals, nothing is changed.
    """
    wish = Wish()

    def note(number: int, _: Any) -> None:
        if wish.signal:
            raise KeyboardInterrupt
        wish.signal = number

    with _handled(note):
        yield wish


def at_once() -> contextlib.AbstractContextManager[None]:
    """For the block, SIGINT and SIGTERM end the process as they would any other: what waits inside TensorFlow gives
    Python no turn to look at a wish."""
    return _handled(signal.SIG_DFL)


@contextlib.contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """For the block, SIGINT and SIGTERM go to `handler`."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
