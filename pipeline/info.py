"""Summarize a data set on the terminal, and verify its shards."""

from pathlib import Path

from rich.table import Table

from common import console
from pipeline.manifest import Manifest, check_hashes, read_manifest


def show(folder: Path) -> Manifest:
    """Print a summary. Raises StageError for a missing, incomplete or invalid data set."""
    manifest = read_manifest(folder)
    total = sum(split.tokens for split in manifest.splits.values())
    kinds = list(dict.fromkeys(kind for split in manifest.splits.values() for kind in split.counts))
    splits = Table("split", "tokens", "share", "shards", *kinds, box=None, header_style="bold")
    for name, split in manifest.splits.items():
        counts = (f"{split.counts.get(kind, 0):,}" for kind in kinds)
        splits.add_row(name, f"{split.tokens:,}", f"{split.tokens / total:.1%}", str(len(split.shards)), *counts)
    for column in splits.columns[1:]:
        column.justify = "right"
    stamp = manifest.validation
    names = [source.name for source in manifest.sources]
    changes = ", ".join(f"{change}: {count:,}" for change, count in manifest.cleaned.items())
    facts = {
        "sources": ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        "bytes": f"{sum(source.bytes for source in manifest.sources):,}",
        "vocabulary": f"{manifest.vocab.size} symbols, unit {manifest.vocab.unit}",
        **({"changed": changes} if changes else {}),
        **{
            f"from {origin['name']}": str(origin.get("from") or origin.get("address")) for origin in manifest.provenance
        },
        "data_sha256": manifest.data_sha256,
        "validated": str(stamp.get("when")) if stamp else f"no (python -m pipeline validate {folder})",
    }
    table = Table(box=None, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.out.print(table, splits)
    return manifest


def verify(folder: Path) -> None:
    """Read every shard. Raises StageError for a missing data set or a corrupted shard."""
    manifest = read_manifest(folder)
    check_hashes(folder, manifest)
    shards = sum(len(split.shards) for split in manifest.splits.values())
    tokens = sum(split.tokens for split in manifest.splits.values())
    console.out.print(f"{folder} is intact: {shards} shards, {tokens:,} tokens, data {manifest.data_sha256[:12]}")
