"""The map between text and ids. Light: needs NumPy only, so that training and serving may use it anywhere."""

import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import StageError
from common.files import sha256_json

UNITS = ("byte",)


@dataclasses.dataclass(frozen=True)
class Vocab:
    """What a token stands for: id i is `symbols[i]`.

    unit: "byte": every symbol is one byte of the text.
    symbols: distinct; at most 256 for bytes. Raises ValueError where they are not.
    """

    unit: str
    symbols: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"no unit is called {self.unit!r}; there are: {', '.join(UNITS)}")
        if not self.symbols or len(set(self.symbols)) < len(self.symbols):
            raise ValueError(f"a vocabulary needs one symbol or more, all different, got {len(self.symbols)} symbols")
        if any(len(symbol) != 1 for symbol in self.symbols):
            raise ValueError("every symbol of a byte vocabulary must be one byte")

    @property
    def size(self) -> int:
        """The number of ids; they run from 0 to size - 1."""
        return len(self.symbols)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer, little-endian, that holds every id."""
        return np.min_scalar_type(self.size - 1).newbyteorder("<")

    @property
    def start_id(self) -> int:
        """The id of the newline, the context that an empty prompt starts from; 0 where the vocabulary has none."""
        return self.symbols.index(b"\n") if b"\n" in self.symbols else 0

    @functools.cached_property
    def sha256(self) -> str:
        """A hash of unit and symbols: equal vocabularies, equal hashes."""
        return sha256_json(self.to_json())

    def encode(self, text: bytes) -> npt.NDArray[np.uint8]:
        """The ids of a text, one a byte, read-only.

        Raises StageError, naming the byte and its offset, for one that the vocabulary does not have.
        """
        unknown = text.translate(None, delete=self._bytes)
        if unknown:
            raise StageError(f"byte 0x{unknown[0]:02x} at offset {text.index(unknown[0])} is not in the vocabulary")
        return np.frombuffer(text.translate(self._id_of_byte), np.uint8)

    def decode(self, ids: npt.ArrayLike) -> bytes:
        """The text of ids of any integer type and shape, in order. Raises IndexError for an id that is too large."""
        return self._byte_of_id[np.asarray(ids, dtype=np.intp)].tobytes()

    def decode_text(self, ids: npt.ArrayLike) -> str:
        """The text as a string. Bytes that are not UTF-8, such as a character cut at its middle, become U+FFFD."""
        return self.decode(ids).decode("utf-8", errors="replace")

    def to_json(self) -> dict[str, str]:
        """JSON that `from_json` reads back: the symbols joined, in hexadecimal."""
        return {"unit": self.unit, "symbols": self._bytes.hex()}

    @classmethod
    def from_json(cls, value: dict[str, str]) -> "Vocab":
        """The vocabulary that `to_json` wrote. Raises KeyError or ValueError for anything else."""
        return cls(value["unit"], _one_by_one(bytes.fromhex(value["symbols"])))

    @functools.cached_property
    def _bytes(self) -> bytes:
        return b"".join(self.symbols)

    @functools.cached_property
    def _byte_of_id(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._bytes, np.uint8)

    @functools.cached_property
    def _id_of_byte(self) -> bytes:
        """The table of bytes.translate: NumPy's own look-up is several times slower."""
        table = np.zeros(256, np.uint8)
        table[self._byte_of_id] = np.arange(self.size)
        return table.tobytes()


def byte_vocab() -> Vocab:
    """All 256 bytes, each its own id: no text can ever hold anything outside it."""
    return Vocab("byte", _one_by_one(bytes(range(256))))


def _one_by_one(symbols: bytes) -> tuple[bytes, ...]:
    return tuple(bytes([symbol]) for symbol in symbols)
