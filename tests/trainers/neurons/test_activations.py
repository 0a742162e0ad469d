"""Activation files."""

from pathlib import Path

import numpy as np
import pytest

from trainers.neurons.activations import activations_file

NAMES = {"lstm": ["h", "c", "input", "output"], "gru": ["h", "update"]}


def windows(rng: np.random.Generator, names: list[str]) -> list[list[dict[str, np.ndarray]]]:
    """Return activations of two layers of 3 units, in windows of 4, 2 and 4 ids."""
    return [[{name: rng.normal(size=(n, 3)).astype(np.float32) for name in names} for _ in (1, 2)] for n in (4, 2, 4)]


def write(path: Path, activations: list[list[dict[str, np.ndarray]]], ids_N: np.ndarray) -> None:
    with activations_file(path, ids_N, layers=2, units=3, names=list(activations[0][0])) as writer:
        for window in activations:
            writer.append(window)


@pytest.mark.parametrize("cell", NAMES)
def test_activations_round_trip(rng: np.random.Generator, tmp_path: Path, cell: str) -> None:
    activations, ids_N = windows(rng, NAMES[cell]), rng.integers(0, 7, 10)
    write(tmp_path / "a.npz", activations, ids_N)
    paths = {"h": "output", "c": "states", "input": "gate_input", "output": "gate_output", "update": "gate_update"}
    expected = {
        f"{paths[name]}{layer + 1}": np.concatenate([window[layer][name] for window in activations])
        for layer in (0, 1)
        for name in NAMES[cell]
    }
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays) == {*expected, "word_ids"}
        for name, x_NxH in expected.items():
            np.testing.assert_array_equal(arrays[name], x_NxH)
        np.testing.assert_array_equal(arrays["word_ids"], ids_N)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_failure_leaves_no_file(rng: np.random.Generator, tmp_path: Path) -> None:
    activations = windows(rng, NAMES["gru"])
    with pytest.raises(KeyError):
        write(tmp_path / "a.npz", [*activations[:2], [{"other": activations[2][0]["h"]}] * 2], np.arange(10))
    assert list(tmp_path.iterdir()) == []
