import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import bench.__main__
import export.__main__
import pipeline.__main__
import trainers.__main__
from common import options
from common.errors import StageError, UsageError

HIDDEN = "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("cli", "arguments", "hides"),
    [
        *((trainers.__main__.cli, [name, "missing"], True) for name in ("sample", "judge", "neurons", "info")),
        (trainers.__main__.cli, ["score", "missing", "missing"], True),
        *((trainers.__main__.cli, [name, "missing"], False) for name in ("train", "evaluate")),
        (bench.__main__.cli, ["results", "missing"], True),
        (export.__main__.cli, ["tflite", "missing"], True),
        (pipeline.__main__.cli, ["info", "missing"], True),
    ],
)
def test_only_training_and_evaluation_use_gpus(
    monkeypatch: pytest.MonkeyPatch, cli: click.Group, arguments: list[str], hides: bool
) -> None:
    monkeypatch.delenv(HIDDEN, raising=False)
    with pytest.raises((StageError, UsageError)):
        cli.main(arguments, standalone_mode=False)
    assert os.environ.get(HIDDEN) == ("-1" if hides else None)


def test_a_gpu_is_used_on_request_if_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @click.command()
    @options.device
    def command() -> None:
        click.echo(" ".join(os.environ[name] for name in settings))

    settings = ("TF_FORCE_GPU_ALLOW_GROWTH", "NVIDIA_TF32_OVERRIDE")
    monkeypatch.delenv(HIDDEN, raising=False)
    for name in settings:
        monkeypatch.setenv(name, "unset")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="--device gpu: nvidia-smi reports no GPU"):
        command.main(["--device", "gpu"], standalone_mode=False)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H100, 580.95, 81559 MiB, 1980 MHz, 2619 MHz\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert CliRunner().invoke(command, ["--device", "gpu"]).output == "true 0\n"
    assert HIDDEN not in os.environ


@pytest.mark.parametrize(
    "arguments",
    [
        ["--length", "4294967300"],
        ["--temperature", "1e300"],
        ["--temperature", "nan"],
        ["--repetition-penalty", "1e-308"],
        ["--repetition-penalty", "inf"],
    ],
)
def test_values_beyond_the_models_types_are_usage_errors(arguments: list[str]) -> None:
    @click.command()
    @options.sampling
    def command(**values: object) -> None:
        raise AssertionError(values)

    assert CliRunner().invoke(command, arguments).exit_code == 2
