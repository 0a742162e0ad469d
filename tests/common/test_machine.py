import os
import resource
import subprocess
import sys

import pytest

from common.machine import memory


def test_memory_of_this_process() -> None:
    now, peak = memory(), memory(peak=True)
    assert 1 << 20 < now <= peak
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.2)
    assert memory(os.getpid(), peak=True) >= peak


def test_memory_of_an_ended_process_is_unknown() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert memory(process.pid) == 0
