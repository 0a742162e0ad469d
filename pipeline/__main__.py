"""The command line: python -m pipeline fetch | corpora | ingest | validate | verify | info."""

from pathlib import Path
from typing import Any

import click

from common import console, settings
from common.errors import UsageError
from common.machine import hide_gpus

CONFIG_HELP = "A TOML file such as configs/NAME.toml. Options on the command line override it."
BEAM_HELP = "Beam's own options, such as '--runner=FlinkRunner'."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Turn text into training data: fetch, ingest, validate and inspect it."""
    hide_gpus()


@cli.command()
def corpora() -> None:
    """List the named corpora, including the essay's, with their sources."""
    from pipeline.fetch import listing

    if not console.out.is_terminal:
        console.out.width = 200  # do not break addresses when piped
    console.out.print(listing())


@cli.command()
@click.argument("name")
@click.option("--from", "source", metavar="FILE|FOLDER|URL", help="Use your own copy. Its text is verified as well.")
@click.option("--to", type=click.Path(path_type=Path), help="Folder to create.  [default: data/raw/NAME]")
@click.option("--force", is_flag=True, help="Fetch again.")
def fetch(name: str, source: str | None, to: Path | None, force: bool) -> None:
    """Fetch a named corpus: input.txt and provenance.json in data/raw/NAME.

    A broken download resumes, in this call or the next. Size and SHA-256, of the download or of the text, are verified
    where they are known. The folder appears only when it is complete.

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
    """Share of the text, 0 to 1, or number of bytes."""

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
@click.option("--out", type=click.Path(path_type=Path), help="Folder to create, such as data/NAME.")
@click.option("--config", type=click.Path(path_type=Path), help=CONFIG_HELP)
@click.option("--include", multiple=True, metavar="PATTERN", help="In folders, read only files with such names (*.c).")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="In folders, skip files with such names.")
@click.option("--encoding", help="Encoding of the files: utf-8 (default), latin-1, utf-16, ...; raw: unchecked bytes.")
@click.option("--errors", type=_choice("strict", "replace", "skip"), help="How to handle bytes that cannot be decoded.")
@click.option("--newlines", type=_choice("keep", "lf"), help="lf converts CR LF and CR to LF.")
@click.option("--bom", type=_choice("keep", "strip"), help="Whether to keep a byte-order mark.")
@click.option("--unit", type=_choice("byte", "char"), help="Unit of a token.  [default: byte]")
@click.option("--max-vocab", type=int, help="For char: the largest vocabulary.")
@click.option("--min-count", type=int, help="For char: how often a character must occur in train.")
@click.option("--unknown", type=_choice("error", "replace", "skip"), help="For char: how to handle other characters.")
@click.option("--documents", type=_choice("none", "line", "file"), help="What counts as a document.  [default: none]")
@click.option("--split", type=_choice("contiguous", "document", "char-rnn"), help="Split rule.  [default: contiguous]")
@click.option("--streams", type=int, help="For split char-rnn: number of streams.  [default: 50]")
@click.option("--train", type=Amount(), help="Training split.  [default: 0.9 of the text]")
@click.option("--val", type=Amount(), help="Validation split, for progress.  [default: 0.05]")
@click.option("--test", type=Amount(), help="Test split, for the finished model.  [default: 0.05]")
@click.option("--beam", default="", metavar="OPTIONS", help=BEAM_HELP)
@click.option("--force", is_flag=True, help="Rebuild, even over a data set made from different input.")
def ingest(
    sources: tuple[str, ...], out: Path | None, config: Path | None, beam: str, force: bool, **options: Any
) -> None:
    """Turn text into a data set: token shards and a manifest.

    Sources are files, folders (all files below), patterns, named corpora (python -m pipeline corpora), pipes or - for
    standard input, joined in the order given. Files may be compressed (gzip, bz2, xz, zstd). A file that is not text in
    the encoding is an error, with its name and offset, unless --errors allows it. A config's [data] sets all of these,
    and shard_bytes (IngestSettings in pipeline/config.py).

    --split contiguous: train is the beginning, val the middle, test the end. document: each document goes to a split by
    its hash. char-rnn: as char-rnn does, the beginning, middle and end of each of its streams.

    \b
    Examples:
      python -m pipeline ingest shakespeare.txt --out data/shakespeare
      python -m pipeline ingest src --include '*.py' --exclude 'test_*' --documents file --split document --out data/src
      python -m pipeline ingest wikipedia --train 90000000 --val 5000000 --test 5000000 --out data/wikipedia
      zcat poems.gz | python -m pipeline ingest - --unit char --unknown replace --out data/poems
      python -m pipeline ingest --config configs/NAME.toml       (sources from the config, into data/NAME)
    """
    with console.quiet():
        from pipeline.config import OF_CHARACTERS, IngestSettings
        from pipeline.ingest import ingest as run
        from pipeline.sources import defaults

    overrides = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    overrides = {name: value for name, value in overrides.items() if value not in (None, [])}
    if sources:
        overrides["source"] = list(sources)
    values = _section(config, "data") | overrides
    recommended = defaults(values.get("source", []))
    if values.get("unit") == "byte":
        recommended = {name: value for name, value in recommended.items() if name not in OF_CHARACTERS}
    values = recommended | values
    run(
        settings.make(IngestSettings, values, _where(config, "data")),
        _folder(out, config, "--out data/NAME"),
        force,
        beam,
    )


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[data/NAME]")
@click.option("--config", type=click.Path(path_type=Path), help=CONFIG_HELP)
@click.option("--schema", type=click.Path(path_type=Path), metavar="FILE", help="Schema that every split must match.")
@click.option("--against", type=click.Path(path_type=Path), metavar="data/A", help="Data set to compare with.")
@click.option("--requests", metavar="LOG", help="Compare recorded requests with train: a file or a quoted pattern.")
@click.option("--beam", default="", metavar="OPTIONS", help=BEAM_HELP)
@click.option("--force", is_flag=True, help="Validate again, even if already valid.")
def validate(
    folder: Path | None,
    config: Path | None,
    schema: Path | None,
    against: Path | None,
    requests: str | None,
    beam: str,
    force: bool,
) -> None:
    """Validate a data set: val and test must use the characters of train, with a similar distribution.

    Writes statistics, a schema and report.html to data/NAME/validation. Stamps the manifest if there are no findings
    beyond those that the config waives; otherwise lists them and exits with 1. --schema replaces the schema inferred
    from train, for example by an edited one; --against measures drift and skew from another validated data set.

    --requests compares a served model's traffic with the validated data set that the model was trained on, and exits
    with 1 if callers send other text.

    \b
    Examples:
      python -m pipeline validate data/shakespeare
      python -m pipeline validate data/B --schema data/A/validation/schema.pbtxt --against data/A
      python -m pipeline validate --config configs/NAME.toml     (validates data/NAME)
      python -m pipeline validate data/shakespeare --requests prompts.jsonl
    """
    if requests and (schema or against or force):
        raise click.UsageError(
            "--requests compares with the data set's own schema: omit --schema, --against and --force"
        )
    with console.quiet(withhold=()):  # TFDV needs pandas
        from pipeline.config import ValidateSettings
        from pipeline.traffic import compare_requests
        from pipeline.validate import validate as run

    rules = settings.make(ValidateSettings, _section(config, "validate"), _where(config, "validate"))
    folder = _folder(folder, config, "data/NAME")
    if requests:
        compare_requests(folder, requests, rules, beam)
    else:
        run(folder, rules, force, schema, against, beam)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="data/NAME")
def info(folder: Path) -> None:
    """Show a data set: its sources, splits and validation.

    \b
    Example:
      python -m pipeline info data/shakespeare
    """
    with console.quiet():
        from pipeline.info import show

    show(folder)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="data/NAME")
def verify(folder: Path) -> None:
    """Read every shard of a data set and compare it with its checksum.

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


def _folder(folder: Path | None, config: Path | None, usage: str) -> Path:
    """Folder named on the command line, else the config's."""
    if folder:
        return folder
    if config:
        return Path("data") / config.stem
    raise UsageError(f"name the data set ({usage}) or pass --config configs/NAME.toml")


if __name__ == "__main__":
    console.run(cli)
