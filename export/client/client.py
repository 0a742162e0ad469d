"""Client of a served model: text in, text out. Needs NumPy and gRPC, not TensorFlow.

    with Client("localhost:8500", "book") as client:
        print(client.generate("Once ", length=200, temperature=0.7).text)
        for text in client.stream("Once ", length=2000, stop="THE END"):
            print(text, end="", flush=True)

Shape suffixes: P characters read, H units, V vocabulary.
"""

import codecs
import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack, overload

import numpy as np

from common.errors import StageError, UsageError
from common.files import parse_json
from common.printable import brief, one_line
from common.types import Array, Floats
from export.client.connection import Connection, ServingError, Signature, TensorInfo, Tls, VersionStatus

__all__ = [
    "Carry",
    "Client",
    "Continued",
    "Generated",
    "Neurons",
    "SamplingOptions",
    "ServingError",
    "Signature",
    "Started",
    "TensorInfo",
    "TextScore",
    "Tls",
    "VersionStatus",
]

Text = str | bytes
Texts = list[str] | list[bytes] | list[Text] | tuple[Text, ...] | Array  # an array of one dimension
T = TypeVar("T")
PerRow: TypeAlias = T | list[T] | tuple[T, ...] | Array  # one value for all rows, or one per row

FIRST_PIECE = 8  # characters: few, so that a stream starts at once


class SamplingOptions(TypedDict, total=False):
    """Sampling options of one text. The same seed writes the same text.

    temperature: 0 is greedy, 1 is the model's own distribution. top_k: sample from this many of the likeliest
    characters (0: all). top_p: sample from the fewest likeliest characters whose probabilities add up to this.
    repetition_penalty: above 1, recent characters become less likely. stop: end the text before this string.
    """

    temperature: float
    seed: int
    top_k: int
    top_p: float
    repetition_penalty: float
    stop: Text


class BatchSamplingOptions(TypedDict, total=False):
    """Sampling options of several texts: one value for all, or one per text in a list, tuple or 1-D array."""

    temperature: PerRow[float]
    seed: PerRow[int]
    top_k: PerRow[int]
    top_p: PerRow[float]
    repetition_penalty: PerRow[float]
    stop: PerRow[str] | PerRow[bytes]


DEFAULTS = SamplingOptions(temperature=0.8, seed=1, top_k=0, top_p=1.0, repetition_penalty=1.0, stop="")


@dataclasses.dataclass(frozen=True)
class Generated:
    """Generated text, without its prompt.

    text: with U+FFFD in place of invalid UTF-8. text_bytes: the bytes as drawn.
    n_chars: characters written (bytes, if that is the model's unit).
    log_prob: of the characters written under the model, in nats.
    finish_reason: "length", "stop", or "error: ...", with an empty text.
    """

    text: str
    text_bytes: bytes
    n_chars: int
    log_prob: float
    finish_reason: str

    @property
    def error(self) -> str:
        """Error of the row; empty if there is none."""
        return _error(self.finish_reason)


@dataclasses.dataclass(frozen=True)
class Carry:
    """State of a text, to resume it from. Only the model version that returned it can do so."""

    data: bytes
    version: int


@dataclasses.dataclass(frozen=True)
class Continued(Generated):
    """Piece of generated text, and the state after it.

    n_back: bytes at the end of the earlier pieces that belong to the stop string: cut them off the text.
    """

    carry: Carry
    n_back: int


@dataclasses.dataclass(frozen=True)
class TextScore:
    """Likelihood of a text under the model.

    n_chars: characters scored. error: empty if there is none.
    log_probs: of each character, in nats, if requested.
    """

    nats: float
    n_chars: int
    bits_per_char: float
    error: str
    log_probs: Floats | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Started:
    """State after a prompt, and logits_V of the next character."""

    carry: Carry
    logits: Floats
    error: str


@dataclasses.dataclass(frozen=True, eq=False)
class Neurons:
    """Activations of a layer after each character: h_PxH, and for an LSTM c_PxH."""

    h: Floats
    n_chars: int
    error: str
    c: Floats | None = None


