"""Deferred Ctrl-C, SIGTERM and SIGHUP: the handler sets a flag; the loop stops at the next safe point."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class StopRequest:
    """Signal that requested a stop; 0 while none has."""

    signal = 0


@contextlib.contextmanager
def deferred() -> Iterator[StopRequest]:
    """Record the first SIGINT, SIGTERM or SIGHUP of the block in a StopRequest.

    A second SIGINT or SIGTERM raises KeyboardInterrupt; a second SIGHUP does not, since both the kernel and the shell
    send one when the terminal is closed. Outside the main thread, where Python handles no signals, this changes
    nothing.
    """
    request = StopRequest()
    terminals = [handle for handle in (1, 2) if os.isatty(handle)]

    def record(number: int, _: Any) -> None:
        if number == signal.SIGHUP:
            for handle in terminals:  # writing to a closed terminal fails, and would end training before it has saved
                os.dup2(os.open(os.devnull, os.O_WRONLY), handle)
        elif request.signal:
            raise KeyboardInterrupt
        request.signal = request.signal or number

    with _handled(record):
        yield request


def immediate() -> contextlib.AbstractContextManager[None]:
    """Let the signals end the process at once: while TensorFlow waits, no Python handler would run."""
    return _handled(signal.SIG_DFL)


@contextlib.contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """Send SIGINT, SIGTERM and SIGHUP to `handler` for the block; not a SIGHUP that is ignored, as nohup does."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [signal.SIGINT, signal.SIGTERM]
        numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
        before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
