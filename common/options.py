"""Options that several command lines share: how a text is drawn."""

from collections.abc import Callable
from typing import Any

import click

SEED = click.IntRange(-(1 << 63), (1 << 63) - 1)

_OPTIONS = (
    click.option("--length", type=click.IntRange(0), default=500, show_default=True, help="Characters to write."),
    click.option(
        "--temperature",
        type=click.FloatRange(0),
        default=0.8,
        show_default=True,
        help="0 is the likeliest text, 1 the model's own.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0, (1 << 31) - 1),
        default=0,
        help="Draw from so many of the likeliest characters.  [default: all]",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        help="From as few as have this probability together.",
    ),
    click.option(
        "--repetition-penalty",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        help="Above 1: the last 64 characters are less likely to come again.",
    ),
    click.option("--stop", default="", metavar="TEXT", help="End ahead of this text, which has 64 characters at most."),
)


def sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options length, temperature, top_k, top_p, repetition_penalty and stop."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
