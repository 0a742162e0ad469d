"""docs/benchmarks.md: every results/bench-*.json as the table that its benchmark prints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import clock, data, lite, precision, sampling, scale, train, watch
from bench.peers import Size

HEADING = """# Benchmarks

Made by `python -m bench results` from [results/](../results/); do not edit by hand. Each table
comes from one run of one command, with its peers taking turns on the same machine. The JSON file
has every round. [bench/LOG.md](../bench/LOG.md) tells what was tried, and what did not work.
"""


def _lite(result: dict[str, Any], folder: Path) -> Table:
    return lite.table(result, lite.browser(folder, Size(result["work"]["layers"], result["work"]["units"])))


def _of(table: Callable[[dict[str, Any]], Table]) -> Callable[[dict[str, Any], Path], Table]:
    return lambda result, folder: table(result)


# Title, files, the command, and the table of a file.
SECTIONS: list[tuple[str, str, str, Callable[[dict[str, Any], Path], Table]]] = [
    ("Training speed", "bench-train-*.json", "train --all", _of(train.table)),
    ("Loss for equal training time", "bench-clock-*.json", "clock", _of(clock.table)),
    ("bfloat16 and the loss", "bench-precision.json", "precision", _of(precision.table)),
    ("Replicas and workers", "bench-scale.json", "scale", _of(scale.table)),
    ("What reports cost", "bench-watch.json", "watch", _of(watch.table)),
    ("Data stages", "bench-data.json", "data", _of(data.table)),
    ("Sampling from the SavedModel", "bench-serve-sampling-*.json", "serve sampling", _of(sampling.table)),
    ("Devices", "bench-lite-[0-9]*.json", "lite", _lite),
]


def page(folder: Path) -> str:
    """Return the page of all benchmarks in a folder of results."""
    parts = [HEADING]
    for title, pattern, command, table in SECTIONS:
        paths = sorted(folder.glob(pattern))
        if paths:
            parts.append(f"\n## {title}\n\n`python -m bench {command}`\n")
        results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        tables = [table(result, folder) for result in results]
        captions = [str(shown.caption or "").splitlines() for shown in tables]
        shared = [line for line in captions[0] if all(line in lines for lines in captions)] if len(paths) > 1 else []
        for path, result, shown, lines in zip(paths, results, tables, captions, strict=True):
            about = f"{result['machine']}, {result['date']}, commit {result['commit'][:7]}"
            parts.append(f"\n{markdown(shown)}\n{broken([line for line in lines if line not in shared])}")
            parts.append(f"[{path.name}](../results/{path.name}): {about}.\n")
        parts.append(f"\n{broken(shared)}" if shared else "")
    return "".join(parts)


def markdown(table: Table) -> str:
    """Return a table of the terminal as Markdown: its title and its rows."""
    rows = [[str(column.header) for column in table.columns]]
    rows.append(["---:" if column.justify == "right" else "---" for column in table.columns])
    rows += map(list, zip(*(map(str, column.cells) for column in table.columns), strict=True))
    lines = [f"**{table.title}**", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines).replace(" *", " \\*")


def broken(lines: list[str]) -> str:
    """Return lines of a caption with their breaks."""
    return "".join(f"{line}<br>\n" for line in lines).replace("*:", "\\*:")
