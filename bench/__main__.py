"""The command line: python -m bench results."""

from pathlib import Path

import click

from common import console


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Measurements."""


@cli.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="runs/NAME")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder.")
def results(run: Path, out: Path) -> None:
    """Keeps a finished run's figures as results/NAME.json, and prints their row for README.md.

    \b
    Example:
      python -m bench results runs/stdlib
    """
    with console.hushed():
        from bench import results
    console.out.print(results.row(results.record(run, out)), markup=False)


if __name__ == "__main__":
    console.run(cli)
