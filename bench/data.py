"""The data stages at full scale, as whole processes, imports and all, beside what a user would do instead."""

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from bench.machine import commit, machine
from common import console
from common.errors import StageError
from common.files import sha256_file, whole_file, write_json
from common.processes import last_line

PACKAGE = "linux-source-6.1"  # Debian's
LANES, WINDOW, SECONDS = 100, 100, 10.0
MB = 1e6


class Use(NamedTuple):
    """What a process took: seconds from start to end, and the most memory it held, in bytes."""

    seconds: float
    peak: int


def compare(size: int, rounds: int, scratch: Path, out: Path) -> None:
    """Prints a table and writes out/bench-data.json: medians over the rounds, and every round.

    size: bytes of the corpus. scratch: a folder for it and for what is made of it, some ten times its size; what lies
    there from an earlier run is used again.
    """
    made_at = {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}
    scratch.mkdir(parents=True, exist_ok=True)
    text, what = corpus(scratch, size)
    half = scratch / "half.txt"
    if not half.exists() or half.stat().st_size != size // 2:
        with whole_file(half) as partial, text.open("rb") as whole, partial.open("wb") as file:
            shutil.copyfileobj(_Head(whole, size // 2), file)
    works = {
        "cat, sha256sum": ["sh", "-c", f"cat '{text}' > '{scratch}/copy' && sha256sum '{scratch}/copy'"],
        "ingest, byte": _ingest(text, "byte", scratch / "byte"),
        "ingest, byte, half the text": _ingest(half, "byte", scratch / "half-byte"),
        "ingest, char": _ingest(text, "char", scratch / "char"),
        "ingest, char, half the text": _ingest(half, "char", scratch / "half-char"),
        "lanes": [sys.executable, "-m", "bench.lanes", str(scratch / "byte"), *map(str, (LANES, WINDOW, SECONDS))],
    }
    once = {
        "validate": [sys.executable, "-m", "pipeline", "validate", str(scratch / "byte"), "--force"],
        "a dict, as popular scripts do": [
            sys.executable, "bench/dict_peer.py", str(text), str(scratch / "dict"),
        ],
    }  # fmt: skip
    uses: dict[str, list[Use]] = {name: [] for name in [*works, *once]}
    answers: list[dict[str, float]] = []
    with console.progress("processes") as bar:
        for name, command in bar.track([*itertools.chain(*[works.items()] * rounds), *once.items()]):
            use, said = measure(command)
            uses[name].append(use)
            if name == "lanes":
                answers.append(json.loads(said))
    lanes = {key: statistics.median(answer[key] for answer in answers) for key in answers[0]}
    medians = {
        name: Use(*(statistics.median(each) for each in zip(*found, strict=True))) for name, found in uses.items()
    }
    result: dict[str, Any] = {
        "format_version": 1,
        "corpus": {"what": what, "bytes": size, "sha256": sha256_file(text)},
        "seconds_and_peak_bytes": {name: use._asdict() for name, use in medians.items()},
        "lanes": {"lanes": LANES, "window": WINDOW, **lanes},
        "rounds": {name: [use._asdict() for use in found] for name, found in uses.items()},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("tensorflow", "apache-beam", "tensorflow-data-validation", "numpy")
        },
        **made_at,
    }
    write_json(out / "bench-data.json", result)
    console.out.print(table(result))


def corpus(scratch: Path, size: int) -> tuple[Path, str]:
    """A text of `size` bytes in the folder, and what it is: kernel source from Debian's package where the machine's
    package manager has it, else the source of Python's standard library, over and over."""
    text, about = scratch / "corpus.txt", scratch / "corpus.json"
    if about.exists() and text.exists() and text.stat().st_size == size:
        return text, json.loads(about.read_text(encoding="utf-8"))["what"]
    try:
        source, what = _kernel(scratch), f"{PACKAGE}: *.c and *.h in order of path"
    except StageError as error:
        console.note(f"{error}: the standard library's source, repeated, takes the kernel's place")
        source, what = _library(scratch), "the standard library's source, repeated"
    with whole_file(text) as partial, partial.open("wb") as file:
        while left := size - file.tell():
            with source.open("rb") as part:
                shutil.copyfileobj(_Head(part, left), file)
    write_json(about, {"what": what})
    return text, what


class _Head:
    """The beginning of a file, to be read."""

    def __init__(self, file: Any, size: int):
        self.file, self.left = file, size

    def read(self, size: int) -> bytes:
        part = self.file.read(min(size, self.left))
        self.left -= len(part)
        return part


def _kernel(scratch: Path) -> Path:
    fetched = scratch / "linux"
    if not (fetched / "input.txt").exists():
        if not shutil.which("apt-get"):
            raise StageError("there is no apt-get here")
        with contextlib.chdir(scratch):
            _do("apt-get", "download", PACKAGE)
            package = next(Path().glob(f"{PACKAGE}*.deb"))
            _do("dpkg-deb", "-x", str(package), "package")
        (tar,) = (scratch / "package/usr/src").glob("*.tar.*")
        _do(sys.executable, "-m", "pipeline", "fetch", "linux", "--from", str(tar), "--to", str(fetched))
    return fetched / "input.txt"


def _do(*command: str) -> None:
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


def measure(command: list[str]) -> tuple[Use, str]:
    """Runs a command to its end. Raises StageError, with what it said last, where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    said, complaint = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise StageError(f"{' '.join(command)} failed: {last_line(complaint)}")
    return Use(seconds, usage.ru_maxrss * 1024), said


def table(result: dict[str, Any]) -> Table:
    """The medians, and each rate as a share of cat's."""
    uses = {name: Use(**use) for name, use in result["seconds_and_peak_bytes"].items()}
    size, lanes, base = result["corpus"]["bytes"], result["lanes"], uses["cat, sha256sum"].seconds
    title = f"{size / MB:,.0f} MB of text ({result['corpus']['what']}); whole processes, medians"
    shown = Table(title=title, title_justify="left", box=None)
    for column in ("", "seconds", "MB/s", "of cat", "peak MB"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, use in uses.items():
        if name != "lanes":
            rate = size / (2 if "half" in name else 1) / MB / use.seconds
            cells = (f"{use.seconds:.1f}", f"{rate:,.0f}", f"{rate / (size / MB / base):.2f}", f"{use.peak / MB:,.0f}")
            shown.add_row(name, *cells)
    shown.caption = (
        f"lanes, {lanes['lanes']} x {lanes['window']}: {lanes['tokens_per_second'] / 1e6:.0f} million tokens/s, "
        f"{lanes['bytes'] / MB:.0f} MB above the imports;\n"
        f"first batch after {lanes['first_batch_s']:.2f} s at the first step of an epoch, "
        f"{lanes['last_batch_s']:.2f} s at the last"
    )
    shown.caption_justify = "left"
    return shown
