"""Map between text and ids. Imports neither Beam nor TensorFlow, so training and serving can use it anywhere.

Texts are UTF-8 bytes throughout, or any bytes if the unit is the byte.
"""

import dataclasses
import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from common.errors import StageError
from common.files import sha256_json
from common.printable import REPLACEMENT

UNITS = ("byte", "char")
CODE_POINTS = 0x110000
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes that continue a UTF-8 character
ASCII = 128
NOT_ASCII = 0xFF
IDENTITY = bytes(range(256))

Codes = npt.NDArray[np.uint32]


class Encoded(NamedTuple):
    """Ids, and the counts of the characters outside the vocabulary."""

    ids: npt.NDArray[Any]
    outside: Counter[str]


@dataclasses.dataclass(frozen=True)
class Vocab:
    """Vocabulary: id i is `symbols[i]`. Raises ValueError for invalid symbols.

    unit: "byte": a symbol is one byte of the text; "char": one Unicode code point, in UTF-8.
    symbols: distinct, one or more.
    end_id: id that ends a document, if the text consists of documents: the newline's, or that of an empty last symbol
        if nothing in the text marks the end.
    unknown_id: id for every character outside the vocabulary; if None, such a character is an error.
    """

    unit: str
    symbols: tuple[bytes, ...]
    end_id: int | None = None
    unknown_id: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unknown unit {self.unit!r}: use {' or '.join(UNITS)}")
        if not self.symbols or len(set(self.symbols)) < len(self.symbols):
            raise ValueError(f"a vocabulary needs one or more distinct symbols, got {len(self.symbols)} symbols")
        for name in ("end_id", "unknown_id"):
            if not 0 <= (getattr(self, name) or 0) < self.size:
                raise ValueError(f"{name} must be an id, 0 to {self.size - 1}, got {getattr(self, name)}")
        if b"" in self.symbols and not self.symbols.index(b"") == self.end_id == self.size - 1:
            raise ValueError("only the last symbol may be empty, and it must then be the end of a document")
        if self.unit == "byte" and any(len(symbol) != 1 for symbol in self._written):
            raise ValueError("every symbol of a byte vocabulary must be one byte")
        if self.unit == "byte" and self.unknown_id is not None:
            raise ValueError("a byte vocabulary cannot have an unknown_id")
        if self.unit == "char" and (len(self._text) != len(self._written) or list(self._text) != sorted(self._text)):
            raise ValueError("every symbol of a char vocabulary must be one character, in the order of code points")

    @property
    def size(self) -> int:
        """Number of ids, which run from 0 to size - 1."""
        return len(self.symbols)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest little-endian unsigned integer type that holds every id."""
        return np.min_scalar_type(self.size - 1).newbyteorder("<")

    @property
    def start_id(self) -> int:
        """Id before an empty prompt: the end of a document, else the newline, else 0."""
        if self.end_id is not None:
            return self.end_id
        return self.symbols.index(b"\n") if b"\n" in self.symbols else 0

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the whole vocabulary."""
        return sha256_json(self.to_json())

    def encode(self, text: bytes) -> npt.NDArray[Any]:
        """Encode a text as ids of type `dtype`; the array may be read-only.

        Raises StageError, with the byte offset, for a symbol outside the vocabulary, unless it has an `unknown_id`, and
        for text that is not UTF-8 if the unit is the character.
        """
        try:
            ids, outside = self.encode_known(text, keep_unknown=True)
        except UnicodeDecodeError as error:
            raise StageError(f"byte 0x{text[error.start]:02x} at offset {error.start} is not UTF-8") from None
        if outside and self.unknown_id is None:
            offset, unknown = min((text.index(_as_bytes(symbol, self.unit)), symbol) for symbol in outside)
            raise StageError(
                f"{describe(unknown, self.unit)} at offset {offset} is not in the vocabulary"
                f"{self._other_form(text[:offset].decode(errors='ignore'), unknown)}"
            )
        return ids

    def _other_form(self, before: str, unknown: str) -> str:
        """Explanation, if the vocabulary has the letter in Unicode's other form: composed or decomposed."""
        forms: tuple[tuple[Literal["NFC", "NFD"], str, str], ...]
        forms = ("NFD", "decomposed", unknown), ("NFC", "composed", before[-1:] + unknown)
        for form, kind, letter in forms if self.unit == "char" else ():
            other = unicodedata.normalize(form, letter)
            if other != letter and not self.encode_known(other.encode(), keep_unknown=False).outside:
                codes = " ".join(f"U+{ord(c):04X}" for c in other)
                return f", which holds {kind} letters ({codes}): normalize the text to {form}"
        return ""

    def prompt_ids(self, text: bytes) -> npt.NDArray[Any]:
        """Encode a text that a model is to continue. Raises as `encode` does.

        The ids begin with the end of a document, if there is one, since the prompt begins a document. An empty text is
        `start_id`.
        """
        start = [] if text and self.end_id is None else [self.start_id]
        return np.concatenate([np.array(start, self.dtype), self.encode(text)])

    def encode_known(self, text: bytes, keep_unknown: bool) -> Encoded:
        """Encode a text and count the characters outside the vocabulary.

        keep_unknown: encode those as `unknown_id` (0 if there is none) instead of dropping them.
        Raises UnicodeDecodeError if the unit is the character and the text is not UTF-8.
        """
        if self._id_of_byte == IDENTITY:
            return Encoded(np.frombuffer(text, np.uint8).astype(self.dtype, copy=False), Counter())
        if self.unit == "byte" or text.isascii():
            # One-byte symbols have ids below 256 in either unit, since ASCII comes first among characters.
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
        """Decode ids of any integer type and shape, in order. Raises IndexError for an id that is too large."""
        ids = np.asarray(ids)
        if self.unit == "byte":
            return self._code_of_id[self._visible(ids)].astype(np.uint8).tobytes()
        return characters(self._code_of_id[self._visible(ids)]).encode()

    def to_json(self) -> dict[str, Any]:
        """JSON for `from_json`: the symbols joined, bytes in hexadecimal, characters as text."""
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
        """Vocabulary from the JSON of `to_json`. Raises KeyError, TypeError or ValueError for invalid JSON."""
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
        """Symbols with some text: all but an empty one."""
        return self.symbols[:-1] if self.symbols[-1] == b"" else self.symbols

    @functools.cached_property
    def _text(self) -> str:
        """Written symbols joined, id i at index i; bytes as Latin-1."""
        return b"".join(self.symbols).decode("latin-1" if self.unit == "byte" else "utf-8")

    @functools.cached_property
    def _bytes_known(self) -> bytes:
        """Symbols of one byte."""
        return b"".join(symbol for symbol in self.symbols if len(symbol) == 1)

    @functools.cached_property
    def _id_of_byte(self) -> bytes:
        """Table for bytes.translate, several times faster than a NumPy lookup for texts of one-byte symbols."""
        table = np.zeros(256, np.uint8)
        for index, symbol in enumerate(self.symbols):
            if len(symbol) == 1:
                table[symbol[0]] = index
        return table.tobytes()

    @functools.cached_property
    def _id_of_code(self) -> npt.NDArray[Any]:
        """Id of each code point, or `size` for those outside the vocabulary."""
        table = np.full(CODE_POINTS, self.size, np.min_scalar_type(self.size))
        table[self._code_of_id] = np.arange(len(self._code_of_id))
        return table

    @functools.cached_property
    def _code_of_id(self) -> Codes:
        return np.fromiter(map(ord, self._text), np.uint32)

    def _visible(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Keep the ids, as indices, of symbols with some text."""
        ids = ids.ravel().astype(np.intp, copy=False)
        return ids[ids != self.end_id] if self.symbols[-1] == b"" else ids


def byte_vocab(end: Literal["newline", "token"] | None = None) -> Vocab:
    """Vocabulary of all 256 bytes, each its own id, so that no text is outside it.

    end: end of a document, if there are documents: the newline, or a separate token, id 256.
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
    """Vocabulary of the `max_size` most frequent characters (ties: lower code point first) with at least `min_count`
    occurrences. Ids follow code points, so ASCII comes first.

    end: as in `byte_vocab`; replace: U+FFFD replaces every other character. Both count towards `max_size`.
    Raises ValueError if no character remains, or if `max_size` leaves no room for these two.
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
    """Code points of a UTF-8 text; `errors` as in bytes.decode."""
    # "surrogatepass" keeps the surrogates that errors="surrogateescape" makes of invalid bytes.
    encoded = text.decode("utf-8", errors=errors).encode("utf-32-le", errors="surrogatepass")
    return np.frombuffer(encoded, np.dtype("<u4"))


def characters(codes: Codes) -> str:
    """String of code points, the inverse of `code_points`."""
    return codes.astype("<u4", copy=False).tobytes().decode("utf-32-le")


def count_characters(texts: Iterable[bytes]) -> npt.NDArray[np.int64]:
    """Count each code point in UTF-8 texts of whole characters: counts[code point].

    Raises UnicodeDecodeError for invalid UTF-8.
    """
    counts, pairs = np.zeros(CODE_POINTS, np.int64), np.zeros(1 << 16, np.int64)
    for text in texts:
        # Counting byte pairs is twice as fast as counting bytes. Non-ASCII text, usually little, is decoded separately.
        pairs += np.bincount(np.frombuffer(text, "<u2", len(text) // 2), minlength=1 << 16)
        if len(text) % 2:
            pairs[text[-1] | NOT_ASCII << 8] += 1
        if rest := b"" if text.isascii() else text.translate(None, delete=IDENTITY[:ASCII]):
            others = np.bincount(code_points(rest))
            counts[: len(others)] += others
    of_bytes = pairs.reshape(256, 256)
    counts[:ASCII] = (of_bytes.sum(0) + of_bytes.sum(1))[:ASCII]
    return counts


def describe(symbol: str, unit: str) -> str:
    """Name a symbol in an error message: byte 0xe9, or the character 'é' (U+00E9)."""
    if unit == "byte":
        return f"byte 0x{ord(symbol):02x}"
    return f"the character {symbol!r} (U+{ord(symbol):04X})"


def _as_bytes(symbol: str, unit: str) -> bytes:
    return symbol.encode("latin-1" if unit == "byte" else "utf-8")
