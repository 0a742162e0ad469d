"""The command line: python -m trainers train | evaluate | judge | neurons | sample | score | info | plot."""

import os
from pathlib import Path
from typing import Any, Literal

import click

from common import console, options
from common.machine import hide_gpus, keep_freed_memory

PATH = click.Path(path_type=Path)
VERIFY = click.option(
    "--verify", is_flag=True, help="Check all data against its checksums, not only what changed since the last check."
)

CHECKPOINT = click.option(
    "--checkpoint", default="best", show_default=True, metavar="best|last|STEP", help="Weights; best: by validation."
)
LINES = click.option("--out", type=PATH, metavar="FILE.jsonl", help="Write JSON lines to this file.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Train a model on a data set, evaluate it, and sample text from it."""


@cli.command()
@click.argument("config", type=PATH, metavar="configs/NAME.toml")
@click.option("--data", type=PATH, help="Data set.  [default: data/NAME]")
@click.option("--out", type=PATH, help="Folder of the run.  [default: runs/NAME]")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting; may be repeated."
)
@click.option("--replicas", type=click.IntRange(1), help="GPUs to use, or logical CPUs.  [default: all GPUs, else 1]")
@click.option("--share-gpus", is_flag=True, help="Allow more replicas than GPUs, for tests.")
@click.option("--unvalidated", is_flag=True, help="Train on data that has not passed `pipeline validate`.")
@VERIFY
@click.option("--init-from", type=PATH, metavar="runs/OTHER", help="Start from the best weights of another run.")
@click.option(
    "--allow",
    multiple=True,
    metavar="SECTION.KEY",
    help="Resume with this setting changed, or with different `data`.",
)
@click.option("--allow-code", is_flag=True, help="Run the config's callbacks from outside keras.callbacks.")
def train(
    config: Path,
    data: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
    replicas: int | None,
    share_gpus: bool,
    unvalidated: bool,
    verify: bool,
    init_from: Path | None,
    allow: tuple[str, ...],
    allow_code: bool,
) -> None:
    """Train the model of a config.

    The same command resumes an interrupted run from its last checkpoint. Ctrl-C, SIGTERM and a lost connection (SIGHUP,
    unless nohup ignores it) save a checkpoint first. If TF_CONFIG lists several workers, run the same command on each.

    \b
    Examples:
      python -m trainers train configs/stdlib.toml
      python -m trainers train configs/stdlib.toml --out runs/wide --set model.units=256 --set train.epochs=3
      python -m trainers train configs/stdlib.toml --set train.clip=1.0 --allow train.clip
      python -m trainers train configs/stdlib.toml --data data/book --out runs/tuned --init-from runs/stdlib
    """
    from trainers.config import RunConfig

    settings = RunConfig.read(config, overrides)
    keep_freed_memory()
    with console.quiet():
        import tensorflow as tf

        from trainers.training import loop

        tf.config.list_physical_devices()  # TensorFlow reports here that it found no GPU
    data, out = data or Path("data") / config.stem, out or Path("runs") / config.stem
    choices = loop.Options(replicas, share_gpus, unvalidated, verify, init_from, allow, allow_code)
    loop.train(settings, data, out, choices)


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), help="[default: test, or val if the data has no test split]"
)
@click.option("--data", type=PATH, help="Data set, if it has moved since training.")
@click.option(
    "--ngram/--no-ngram",
    default=None,
    help="Compare with an n-gram: about 2 s and 60 MB per million tokens.  [default: up to 8 million tokens]",
)
@VERIFY
@click.option("--force", is_flag=True, help="Evaluate again.")
def evaluate(run: Path, split: str | None, data: Path | None, ngram: bool | None, verify: bool, force: bool) -> None:
    """Measure a run's loss on held-out text.

    Scores the best checkpoint on every token of a split and compares it with an n-gram. report.html in the run's folder
    breaks the loss down by class of character, by frequency in train and by position; evaluation-SPLIT.json has the
    same figures.

    \b
    Examples:
      python -m trainers evaluate runs/stdlib
      python -m trainers evaluate runs/linux-core --ngram
    """
    keep_freed_memory()
    with console.quiet():
        from trainers.judging.evaluate import evaluate_run
    evaluate_run(run, split, data, ngram, force, verify)


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.option("--data", type=PATH, help="Data set, if it has moved since training.")
@click.option(
    "--temperatures", default="0.2,0.4,0.6,0.8,1,1.2,1.4", show_default=True, help="Comma-separated temperatures."
)
@click.option(
    "--texts", type=int, default=0, help="Texts per temperature.  [default: 16, or 1,000 if each line is a text]"
)
@click.option("--length", type=int, default=2000, show_default=True, help="Maximum bytes or characters per text.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the first text; each next text adds 1.")
@click.option(
    "--kind",
    default="auto",
    show_default=True,
    help="Rules to judge by: c, latex, wiki, python, play, names or text; auto detects the kind.",
)
@options.device
@VERIFY
@click.option("--force", is_flag=True, help="Sample and judge again.")
def judge(
    run: Path,
    data: Path | None,
    temperatures: str,
    texts: int,
    length: int,
    seed: int,
    kind: str,
    verify: bool,
    force: bool,
) -> None:
    """Judge the texts that a run writes, by temperature, against held-out text.

    Samples the best checkpoint and measures how likely and how varied its texts are, how well they follow the rules of
    their kind (closed brackets, functions that parse, known speakers, new names), and how much they copy from train.
    Results go to samples.json and report.html in the run's folder.

    \b
    Examples:
      python -m trainers judge runs/stdlib
      python -m trainers judge runs/names --temperatures 0.5,1 --texts 5000
    """
    with console.quiet():
        from trainers.judging.samples import Sweep, sweep_run
    from common.settings import make

    try:
        values = tuple(map(float, temperatures.split(",")))
    except ValueError:
        raise click.BadParameter(f"--temperatures must be comma-separated numbers, got '{temperatures}'") from None
    sweep = {"temperatures": values, "texts": texts, "length": length, "seed": seed, "kind": kind}
    sweep_run(run, data, make(Sweep, sweep, "judge"), force, verify)


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.option(
    "--text",
    type=PATH,
    metavar="FILE",
    help="Text to read. Its results go to the run's neurons.json, and so to the web page, unless you pass --out."
    "  [default: the run's test split]",
)
@click.option("--data", type=PATH, help="Data set, if it has moved since training.")
@click.option(
    "--length",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Maximum bytes or characters to read; the search uses the first 100,000.",
)
@click.option(
    "--language",
    metavar="NAME",
    help="Language of the code: c, python, tex, xml, ...  [default: detected from file names]",
)
@click.option(
    "--layer", type=int, help="Layer of the unit to show first, from 1.  [default: the unit with the clearest label]"
)
@click.option("--unit", type=int, help="Unit to show first, from 1; needs --layer.")
@click.option(
    "--excerpt",
    type=(int, int),
    metavar="START LENGTH",
    help="Part of the text to show, from 0.  [default: 3,000 bytes or characters of the second half]",
)
@click.option("--out", type=PATH, help="Page; a .json is written beside it.  [default: runs/NAME/neurons.html]")
@click.option("--png", type=PATH, metavar="FILE", help="Draw the excerpt's first 800 characters: .png, .svg or .pdf.")
@click.option(
    "--activations", type=PATH, metavar="FILE.npz", help="Write the activations of every unit as NumPy arrays."
)
@options.device
@VERIFY
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
    verify: bool,
) -> None:
    """Find single units that follow a feature of the text, such as quotes or line length.

    Reads a text and compares every unit of every layer with labels of each character: in quotes, in a comment, position
    in the line, depth of brackets. A table lists the best unit of each label, with the units of Karpathy's essay first.
    A page, which opens offline, colours the text by any unit and shows the likeliest next characters below each
    character.

    \b
    Examples:
      python -m trainers neurons runs/stdlib
      python -m trainers neurons runs/linux-core --text my.c --layer 2 --unit 37 --png my.png
      python -m trainers neurons runs/stdlib --length 20000 --activations activations.npz
    """
    with console.quiet():
        from trainers.neurons.neurons import NeuronOptions, neurons_run
    if (layer is None) != (unit is None):
        raise click.BadParameter("--layer and --unit must be passed together")
    first = None if layer is None or unit is None else (layer, unit)
    neurons_run(run, NeuronOptions(text, data, language, length, first, excerpt, out, png, activations, verify))


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.option("--prompt", default="", help="Text to continue.  [default: start as after a newline]")
@click.option(
    "--prompts",
    type=PATH,
    metavar="FILE",
    help='A prompt per line or, in a .jsonl file, {"prompt": "...", "seed": 1}.',
)
@options.count
@options.sampling
@options.device
@click.option("--seed", type=options.SEED, default=1, show_default=True, help="The same seed gives the same text.")
@CHECKPOINT
@LINES
def sample(
    run: Path,
    prompt: str,
    prompts: Path | None,
    count: int,
    length: int,
    temperature: float,
    seed: int,
    checkpoint: str,
    out: Path | None,
    **sampling: Any,
) -> None:
    """Write text with a run's checkpoint.

    One text is printed as it is written. With --count, --prompts or --out, texts are written in batches, as JSON lines:
    prompt, seed, text, log_prob (nats) and finish_reason (length or stop). Each equals that of a separate call.

    \b
    Examples:
      python -m trainers sample runs/stdlib --prompt "def " --temperature 0.5
      python -m trainers sample runs/names --count 10000 --out names.jsonl
    """
    with console.quiet():
        from trainers.sampling import batch
        from trainers.sampling.sampler import sample_run
    start = os.fsencode(prompt)  # the bytes as typed, in any locale
    if count == 1 and not prompts and not out:
        pieces = sample_run(run, start, length, temperature, seed, choice=checkpoint, **sampling)
        console.write_pieces(pieces, before=start)
        return
    if prompts and prompt:
        raise click.UsageError("pass --prompt or --prompts, not both")
    pairs = batch.read_prompts(prompts, seed) if prompts else [(start, seed)]
    starts = [batch.Start(*pair, temperature) for pair in pairs]
    batch.write_lines(batch.sample_lines(run, starts, count, length, checkpoint, **sampling), out)


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@click.option("--by", type=click.Choice(["file", "line"]), default="file", show_default=True, help="Unit of a text.")
@options.device
@CHECKPOINT
@LINES
def score(run: Path, files: tuple[Path, ...], by: str, checkpoint: str, out: Path | None) -> None:
    """Score texts with a run's checkpoint: bits per character.

    Each file, or each line without its newline, is a separate text. Writes JSON lines: file, line, characters, nats
    and bits_per_character (null for an empty text).

    \b
    Example:
      python -m trainers score runs/stdlib *.py --by line --out scores.jsonl
    """
    with console.quiet():
        from trainers.sampling import batch
    batch.write_lines(batch.score_lines(run, list(files), by == "line", checkpoint), out)


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
def info(run: Path) -> None:
    """Show a run's settings and progress.

    \b
    Example:
      python -m trainers info runs/stdlib
    """
    hide_gpus()
    with console.quiet():
        from trainers.info import show
    show(run)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="runs/NAME...")
@click.option("--out", type=PATH, default=Path("curves.png"), show_default=True, help="A .png, .svg or .pdf file.")
@click.option(
    "--x", type=click.Choice(["step", "epoch", "seconds"]), default="step", show_default=True, help="Horizontal axis."
)
def plot(runs: tuple[Path, ...], out: Path, x: Literal["step", "epoch", "seconds"]) -> None:
    """Plot the curves of one or more runs: losses, gradient norms, learning rates and speed.

    \b
    Example:
      python -m trainers plot runs/stdlib runs/wide --x seconds --out curves.png
    """
    from trainers.judging.plot import plot

    plot(runs, out, x)


if __name__ == "__main__":
    console.run(cli)
