"""Signals that request a stop. Real runs are stopped in test_processes.py."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.training.signals import deferred

# Report to the terminal until a stop is requested, as the training loop does, then save.
LOOP = """
import pathlib, signal, sys, time
from trainers.training.signals import deferred
with deferred() as request:
    print("ready", flush=True)
    while not request.signal:
        time.sleep(0.01)
    for _ in range(20):
        print("report", file=sys.stderr, flush=True)
        time.sleep(0.01)
pathlib.Path(sys.argv[1]).write_text(signal.Signals(request.signal).name)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_recorded(number: signal.Signals) -> None:
    with deferred() as request:
        os.kill(os.getpid(), number)
        assert request.signal == number


def test_only_a_second_interrupt_ends_the_process_at_once() -> None:
    with deferred() as request:
        for _ in range(2):  # the kernel and the shell each send one
            os.kill(os.getpid(), signal.SIGHUP)
        assert request.signal == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_does_not_end_the_block(tmp_path: Path) -> None:
    terminal, child_end = pty.openpty()
    saved = tmp_path / "saved"
    command = [sys.executable, "-c", f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{LOOP}", str(saved)]
    streams = {"stdin": child_end, "stdout": child_end, "stderr": child_end}
    process = subprocess.Popen(command, start_new_session=True, **streams)
    os.close(child_end)
    output = b""
    with contextlib.suppress(OSError):
        while b"ready" not in output:
            output += os.read(terminal, 100)
    os.close(terminal)
    assert process.wait(20) == 0
    assert saved.read_text() == "SIGHUP"
