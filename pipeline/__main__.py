"""The command line: python -m pipeline fetch | corpora | ingest | validate | verify | info."""

from pathlib import Path
from typing import Any

import click

from common import console, settings
from common.errors import UsageError

CONFIG_HELP = "A TOML file of configs/; what is given here beats its settings."
BEAM_HELP = "Beam's own options, such as '--runner=FlinkRunner'."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Text to data that a model trains on: ingest it, validate it, look at it."""


@cli.command()
def corpora() -> None:
    """Lists the corpora known by name: those of the essay, and where they come from."""
    from pipeline.fetch import listing

    if not console.out.is_terminal:
        console.out.width = 200  # no address is to be broken in two where it is piped on
    console.out.print(listing())


@cli.command()
@click.argument("name")
@click.option("--from", "source", metavar="FILE|FOLDER|URL", help="Your own copy; its text is checked alike.")
@click.option("--to", type=click.Path(path_type=Path), help="The folder to make. Default data/raw/NAME.")
@click.option("--force", is_flag=True, help="Fetch it again.")
def fetch(name: str, source: str | None, to: Path | None, force: bool) -> None:
    """Brings a named corpus here: input.txt and provenance.json in data/raw/NAME.

    A download that breaks off goes on where it stopped, in this call or the next. Size and SHA-256, of the download or
    of the text, are checked where they are known; nothing is there until it is whole.

    \b
    Examples:
      python -m pipeline fetch tinyshakespeare
      python -m pipeline fetch linux --from linux-6.1.tar.xz
      python -m pipeline ingest tinyshakespeare --out data/tinyshakespeare
    """
    from pipeline.fetch import fetch as run

    folder = run(name, source, to, force)
    console.out.print(f"next: python -m pipeline ingest {folder if to else name} --out data/{name}")


class Amount(click.ParamType):
    """A share of the text, 0 to 1, or a number of bytes."""

    name = "share|bytes"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | float:
        try:
            return int(value) if value.isdigit() else float(value)
        except ValueError:
            self.fail(f"expected a share such as 0.9 or a number of bytes, got {value!r}", param, ctx)


def _choice(*names: str) -> click.Choice[str]:
    return click.Choice(names)


@cli.command()
@click.argument("sources", nargs=-1, metavar="[FILE|FOLDER|PATTERN|NAME|-]...")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to make, such as data/NAME.")
@click.option("--config", type=click.Path(path_type=Path), help=CONFIG_HELP)
@click.option("--include", multiple=True, metavar="PATTERN", help="Of a folder, take only the files named so (*.c).")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Of a folder, leave out the files named so.")
@click.option("--encoding", help="Of the files: utf-8 (the default), latin-1, utf-16, ...; raw: bytes, unchecked.")
@click.option("--errors", type=_choice("strict", "replace", "skip"), help="What becomes of bytes that are no text.")
@click.option("--newlines", type=_choice("keep", "lf"), help="lf makes CR LF and CR into LF.")
@click.option("--bom", type=_choice("keep", "strip"), help="What becomes of a byte-order mark.")
@click.option("--unit", type=_choice("byte", "char"), help="What a token is. Default byte.")
@click.option("--max-vocab", type=int, help="Of char: the most tokens there may be.")
@click.option("--min-count", type=int, help="Of char: how often a character must occur in train.")
@click.option("--unknown", type=_choice("error", "replace", "skip"), help="Of char: what becomes of the others.")
@click.option("--documents", type=_choice("none", "line", "file"), help="What is a text of its own. Default none.")
@click.option("--split", type=_choice("contiguous", "document", "char-rnn"), help="How. Default contiguous.")
@click.option("--streams", type=int, help="Of split char-rnn: how many streams the text lies in. Default 50.")
@click.option("--train", type=Amount(), help="To train on. Default 0.9 of the text.")
@click.option("--val", type=Amount(), help="To measure progress on. Default 0.05.")
@click.option("--test", type=Amount(), help="To judge the finished model by. Default 0.05.")
@click.option("--beam", default="", metavar="OPTIONS", help=BEAM_HELP)
@click.option("--force", is_flag=True, help="Make it again, also over a data set made from something else.")
def ingest(
    sources: tuple[str, ...], out: Path | None, config: Path | None, beam: str, force: bool, **options: Any
) -> None:
    """Turns text into a data set: token shards and a manifest.

    The text is files, folders (every file below them, but for links to folders), patterns, named corpora (python -m
    pipeline corpora) or, as -, standard input, joined in the order given. Files may be compressed (gzip, bz2, xz,
    zstd). What is not text in the encoding is refused, by name and offset, unless --errors says otherwise. A config's
    [data] sets these and more, such as shard_bytes (IngestSettings in pipeline/ingest.py).

    --split contiguous gives train the beginning, val the middle and test the end; document gives each document to one
    of them by its hash; char-rnn does it as char-rnn did, with the end of each of its streams.

    \b
    Examples:
      python -m pipeline ingest shakespeare.txt --out data/shakespeare
      python -m pipeline ingest src --include '*.py' --exclude 'test_*' --documents file --split document --out data/src
      python -m pipeline ingest wikipedia --train 90000000 --val 5000000 --test 5000000 --out data/wikipedia
      zcat poems.gz | python -m pipeline ingest - --unit char --unknown replace --out data/poems
      python -m pipeline ingest --config configs/NAME.toml       (sources from the config, into data/NAME)
    """
    with console.hushed():
        from pipeline.ingest import IngestSettings
        from pipeline.ingest import ingest as run
        from pipeline.sources import defaults

    given = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    given = {name: value for name, value in given.items() if value not in (None, [])}
    if sources:
        given["source"] = list(sources)
    values = _section(config, "data") | given
    values = defaults(values.get("source", [])) | values
    run(
        settings.make(IngestSettings, values, _where(config, "data")),
        _folder(out, config, "--out data/NAME"),
        force,
        beam,
    )


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[data/NAME]")
@click.option("--config", type=click.Path(path_type=Path), help=CONFIG_HELP)
@click.option("--schema", type=click.Path(path_type=Path), metavar="FILE", help="A schema that every split must fit.")
@click.option("--against", type=click.Path(path_type=Path), metavar="data/A", help="Data to hold this data against.")
@click.option("--beam", default="", metavar="OPTIONS", help=BEAM_HELP)
@click.option("--force", is_flag=True, help="Check again, although it was found valid.")
def validate(
    folder: Path | None, config: Path | None, schema: Path | None, against: Path | None, beam: str, force: bool
) -> None:
    """Checks a data set in full: val and test must be in the characters of train, and distributed like them.

    Leaves statistics, a schema and report.html in data/NAME/validation, and stamps the manifest when nothing is wrong
    that the config does not waive; else it lists what is, and ends with 1. --schema takes a schema of another data set,
    perhaps edited, instead of train's own; --against measures drift and skew from another, valid data set.

    \b
    Examples:
      python -m pipeline validate data/shakespeare
      python -m pipeline validate data/B --schema data/A/validation/schema.pbtxt --against data/A
      python -m pipeline validate --config configs/NAME.toml     (checks data/NAME)
    """
    with console.hushed():
        from pipeline.validate import ValidateSettings
        from pipeline.validate import validate as run

    made = settings.make(ValidateSettings, _section(config, "validate"), _where(config, "validate"))
    run(_folder(folder, config, "data/NAME"), made, force, schema, against, beam)


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


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="data/NAME")
def verify(folder: Path) -> None:
    """Reads a data set in full and compares every shard with its checksum.

    \b
    Example:
      python -m pipeline verify data/shakespeare
    """
    from pipeline.info import verify as run

    run(folder)


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
