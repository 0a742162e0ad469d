"""Runs of a tiny model: trained for a few steps without the command line, or with random weights."""

import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.files import write_json
from pipeline.manifest import Manifest, read_manifest
from trainers.checkpoint import TrainState
from trainers.config import ModelConfig, RunConfig
from trainers.run import Run, open_run
from trainers.training.devices import Devices
from trainers.training.loop import Training

TEXT = b"the quick brown fox jumps over the lazy dog.\n" * 4
EPOCH_STEPS = 15  # of TEXT in 4 lanes and windows of 3


def tiny_config(**train: object) -> RunConfig:
    """Config of 4 lanes x 3 characters, with reports every 3 steps, evaluations every 5, and no samples."""
    settings = {"lanes": 4, "window": 3, "evaluate_every": 5, "report_every": 3, "learning_rate": 0.01}
    settings |= {"precision": "float32", "sample": 0, **train}
    return RunConfig.from_tables({"units": 8, "layers": 2, "dropout": 0.2}, settings, "test")


def random_run(folder: Path, manifest: Manifest, text: bytes, step: int, model: dict[str, Any] | None = None) -> Path:
    """Write a run on the data set in its sibling folder `data`, with a single checkpoint of random weights.

    The bias of the logits matches the frequencies of the symbols in `text`.
    """
    config = tiny_config() if model is None else dataclasses.replace(tiny_config(), model=ModelConfig(**model))
    run = Run(folder, config, manifest.vocab, folder.parent / "data", manifest.data_sha256)
    write_json(run.folder / "run.json", run.to_json())
    net, counts_V = run.build(), np.bincount(manifest.vocab.encode(text), minlength=manifest.vocab.size)
    net.dense.bias.assign(np.log(counts_V + 0.001))
    TrainState(net, keras.optimizers.SGD(), config.train.lanes).save(run, step, 1.0)
    return folder


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