class Client(Connection):
    """Served model as text functions. Arguments and errors are those of `Connection`.

    A text is str or bytes; several are a list, a tuple or a 1-D array of them, and return a list. A single text that
    the model rejects raises StageError. Of several, rejected texts return with their `error` set, and the others are
    answered.
    """

    @overload
    def generate(self, prompt: Text = ..., length: int = ..., **sampling: Unpack[SamplingOptions]) -> Generated: ...
    @overload
    def generate(
        self, prompt: Texts, length: PerRow[int] = ..., **sampling: Unpack[BatchSamplingOptions]
    ) -> list[Generated]: ...
    def generate(self, prompt: Text | Texts = "", length: PerRow[int] = 500, **sampling: Any) -> Any:
        """Continue a prompt by `length` characters, or several prompts in one call.

        sampling: see SamplingOptions; for several prompts, each option and the length may have one value per prompt.
        """
        inputs = {"prompt": prompt, "length": length, **_sampling(sampling)}
        answer, _ = self.predict("generate", _columns(prompt, inputs))
        return self._rows(prompt, Generated, "generate", answer)

    def stream(
        self, prompt: Text = "", length: int = 500, *, piece: int = 128, **sampling: Unpack[SamplingOptions]
    ) -> Iterator[str]:
        """Stream the text of `generate`: the pieces, joined, are the same text.

        piece: maximum characters per call; the first pieces are shorter. Each call has its own deadline, and all go to
        one version. `length` may exceed the model's limit per call.
        """
        return _decoded(self.stream_bytes(prompt, length, piece=piece, **sampling))

    def stream_bytes(
        self, prompt: Text = "", length: int = 500, *, piece: int = 128, **sampling: Unpack[SamplingOptions]
    ) -> Iterator[bytes]:
        """Stream the text as bytes. A UTF-8 character may be cut between two pieces."""
        settings = _sampling(sampling)
        # Raise errors now, not at the first piece.
        _columns("", {"prompt": prompt, "length": length, "piece": piece, **settings})
        if piece < 1:
            raise UsageError(f"'piece' must be at least 1, got {piece}")
        return self._pieces(prompt, length, piece, settings)

    def _pieces(self, prompt: Text, length: int, piece: int, settings: dict[str, Any]) -> Iterator[bytes]:
        stop = _bytes(settings["stop"])
        carry, held, size = None, b"", min(FIRST_PIECE, piece)
        while True:
            part = self.continue_(carry, prompt, min(size, length), **settings)
            text, length = held + part.text_bytes, length - size
            finished = length <= 0 or part.finish_reason == "stop"
            end = len(text) - (part.n_back if finished else _partial_stop(text, stop))
            if end:
                yield text[:end]
            if finished:
                return
            held, carry, prompt, size = text[end:], part.carry, "", min(2 * size, piece)

    @overload
    def score(self, text: Text, *, characters: bool = ...) -> TextScore: ...
    @overload
    def score(self, text: Texts, *, characters: bool = ...) -> list[TextScore]: ...
    def score(self, text: Text | Texts, *, characters: bool = False) -> Any:
        """Score a text from its beginning, or each of several. characters: also return each character's log_probs."""
        signature = "score_chars" if characters else "score"
        answer, _ = self.predict(signature, _columns(text, {"text": text}))
        return self._rows(text, TextScore, signature, answer)

    def start(self, prompt: Text = "") -> Started:
        """Read a prompt once, for any number of `continue_` calls to resume from."""
        answer, version = self.predict("start", _columns(prompt, {"prompt": prompt}))
        return self._rows(prompt, Started, "start", answer, version)

    def continue_(
        self, carry: Carry | None = None, prompt: Text = "", length: int = 500, **sampling: Unpack[SamplingOptions]
    ) -> Continued:
        """Resume from a carry (None: a new text) after reading `prompt`. Returns the next piece, with its carry.

        With one seed throughout, the pieces joined are the text of one `generate`, except that a stop also removes
        `n_back` bytes from the pieces before it. The carry's version answers, even if a later one is loaded.
        """
        if not isinstance(carry, Carry | None):
            raise UsageError(f"'carry' must be a result's, such as start(...).carry, got a {type(carry).__name__}")
        data, version = (carry.data, carry.version) if carry else (b"", None)
        inputs = {"carry_bytes": data, "prompt": prompt, "length": length, **_sampling(sampling)}
        answer, version = self.predict("continue", _columns(prompt, inputs), version)
        return self._rows(prompt, Continued, "continue", answer, version)

    def neurons(self, text: Text, layer: int = 0) -> Neurons:
        """Return the activations of a layer after each character of a text. Layer 0 is next to the input."""
        answer, _ = self.predict("neurons", _columns(text, {"text": text, "layer": layer}))
        return self._rows(text, Neurons, "neurons", answer)

    def info(self) -> dict[str, Any]:
        """Return the model's own description: vocabulary, unit, config, bits per character, limits, ...

        Raises StageError if the answer has none.
        """
        answer, _ = self.predict("info", _columns("", {"ignored": ""}))
        try:
            description: dict[str, Any] = parse_json(answer["info"][0])
            if not isinstance(description["unit"], str):
                raise TypeError("the unit is not a string")
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise StageError(f"the answer of {self._where} to 'info' is not a description: {error}") from None
        return description

    def _rows(self, texts: Any, kind: type, signature: str, answer: Mapping[str, Array], version: int = 0) -> Any:
        """Convert an answer to a result, or to a list of them for several texts. Raises StageError."""
        several = _is_column(texts)
        try:
            rows = [_row(kind, answer, b, version) for b in range(len(texts) if several else 1)]
        except LookupError as error:
            raise StageError(
                f"the answer of {self._where} to '{signature}' has no {error}: export the model with this "
                "release's python -m export savedmodel"
            ) from None
        except (AttributeError, TypeError, ValueError) as error:
            raise StageError(f"the answer of {self._where} to '{signature}' is invalid: {error}") from None
        if several:
            return rows
        if rows[0].error:
            raise StageError(f"{self._where} rejects the request: {rows[0].error}")
        return rows[0]


