"""Command line: python -m bench results | model | train | clock | precision | scale | watch | data | lite | browser
| serve sampling | limits | front | load."""

from pathlib import Path

import click

from common import console
from common.machine import hide_gpus

PATH = click.Path(path_type=Path)
DATA = click.option("--data", type=PATH, help="Data set.  [default: data/NAME]")
OUT = click.option("--out", type=PATH, default=Path("results"), show_default=True, help="Output folder.")
SET = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable."
)
SIZES_SERVED = click.option(
    "--size",
    "sizes",
    multiple=True,
    default=("2x128", "2x512"),
    show_default=True,
    metavar="LxH",
    help="Layers x units of an LSTM with random weights; repeatable.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.pass_context
def cli(context: click.Context) -> None:
    """Measure speed, memory and quality next to peers in the same run."""
    if context.invoked_subcommand != "train":  # which has --device
        hide_gpus()


@cli.command()
@click.argument("runs", nargs=-1, type=PATH, metavar="[runs/NAME]...")
@click.option("--root", type=PATH, default=Path(), help="Project root.  [default: .]")
def results(runs: tuple[Path, ...], root: Path) -> None:
    """Record finished runs as results/NAME.json and rebuild the tables of README.md and docs/.

    \b
    Example:
      python -m bench results runs/stdlib
    """
    with console.quiet():
        from bench import pages, reliability, results
    for run in runs:
        results.record(run, root / "results")
    kept = results.read(root / "results")
    results.put(root / "README.md", headlines := results.headlines(kept))
    results.put(root / "docs/results.md", results.table(kept))
    (root / "docs/benchmarks.md").write_text(pages.page(root / "results"), encoding="utf-8")
    if (faults := root / "results" / reliability.FILE).is_file():
        (root / "docs/reliability.md").write_text(reliability.page(faults), encoding="utf-8")
    console.out.print(headlines)


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.option("--out", type=PATH, help="Output folder.  [default: models/NAME]")
@click.option("--note", default="", help="Describe the text, if it is not exactly the corpus.")
def model(run: Path, out: Path | None, note: str) -> None:
    """Export a recorded run to models/, with a card of its figures.

    \b
    Example:
      python -m bench model runs/stdlib
    """
    with console.quiet():
        from bench.models import export_model
    export_model(run, out or Path("models") / run.name, Path("results"), note)


@cli.command()
@click.option("--size", "sizes", multiple=True, metavar="LxH", help="Layers x units; repeatable.  [default: 2x128]")
@click.option("--all", "every", is_flag=True, help="Every size of the tables.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per peer; reports medians.")
@click.option("--seconds", type=click.FloatRange(0.1), default=2, show_default=True, help="Seconds per turn.")
@click.option("--commit", default="", metavar="HASH", help="Commit of the code, where there is no git repository.")
@OUT
def train(
    sizes: tuple[str, ...], every: bool, device: str, rounds: int, seconds: float, commit: str, out: Path
) -> None:
    """Compare training speed with Keras, PyTorch and the machine's fastest matrix product.

    Peers take turns, some two minutes per size. Needs an idle machine; PyTorch's rows need torch (pip install
    torch).

    \b
    Examples:
      python -m bench train --size 2x128 --size 1x1024
      python -m bench train --all
      python -m bench train --all --device gpu
    """
    from bench.train import SIZES, compare, gpu_of, size_named

    if every and sizes:
        raise click.UsageError("--all includes every size: omit --size")
    chosen = SIZES[device] if every else [size_named(text, device) for text in sizes or ("2x128",)]
    if device == "gpu" and not gpu_of("tensorflow"):
        console.note("TensorFlow sees no GPU: nothing to measure")
        return
    for size in chosen:
        compare(size, device, rounds, seconds, out, commit)


@cli.command()
@click.argument("config", type=PATH, default=Path("configs/tinyshakespeare-nanogpt.toml"))
@DATA
@OUT
def clock(config: Path, data: Path | None, out: Path) -> None:
    """Compare the loss with PyTorch's nn.LSTM (Adam, Muon) after equal training time.

    About ten minutes by default. Needs an idle machine and torch (pip install torch).

    \b
    Example:
      python -m bench clock configs/tinyshakespeare-nanogpt.toml
    """
    with console.quiet():
        from bench.clock import compare

    compare(config, data or Path("data") / config.stem, out)


@cli.command()
@click.argument("config", type=PATH, default=Path("configs/stdlib.toml"))
@DATA
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs per precision.")
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Steps per run.")
@SET
@OUT
def precision(config: Path, data: Path | None, seeds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Compare the validation loss in bfloat16 and float32 after equal steps, per seed.

    By default six runs of a 2 x 128 model, about ten minutes on 2 cores.

    \b
    Example:
      python -m bench precision --seeds 5
    """
    with console.quiet():
        from bench.precision import compare

    compare(config, data or Path("data") / config.stem, seeds, steps, overrides, out)


@cli.command()
@click.argument("config", type=PATH, default=Path("configs/stdlib.toml"))
@DATA
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each; reports medians.")
@click.option("--steps", type=click.IntRange(16), default=800, show_default=True, help="Steps per run.")
@SET
@OUT
def scale(config: Path, data: Path | None, rounds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Compare training speed of one replica, two replicas and two workers on this machine.

    \b
    Example:
      python -m bench scale configs/stdlib.toml --set model.units=512
    """
    with console.quiet():
        from bench.scale import compare

    compare(config, data or Path("data") / config.stem, rounds, steps, overrides, out)


@cli.command()
@click.argument("config", type=PATH, default=Path("configs/stdlib.toml"))
@DATA
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per peer; reports medians.")
@click.option("--steps", type=click.IntRange(1), default=2500, show_default=True, help="Steps per turn.")
@SET
@OUT
def watch(config: Path, data: Path | None, rounds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Measure the overhead of progress bar, reports, TensorBoard, histograms, samples and callbacks.

    By default ten runs of 90 seconds each on 2 cores. Needs an idle machine.

    \b
    Example:
      python -m bench watch configs/stdlib.toml --rounds 3
    """
    with console.quiet():
        from bench.watch import compare

    compare(config, data or Path("data") / config.stem, rounds, steps, overrides, out)


@cli.command()
@click.option("--size", type=click.IntRange(1_000_000), default=474_000_000, show_default=True, help="Bytes of text.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each; reports medians.")
@click.option("--scratch", type=PATH, default=Path("data/bench"), show_default=True, help="Corpus folder.")
@OUT
def data(size: int, rounds: int, scratch: Path, out: Path) -> None:
    """Measure ingest, validate and lanes at full scale, next to cat | sha256sum and a Python dict.

    Uses the Linux kernel's source if apt-get offers it. About ten minutes and 5 GB of disk.

    \b
    Example:
      python -m bench data
    """
    from bench.data import compare  # without TensorFlow: a child's peak memory starts at its parent's

    compare(size, rounds, scratch, out)


@cli.group()
def serve() -> None:
    """Benchmarks of the exported SavedModel."""


@cli.command()
@SIZES_SERVED
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per peer; reports medians.")
@click.option("--seconds", type=click.FloatRange(0.01), default=1.5, show_default=True, help="Seconds per turn.")
@OUT
def lite(sizes: tuple[str, ...], rounds: int, seconds: float, out: Path) -> None:
    """Compare a .tflite in every precision with the SavedModel and PyTorch, in microseconds per character.

    About two minutes per size. Needs an idle machine; PyTorch's rows, eager and dynamic int8, need torch (pip install
    torch).

    \b
    Example:
      python -m bench lite --size 2x512
    """
    from bench.train import size_named

    with console.quiet():
        from bench.lite import compare

    for size in map(size_named, sizes):
        compare(size, rounds, seconds, out)


@cli.command()
@click.argument("devices", type=PATH, metavar="devices/NAME")
@click.option("--precision", default="int8-dynamic", show_default=True, help="Which .tflite to measure.")
@OUT
def browser(devices: Path, precision: str, out: Path) -> None:
    """Measure characters per second of the page in Chromium; `bench lite` adds the figure to its table.

    \b
    Example:
      python -m bench browser devices/stdlib
    """
    from bench.browser import record

    result = record(devices, precision, out)
    console.out.print(
        f"{devices}, {precision}: {result['characters_per_second']:,} characters/s in {result['browser']}"
    )


@serve.command()
@SIZES_SERVED
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per peer; reports medians.")
@click.option("--seconds", type=click.FloatRange(0.01), default=3, show_default=True, help="Seconds per turn.")
@OUT
def sampling(sizes: tuple[str, ...], rounds: int, seconds: float, out: Path) -> None:
    """Compare sampling in a Session with PyTorch, XLA and memory bandwidth, in microseconds per step.

    1 and 16 rows, texts of 200 to 1,000 characters. Peers take turns, about six minutes per size. Needs an idle
    machine; PyTorch's rows need torch (pip install torch).

    \b
    Example:
      python -m bench serve sampling --size 2x512
    """
    from bench.train import size_named

    with console.quiet():
        from bench.sampling import compare

    for size in map(size_named, sizes):
        compare(size, rounds, seconds, out)


@serve.command()
@SIZES_SERVED
@OUT
def limits(sizes: tuple[str, ...], out: Path) -> None:
    """Measure the largest call of each signature: seconds, memory, and the size of its answer.

    At the default limits of the export and of the front. About two minutes per size. Needs an idle machine.

    \b
    Example:
      python -m bench serve limits --size 2x512
    """
    from bench.limits import compare
    from bench.train import size_named

    for size in map(size_named, sizes):
        compare(size, out)


@serve.command()
@click.option("--size", default="2x128", show_default=True, metavar="LxH", help="Layers x units of a random LSTM.")
@click.option("--length", type=click.IntRange(1), default=200, show_default=True, help="Characters per call.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns per way; reports medians.")
@click.option("--seconds", type=click.FloatRange(0.1), default=5, show_default=True, help="Per number of callers.")
@OUT
def front(size: str, length: int, rounds: int, seconds: float, out: Path) -> None:
    """Compare calls through the front with calls to the server itself, batched or not; overload the front.

    The server is that of `export serve`: TensorFlow Serving if there is one, else the stand-in. About four minutes.
    Needs an idle machine.

    \b
    Example:
      python -m bench serve front --size 2x512
    """
    from bench.front import compare
    from bench.train import size_named

    compare(size_named(size), length, rounds, seconds, out)


@serve.command()
@click.option("--target", required=True, metavar="HOST:PORT", help="HTTP port of a front, or REST port of a server.")
@click.option("--model", required=True, metavar="NAME", help="The model's name on the server.")
@click.option("--length", type=click.IntRange(1), default=200, show_default=True, help="Characters per call.")
@click.option("--seconds", type=click.FloatRange(0.1), default=10, show_default=True, help="Per number of callers.")
def load(target: str, model: str, length: int, seconds: float) -> None:
    """Measure latency and characters per second through a running server or front, with 1, 8 and 32 callers.

    Start a front with --per-minute 1000000 --calls 64; otherwise it limits the callers, who share an address.

    \b
    Example:
      python -m bench serve load --target localhost:8501 --model stdlib
    """
    from bench.load import load as measure

    measure(target, model, length, seconds)


if __name__ == "__main__":
    console.run(cli)
