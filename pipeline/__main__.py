"""The command line: python -m pipeline ingest | validate | info."""

from pathlib import Path
from typing import Any

import click

from common import console, settings
from common.errors import UsageError

CONFIG_HELP = "A TOML file of configs/; what is given here beats its settings."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Text to data that a model trains on: ingest it, validate it, look at it."""


@cli.command()
@click.argument("sources", nargs=-1, metavar="[FILE_OR_FOLDER_OR_NAME]...")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to make, such as data/NAME.")
@click.option("--config", type=click.Path(path_type=Path), help=CONFIG_HELP)
@click.option("--unit", help="What a token is: byte.")
@click.option("--train", type=float, help="The share of the text to train on, its beginning. Default 0.9.")
@click.option("--val", type=float, help="The share to measure progress on, the middle. Default 0.05.")
@click.option("--test", type=float, help="The share to judge the finished model by, the end. Default 0.05.")
@click.option("--force", is_flag=True, help="Make it again, also over a data set made from something else.")
def ingest(sources: tuple[str, ...], out: Path | None, config: Path | None, force: bool, **options: Any) -> None:
    """Turns text into a data set: token shards and a manifest.

    The text is one or more files, folders (every file below them) or named corpora (stdlib: 5 MB of Python source that
    is on this machine already), joined in the order given.

    \b
    Examples:
      python -m pipeline ingest shakespeare.txt --out data/shakespeare
      python -m pipeline ingest stdlib --out data/python
      python -m pipeline ingest --config configs/NAME.toml       (sources from the config, into data/NAME)
    """
    with console.hushed():
        from pipeline.ingest import IngestSettings
        from pipeline.ingest import ingest as run

    given = {name: value for name, value in options.items() if value is not None}
    if sources:
        given["source"] = list(sources)
    values = _section(config, "data") | given
    run(settings.make(IngestSettings, values, _where(config, "data")), _folder(out, config, "--out data/NAME"), force)


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[data/NAME]")
@click.option("--config", type=click.Path(path_type=Path), help=CONFIG_HELP)
@click.option("--force", is_flag=True, help="Check again, although it was found valid.")
def validate(folder: Path | None, config: Path | None, force: bool) -> None:
    """Checks a data set in full: val and test must be in the characters of train.

    Leaves statistics, a schema and report.html beside the data, and stamps the manifest when nothing is wrong.

    \b
    Examples:
      python -m pipeline validate data/shakespeare
      python -m pipeline validate --config configs/NAME.toml     (checks data/NAME)
    """
    with console.hushed():
        from pipeline.validate import ValidateSettings
        from pipeline.validate import validate as run

    values = _section(config, "validate")
    run(
        _folder(folder, config, "data/NAME"), settings.make(ValidateSettings, values, _where(config, "validate")), force
    )


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="data/NAME")
def info(folder: Path) -> None:
    """Shows what a data set is: its text, its splits, whether it was validated.

    \b
    Example:
      python -m pipeline info data/shakespeare
    """
    with console.hushed():
        from pipeline.info import show

    show(folder)


def _section(config: Path | None, name: str) -> dict[str, Any]:
    return settings.read_config(config)[name] if config else {}


def _where(config: Path | None, section: str) -> str:
    return f"{config} [{section}]" if config else "command line"


def _folder(given: Path | None, config: Path | None, wanted: str) -> Path:
    """The folder that was named, else the one that belongs to the config."""
    if given:
        return given
    if config:
        return Path("data") / config.stem
    raise UsageError(f"name the data set ({wanted}) or a config (--config configs/NAME.toml)")


if __name__ == "__main__":
    console.run(cli)
