"""The settings of a model and of its training, checked at construction."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from common.errors import UsageError
from common.printable import brief
from common.settings import make, read_config, settings

# Upper limits catch typing errors before the data is read; real settings are far below them.
MOST_WEIGHTS = 10**10  # 40 GB in float32, and three times that with Adam's averages
MOST_TARGETS = 1 << 26  # of a step; at 1 x 128 units their activations take 100 GB
MOST_STEPS = 10**9

# Precision of the matrix products; weights and sums stay in float32. tf32 rounds the factors to 10 bits; it and float16
# need a GPU. auto: tf32 on a GPU, bfloat16 on a processor that multiplies it faster, else float32.
Precision = Literal["auto", "float32", "tf32", "float16", "bfloat16"]


@settings
class ModelConfig:
    """Stack of recurrent layers between characters and logits."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"  # rnn: a plain tanh
    units: int = Field(128, gt=0, le=1 << 16)  # H, per layer
    layers: int = Field(2, gt=0, le=1000)  # L
    embedding: int = Field(0, ge=0, le=1 << 16)  # E, units of a learned embedding; 0: one-hot
    dropout: float = Field(0.0, ge=0, lt=1)  # between layers
    output_dropout: float = Field(0.0, ge=0, lt=1)  # between the last layer and the logits; char-rnn: same as dropout
    layer_norm: bool = False  # normalize each layer's output

    def __post_init__(self) -> None:
        weights = self.layers * 8 * self.units**2
        if weights > MOST_WEIGHTS:
            raise ValueError(
                f"{self.layers} layers of {self.units} units have up to {weights:,} weights, the limit is "
                f"{MOST_WEIGHTS:,} ({MOST_WEIGHTS * 4 // 10**9} GB)"
            )
        if self.dropout and self.layers == 1:
            raise ValueError(
                f"dropout applies between layers and needs at least 2, got dropout={self.dropout}, layers=1; "
                "output_dropout applies after the last"
            )


@settings
class TrainConfig:
    """Settings of training. A step reads lanes x window characters."""

    lanes: int = Field(50, gt=0, le=1 << 20)  # B, parallel streams over all replicas and workers: the batch size
    window: int = Field(50, gt=0, le=1 << 20)  # T, characters per step, the reach of gradients (truncated BPTT)
    epochs: float = Field(1.0, gt=0, le=1e6)  # passes over the train split; may be a fraction

    # From keras.optimizers; the essay used rmsprop. muon orthogonalizes the updates of unit-to-unit matrices (Jordan
    # 2024; Liu et al. 2025) and leaves everything else to adam: fewer, longer steps.
    optimizer: Literal["adam", "adamw", "muon", "rmsprop", "sgd"] = "adam"
    learning_rate: float = Field(0.002, gt=0, le=1e3)  # the peak
    # After the peak: constant; exponential or cosine, falling to `decay` times the peak at the last step; char-rnn:
    # multiplied by `decay` at the end of each epoch from the tenth on (char-rnn's decay is 0.97).
    schedule: Literal["constant", "exponential", "cosine", "char-rnn"] = "constant"
    decay: float = Field(1.0, gt=0, le=1)
    warmup: int = Field(0, ge=0, lt=2**31)  # steps over which the learning rate first rises linearly from 0
    weight_decay: float = Field(0.0, ge=0, le=1e3)  # of the kernels, per step, times the learning rate
    clip: float = Field(5.0, gt=0, le=1e12)  # maximum of the gradients' global norm

    patience: int = Field(0, ge=0, le=MOST_STEPS)  # evaluations without improvement that end training; 0: never
    seed: int = Field(1, ge=0, lt=2**31)  # for initial weights and dropout
    precision: Precision = "auto"

    report_every: int = Field(100, gt=0, le=MOST_STEPS)  # steps between lines of metrics.jsonl
    evaluate_every: int = Field(500, gt=0, le=MOST_STEPS)  # steps between validations with a sample and a checkpoint
    checkpoint_minutes: float = Field(10.0, gt=0, le=1e6)  # between checkpoints, at most
    keep: int = Field(2, gt=0, le=10**6)  # recent checkpoints to keep on disk, besides the best by validation
    snapshots: list[NonNegativeInt] = Field(default_factory=list)  # steps whose checkpoints are written and kept too
    sample: int = Field(200, ge=0, le=1 << 20)  # characters to write, as progress, at each evaluation and early on
    histograms: bool = False  # log gradients and gates to TensorBoard at each evaluation
    # Keras callbacks: {name = "CSVLogger", filename = "log.csv"}, or your own as name = "module:Class", which needs
    # --allow-code. Their epoch is the interval between two evaluations.
    callbacks: list[dict[str, Any]] = Field(default_factory=list)

    def __post_init__(self) -> None:
        if self.lanes * self.window > MOST_TARGETS:
            raise ValueError(
                f"a step of {self.lanes} lanes x {self.window} characters is too large: use at most {MOST_TARGETS:,}"
            )
        if (self.schedule == "constant") != (self.decay == 1):
            raise ValueError(
                "a schedule needs a decay below 1, and a constant learning rate a decay of 1, got "
                f"schedule={self.schedule}, decay={self.decay}"
            )
        if self.optimizer == "adamw" and not self.weight_decay:
            raise ValueError("adamw needs weight_decay above 0, got weight_decay=0.0")
        for callback in self.callbacks:
            if not isinstance(callback.get("name"), str):
                raise ValueError(f"a callback needs a name, such as name = 'CSVLogger', got {brief(repr(callback))}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    model: ModelConfig
    train: TrainConfig

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_tables(cls, model: dict[str, Any], train: dict[str, Any], where: str) -> "RunConfig":
        """Build from a config's sections. Raises UsageError with `where` and the invalid setting."""
        return cls(
            model=make(ModelConfig, model, f"{where} [model]"),
            train=make(TrainConfig, train, f"{where} [train]"),
        )

    @classmethod
    def read(cls, path: Path, overrides: tuple[str, ...] = ()) -> "RunConfig":
        """Read the [model] and [train] sections of a TOML config, with `section.setting=value` overrides.

        Raises UsageError for an unknown section or setting, a wrong type, or a value out of range.
        """
        tables = read_config(path, overrides)
        for override in overrides:
            if not override.strip().startswith(("model.", "train.")):
                raise UsageError(f"--set takes settings of [model] and [train] here, not of [data], got '{override}'")
        return cls.from_tables(tables["model"], tables["train"], str(path))
