"""A data set in a few lines on the terminal, and whether it is whole."""

from pathlib import Path

from rich.table import Table

from common import console
from pipeline.manifest import Manifest, check_hashes, read_manifest


def show(folder: Path) -> Manifest:
    """Prints what a data set is. Raises StageError where it is none, or not whole."""
    manifest = read_manifest(folder)
    total = sum(split.tokens for split in manifest.splits.values())
    counted = list(dict.fromkeys(what for split in manifest.splits.values() for what in split.counts))
    splits = Table("split", "tokens", "share", "shards", *counted, box=None, header_style="bold")
    for name, split in manifest.splits.items():
        counts = (f"{split.counts.get(what, 0):,}" for what in counted)
        splits.add_row(name, f"{split.tokens:,}", f"{split.tokens / total:.1%}", str(len(split.shards)), *counts)
    for column in splits.columns[1:]:
        column.justify = "right"
    stamp = manifest.validation
    names = [source.name for source in manifest.sources]
    changes = ", ".join(f"{what}: {count:,}" for what, count in manifest.cleaned.items())
    facts = {
        "sources": ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        "bytes": f"{sum(source.bytes for source in manifest.sources):,}",
        "vocabulary": f"{manifest.vocab.size} symbols, unit {manifest.vocab.unit}",
        **({"changed": changes} if changes else {}),
        **{f"from {found['name']}": str(found.get("from") or found.get("address")) for found in manifest.provenance},
        "data_sha256": manifest.data_sha256,
        "validated": str(stamp.get("when")) if stamp else f"no (python -m pipeline validate {folder})",
    }
    table = Table(box=None, show_header=False)
    for name, value in facts.items():
        table.add_row(name, console.visible(value))
    console.out.print(table, splits)
    return manifest


def verify(folder: Path) -> None:
    """Reads every shard. Raises StageError where there is no data set, or a shard is not what was written."""
    manifest = read_manifest(folder)
    check_hashes(folder, manifest)
    shards = sum(len(split.shards) for split in manifest.splits.values())
    tokens = sum(split.tokens for split in manifest.splits.values())
    console.out.print(f"{folder} is whole: {shards} shards, {tokens:,} tokens, data {manifest.data_sha256[:12]}")
