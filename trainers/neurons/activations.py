"""Files of what every unit held along a text, written as it is read, so that a text of any length takes no memory.

FOLDER/lstm.yml     what LSTMVis (Strobelt et al. 2016, arXiv 1606.07461) shows of it: a project, in JSON, which is YAML
FOLDER/states.h5    output1 (h of the first layer), states1 (c of an LSTM), gate_input1, ... [characters, units]
FOLDER/words.h5     word_ids: the id of each character
FOLDER/words.dict   a line a symbol: its name and its id

FILE.npz            the same arrays, and word_ids

Legend: N ids, H units.
"""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from common.files import check_replaceable, whole_file, whole_folder, write_json
from common.types import Array
from pipeline.vocab import Vocab
from trainers.judging.breakdown import name_of

NAMES = {"h": "output", "c": "states"}  # LSTMVis's own, where an LSTM's output is not its output gate
MARKER = "lstm.yml"

Held = Sequence[Mapping[str, Array]]  # of each layer by name, nxH


class Keeper:
    """Takes what was held, stretch by stretch, into arrays of N rows."""

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays, self.rows = arrays, 0

    def keep(self, held: Held) -> None:
        for layer, by_name in enumerate(held, 1):
            for name, x_nxH in by_name.items():
                self.arrays[_path(name, layer)][self.rows : self.rows + len(x_nxH)] = x_nxH
        self.rows += len(x_nxH)


@contextlib.contextmanager
def keeping(
    path: Path, title: str, ids_N: Array, vocab: Vocab, layers: int, units: int, names: Sequence[str]
) -> Iterator[Keeper]:
    """Keeps a text of these ids in a folder for LSTMVis, or in a file where the path ends in .npz, whole or not at all.

    names: of what each layer holds. Raises StageError where a folder of something else is in the way.
    """
    paths = [_path(name, layer) for layer in range(1, layers + 1) for name in names]
    shape = (len(ids_N), units)
    if path.suffix == ".npz":
        with (
            whole_file(path) as partial,
            tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder,
        ):
            files = {name: Path(folder) / f"{name}.npy" for name in paths}
            arrays = {name: np.lib.format.open_memmap(file, "w+", np.float32, shape) for name, file in files.items()}
            yield Keeper(arrays)
            with zipfile.ZipFile(partial, "w") as archive:
                with archive.open("word_ids.npy", "w") as member:
                    np.lib.format.write_array(member, ids_N)
                for name, file in files.items():
                    arrays[name].flush()
                    archive.write(file, file.name)
        return
    check_replaceable(path, MARKER, "a project of LSTMVis", "--activations")
    with whole_folder(path) as partial:
        with h5py.File(partial / "states.h5", "w") as file:
            yield Keeper({name: file.create_dataset(name, shape, np.float32) for name in paths})
        with h5py.File(partial / "words.h5", "w") as file:
            file["word_ids"] = ids_N.astype(np.int32)
        # Names have no white space in them: LSTMVis splits at it.
        lines = [f"{name_of(symbol, vocab.unit)} {index}\n" for index, symbol in enumerate(vocab.symbols)]
        (partial / "words.dict").write_text("".join(lines), encoding="utf-8")
        write_json(partial / MARKER, _project(title, layers, names))


def _path(name: str, layer: int) -> str:
    return f"{NAMES.get(name, f'gate_{name}')}{layer}"


def _project(title: str, layers: int, names: Sequence[str]) -> dict[str, Any]:
    """lstm.yml: what each array is. LSTMVis takes tanh of values, unless it is told that they lie in [-1, 1]."""
    types = []
    for layer in range(1, layers + 1):
        for name, kind in (("c", "state"), ("h", "output")):
            if name in names:
                about = {"type": kind, "layer": layer, "path": _path(name, layer)}
                types.append(about if name == "c" else about | {"transform": "none"})
    return {
        "name": title,
        "description": title,
        "files": {"states": "states.h5", "words": "words.h5", "symbols": "words.dict"},
        "word_sequence": {"file": "words", "path": "word_ids", "dict_file": "symbols"},
        "states": {"file": "states", "types": types},
    }
