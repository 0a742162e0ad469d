"""Short runs of a tiny model, trained without the command line."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from common.files import write_json
from pipeline.manifest import read_manifest
from trainers.config import RunConfig
from trainers.run import Run, open_run
from trainers.training.devices import Devices
from trainers.training.loop import Training

TEXT = b"the quick brown fox jumps over the lazy dog.\n" * 4
EPOCH_STEPS = 15  # steps: TEXT in 4 lanes and windows of 3


def tiny_config(**train: object) -> RunConfig:
    """4 lanes x 3 characters, reports every 3 steps, evaluations every 5, no samples."""
    settings = {"lanes": 4, "window": 3, "evaluate_every": 5, "report_every": 3, "learning_rate": 0.01}
    settings |= {"precision": "float32", "sample": 0, **train}
    return RunConfig.from_tables({"units": 8, "layers": 2, "dropout": 0.2}, settings, "test")


def tiny_training(
    folder: Path,
    data: Path,
    devices: Devices,
    total: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **train: object,
) -> Training:
    """Start or resume training of the run in `folder`, up to step `total`."""
    manifest = read_manifest(data)
    run = open_run(Run(folder, tiny_config(**train), manifest.vocab, data, manifest.data_sha256))
    write_json(folder / "run.json", run.to_json())  # as hold() does
    return Training(run, manifest, devices, EPOCH_STEPS, total, callbacks)


def interrupted(training: Training, at: int) -> Training:
    """Send SIGTERM during the step before `at`, and train one step per call."""
    train = training.steps.train

    def spy(batches: Any, carry: Any, first: tf.Tensor, count: tf.Tensor) -> Any:
        if int(first) == at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(batches, carry, first, count)

    training.steps.train = spy  # type: ignore[method-assign]
    training._count = lambda step: 1  # type: ignore[method-assign]
    return training
