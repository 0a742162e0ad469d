"""A data set in a few lines on the terminal."""

from pathlib import Path

from rich.table import Table

from common import console
from pipeline.manifest import Manifest, read_manifest


def show(folder: Path) -> Manifest:
    """Prints what a data set is. Raises StageError where it is none, or not whole."""
    manifest = read_manifest(folder)
    total = sum(split.tokens for split in manifest.splits.values())
    splits = Table("split", "tokens", "share", "shards", box=None, header_style="bold")
    for name, split in manifest.splits.items():
        splits.add_row(name, f"{split.tokens:,}", f"{split.tokens / total:.1%}", str(len(split.shards)))
    for column in splits.columns[1:]:
        column.justify = "right"
    stamp = manifest.validation
    names = [source.name for source in manifest.sources]
    facts = {
        "sources": ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        "bytes": f"{sum(source.bytes for source in manifest.sources):,}",
        "vocabulary": f"{manifest.vocab.size} symbols, unit {manifest.vocab.unit}",
        "data_sha256": manifest.data_sha256,
        "validated": stamp["when"] if stamp else f"no (python -m pipeline validate {folder})",
    }
    table = Table(box=None, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.out.print(table, splits)
    return manifest
