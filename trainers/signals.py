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
    wish, before = Wish(), {}

    def note(number: int, _: Any) -> None:
        if wish.signal:
            raise KeyboardInterrupt
        wish.signal = number

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """For the block, SIGINT and SIGTERM end the process as they would any other: what waits inside TensorFlow gives
    Python no turn to look at a wish."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
