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
    units: int = Field(128, gt=0)  # H, the cells of a layer
    layers: int = Field(2, gt=0)  # L
    embedding: int = Field(0, ge=0)  # E, numbers that stand for a character, learned; 0: one-hot, V numbers
    dropout: float = Field(0.0, ge=0, lt=1)  # the share of a layer's outputs hidden from the next layer while training
    variational_dropout: bool = False  # the same outputs at every step of a window (Gal & Ghahramani 2016)
    layer_norm: bool = False  # normalizes what each layer gives to the next, and the last one to the logits

    def __post_init__(self) -> None:
        if self.dropout and self.layers == 1:
            raise ValueError(
                f"dropout lies between layers, so it needs 2 of them or more, got dropout={self.dropout}, layers=1"
            )
        if self.variational_dropout and not self.dropout:
            raise ValueError("variational_dropout says which outputs dropout hides, so it needs dropout above 0, got 0")


@settings
class TrainConfig:
    """How a model is trained. Lanes x window characters are seen a step."""

    lanes: int = Field(50, gt=0)  # B, the streams read side by side: the batch
    window: int = Field(50, gt=0)  # T, the characters that gradients flow back through (truncated BPTT)
    epochs: float = Field(1.0, gt=0)  # passes over the train split; a fraction is allowed
    learning_rate: float = Field(0.002, gt=0)  # Adam's, at step 0
    decay: float = Field(
        1.0, gt=0, le=1
    )  # the learning rate at the last step as a share of the first: exponential; 1 is constant
    clip: float = Field(5.0, gt=0)  # the largest global norm of the gradient
    seed: int = Field(1, ge=0, lt=2**31)  # of the initial weights and of dropout
    precision: Literal["float32", "bfloat16"] = "float32"  # of the layers' products on a CPU; all else is float32
    evaluate_every: int = Field(500, gt=0)  # steps from one validation, and checkpoint, to the next
    keep: int = Field(2, gt=0)  # the last checkpoints that stay on disk; the best by validation stays besides


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
