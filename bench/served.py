"""What `bench serve` measures: a model of random weights, exported as a run's is, and a server of it."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.loops import VOCAB, WEIGHTS
from bench.machine import ROOT
from bench.peers import Size
from common import console
from common.errors import StageError
from common.files import whole_folder
from export.serve.facts import TOOLS
from export.serve.package import write_package
from export.serve.saved_model import write_version
from export.serve.signatures import Served
from trainers.config import RunConfig
from trainers.model.char_rnn import CharRNN
from trainers.sampling.rows import Limits
from trainers.sampling.sampler import Sampler

STAND_IN = ROOT / "tests/serving_stand_in.py"
SHARPER = 4.0  # times Glorot's dense kernel: texts that are drawn from it are neither noise nor one letter


class Exported(NamedTuple):
    """A model as the export wrote it, in a folder as a server wants it, and what that took."""

    base: Path
    served: Served  # the checkpoint's own answers
    seconds: float
    bytes: int  # of graph, weights and warm-up


def config_of(size: Size) -> RunConfig:
    """That of a run, all else as it comes."""
    return RunConfig.from_tables({"units": size.units, "layers": size.layers}, {}, size.name)


def model_of(size: Size) -> CharRNN:
    """An LSTM over VOCAB; the same one whenever it is made."""
    model = CharRNN(config_of(size).model, VOCAB.size)
    model.dense.kernel.assign(SHARPER * model.dense.kernel)
    return model


def export(size: Size, base: Path) -> Exported:
    """Writes base/1 with its package, and its weights beside base: the steps of saved_model.py, which begins at
    a run. Only the fresh process that proves the files is left out; whoever measures asks them for more than it does.
    """
    model, limits = model_of(size), Limits()
    tools = {name: importlib.metadata.version(name) for name in TOOLS}
    weights = hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()
    about = {
        "format_version": 1,
        "run": size.name,
        "step": 0,
        "val_nats": float(np.log(VOCAB.size)),
        "weights_sha256": weights,
        "data_sha256": hashlib.sha256(b"").hexdigest(),
        "config": config_of(size).to_json(),
        "vocab": VOCAB.to_json(),
        "unit": VOCAB.unit,
        "limits": dataclasses.asdict(limits),
    }
    start = time.perf_counter()
    served = Served(Sampler(model, VOCAB, limits, frozen=True), json.dumps(about, ensure_ascii=False))
    with whole_folder(base / "1") as partial:
        write_version(partial, base.name, served)
        seconds = time.perf_counter() - start
        written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    facts = {"parameters": model.count_params(), "tools": {"python": platform.python_version(), **tools}}
    with console.err.capture():  # it tells of labels
        write_package(base, 1, facts)
    np.savez(base.parent / WEIGHTS, *model.get_weights())
    return Exported(base, served, seconds, written)


class StandIn:
    """The stand-in for TF Serving, a process of its own. A context manager.

    batching: with the parameters that the export writes beside the model.
    """

    def __init__(self, base: Path, batching: bool):
        self.model = base.name
        self.command = [sys.executable, str(STAND_IN), str(base)]
        self.command += ["--batching", str(base / "batching_params.pbtxt")] if batching else []
        self._log = (base.parent / f"stand-in-{'batching' if batching else 'plain'}.log").open("w+")
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self._log, text=True)

    def __enter__(self) -> "StandIn":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    @functools.cached_property
    def target(self) -> str:
        """Where it answers, once it does. Raises StageError where it ended instead."""
        return f"localhost:{self._line()}"

    def batches(self) -> dict[int, int]:
        """How many runs of the graph had so many rows, since this was asked for last."""
        self.process.send_signal(signal.SIGUSR1)
        return {int(rows): count for rows, count in json.loads(self._line()).items()}

    def memory(self) -> int:
        """The bytes of memory that it holds now."""
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
            return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024
        return 0  # it is gone

    def last_words(self) -> str:
        """The last line of what it said on standard error."""
        self._log.flush()
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise StageError(f"the stand-in ended with code {self.process.wait()}: {self.last_words()}")
        return line
