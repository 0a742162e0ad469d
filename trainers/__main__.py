"""The command line: python -m trainers train | evaluate | samples | neurons | sample | info | plot."""

import math
import os
from pathlib import Path
from typing import Literal

import click

from common import console, options

FOLDER = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """A data set to a model: train it, judge it, let it write."""


@cli.command()
@click.argument("config", type=FOLDER, metavar="configs/NAME.toml")
@click.option("--data", type=FOLDER, help="The data set. Default: data/NAME.")
@click.option("--out", type=FOLDER, help="The run's folder. Default: runs/NAME.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting; may be repeated."
)
@click.option("--replicas", type=click.IntRange(1), help="GPUs to use, or logical CPUs. Default: all GPUs, else 1.")
@click.option("--unvalidated", is_flag=True, help="Train on data that `pipeline validate` has not passed.")
@click.option("--verify", is_flag=True, help="First read all of the data, and compare it with its checksums.")
@click.option("--init-from", type=FOLDER, metavar="runs/OTHER", help="Begin with the best weights of another run.")
@click.option(
    "--allow",
    multiple=True,
    metavar="SECTION.KEY",
    help="Go on with this setting changed, or with other `data`.",
)
def train(
    config: Path,
    data: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
    replicas: int | None,
    unvalidated: bool,
    verify: bool,
    init_from: Path | None,
    allow: tuple[str, ...],
) -> None:
    """Trains the model of a config.

    A run that was stopped goes on from its last checkpoint: the same command does both. Ctrl-C and SIGTERM save one
    first. Where TF_CONFIG names several workers, start the same command on each.

    \b
    Examples:
      python -m trainers train configs/stdlib.toml
      python -m trainers train configs/stdlib.toml --out runs/wide --set model.units=256 --set train.epochs=3
      python -m trainers train configs/stdlib.toml --set train.clip=1.0 --allow train.clip
      python -m trainers train configs/stdlib.toml --data data/book --out runs/book --init-from runs/stdlib
    """
    from trainers.config import RunConfig

    settings = RunConfig.read(config, overrides)
    with console.hushed():
        import tensorflow as tf

        from trainers.training import loop

        tf.config.list_physical_devices()  # where TensorFlow says that it found no GPU
    data, out = data or Path("data") / config.stem, out or Path("runs") / config.stem
    loop.train(settings, data, out, loop.Options(replicas, unvalidated, verify, init_from, allow))


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), help="[default: test, or val where the data has no test]"
)
@click.option("--data", type=FOLDER, help="The data set, where it has moved since training.")
@click.option(
    "--ngram/--no-ngram",
    default=None,
    help="Count an n-gram to compare with: some 2 s and 60 MB a million tokens. [default: up to 8 million]",
)
@click.option("--force", is_flag=True, help="Evaluate again.")
def evaluate(run: Path, split: str | None, data: Path | None, ngram: bool | None, force: bool) -> None:
    """Measures a run's loss on held-out text.

    The best checkpoint by validation is scored over a whole split, every token once (a byte or a character, whichever
    the data has), beside models that only count: by its kind, by how often it occurs in train, by how much was read
    before it. evaluation-SPLIT.json in the run's folder has it all, report.html shows it.

    \b
    Examples:
      python -m trainers evaluate runs/stdlib
      python -m trainers evaluate runs/linux --ngram
    """
    with console.hushed():
        from trainers.judging.evaluate import evaluate_run
    evaluate_run(run, split, data, ngram, force)


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option("--data", type=FOLDER, help="The data set, where it has moved since training.")
@click.option(
    "--temperatures", default="0.2,0.4,0.6,0.8,1,1.2,1.4", show_default=True, help="At which to write, with commas."
)
@click.option("--texts", type=int, default=0, help="To write at each.  [default: 16; 1,000 where a line is a text]")
@click.option("--length", type=int, default=2000, show_default=True, help="Bytes or characters of each text, at most.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first; the others go on from there.")
@click.option(
    "--kind", default="auto", show_default=True, help="c, latex, wiki, python, play, names or text: what to judge by."
)
@click.option("--force", is_flag=True, help="Write them again.")
def samples(
    run: Path, data: Path | None, temperatures: str, texts: int, length: int, seed: int, kind: str, force: bool
) -> None:
    """Judges what a run's best checkpoint writes, over temperatures, beside text that it has not seen.

    How likely and how varied it is, how well it keeps the rules of its kind (brackets that close, functions that parse,
    speakers that are known, names that are new), and how much of it is copied from train, word for word. samples.json
    in the run's folder has it all, report.html shows it.

    \b
    Examples:
      python -m trainers samples runs/stdlib
      python -m trainers samples runs/names --temperatures 0.5,1 --texts 5000
    """
    with console.hushed():
        from trainers.judging.samples import Sweep, sweep_run
    from common.settings import make

    try:
        numbers = tuple(float(one) for one in temperatures.split(","))
    except ValueError:
        raise click.BadParameter(f"--temperatures are numbers with commas between, got {temperatures}") from None
    values = {"temperatures": numbers, "texts": texts, "length": length, "seed": seed, "kind": kind}
    sweep_run(run, data, make(Sweep, values, "samples"), force)


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option(
    "--text",
    type=FOLDER,
    metavar="FILE",
    help="What is read. Without --out, the run's neurons.json, which goes on to the web page, is then of it."
    "  [default: the run's own test split]",
)
@click.option("--data", type=FOLDER, help="The data set, where it has moved since training.")
@click.option(
    "--length",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Bytes or characters that are read; units are searched in the first 100,000.",
)
@click.option(
    "--language", metavar="NAME", help="Of the code in it: c, python, tex, xml, ...  [default: as the files' names say]"
)
@click.option(
    "--layer", type=int, help="With --unit: what is shown first, from 1.  [default: the clearest that is found]"
)
@click.option("--unit", type=int)
@click.option(
    "--excerpt",
    type=(int, int),
    metavar="FIRST LENGTH",
    help="What the page shows.  [default: 3,000 bytes or characters from the middle on]",
)
@click.option("--out", type=FOLDER, help="The page; a .json lies beside it.  [default: runs/NAME/neurons.html]")
@click.option("--png", type=FOLDER, metavar="FILE", help="A picture of its first 800 characters; or .svg, .pdf.")
@click.option(
    "--activations",
    type=FOLDER,
    metavar="FOLDER|FILE.npz",
    help="Keep all that was held: in HDF5, as a project of LSTMVis, or as NumPy's arrays.",
)
def neurons(
    run: Path,
    text: Path | None,
    data: Path | None,
    length: int,
    language: str | None,
    layer: int | None,
    unit: int | None,
    excerpt: tuple[int, int] | None,
    out: Path | None,
    png: Path | None,
    activations: Path | None,
) -> None:
    """Shows what single units of a run follow.

    A text is read, and every unit of every layer held against what can be said of each character: in quotes, in a
    comment, how far along the line, how deep in brackets. A table says which of the essay's units there are; a page
    colours the text by any unit, with what is expected next below each character, and opens offline.

    \b
    Examples:
      python -m trainers neurons runs/stdlib
      python -m trainers neurons runs/linux --text my.c --unit 37 --layer 2 --out my.html --png my.png
      python -m trainers neurons runs/stdlib --length 1000000 --activations states/
    """
    with console.hushed():
        from trainers.neurons.neurons import Wanted, neurons_run
    if (layer is None) != (unit is None):
        raise click.BadParameter("--layer and --unit go together")
    place = None if layer is None or unit is None else (layer, unit)
    neurons_run(run, Wanted(text, data, language, length, place, excerpt, out, png, activations))


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option("--prompt", default="", help="The text to continue; none starts as after a newline.")
@options.sampling
@click.option("--seed", type=options.SEED, default=1, show_default=True, help="The same seed writes the same text.")
def sample(
    run: Path,
    prompt: str,
    length: int,
    temperature: float,
    seed: int,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    stop: str,
) -> None:
    """Writes text with a run's best checkpoint.

    \b
    Example:
      python -m trainers sample runs/stdlib --prompt "def " --temperature 0.5
    """
    with console.hushed():
        from trainers.sampling.sampler import sample_run
    if not all(map(math.isfinite, (temperature, top_p, repetition_penalty))):
        raise click.BadParameter("a temperature, --top-p and --repetition-penalty are finite numbers")
    start, end = os.fsencode(prompt), os.fsencode(stop)  # as they were typed, whatever their encoding
    pieces = sample_run(run, start, length, temperature, seed, top_k, top_p, repetition_penalty, end)
    console.write_pieces(pieces, before=start)


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
def info(run: Path) -> None:
    """Shows what a run is, and how far it has come.

    \b
    Example:
      python -m trainers info runs/stdlib
    """
    with console.hushed():
        from trainers.info import show
    show(run)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER, metavar="runs/NAME...")
@click.option("--out", type=FOLDER, default=Path("curves.png"), show_default=True, help="A .png, .svg or .pdf.")
@click.option("--x", type=click.Choice(["step", "epoch", "seconds"]), default="step", show_default=True)
def plot(runs: tuple[Path, ...], out: Path, x: Literal["step", "epoch", "seconds"]) -> None:
    """Draws the curves of one run or several: losses, gradient norm, learning rate, speed.

    \b
    Example:
      python -m trainers plot runs/stdlib runs/wide --x seconds --out curves.png
    """
    from trainers.judging.plot import plot

    plot(runs, out, x)


if __name__ == "__main__":
    console.run(cli)
