"""The map between text and ids. Light: needs NumPy only, so that training and serving may use it anywhere.

A text is bytes of UTF-8 throughout (or, where the unit is the byte, any bytes at all).
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from common.errors import StageError
from common.files import sha256_json

UNITS = ("byte", "char")
CODE_POINTS = 0x110000
REPLACEMENT = "\ufffd"
ASCII = 128
NOT_ASCII = 0xFF
IDENTITY = bytes(range(256))

Codes = npt.NDArray[np.uint32]


class Encoded(NamedTuple):
    """Ids, and the characters of the text that the vocabulary does not have, with how often they came."""

    ids: npt.NDArray[Any]
    outside: Counter[str]


@dataclasses.dataclass(frozen=True)
class Vocab:
    """What a token stands for: id i is `symbols[i]`. Raises ValueError for symbols that make no vocabulary.

    unit: "byte": a symbol is one byte of the text; "char": one Unicode code point, in UTF-8.
    symbols: distinct, one or more.
    end_id: the id that ends a document, where the text is one of documents: the newline's, or, where nothing in the
        text marks the end, that of an empty last symbol.
    unknown_id: the id that stands for every character outside the vocabulary; without one, such a character is refused.
    """

    unit: str
    symbols: tuple[bytes, ...]
    end_id: int | None = None
    unknown_id: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"no unit is called {self.unit!r}; there are: {', '.join(UNITS)}")
        if not self.symbols or len(set(self.symbols)) < len(self.symbols):
            raise ValueError(f"a vocabulary needs one symbol or more, all different, got {len(self.symbols)} symbols")
        for name in ("end_id", "unknown_id"):
            if not 0 <= (getattr(self, name) or 0) < self.size:
                raise ValueError(f"{name} must be an id, 0 to {self.size - 1}, got {getattr(self, name)}")
        if b"" in self.symbols and not self.symbols.index(b"") == self.end_id == self.size - 1:
            raise ValueError("only the last symbol may be empty, and then it is the one that ends a document")
        if self.unit == "byte" and any(len(symbol) != 1 for symbol in self._written):
            raise ValueError("every symbol of a byte vocabulary must be one byte")
        if self.unit == "byte" and self.unknown_id is not None:
            raise ValueError("a byte vocabulary has no id for the unknown")
        if self.unit == "char" and (len(self._text) != len(self._written) or list(self._text) != sorted(self._text)):
            raise ValueError("every symbol of a char vocabulary must be one character, in the order of code points")

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
        """The id that an empty prompt starts after: the end of a document, else the newline, else 0."""
        if self.end_id is not None:
            return self.end_id
        return self.symbols.index(b"\n") if b"\n" in self.symbols else 0

    @functools.cached_property
    def sha256(self) -> str:
        """A hash of all that a vocabulary is: equal vocabularies, equal hashes."""
        return sha256_json(self.to_json())

    def encode(self, text: bytes) -> npt.NDArray[Any]:
        """The ids of a text, in `dtype`, perhaps read-only.

        Raises StageError, naming what it is and its offset in bytes, for what the vocabulary does not have, unless it
        has an id for the unknown; and for a text that is not UTF-8 where the unit is the character.
        """
        try:
            ids, outside = self.encode_known(text, keep_unknown=True)
        except UnicodeDecodeError as error:
            raise StageError(f"byte 0x{text[error.start]:02x} at offset {error.start} is not UTF-8") from None
        if outside and self.unknown_id is None:
            offset, what = min((text.index(_as_bytes(symbol, self.unit)), symbol) for symbol in outside)
            raise StageError(f"{describe(what, self.unit)} at offset {offset} is not in the vocabulary")
        return ids

    def prompt_ids(self, text: bytes) -> npt.NDArray[Any]:
        """The ids that a model reads before it goes on with a text. Raises as `encode` does.

        Where there is an end of documents they begin with it, since the text begins one; an empty text is `start_id`.
        """
        start = [] if text and self.end_id is None else [self.start_id]
        return np.concatenate([np.array(start, self.dtype), self.encode(text)])

    def encode_known(self, text: bytes, keep_unknown: bool) -> Encoded:
        """The ids of a text, and what it holds that the vocabulary does not have.

        keep_unknown: those become `unknown_id` (0 where there is none); else they are left out.
        Raises UnicodeDecodeError where the unit is the character and the text is not UTF-8.
        """
        if self._id_of_byte == IDENTITY:
            return Encoded(np.frombuffer(text, np.uint8).astype(self.dtype, copy=False), Counter())
        if self.unit == "byte" or text.isascii():
            # Ids of one-byte symbols are below 256 in either unit: of characters, those of ASCII come first.
            rest = text.translate(None, delete=self._bytes_known)
            if not (rest and keep_unknown and self.unknown_id is not None):
                text = text if keep_unknown else text.translate(None, delete=rest)
                ids = np.frombuffer(text.translate(self._id_of_byte), np.uint8).astype(self.dtype, copy=False)
                return Encoded(ids, Counter(rest.decode("latin-1")))
        codes = code_points(text)
        ids = self._id_of_code[codes]
        outside = ids == self.size
        if not outside.any():
            return Encoded(ids.astype(self.dtype, copy=False), Counter())
        unknown = Counter(characters(codes[outside]))
        if keep_unknown:
            ids[outside] = self.unknown_id or 0
        else:
            ids = ids[~outside]
        return Encoded(ids.astype(self.dtype, copy=False), unknown)

    def decode(self, ids: npt.ArrayLike) -> bytes:
        """The text of ids of any integer type and shape, in order. Raises IndexError for an id that is too large."""
        ids = np.asarray(ids)
        if self.unit == "byte":
            return self._code_of_id[self._visible(ids)].astype(np.uint8).tobytes()
        return characters(self._code_of_id[self._visible(ids)]).encode()

    def decode_text(self, ids: npt.ArrayLike) -> str:
        """The text as a string. Bytes that are not UTF-8, such as a character cut at its middle, become U+FFFD."""
        return self.decode(ids).decode("utf-8", errors="replace")

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads back: the symbols joined, bytes in hexadecimal and characters as they are."""
        symbols = b"".join(self.symbols)
        value: dict[str, Any] = {
            "unit": self.unit,
            "symbols": symbols.hex() if self.unit == "byte" else symbols.decode(),
        }
        for name in ("end_id", "unknown_id"):
            if getattr(self, name) is not None:
                value[name] = getattr(self, name)
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Vocab":
        """The vocabulary that `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        if value["unit"] == "byte":
            symbols = tuple(bytes([byte]) for byte in bytes.fromhex(value["symbols"]))
        else:
            symbols = tuple(character.encode() for character in value["symbols"])
        end_id = value.get("end_id")
        if end_id == len(symbols):
            symbols += (b"",)
        return cls(value["unit"], symbols, end_id, value.get("unknown_id"))

    @property
    def _written(self) -> tuple[bytes, ...]:
        """The symbols that stand for some text: all but an empty one."""
        return self.symbols[:-1] if self.symbols[-1] == b"" else self.symbols

    @functools.cached_property
    def _text(self) -> str:
        """The written symbols joined, id i at index i; a byte stands as the character of its number."""
        return b"".join(self.symbols).decode("latin-1" if self.unit == "byte" else "utf-8")

    @functools.cached_property
    def _bytes_known(self) -> bytes:
        """The symbols of one byte."""
        return b"".join(symbol for symbol in self.symbols if len(symbol) == 1)

    @functools.cached_property
    def _id_of_byte(self) -> bytes:
        """The table of bytes.translate, for texts of one-byte symbols: NumPy's own look-up is several times slower."""
        table = np.zeros(256, np.uint8)
        for index, symbol in enumerate(self.symbols):
            if len(symbol) == 1:
                table[symbol[0]] = index
        return table.tobytes()

    @functools.cached_property
    def _id_of_code(self) -> npt.NDArray[Any]:
        """The id of each code point, `size` for those that are not in the vocabulary."""
        table = np.full(CODE_POINTS, self.size, np.min_scalar_type(self.size))
        table[self._code_of_id] = np.arange(len(self._code_of_id))
        return table

    @functools.cached_property
    def _code_of_id(self) -> Codes:
        return np.fromiter(map(ord, self._text), np.uint32)

    def _visible(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The ids, as indices, that stand for some text."""
        ids = ids.ravel().astype(np.intp, copy=False)
        return ids[ids != self.end_id] if self.symbols[-1] == b"" else ids


def byte_vocab(end: Literal["newline", "token"] | None = None) -> Vocab:
    """All 256 bytes, each its own id: no text can ever hold anything outside it.

    end: what ends a document, if anything does: the newline, or a token of its own, id 256.
    """
    symbols = tuple(bytes([byte]) for byte in range(256))
    if end == "token":
        return Vocab("byte", (*symbols, b""), end_id=256)
    return Vocab("byte", symbols, end_id=10 if end == "newline" else None)


def char_vocab(
    counts: Counter[str],
    max_size: int | None = None,
    min_count: int = 1,
    end: Literal["newline", "token"] | None = None,
    replace: bool = False,
) -> Vocab:
    """The characters that occur `min_count` times or more, the most frequent `max_size` of them (ties: the lower code
    point first), with ids in the order of their code points, so that ASCII has the lowest.

    end: as in `byte_vocab`; replace: U+FFFD stands for every other character. Both count towards `max_size`.
    Raises ValueError where nothing is left, or `max_size` has no room for these two.
    """
    extra = {"\n"} if end == "newline" else set()
    extra |= {REPLACEMENT} if replace else set()
    room = None if max_size is None else max_size - len(extra) - (end == "token")
    if room is not None and room < 0:
        raise ValueError(f"a vocabulary of {max_size} has no room for the end of a document and the unknown character")
    frequent = sorted(
        (c for c, n in counts.items() if n >= min_count and c not in extra), key=lambda c: (-counts[c], c)
    )
    text = sorted(extra | set(frequent[:room]))
    symbols = tuple(character.encode() for character in text)
    end_id = {None: None, "newline": text.index("\n") if "\n" in text else None, "token": len(text)}[end]
    unknown_id = text.index(REPLACEMENT) if replace else None
    return Vocab("char", (*symbols, b"") if end == "token" else symbols, end_id, unknown_id)


def code_points(text: bytes, errors: str = "strict") -> Codes:
    """The characters of a text in UTF-8 as Unicode code points; `errors` as in bytes.decode."""
    # "surrogatepass", for what errors="surrogateescape" makes of bytes that are no UTF-8.
    encoded = text.decode("utf-8", errors=errors).encode("utf-32-le", errors="surrogatepass")
    return np.frombuffer(encoded, np.dtype("<u4"))


def characters(codes: Codes) -> str:
    """The string of code points: the inverse of `code_points`."""
    return codes.astype("<u4", copy=False).tobytes().decode("utf-32-le")


def count_characters(texts: Iterable[bytes]) -> npt.NDArray[np.int64]:
    """How often each code point occurs in texts of whole characters in UTF-8: counts[code point].

    Raises UnicodeDecodeError for what is not UTF-8.
    """
    counts, pairs = np.zeros(CODE_POINTS, np.int64), np.zeros(1 << 16, np.int64)
    for text in texts:
        # Pairs of bytes at a time, twice as fast as bytes; what is not ASCII, mostly little, is taken out and decoded.
        pairs += np.bincount(np.frombuffer(text, "<u2", len(text) // 2), minlength=1 << 16)
        if len(text) % 2:
            pairs[text[-1] | NOT_ASCII << 8] += 1
        if rest := b"" if text.isascii() else text.translate(None, delete=IDENTITY[:ASCII]):
            found = np.bincount(code_points(rest))
            counts[: len(found)] += found
    of_bytes = pairs.reshape(256, 256)
    counts[:ASCII] = (of_bytes.sum(0) + of_bytes.sum(1))[:ASCII]
    return counts


def describe(symbol: str, unit: str) -> str:
    """A byte or a character as an error names it: byte 0xe9, or the character 'é' (U+00E9)."""
    if unit == "byte":
        return f"byte 0x{ord(symbol):02x}"
    return f"the character {symbol!r} (U+{ord(symbol):04X})"


def _as_bytes(symbol: str, unit: str) -> bytes:
    return symbol.encode("latin-1" if unit == "byte" else "utf-8")
