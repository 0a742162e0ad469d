"""The settings of a model and of its training, checked when they are made."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from common.errors import UsageError
from common.settings import make, read_config, settings


@settings
class ModelConfig:
    """A stack of recurrent layers between characters and logits."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"  # rnn: the plain one, a tanh
    # H, the cells of a layer. On a CPU rather 240 or 272 than 256: it trained slower than either (bench/LOG.md).
    units: int = Field(128, gt=0)
    layers: int = Field(2, gt=0)  # L
    embedding: int = Field(0, ge=0)  # E, numbers that stand for a character, learned; 0: one-hot, V numbers
    dropout: float = Field(0.0, ge=0, lt=1)  # the share of a layer's outputs hidden from the next layer while training
    output_dropout: float = Field(0.0, ge=0, lt=1)  # and of the last layer's from the logits; char-rnn: as dropout
    variational_dropout: bool = False  # the same outputs at every step of a window (Gal & Ghahramani 2016)
    layer_norm: bool = False  # normalizes what each layer gives to the next, and the last one to the logits

    def __post_init__(self) -> None:
        if self.dropout and self.layers == 1:
            raise ValueError(
                f"dropout lies between layers, so it needs 2 of them or more, got dropout={self.dropout}, layers=1: "
                "output_dropout lies behind the last"
            )
        if self.variational_dropout and not (self.dropout or self.output_dropout):
            raise ValueError(
                "variational_dropout says which outputs dropout hides, so it needs dropout or output_dropout above 0, "
                "got neither"
            )


@settings
class TrainConfig:
    """How a model is trained. Lanes x window characters are seen a step."""

    lanes: int = Field(50, gt=0)  # B, the streams read side by side, over all replicas and workers: the batch
    window: int = Field(50, gt=0)  # T, the characters that gradients flow back through (truncated BPTT)
    epochs: float = Field(1.0, gt=0)  # passes over the train split; a fraction is allowed

    # Keras's own; the essay's is rmsprop. muon: matrices from units to units go by their momentum made orthogonal
    # (Jordan 2024; Liu et al. 2025), all else by adam at the same rate: half the steps, each up to a third longer.
    optimizer: Literal["adam", "adamw", "muon", "rmsprop", "sgd"] = "adam"
    learning_rate: float = Field(0.002, gt=0)  # at its highest
    # From there: constant; exponential or cosine, down to `decay` times as much at the last step; char-rnn: times
    # `decay` at the start of each epoch from `decay_after` on (char-rnn's own are 0.97 and 10).
    schedule: Literal["constant", "exponential", "cosine", "char-rnn"] = "constant"
    decay: float = Field(1.0, gt=0, le=1)
    decay_after: int = Field(10, ge=0)  # epochs
    warmup: int = Field(0, ge=0)  # steps over which the learning rate first rises from 0, in a straight line
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd
    weight_decay: float = Field(0.0, ge=0)  # taken off the kernels a step, as a share of them, times the learning rate
    clip: float = Field(5.0, gt=0)  # the largest global norm of the gradient, or the largest value in it
    clip_by: Literal["norm", "value"] = "norm"

    patience: int = Field(0, ge=0)  # evaluations in a row without a better one that end the training; 0: none does
    diverged: float = Field(3.0, gt=1)  # the train loss, as a multiple of the lowest so far, that ends it in an error
    seed: int = Field(1, ge=0, lt=2**31)  # of the initial weights and of dropout
    # Of the layers' products on a CPU; all else is float32. auto: bfloat16 where the processor multiplies it.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    report_every: int = Field(100, gt=0)  # steps from one line of metrics.jsonl to the next
    evaluate_every: int = Field(500, gt=0)  # steps from one validation, sample and checkpoint to the next
    checkpoint_minutes: float = Field(10.0, gt=0)  # the longest time between checkpoints
    keep: int = Field(2, gt=0)  # the last checkpoints that stay on disk; the best by validation stays besides
    sample: int = Field(
        200, ge=0
    )  # characters that the model writes at each evaluation, and early on, to show how it comes on
    histograms: bool = False  # of gradients and gates, for TensorBoard, at each evaluation
    # Keras callbacks: {name = "CSVLogger", filename = "log.csv"}; one of your own as name = "module:Class". What Keras
    # calls an epoch is here the stretch from one evaluation to the next.
    callbacks: list[dict[str, Any]] = Field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.schedule == "constant") != (self.decay == 1):
            raise ValueError(
                "a falling learning rate has a schedule and a decay below 1, a constant one neither, got "
                f"schedule={self.schedule}, decay={self.decay}"
            )
        if self.optimizer == "adamw" and not self.weight_decay:
            raise ValueError("adamw is adam with weight decay, so it needs weight_decay above 0, got weight_decay=0.0")
        for callback in self.callbacks:
            if not isinstance(callback.get("name"), str):
                raise ValueError(f"a callback is a table with a name, such as name = 'CSVLogger', got {callback}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What a run is made from: enough to make it again."""

    model: ModelConfig
    train: TrainConfig

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_tables(cls, model: dict[str, Any], train: dict[str, Any], where: str) -> "RunConfig":
        """Raises UsageError naming `where` and the setting that breaks its rule."""
        return cls(
            model=make(ModelConfig, model, f"{where} [model]"),
            train=make(TrainConfig, train, f"{where} [train]"),
        )

    @classmethod
    def read(cls, path: Path, overrides: tuple[str, ...] = ()) -> "RunConfig":
        """Reads the [model] and [train] sections of a TOML config, with `section.setting=value` overrides.

        Raises UsageError for an unknown section or setting, a wrong type, or a value out of its bounds.
        """
        tables = read_config(path, overrides)
        for override in overrides:
            if not override.strip().startswith(("model.", "train.")):
                raise UsageError(f"--set changes [model] and [train] here, got '{override}': data is made by ingest")
        return cls.from_tables(tables["model"], tables["train"], str(path))
