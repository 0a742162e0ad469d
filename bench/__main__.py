"""The command line: python -m bench results | train | clock | precision | scale | watch | data | lite | browser | serve
sampling."""

from pathlib import Path

import click

from common import console


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Measure speed, memory and quality, each beside its peers in the same run."""


@cli.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[runs/NAME]...")
@click.option("--root", type=click.Path(path_type=Path), default=Path(), help="The folder of README.md.  [default: .]")
def results(runs: tuple[Path, ...], root: Path) -> None:
    """Keep finished runs' figures as results/NAME.json; rebuild the tables of README.md, docs/results.md and
    docs/benchmarks.md.

    \b
    Example:
      python -m bench results runs/stdlib
    """
    with console.quiet():
        from bench import pages, results
    for run in runs:
        results.record(run, root / "results")
    kept = results.read(root / "results")
    results.put(root / "README.md", headlines := results.headlines(kept))
    results.put(root / "docs/results.md", results.table(kept))
    (root / "docs/benchmarks.md").write_text(pages.page(root / "results"), encoding="utf-8")
    console.out.print(headlines)


@cli.command()
@click.option("--size", "sizes", multiple=True, metavar="LxH", help="Layers x units; may be repeated. Default: 2x128.")
@click.option("--all", "every", is_flag=True, help="2x128, 2x256, 2x512, and 3x512 with 100 lanes x 100 characters.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per peer; medians are shown."
)
@click.option("--seconds", type=click.FloatRange(0.1), default=5, show_default=True, help="Length of a turn.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder.")
def train(sizes: tuple[str, ...], every: bool, device: str, rounds: int, seconds: float, out: Path) -> None:
    """Training speed beside Keras, PyTorch and the machine's ceiling.

    All take turns in one run, four minutes per size. PyTorch's rows need torch: pip install torch. Keep the machine
    idle meanwhile.

    \b
    Examples:
      python -m bench train --size 2x128 --size 1x1024
      python -m bench train --all
    """
    from bench.train import SIZES, compare, gpu_of, size_named

    if every and sizes:
        raise click.UsageError("--all names the sizes: omit --size")
    chosen = SIZES if every else [size_named(text) for text in sizes or ("2x128",)]
    if device == "gpu" and not gpu_of("tensorflow"):
        console.note("TensorFlow sees no GPU here: nothing is measured")
        return
    for size in chosen:
        compare(size, device, rounds, seconds, out)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path), default=Path("configs/tinyshakespeare-nanogpt.toml"))
@click.option("--data", type=click.Path(path_type=Path), help="The data set. Default: data/NAME.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder.")
def clock(config: Path, data: Path | None, out: Path) -> None:
    """Loss after equal training time: a config's run, and PyTorch's nn.LSTM with Adam and with Muon.

    Needs torch: pip install torch. About ten minutes by default. Keep the machine idle meanwhile.

    \b
    Example:
      python -m bench clock configs/tinyshakespeare-nanogpt.toml
    """
    with console.quiet():
        from bench.clock import compare

    compare(config, data or Path("data") / config.stem, out)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path), default=Path("configs/tinyshakespeare.toml"))
@click.option("--data", type=click.Path(path_type=Path), help="The data set. Default: data/NAME.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs per precision.")
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Steps per run.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    default=("model.units=128", "train.window=50"),
    show_default=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a setting of the config; may be repeated.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder.")
def precision(config: Path, data: Path | None, seeds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Validation loss in bfloat16 beside float32, at equal steps, over several seeds.

    By default: six runs of a 2 x 128 model, about ten minutes on 2 cores.

    \b
    Example:
      python -m bench precision configs/tinyshakespeare.toml --seeds 5
    """
    with console.quiet():
        from bench.precision import compare

    compare(config, data or Path("data") / config.stem, seeds, steps, overrides, out)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path), default=Path("configs/stdlib.toml"))
