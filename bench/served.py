"""Export of a random model for `bench serve` and `bench lite`."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.peers import Size
from bench.random_model import VOCAB, WEIGHTS, config_of, model_of
from common.files import whole_folder
from export.serve.saved_model import bounded, write_version
from export.serve.signatures import Served
from trainers.sampling.rows import Limits
from trainers.sampling.sampler import Sampler


class Exported(NamedTuple):
    """Model exported to the folder that a server loads."""

    base: Path
    seconds: float  # of the export
    bytes: int  # graph, weights and warm-up


def export(size: Size, base: Path) -> Exported:
    """Write base/1, and the weights next to base, with the steps of export/serve/saved_model.py.

    Skips the verification in a fresh process: the benchmarks compare the peers' logits before timing them.
    """
    model = model_of(size)
    limits = bounded(Limits(), model.config)
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
    np.savez(base.parent / WEIGHTS, *model.get_weights())
    return Exported(base, seconds, written)
