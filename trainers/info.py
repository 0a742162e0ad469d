"""A run as a table in the terminal."""

from pathlib import Path

from rich.table import Table

from common import console
from trainers import checkpoint, metrics
from trainers.run import read_run


def show(folder: Path) -> None:
    """Print a run's config, vocabulary, parameters, steps, losses and sizes. Raises StageError for a missing run."""
    run = read_run(folder)
    table = Table(title=str(folder), show_header=False, title_justify="left")
    table.add_row("data", f"{run.data} (sha256 {run.data_sha256[:12]})")
    table.add_row("vocabulary", f"{run.vocab.size} {run.vocab.unit}s (sha256 {run.vocab.sha256[:12]})")
    table.add_row("trained on", run.machine)
    table.add_row("parameters", f"{run.build().count_params():,}")
    for section, settings in run.config.to_json().items():
        table.add_row(section, ", ".join(f"{name}={value}" for name, value in settings.items()))
    rows = metrics.evaluations(run.folder)
    for name, row in (("first", rows[0]), ("last", rows[-1])) if rows else ():
        table.add_row(
            f"{name} validation", f"step {row['step']:,}: {row['val_nats']:.4f} nats, {row['val_bits']:.4f} bits"
        )
    for saved in checkpoint.checkpoints(run):
        loss = "not validated" if saved.val_nats is None else f"{saved.val_nats:.4f} nats on val"
        size = sum(file.stat().st_size for file in saved.folder.iterdir())
        table.add_row(f"checkpoint {saved.step:,}", f"{loss}, {size / 1e6:.1f} MB, {saved.folder}")
    console.out.print(table)
