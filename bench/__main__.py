"""The command line: python -m bench results | train | data."""

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
    console.out.print(results.row(results.record(run, out)))


@cli.command()
@click.option("--units", type=click.IntRange(1), default=128, show_default=True)
@click.option("--layers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--lanes", type=click.IntRange(1), default=50, show_default=True)
@click.option("--window", type=click.IntRange(1), default=50, show_default=True)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each; medians are shown."
)
@click.option("--seconds", type=click.FloatRange(0.1), default=5, show_default=True, help="The length of a turn.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder.")
def train(units: int, layers: int, lanes: int, window: int, rounds: int, seconds: float, out: Path) -> None:
    """Training speed beside Keras and PyTorch.

    Peers take turns in one run. PyTorch's rows want torch installed beside the project: pip install torch.

    \b
    Example:
      python -m bench train --units 512
    """
    with console.hushed():
        from bench.train import compare

    compare(units, layers, lanes, window, rounds, seconds, out)


@cli.command()
@click.option("--size", type=click.IntRange(1_000_000), default=474_000_000, show_default=True, help="Bytes of text.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of each; medians are shown.")
@click.option(
    "--scratch", type=click.Path(path_type=Path), default=Path("data/bench"), show_default=True, help="Where."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder.")
def data(size: int, rounds: int, scratch: Path, out: Path) -> None:
    """Ingest, validate and lanes at full scale, beside cat with sha256sum, and a dict in Python.

    The corpus is kernel source, where this machine's package manager has it: 5 GB of disk, some ten minutes.

    \b
    Example:
      python -m bench data
    """
    from bench.data import compare  # no TensorFlow in this process: its memory would be counted as its children's

    compare(size, rounds, scratch, out)


if __name__ == "__main__":
    console.run(cli)
