from pathlib import Path

import pytest

from common.errors import UsageError
from trainers.config import RunConfig, TrainConfig


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.toml"
    path.write_text(text)
    return path


def test_sections_and_overrides_set_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "[data]\nsource = ['x']\n[model]\nunits = 64\n[train]\nlanes = 8\nlearning_rate = 1\n")
    config = RunConfig.read(path, ("train.lanes=4", "train.precision=bfloat16", "model.dropout=0.25"))
    assert (config.model.units, config.model.layers, config.model.dropout) == (64, 2, 0.25)
    assert (config.train.lanes, config.train.learning_rate, config.train.precision) == (4, 1.0, "bfloat16")
    assert RunConfig.from_tables(**config.to_json(), where="again") == config


def test_settings_are_immutable() -> None:
    with pytest.raises(AttributeError):
        TrainConfig().lanes = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (
            "[model]\nunit = 3",
            "",
            "unknown setting 'unit' (did you mean 'units'?); choose from: cell, units, layers,",
        ),
        ("[model]\nunits = '3'", "", "[model]: 'units': input should be a valid integer, got '3'"),
        ("[model]\nunits = 0", "", "'units': input should be greater than 0, got 0"),
        ("[train]\nlanes = 2.5", "", "'lanes': input should be a valid integer, got 2.5"),
        ("[train]\nlanes = true", "", "'lanes': input should be a valid integer, got True"),
        (
            "[train]\nprecision = 'half'",
            "",
            "'precision': input should be 'auto', 'float32', 'tf32', 'float16' or 'bfloat16', got 'half'",
        ),
        (
            "[model]\nlayers = 1\ndropout = 0.1",
            "",
            "dropout applies between layers and needs at least 2, got",
        ),
        ("[model]\ncell = 'tanh'", "", "'cell': input should be 'lstm', 'gru' or 'rnn', got 'tanh'"),
        ("[model]\nembedding = -1", "", "'embedding': input should be greater than or equal to 0, got -1"),
        (
            "[train]\ndecay = 0.5",
            "",
            "[train]: a schedule needs a decay below 1, and a constant learning rate a decay of 1, got "
            "schedule=constant, decay=0.5",
        ),
        ("[train]\nschedule = 'cosine'", "", "a constant learning rate a decay of 1, got schedule=cosine, decay=1.0"),
        ("[train]\noptimizer = 'adamw'", "", "adamw needs weight_decay above 0, got weight_decay=0.0"),
        (
            "[[train.callbacks]]\nmonitor = 'x'",
            "",
            "a callback needs a name, such as name = 'CSVLogger', got",
        ),
        ("[model]\nlayers = 1000000000000000", "", "'layers': input should be less than or equal to 1000, got 1000"),
        (
            "[model]\nlayers = 100\nunits = 10000",
            "",
            "100 layers of 10000 units have up to 80,000,000,000 weights, the limit is 10,000,000,000 (40 GB)",
        ),
        ("[train]\nepochs = 1e308", "", "'epochs': input should be less than or equal to 1000000, got 1e+308"),
        ("[train]\nlanes = 10000000000", "", "'lanes': input should be less than or equal to 1048576, got 100"),
        ("[train]\nlanes = 100000", "train.window=1000", "a step of 100000 lanes x 1000 characters is too large: use"),
        ("[train]\nclip = 1e308", "", "'clip': input should be less than or equal to 1000000000000, got 1e+308"),
        ("[train]\nepochs = inf", "", "'epochs': input should be a finite number, got inf"),
        ("", "data.unit=byte", "--set takes settings of [model] and [train] here, not of [data], got 'data.unit=byte'"),
        ("[trian]\nlanes = 2", "", "unknown section 'trian' (did you mean 'train'?); choose from: data, validate,"),
        ("lanes = 2", "", "unknown section 'lanes'"),
        ("train = 2", "", "[train] must be a section, got 2"),
        ("[train", "", "is not valid TOML"),
        (f"a = {'[' * 100_000}", "", "is not valid TOML: "),
        (f"[model]\nlayers = {'1' * 5000}", "", "is not valid TOML: Exceeds the limit"),
        ("", f"model.layers={'1' * 5000}", f"input should be a valid integer, got '{'1' * 199}…"),
        ("", f"train.callbacks={'[' * 100_000}", "input should be a valid list, got "),
        ("", f"model.layers={'1' * 4000}", f"input should be less than or equal to 1000, got {'1' * 200}…"),
        ("", f"train.epochs={'1' * 4000}", "'epochs': input should be "),
        (
            "[model]\nlayers = 1_000_000_000_000_000",
            "",
            "'layers': input should be less than or equal to 1000, got 1000",
        ),
        ("", "lanes=3", "--set expects section.setting=value, such as train.epochs=3, got 'lanes=3'"),
        ("", "train.lane=3", "unknown setting 'lane' (did you mean 'lanes'?)"),
    ],
)
def test_invalid_configs_are_rejected(tmp_path: Path, text: str, override: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        RunConfig.read(path, (override,) if override else ())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_config_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config file .*b\.toml not found"):
        RunConfig.read(tmp_path / "b.toml")
