import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from common import machine
from common.machine import describe, gpus, memory


def test_memory_of_current_process() -> None:
    now, peak = memory(), memory(peak=True)
    assert 1 << 20 < now <= peak
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.2)
    assert memory(os.getpid(), peak=True) >= peak


def test_memory_of_exited_process_is_zero() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert memory(process.pid) == 0


@pytest.mark.parametrize(
    ("vendor", "flags", "faster"),
    [
        ("GenuineIntel", "avx2 avx512f avx512_bf16 amx_bf16", True),
        ("GenuineIntel", "avx2 avx512f avx512_bf16", False),
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx2", False),
    ],
)
def test_bfloat16_is_chosen_where_it_is_faster(
    vendor: str, flags: str, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.multiplies_bfloat16_faster() is faster


def test_gpus_are_described_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf 'NVIDIA H100, 580.95, 81559 MiB, 1980 MHz, 2619 MHz\\n'\n")
    program.chmod(0o755)
    assert gpus() == ["NVIDIA H100 (driver 580.95, 81559 MiB, 1980 MHz, 2619 MHz)"]
    assert describe(gpu=True) == f"{describe()}; {gpus()[0]}"
    program.write_text("#!/bin/sh\nexit 9\n")  # fails as without a running driver
    assert gpus() == []


def test_freed_memory_is_reused_without_page_faults() -> None:
    """Count page faults: memory returned to the system costs one per page when it is allocated again."""
    program = """
import resource, sys
from common.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(20):
    held = [bytearray(5_000_000) for _ in range(8)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", program, mode], check=True, capture_output=True).stdout)
        for mode in ("keep", "return")
    }
    assert faults["keep"] < faults["return"] / 4
