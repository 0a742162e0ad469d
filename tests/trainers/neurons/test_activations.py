"""Files of activations, read back."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from common.errors import StageError
from pipeline.vocab import Vocab, byte_vocab, char_vocab
from trainers.neurons.activations import keeping

NAMES = {"lstm": ["h", "c", "input", "output"], "gru": ["h", "update"]}


def stretches(rng: np.random.Generator, names: list[str]) -> list[list[dict[str, np.ndarray]]]:
    """Of two layers of 3 units, in stretches of 4, 2 and 4 ids."""
    return [[{name: rng.normal(size=(n, 3)).astype(np.float32) for name in names} for _ in (1, 2)] for n in (4, 2, 4)]


def keep(path: Path, held: list[list[dict[str, np.ndarray]]], vocab: Vocab, ids_N: np.ndarray) -> None:
    with keeping(path, "a title", ids_N, vocab, layers=2, units=3, names=list(held[0][0])) as keeper:
        for one in held:
            keeper.keep(one)


@pytest.mark.parametrize("cell", NAMES)
def test_what_is_kept_is_read_back(rng: np.random.Generator, tmp_path: Path, cell: str) -> None:
    held, vocab = stretches(rng, NAMES[cell]), char_vocab(dict.fromkeys("\n space\u2003é", 1))  # type: ignore[arg-type]
    ids_N = rng.integers(0, vocab.size, 10)
    keep(tmp_path / "a.npz", held, vocab, ids_N)
    keep(tmp_path / "a", held, vocab, ids_N)
    paths = {"h": "output", "c": "states", "input": "gate_input", "output": "gate_output", "update": "gate_update"}
    expected = {
        f"{paths[name]}{layer + 1}": np.concatenate([one[layer][name] for one in held])
        for layer in (0, 1)
        for name in NAMES[cell]
    }
    with np.load(tmp_path / "a.npz") as arrays, h5py.File(tmp_path / "a" / "states.h5") as states:
        assert set(arrays) == {*expected, "word_ids"}
        assert set(states) == set(expected)
        for name, x_NxH in expected.items():
            np.testing.assert_array_equal(arrays[name], x_NxH)
            np.testing.assert_array_equal(states[name], x_NxH)
        np.testing.assert_array_equal(arrays["word_ids"], ids_N)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.npz"]


@pytest.mark.parametrize("vocab", [byte_vocab("token"), char_vocab(dict.fromkeys("\n space\u2003é", 1))])  # type: ignore[arg-type]
def test_lstmvis_finds_all_that_its_project_names(rng: np.random.Generator, tmp_path: Path, vocab: Vocab) -> None:
    """As its lstmdata/data_handler.py reads a folder."""
    ids_N = rng.integers(0, vocab.size, 10)
    keep(tmp_path / "a", stretches(rng, NAMES["lstm"]), vocab, ids_N)
    project = yaml.safe_load((tmp_path / "a" / "lstm.yml").read_text())
    names = dict(line.split() for line in (tmp_path / "a" / project["files"]["symbols"]).read_text().splitlines())
    assert sorted(map(int, names.values())) == list(range(vocab.size))
    sequence, states = project["word_sequence"], project["states"]
    assert sequence["dict_file"] == "symbols"
    with h5py.File(tmp_path / "a" / project["files"][sequence["file"]]) as file:
        np.testing.assert_array_equal(file[sequence["path"]], ids_N)
    with h5py.File(tmp_path / "a" / project["files"][states["file"]]) as file:
        assert [file[one["path"]].shape for one in states["types"]] == [(10, 3)] * 4
    assert states["types"][:2] == [
        {"type": "state", "layer": 1, "path": "states1"},
        {"type": "output", "layer": 1, "path": "output1", "transform": "none"},
    ]


def test_half_of_it_is_nothing(rng: np.random.Generator, tmp_path: Path) -> None:
    held, ids_N = stretches(rng, NAMES["gru"]), np.arange(10)
    for name in ("a", "a.npz"):
        with pytest.raises(KeyError):
            keep(tmp_path / name, [*held[:2], [{"other": held[2][0]["h"]}] * 2], byte_vocab(), ids_N)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").touch()
    with pytest.raises(StageError, match=r"a exists and is not a project of LSTMVis \(it has no lstm\.yml\)"):
        keep(tmp_path / "a", held, byte_vocab(), ids_N)
