"""Effect of bfloat16 products on the loss: equal runs in float32 and bfloat16 over several seeds."""

import importlib.metadata
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.data import measure
from bench.machine import provenance
from common import console
from common.errors import StageError
from common.files import write_json
from pipeline.lanes import windows_per_epoch
from pipeline.manifest import read_manifest
from trainers import metrics
from trainers.config import RunConfig

PRECISIONS = ("float32", "bfloat16")
EVALUATIONS = 4  # per run
Curve = list[tuple[int, float]]  # step and validation loss in nats


def compare(config: Path, data: Path, seeds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Print a table and write out/bench-precision.json: each run's validation losses up to the same step.

    Runs use `python -m trainers train` in a temporary folder. Raises StageError for uncommitted code, or if a run
    fails or ends at another step.
    """
    origin = provenance()
    train = RunConfig.read(config, overrides).train
    tokens = read_manifest(data).split("train").tokens
    epochs = steps / windows_per_epoch(tokens, train.lanes, train.window)
    fixed = (
        *overrides,
        "train.sample=0",
        f"train.epochs={epochs!r}",
        f"train.evaluate_every={-(-steps // EVALUATIONS)}",
    )
    curves: dict[str, list[Curve]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as scratch, console.progress("runs") as bar:
        for seed, precision in bar.track([(seed, p) for seed in range(1, seeds + 1) for p in PRECISIONS]):
            settings = (*fixed, f"train.seed={seed}", f"train.precision={precision}")
            curve = _curve(config, data, settings, Path(scratch) / f"{precision}-{seed}")
            if curve[-1][0] != steps:
                raise StageError(f"expected a run to end at step {steps}, got {curve[-1][0]}: set train.epochs")
            console.note(f"seed {seed}, {precision}: {curve[-1][1]:.4f} nats")
            curves[precision].append(curve)
    losses = {precision: [curve[-1][1] for curve in each] for precision, each in curves.items()}
    result: dict[str, Any] = {
        "format_version": 1,
        "config": RunConfig.read(config, fixed).to_json(),
        "data": data.name,
        "steps": steps,
        "seeds": list(range(1, seeds + 1)),
        "val_nats": losses,
        **differences(losses),
        "curves": curves,
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")},
        **origin,
    }
    write_json(out / "bench-precision.json", result)
    console.out.print(table(result))


def differences(losses: dict[str, list[float]]) -> dict[str, Any]:
    """Return the loss that bfloat16 adds, per seed and on average, and the range over float32's seeds."""
    added = [b - a for a, b in zip(losses["float32"], losses["bfloat16"], strict=True)]
    return {
        "bfloat16_adds": added,
        "bfloat16_adds_mean": statistics.mean(added),
        "float32_seeds_range": max(losses["float32"]) - min(losses["float32"]),
    }


def table(result: dict[str, Any]) -> Table:
    """Render the losses for the terminal and docs/benchmarks.md."""
    model = result["config"]["model"]
    title = f"{result['data']}, {model['layers']} x {model['units']}: val loss (nats) after {result['steps']:,} steps"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None)
    for column in ("seed", *PRECISIONS, "difference"):
        shown.add_column(column, justify="right", no_wrap=True)
    losses = [result["val_nats"][precision] for precision in PRECISIONS]
    for seed, *nats, added in zip(result["seeds"], *losses, result["bfloat16_adds"], strict=True):
        shown.add_row(str(seed), *(f"{each:.4f}" for each in nats), f"{added:+.4f}")
    shown.caption = (
        f"mean difference {result['bfloat16_adds_mean']:+.4f} nats; "
        f"range over the float32 seeds {result['float32_seeds_range']:.4f}"
    )
    return shown


def _curve(config: Path, data: Path, settings: tuple[str, ...], run: Path) -> Curve:
    options = [option for setting in settings for option in ("--set", setting)]
    command = [sys.executable, "-m", "trainers", "train", str(config), "--data", str(data), "--out", str(run)]
    measure([*command, "--unvalidated", *options])  # the text's quality does not matter here
    return [(row["step"], row["val_nats"]) for row in metrics.evaluations(run)]
