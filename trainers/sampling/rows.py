"""The rows of a call: request, limits, result, and the padding between the caller's rows and the graph's.

Legend: B rows requested, R rows run.
"""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from common.errors import UsageError
from trainers.sampling.stepper import padded_rows


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a call. Raises UsageError for one that no call could reach."""

    length: int = 4096  # characters to write, per row
    prompt: int = 4096  # characters to read, per row
    rows: int = 64
    pictured: int = 1024  # characters per row for `neurons`, which returns two vectors for each

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 1 <= getattr(self, field.name) <= 1 << 20:
                raise UsageError(f"limits: {field.name} must be 1 to {1 << 20:,}, got {getattr(self, field.name)}")


class Request(NamedTuple):
    """Request of a call, one entry per row in each column."""

    prompt_B: tf.Tensor  # string
    length_B: tf.Tensor  # int32: characters to write
    temperature_B: tf.Tensor  # float32; 0: greedy
    seed_B: tf.Tensor  # int64
    # The options: all or none.
    top_k_B: Any = None  # int32; 0: all
    top_p_B: Any = None  # float32; 1: all
    penalty_B: Any = None  # float32, repetition penalty; 1: none
    stop_B: Any = None  # string; empty: none

    @property
    def columns(self) -> list[tf.Tensor]:
        return [column for column in self if column is not None]


# The type of each column, and the value that replaces it in an invalid row.
REQUEST_TYPES = (tf.string, tf.int32, tf.float32, tf.int64, tf.int32, tf.float32, tf.float32, tf.string)
NEUTRAL = ("", 0, 1.0, 0, 0, 1.0, 1.0, "")


class Generation(NamedTuple):
    """Generated text, one entry per row."""

    text_bytes: tf.Tensor  # without the stop or the end of document that ended it
    n_chars: tf.Tensor  # int32
    log_prob: tf.Tensor  # float32, nats: of the text under the model, at temperature 1 and without options
    finish_reason: tf.Tensor  # length | stop | error: …
    n_back: tf.Tensor  # int32: bytes of the stop that earlier pieces have already returned


class Rows:
    """Rows of a call, padded for the graph. A call of more than `limit` rows runs none of them."""

    def __init__(self, first_B: tf.Tensor, limit: int):
        self.requested = tf.shape(first_B)[0]
        self.limit, fits = limit, self.requested <= limit
        self.accepted = tf.where(fits, self.requested, 0)
        self.run = padded_rows(self.accepted)

    def pad(self, *columns_B: tf.Tensor) -> list[tf.Tensor]:
        """Pad the columns with empty rows. Fails where a column is not as long as the first."""
        columns_B = tuple(tf.reshape(column_B, [self.requested]) for column_B in columns_B)
        return [tf.pad(column_B[: self.accepted], [[0, self.run - self.accepted]]) for column_B in columns_B]

    def unpad(self, x: tf.Tensor) -> tf.Tensor:
        """Keep the results of the requested rows, or zeros if there were too many."""
        return tf.pad(x[: self.accepted], [[0, self.requested - self.accepted]] + [[0, 0]] * (len(x.shape) - 1))

    def errors(self, problem_R: tf.Tensor) -> tf.Tensor:
        """Problems of the rows as the caller sees them: "error: …", or empty."""
        problem_B = self.unpad(problem_R)
        many = tf.strings.join([f"at most {self.limit} rows per call, got ", tf.strings.as_string(self.requested)])
        problem_B = tf.where(self.requested > self.limit, many, problem_B)
        return tf.where(problem_B == "", "", "error: " + problem_B)
