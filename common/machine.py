"""Facts about the machine, read from Linux's /proc, and the C library's memory settings."""

import ctypes
from pathlib import Path


def processor() -> tuple[str, set[str]]:
    """Model name and instruction sets of the processor; empty where /proc/cpuinfo does not list them."""
    fields = _fields(Path("/proc/cpuinfo"))
    return fields.get("model name", ""), set(fields.get("flags", "").split())


def multiplies_bfloat16() -> bool:
    """Check whether the processor multiplies bfloat16 in hardware; if not, bfloat16 is slower than float32."""
    return bool({"avx512_bf16", "amx_bf16"} & processor()[1])


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
