"""Cost of the data stages at full scale, as whole processes including imports, next to what users would run instead."""

import contextlib
import importlib.metadata
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from bench.machine import provenance
from common import console
from common.errors import StageError
from common.files import sha256_file, whole_file, write_json
from common.processes import last_line

PACKAGE = "linux-source-6.1"  # of Debian
LANES, WINDOW, SECONDS = 100, 100, 10.0
MB = 1e6


class Usage(NamedTuple):
    """Wall-clock seconds of a process, and its peak memory in bytes."""

    seconds: float
    peak: int


def compare(size: int, rounds: int, scratch: Path, out: Path) -> None:
    """Print a table and write out/bench-data.json: medians, and every round.

    `size` is the corpus in bytes. `scratch` holds the corpus and everything built from it, about ten times its size;
    later runs reuse it.
    """
    origin = provenance()
    scratch.mkdir(parents=True, exist_ok=True)
    text, description = corpus(scratch, size)
    half = scratch / "half.txt"
    if not half.exists() or half.stat().st_size != size // 2:
        with whole_file(half) as partial, text.open("rb") as whole, partial.open("wb") as file:
            shutil.copyfileobj(_Head(whole, size // 2), file)
    commands = {
        "cat, sha256sum": ["sh", "-c", f"cat '{text}' > '{scratch}/copy' && sha256sum '{scratch}/copy'"],
        "ingest, byte": _ingest(text, "byte", scratch / "byte"),
        "ingest, byte, half the text": _ingest(half, "byte", scratch / "half-byte"),
        "ingest, char": _ingest(text, "char", scratch / "char"),
        "ingest, char, half the text": _ingest(half, "char", scratch / "half-char"),
        "lanes": [sys.executable, "-m", "bench.lanes", str(scratch / "byte"), *map(str, (LANES, WINDOW, SECONDS))],
    }
    slow_commands = {  # run once
        "validate": [sys.executable, "-m", "pipeline", "validate", str(scratch / "byte"), "--force"],
        "a dict, as popular scripts do": [
            sys.executable, "bench/dict_peer.py", str(text), str(scratch / "dict"),
        ],
    }  # fmt: skip
    usages: dict[str, list[Usage]] = {name: [] for name in [*commands, *slow_commands]}
    lane_rounds: list[dict[str, float]] = []
    with console.progress("processes") as bar:
        for name, command in bar.track([*itertools.chain(*[commands.items()] * rounds), *slow_commands.items()]):
            usage, output = measure(command)
            usages[name].append(usage)
            if name == "lanes":
                lane_rounds.append(json.loads(output))
    lanes = {key: statistics.median(figures[key] for figures in lane_rounds) for key in lane_rounds[0]}
    medians = {
        name: Usage(*(statistics.median(each) for each in zip(*rows, strict=True))) for name, rows in usages.items()
    }
    result: dict[str, Any] = {
        "format_version": 1,
        "corpus": {"what": description, "bytes": size, "sha256": sha256_file(text)},
        "seconds_and_peak_bytes": {name: usage._asdict() for name, usage in medians.items()},
        "lanes": {"lanes": LANES, "window": WINDOW, **lanes},
        "rounds": {name: [usage._asdict() for usage in rows] for name, rows in usages.items()},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("tensorflow", "apache-beam", "tensorflow-data-validation", "numpy")
        },
        **origin,
    }
    write_json(out / "bench-data.json", result)
    console.out.print(table(result))


def corpus(scratch: Path, size: int) -> tuple[Path, str]:
    """Return a text of `size` bytes in the folder, and its description.

    The text is kernel source if apt-get offers Debian's package, else the repeated source of Python's standard library.
    """
    text, about = scratch / "corpus.txt", scratch / "corpus.json"
    if about.exists() and text.exists() and text.stat().st_size == size:
        return text, json.loads(about.read_text(encoding="utf-8"))["what"]
    try:
        source, description = _kernel(scratch), f"{PACKAGE}: *.c and *.h in path order"
    except StageError as error:
        console.note(f"{error}: using the standard library's source, repeated, instead of the kernel's")
        source, description = _library(scratch), "the standard library's source, repeated"
    with whole_file(text) as partial, partial.open("wb") as file:
        while left := size - file.tell():
            with source.open("rb") as part:
                shutil.copyfileobj(_Head(part, left), file)
    write_json(about, {"what": description})
    return text, description


class _Head:
    """File object over the first `size` bytes of another."""

    def __init__(self, file: Any, size: int):
        self.file, self.left = file, size

    def read(self, size: int = 1 << 20, /) -> bytes:
        part = self.file.read(min(size, self.left))
        self.left -= len(part)
        return part


def _kernel(scratch: Path) -> Path:
    fetched = scratch / "linux"
    if not (fetched / "input.txt").exists():
        if not shutil.which("apt-get"):
            raise StageError("apt-get is missing")
        with contextlib.chdir(scratch):
            _run("apt-get", "download", PACKAGE)
            package = next(Path().glob(f"{PACKAGE}*.deb"))
            _run("dpkg-deb", "-x", str(package), "package")
        (tar,) = (scratch / "package/usr/src").glob("*.tar.*")
        _run(sys.executable, "-m", "pipeline", "fetch", "linux", "--from", str(tar), "--to", str(fetched))
    return fetched / "input.txt"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(f"{command[0]} failed: {last_line(done.stderr)}")


def _library(scratch: Path) -> Path:
    path = scratch / "library.txt"
    with path.open("wb") as file:
        for source in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
            with contextlib.suppress(UnicodeDecodeError):
                data = source.read_bytes()
                data.decode("utf-8")
                file.write(data)
    return path


def _ingest(text: Path, unit: str, out: Path) -> list[str]:
    unknown = ["--unknown", "replace"] if unit == "char" else []
    options = ["--unit", unit, *unknown, "--out", str(out), "--force"]
    return [sys.executable, "-m", "pipeline", "ingest", str(text), *options]


def measure(command: list[str]) -> tuple[Usage, str]:
    """Run a command and return its usage and output. Raises StageError with its last line of stderr if it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise StageError(f"{' '.join(command)} failed: {last_line(errors.read())}")
    return Usage(seconds, usage.ru_maxrss * 1024), output


def table(result: dict[str, Any]) -> Table:
    """Render the medians, with each rate relative to cat's."""
    usages = {name: Usage(**usage) for name, usage in result["seconds_and_peak_bytes"].items()}
    size, lanes, base = result["corpus"]["bytes"], result["lanes"], usages["cat, sha256sum"].seconds
    title = f"{size / MB:,.0f} MB of text ({result['corpus']['what']}); whole processes, medians"
    shown = Table(title=title, title_justify="left", box=None)
    for column in ("", "seconds", "MB/s", "vs cat", "peak MB"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, usage in usages.items():
        if name != "lanes":
            rate = size / (2 if "half" in name else 1) / MB / usage.seconds
            share = f"{rate / (size / MB / base):.2f}"
            shown.add_row(name, f"{usage.seconds:.1f}", f"{rate:,.0f}", share, f"{usage.peak / MB:,.0f}")
    shown.caption = (
        f"lanes, {lanes['lanes']} x {lanes['window']}: {lanes['tokens_per_second'] / 1e6:.0f} million tokens/s, "
        f"{lanes['bytes'] / MB:.0f} MB on top of the imports;\n"
        f"first batch after {lanes['first_batch_s']:.2f} s at an epoch's first step, "
        f"{lanes['last_batch_s']:.2f} s at the last"
    )
    shown.caption_justify = "left"
    return shown
