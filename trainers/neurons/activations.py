"""A .npz of every unit's activations along a text, written window by window: memory use does not depend on its length.

output1, states1, gate_input1, ...   h and c of the first layer, its gates [characters, units]
word_ids                             the id of each character

Legend: N ids of the text, n of a window, H units.
"""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.files import whole_file
from common.types import Array

PREFIXES = {"h": "output", "c": "states"}  # h is the layer's output; "gate_output" is the output gate

Activations = Sequence[Mapping[str, Array]]  # per layer, by name, nxH


class ActivationWriter:
    """Writer that appends windows of activations to arrays of N rows."""

    def __init__(self, arrays: Mapping[str, Array]):
        self.arrays, self.rows = arrays, 0

    def append(self, activations: Activations) -> None:
        for layer, by_name in enumerate(activations, 1):
            for name, x_nxH in by_name.items():
                self.arrays[_array_name(name, layer)][self.rows : self.rows + len(x_nxH)] = x_nxH
        self.rows += len(x_nxH)


@contextlib.contextmanager
def activations_file(
    path: Path, ids_N: Array, layers: int, units: int, names: Sequence[str]
) -> Iterator[ActivationWriter]:
    """Write the activations of a text with these ids to a .npz, or nothing if the block fails.

    names: the activations of each layer.
    """
    array_names = [_array_name(name, layer) for layer in range(1, layers + 1) for name in names]
    shape = (len(ids_N), units)
    with whole_file(path) as partial:
        files = {name: partial.with_name(f"{name}.npy") for name in array_names}
        arrays = {name: np.lib.format.open_memmap(file, "w+", np.float32, shape) for name, file in files.items()}
        yield ActivationWriter(arrays)
        with zipfile.ZipFile(partial, "w") as archive:
            with archive.open("word_ids.npy", "w") as member:
                np.lib.format.write_array(member, ids_N)
            for name, file in files.items():
                arrays[name].flush()
                archive.write(file, file.name)


def _array_name(name: str, layer: int) -> str:
    return f"{PREFIXES.get(name, f'gate_{name}')}{layer}"
