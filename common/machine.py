"""What the machine has, as Linux tells it."""

from pathlib import Path


def processor() -> tuple[str, set[str]]:
    """The processor's name and the instruction sets that it knows, as in /proc/cpuinfo; what is not told is empty."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name", ""), set(fields.get("flags", "").split())


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products in bfloat16; without them they are slower than float32's."""
    return bool({"avx512_bf16", "amx_bf16"} & processor()[1])


def memory(field: str = "VmRSS", process: int | str = "self") -> int:
    """Return a process's memory in bytes, now (VmRSS) or at its peak (VmHWM); 0 where Linux does not report it."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
