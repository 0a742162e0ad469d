"""Command-line options for sampling, shared by the commands that write text."""

import math
import os
from collections.abc import Callable
from typing import Any

import click

from common.errors import UsageError
from common.machine import gpus, hide_gpus, use_gpus

SEED = click.IntRange(-(1 << 63), (1 << 63) - 1)
VERSION = click.IntRange(0, (1 << 63) - 1)  # of a served model
LARGEST = 1e30  # well within the range of float32

count = click.option(
    "--count",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Texts per prompt, as JSON lines; each adds 1 to the seed.",
)


def later_seed(seed: int, index: int) -> int:
    """Count up from a seed; the largest is followed by the smallest."""
    return (seed + index + (1 << 63)) % (1 << 64) - (1 << 63)


def _finite(context: click.Context, option: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.UsageError(f"{option.opts[0]} must be a finite number, got {value}")
    return value


_OPTIONS = (
    click.option(
        "--length", type=click.IntRange(0, 1 << 20), default=500, show_default=True, help="Characters to write."
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0, LARGEST),
        callback=_finite,
        default=0.8,
        show_default=True,
        help="0 always takes the likeliest character, 1 keeps the model's own distribution.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0, (1 << 31) - 1),
        default=0,
        help="Sample only from this many of the most likely characters.  [default: all]",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        callback=_finite,
        default=1.0,
        help="Sample only from the most likely characters that reach this total probability.",
    ),
    click.option(
        "--repetition-penalty",
        type=click.FloatRange(1 / LARGEST, LARGEST),
        callback=_finite,
        default=1.0,
        help="Above 1, make the last 64 characters less likely.",
    ),
    click.option(
        "--stop",
        default="",
        metavar="TEXT",
        callback=lambda context, option, text: os.fsencode(text),  # the bytes as typed, in any locale
        help="Stop before this text, of at most 64 characters.",
    ),
)


def _choose_device(context: click.Context, option: click.Parameter, device: str) -> None:
    if device == "cpu":
        hide_gpus()
        return
    if not gpus():
        raise UsageError("--device gpu: nvidia-smi reports no GPU; omit the option, or install NVIDIA's driver")
    use_gpus()


# Takes effect before the command imports TensorFlow.
device = click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    expose_value=False,
    callback=_choose_device,
    help="Where to compute.",
)


def sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options length, temperature, top_k, top_p, repetition_penalty and stop (bytes) to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