def _row(kind: type, answer: Mapping[str, Array], b: int, version: int) -> Any:
    """Convert row b of an answer to a dataclass by the outputs' names. Fields with a default may be missing."""
    length = answer["n_chars"][b] if "n_chars" in answer else None
    row: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name == "carry":
            row["carry"] = Carry(answer["carry_bytes"][b], version)
        elif field.name == "error":
            row["error"] = _error(answer["error"][b].decode())
        elif field.name in answer or field.default is dataclasses.MISSING:
            value = answer[field.name][b]
            if isinstance(value, bytes):
                row[field.name] = value if field.name.endswith("_bytes") else value.decode()
            else:
                row[field.name] = value.item() if value.ndim == 0 else value[:length]  # without the padding
        if isinstance(field.type, type) and field.name in row and not isinstance(row[field.name], field.type):
            raise TypeError(f"{field.name} must be of type {field.type.__name__}, got {_short(row[field.name])}")
    return kind(**row)


def _error(output: str) -> str:
    """Extract the message of "error: ..."; empty for any other output."""
    reason, _, error = output.partition("error: ")
    return "" if reason else error


def _bytes(text: Text) -> bytes:
    if not isinstance(text, str | bytes):
        raise TypeError("a text must be str or bytes, several a list, a tuple or a 1-D array of them")
    return text if isinstance(text, bytes) else text.encode()


def _is_column(value: Any) -> bool:
    """Check whether a value has one entry per row."""
    return isinstance(value, list | tuple | np.ndarray)


def _short(value: Any) -> str:
    """Represent a value in one line for an error message."""
    return brief(one_line(repr(value)), 100)


# Type and conversion of every signature input, and of a stream's `piece`.
INPUTS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    **dict.fromkeys(("prompt", "text", "stop", "carry_bytes", "ignored"), (object, _bytes)),
    **dict.fromkeys(("length", "piece", "top_k", "layer"), (np.int32, operator.index)),
    **dict.fromkeys(("temperature", "top_p", "repetition_penalty"), (np.float32, float)),
    "seed": (np.int64, operator.index),
}


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the default sampling options. Raises UsageError for an unknown option."""
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UsageError(f"unknown sampling option '{unknown[0]}'; choose from: {', '.join(DEFAULTS)}")
    return {**DEFAULTS, **options}


def _columns(texts: Any, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Convert inputs to arrays [B]. texts: a single text (B = 1) or B of them. Raises UsageError."""
    several = _is_column(texts)
    columns: dict[str, Array] = {}
    for name, value in inputs.items():
        dtype, convert = INPUTS[name]
        if isinstance(value, np.ndarray) and value.ndim != 1:
            raise UsageError(f"'{name}': an array must have one dimension, one entry per row, got shape {value.shape}")
        if _is_column(value) and not several:
            raise UsageError(f"'{name}' has several values, so there must be as many texts, got a single text")
        count = len(texts) if several else 1
        if not count:
            raise UsageError("there must be at least one text, got none")
        if _is_column(value) and len(value) != count:
            raise UsageError(f"'{name}' must have one value, or one for each of {count} texts, got {len(value)}")
        values = value.tolist() if isinstance(value, np.ndarray) else value if _is_column(value) else [value] * count
        try:
            with np.errstate(over="raise"):
                columns[name] = np.array([convert(element) for element in values], dtype)
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise UsageError(f"'{name}': {error}, got {_short(value)}") from None
    return columns


def _partial_stop(text: bytes, stop: bytes) -> int:
    """Length of the longest end of a text that may begin a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _decoded(pieces: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
