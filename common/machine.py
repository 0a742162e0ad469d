"""Facts about the machine, from Linux's /proc and nvidia-smi, and settings of its memory and GPUs."""

import ctypes
import os
import platform
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # the instruction sets that decide the speed


def processor() -> tuple[str, set[str]]:
    """Model name and instruction sets of the processor; empty where /proc/cpuinfo does not list them."""
    fields = _fields(CPUINFO)
    return fields.get("model name", ""), set(fields.get("flags", "").split())


def describe(gpu: bool = False) -> str:
    """Describe the processor and, with `gpu`, the GPUs, for a reader of figures measured on them."""
    name, flags = processor()
    known = ", ".join(flag for flag in CPU_FLAGS if flag in flags)
    count = len(os.sched_getaffinity(0))
    cores = f"{count} core{'s' if count > 1 else ''} of {name or platform.machine()} ({known})"
    return "; ".join([cores, *(gpus() if gpu else ())])


def multiplies_bfloat16_faster() -> bool:
    """Check whether the processor multiplies bfloat16 faster than float32: with AMX or, by AMD's manuals, with AMD's
    AVX-512. Intel's AVX-512 has one unit for bfloat16, but two for float32."""
    fields = _fields(CPUINFO)
    flags = fields.get("flags", "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and fields.get("vendor_id") == "AuthenticAMD")


def gpus() -> list[str]:
    """Name, driver, memory and highest clocks of each GPU, from nvidia-smi; empty without an NVIDIA driver."""
    fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
    names = [[value.strip() for value in line.split(",")] for line in lines if line.strip()]
    return [f"{name} (driver {driver}, {', '.join(rest)})" for name, driver, *rest in names]


def hide_gpus() -> None:
    """Hide the GPUs from TensorFlow in this process and its children: it would take all their memory, and so stop a
    training on the same host. Call this before importing TensorFlow."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def use_gpus() -> None:
    """Have TensorFlow take a GPU's memory only as it needs it, and multiply in full float32 rather than TF32. Call this
    before importing TensorFlow."""
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


def memory(pid: int | None = None, peak: bool = False) -> int:
    """Resident memory of a process in bytes, now or at its peak; 0 if unknown. By default, of this process."""
    value = _fields(Path(f"/proc/{pid or 'self'}/status")).get("VmHWM" if peak else "VmRSS", "0 kB")
    return int(value.split()[0]) * 1024


def _fields(path: Path) -> dict[str, str]:
    """`name: value` lines of a file in /proc."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or the process has ended
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def keep_freed_memory() -> None:
    """Have glibc's malloc keep freed memory for the next tensor, instead of returning it to the kernel.

    A training step allocates and frees tensors of several megabytes. Requesting each from the kernel again, page by
    page, takes half as long as the step's matrix products. Call this before importing TensorFlow: a thread that has
    already allocated memory keeps its own heap. Does nothing with other C libraries.
    """
    settings = {
        -1: 2**31 - 1,  # M_TRIM_THRESHOLD
        -2: 2**28,  # M_TOP_PAD
        -3: 2**30,  # M_MMAP_THRESHOLD
        -8: 1,  # M_ARENA_MAX
    }
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for name, value in settings.items():
            mallopt(name, value)
