"""What it costs to watch a run: the same training with all that shows and keeps it, and with none of it, in turns.

A turn is a process of its own. Two turns of a round lie beside each other, every other round the other way round; the
cost is the median of the rounds' ratios, so that what else the machine does touches both (bench/train.py tells more).
Both validate and save alike: what is compared is reports, the bar on a terminal, TensorBoard, samples, histograms, and
callbacks.
"""

import dataclasses
import datetime
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

from bench.machine import commit, machine
from common import console
from common.errors import StageError
from common.files import write_json
from pipeline.lanes import windows_per_epoch
from pipeline.manifest import read_manifest
from trainers.config import RunConfig

ARMS = ("bare", "watched")
Turn = dict[str, Any]  # first: seconds to the end of the first stretch; stretches: of each later one


def compare(config: Path, data: Path, rounds: int, steps: int, overrides: tuple[str, ...], out: Path) -> None:
    """Print a table and write out/bench-watch.json: seconds from one evaluation to the next, watched and bare.

    Raises StageError where the code is not committed, where there are too few evaluations to tell, or a turn fails.
    """
    made_at = {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}
    every = RunConfig.read(config, overrides).train.evaluate_every
    if steps < 2 * every:
        raise StageError(f"{steps} steps hold fewer than two evaluations, {every} apart: the first one does not count")
    turns: dict[str, list[Turn]] = {arm: [] for arm in ARMS}
    with console.progress("turns") as bar:
        for arm in bar.track([arm for index in range(rounds) for arm in (ARMS, ARMS[::-1])[index % 2]]):
            turns[arm].append(_turn(arm, config, data, steps, overrides))
    result = {
        "format_version": 1,
        "config": RunConfig.read(config, overrides).to_json(),
        "data": data.name,
        "steps": steps,
        **extra(turns),
        "rounds": turns,
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "tensorboard", "rich")},
        **made_at,
    }
    write_json(out / "bench-watch.json", result)
    console.out.print(table(result))


def extra(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """What watching adds: to a stretch, as a share, and to the first one, which is where all is set up, in seconds."""
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
    """The figures, for the terminal and docs/benchmarks.md."""
    model, every = result["config"]["model"], result["config"]["train"]["evaluate_every"]
    title = f"{result['data']}, {model['layers']} x {model['units']}: seconds for {every:,} steps and their evaluation"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None)
    for column in (*ARMS, "watching adds", "in each round", "once"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_row(
        *(f"{result['stretch_seconds'][arm]:.2f}" for arm in ARMS),
        f"{result['extra_share']:+.1%}",
        " ".join(f"{share:+.1%}" for share in result["extra_share_of_rounds"]),
        f"{result['extra_first_seconds']:+.1f} s",
    )
    return shown


def _turn(arm: str, config: Path, data: Path, steps: int, overrides: tuple[str, ...]) -> Turn:
    """One training, in a process of its own. Watched, it believes to be on a terminal, and draws its bar."""
    command = [sys.executable, "-m", "bench.watch", arm, str(config), str(data), str(steps), *overrides]
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    environment |= {"FORCE_COLOR": "1", "COLUMNS": "100"} if arm == "watched" else {}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, check=False)
    if done.returncode:
        raise StageError(f"a turn ended with code {done.returncode}: to see why, run {shlex.join(command)}")
    return json.loads(done.stdout)


def _settings(arm: str, run: Path, steps: int) -> dict[str, Any]:
    if arm == "bare":
        return {"report_every": steps, "sample": 0, "histograms": False, "callbacks": []}
    callbacks = [
        {"name": "CSVLogger", "filename": str(run / "log.csv")},
        {"name": "TensorBoard", "log_dir": str(run / "keras")},
    ]
    return {"histograms": True, "callbacks": callbacks}


def _main(arm: str, config: str, data: str, steps: str, *overrides: str) -> None:
    """A turn's process: trains, and prints its times as JSON."""
    import keras

    from trainers.training import loop

    ends = []
    note = keras.callbacks.LambdaCallback(
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
        loop.train(settings, Path(data), run, loop.Options(unvalidated=True), [note])
    first, *stretches = [end - begin for begin, end in itertools.pairwise(ends)]
    print(json.dumps({"first": first, "stretches": stretches}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