@click.option("--data", type=click.Path(path_type=Path), help="The data set. Default: data/NAME.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each; medians are shown.")
@click.option("--steps", type=click.IntRange(16), default=800, show_default=True, help="Steps per training.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting of the config.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder.")
def scale(config: Path, data: Path | None, rounds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Training speed of one replica, two replicas and two workers, all on this machine.

    \b
    Example:
      python -m bench scale configs/stdlib.toml --set model.units=512
    """
    with console.quiet():
        from bench.scale import compare

    compare(config, data or Path("data") / config.stem, rounds, steps, overrides, out)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path), default=Path("configs/stdlib.toml"))
@click.option("--data", type=click.Path(path_type=Path), help="The data set. Default: data/NAME.")
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per peer; medians are shown."
)
@click.option("--steps", type=click.IntRange(1), default=2500, show_default=True, help="Steps per turn.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting; may be repeated."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder.")
def watch(config: Path, data: Path | None, rounds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Cost of watching a run: reports, bar, TensorBoard, histograms, samples, callbacks.

    By default: ten trainings of a minute and a half each on 2 cores. Keep the machine idle meanwhile.

    \b
    Example:
      python -m bench watch configs/stdlib.toml --rounds 3
    """
    with console.quiet():
        from bench.watch import compare

    compare(config, data or Path("data") / config.stem, rounds, steps, overrides, out)


@cli.command()
@click.option("--size", type=click.IntRange(1_000_000), default=474_000_000, show_default=True, help="Bytes of text.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each; medians are shown.")
@click.option(
    "--scratch", type=click.Path(path_type=Path), default=Path("data/bench"), show_default=True, help="Its folder."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder.")
def data(size: int, rounds: int, scratch: Path, out: Path) -> None:
    """Ingest, validate and lanes at full scale, beside cat with sha256sum and a Python dict.

    The corpus is kernel source, if this machine's package manager has it: 5 GB of disk, about ten minutes.

    \b
    Example:
      python -m bench data
    """
    from bench.data import compare  # no TensorFlow in this process: its memory would be counted as its children's

    compare(size, rounds, scratch, out)


@cli.group()
def serve() -> None:
    """The exported SavedModel."""


SIZES_SERVED = click.option(
    "--size",
    "sizes",
    multiple=True,
    default=("2x128", "2x512"),
    show_default=True,
    metavar="LxH",
    help="Layers x units of an LSTM of random weights; may be repeated.",
)
OUT = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="The folder."
)


@cli.command()
@SIZES_SERVED
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per peer; medians are shown."
)
@click.option("--seconds", type=click.FloatRange(0.01), default=1.5, show_default=True, help="Length of a turn.")
@OUT
def lite(sizes: tuple[str, ...], rounds: int, seconds: float, out: Path) -> None:
    """Microseconds per character of a .tflite in every precision, beside the SavedModel and PyTorch.

    PyTorch's rows, eager and in dynamic int8, need torch: pip install torch. About two minutes per size. Keep the
    machine idle meanwhile.

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
@click.argument("devices", type=click.Path(path_type=Path), metavar="devices/NAME")
@click.option("--precision", default="int8-dynamic", show_default=True, help="The file to measure.")
@OUT
def browser(devices: Path, precision: str, out: Path) -> None:
    """Characters per second of a model on its page in Chromium, with text, bars and colours; `lite` shows it.

    \b
    Example:
      python -m bench browser devices/stdlib
    """
    from bench.browser import keep

    found = keep(devices, precision, out)
    console.out.print(f"{devices}, {precision}: {found['characters_per_second']:,} characters/s in {found['browser']}")


@serve.command()
@SIZES_SERVED
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns per peer; medians are shown."
)
@click.option("--seconds", type=click.FloatRange(0.01), default=3, show_default=True, help="Length of a turn.")
@OUT
def sampling(sizes: tuple[str, ...], rounds: int, seconds: float, out: Path) -> None:
    """Microseconds per character in a Session, beside PyTorch with the same weights, XLA and memory.

    One row and 16 rows, texts of 200 to 1,000 characters. All take turns in one run, about six minutes per size.
    PyTorch's rows need torch: pip install torch. Keep the machine idle meanwhile.

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
@click.option("--target", required=True, metavar="HOST:PORT", help="HTTP port of a front, or REST port of a server.")
@click.option("--model", required=True, metavar="NAME", help="The model's name on the server.")
@click.option("--length", type=click.IntRange(1), default=200, show_default=True, help="Characters per call.")
@click.option("--seconds", type=click.FloatRange(0.1), default=10, show_default=True, help="Per number of callers.")
def load(target: str, model: str, length: int, seconds: float) -> None:
    """Latency and characters per second through a running server or front, with 1, 8 and 32 callers.

    Start a front with --per-minute 1000000, or it limits the callers, who share an address.

    \b
    Example:
      python -m bench serve load --target localhost:8501 --model stdlib
    """
    from bench.load import load as measure

    measure(target, model, length, seconds)


if __name__ == "__main__":
    console.run(cli)
