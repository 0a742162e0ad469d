"""Overhead of watching a run: the same training with and without reports, progress bar, TensorBoard, samples,
histograms and callbacks. Both evaluate and save checkpoints.

Each turn is one process. The two turns of a round are adjacent, in alternating order; the overhead is the median of
per-round ratios, for the reasons given in bench.train.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.machine import provenance
from common import console
from common.errors import StageError
from common.files import write_json
from pipeline.lanes import windows_per_epoch
from pipeline.manifest import read_manifest
from trainers.config import RunConfig

ARMS = ("bare", "watched")
Turn = dict[str, Any]  # first: seconds to the first evaluation; stretches: seconds between later evaluations


def compare(config: Path, data: Path, rounds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Print a table and write out/bench-watch.json: seconds from one evaluation to the next, watched and bare.

    Raises StageError for uncommitted code, for fewer than two evaluations, or if a turn fails.
    """
    origin = provenance()
    every = RunConfig.read(config, overrides).train.evaluate_every
    if steps < 2 * every:
        raise StageError(f"the first evaluation does not count: need at least {2 * every} steps, got {steps}")
    turns: dict[str, list[Turn]] = {arm: [] for arm in ARMS}
    with console.progress("turns") as bar:
        for arm in bar.track([arm for index in range(rounds) for arm in (ARMS, ARMS[::-1])[index % 2]]):
            turns[arm].append(_turn(arm, config, data, steps, overrides))
    result = {
        "format_version": 1,
        "config": RunConfig.read(config, overrides).to_json(),
        "data": data.name,
        "steps": steps,
        **overhead(turns),
        "rounds": turns,
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "tensorboard", "rich")},
        **origin,
    }
    write_json(out / "bench-watch.json", result)
    console.out.print(table(result))


def overhead(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Return the overhead of watching: relative for later stretches, in seconds for the first, with its set-up."""
    medians = {arm: [statistics.median(turn["stretches"]) for turn in turns[arm]] for arm in ARMS}
    ratios = [watched / bare for bare, watched in zip(*medians.values(), strict=True)]
    firsts = [watched["first"] - bare["first"] for bare, watched in zip(*turns.values(), strict=True)]
    return {
        "stretch_seconds": {arm: statistics.median(each) for arm, each in medians.items()},
        "extra_share": statistics.median(ratios) - 1,
        "extra_share_of_rounds": [ratio - 1 for ratio in ratios],
        "extra_first_seconds": statistics.median(firsts),
    }


def table(result: dict[str, Any]) -> Table:
    """Render the results for the terminal and docs/benchmarks.md."""
    model, every = result["config"]["model"], result["config"]["train"]["evaluate_every"]
    title = f"{result['data']}, {model['layers']} x {model['units']}: seconds per {every:,} steps and evaluation"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None)
    for column in (*ARMS, "overhead", "per round", "start-up"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_row(
        *(f"{result['stretch_seconds'][arm]:.2f}" for arm in ARMS),
        f"{result['extra_share']:+.1%}",
        " ".join(f"{share:+.1%}" for share in result["extra_share_of_rounds"]),
        f"{result['extra_first_seconds']:+.1f} s",
    )
    return shown


def _turn(arm: str, config: Path, data: Path, steps: int, overrides: tuple[str, ...]) -> Turn:
    """Train in a separate process. The watched arm has a terminal, and draws its bar on it."""
    command = [sys.executable, "-m", "bench.watch", arm, str(config), str(data), str(steps), *overrides]
    screen, terminal = os.openpty()
    errors = terminal if arm == "watched" else subprocess.DEVNULL
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
            os.close(terminal)
            drawn = pool.submit(_drain, screen)
            output = process.communicate()[0]
        if process.returncode:
            raise StageError(f"a turn exited with code {process.returncode}: for its errors, run {shlex.join(command)}")
        if arm == "watched" and b"steps" not in drawn.result():
            raise StageError("the watched turn drew no progress bar")
    return json.loads(output)


def _drain(screen: int) -> bytes:
    """Read what is drawn on a terminal until its last process has ended."""
    drawn = b""
    with open(screen, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while part := file.read(1 << 16):
            drawn += part
    return drawn


def _settings(arm: str, run: Path, steps: int) -> dict[str, Any]:
    """Return the training settings that differ between the arms."""
    if arm == "bare":
        return {"report_every": steps, "sample": 0, "histograms": False, "callbacks": []}
    callbacks = [
        {"name": "CSVLogger", "filename": str(run / "log.csv")},
        {"name": "TensorBoard", "log_dir": str(run / "keras")},
    ]
    return {"histograms": True, "callbacks": callbacks}


def _main(arm: str, config: str, data: str, steps: str, *overrides: str) -> None:
    """Train one turn and print its times as JSON."""
    import keras

    from trainers.training import loop

    ends = []
    timer = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: ends.append(time.perf_counter()),
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()),
    )
    settings = RunConfig.read(Path(config), overrides)
    train, tokens = settings.train, read_manifest(Path(data)).split("train").tokens
    epochs = int(steps) / windows_per_epoch(tokens, train.lanes, train.window)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        train = dataclasses.replace(train, epochs=epochs, **_settings(arm, run, int(steps)))
        settings = dataclasses.replace(settings, train=train)
        loop.train(settings, Path(data), run, loop.Options(unvalidated=True), [timer])
    first, *stretches = [end - begin for begin, end in itertools.pairwise(ends)]
    print(json.dumps({"first": first, "stretches": stretches}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
