"""A client of the served model: text in, text out. Needs NumPy and gRPC, not TensorFlow.

    with Client("localhost:8500", "book") as client:
        print(client.generate("Once ", length=200, temperature=0.7).text)
        for text in client.stream("Once ", length=2000, stop="THE END"):
            print(text, end="", flush=True)

Legend: P characters read, H units, V vocabulary.
"""

import codecs
import dataclasses
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack, overload

import numpy as np
import numpy.typing as npt

from common.errors import StageError, UsageError
from common.types import Array
from export.client.connection import Connection, ServingError, Signature, TensorInfo, Tls, Version

__all__ = [
    "Carry",
    "Client",
    "Continued",
    "Generated",
    "Neurons",
    "Sampling",
    "Score",
    "ServingError",
    "Signature",
    "Started",
    "TensorInfo",
    "Tls",
    "Version",
]

Floats = npt.NDArray[np.float32]
Text = str | bytes
Texts = list[str] | list[bytes] | list[Text]
T = TypeVar("T")
Each: TypeAlias = T | list[T]  # one for all rows, or one a row

FIRST_PIECE = 8  # characters: the beginning of a stream is to be seen at once


class Sampling(TypedDict, total=False):
    """How characters are drawn. The same seed writes the same text.

    temperature: 0 takes the likeliest character, 1 is the model's own, more is bolder. top_k: draw from so many of the
    likeliest (0: from all). top_p: from as few of the likeliest as have this probability together. repetition_penalty:
    above 1, characters that were written are less likely to come again. stop: the text ends ahead of this string.
    """

    temperature: float
    seed: int
    top_k: int
    top_p: float
    repetition_penalty: float
    stop: Text


class EachSampling(TypedDict, total=False):
    """The same for several rows: one value for all, or a list with one a row."""

    temperature: Each[float]
    seed: Each[int]
    top_k: Each[int]
    top_p: Each[float]
    repetition_penalty: Each[float]
    stop: Each[str] | Each[bytes]


DEFAULTS = Sampling(temperature=0.8, seed=1, top_k=0, top_p=1.0, repetition_penalty=1.0, stop="")


@dataclasses.dataclass(frozen=True)
class Generated:
    """New text alone, without its prompt.

    text: U+FFFD stands for what was not UTF-8. text_bytes: as drawn.
    n_chars: how many characters (or bytes, where that is the model's unit) were written.
    log_prob: nats, of the characters written, under the model itself.
    finish_reason: "length", "stop", or "error: ...", and then there is no text.
    """

    text: str
    text_bytes: bytes
    n_chars: int
    log_prob: float
    finish_reason: str

    @property
    def error(self) -> str:
        """What is wrong with the row; empty where nothing is."""
        return _error(self.finish_reason)


@dataclasses.dataclass(frozen=True)
class Carry:
    """Where a text stands, and the version of the model that brought it there: no other can go on from it."""

    data: bytes
    version: int


@dataclasses.dataclass(frozen=True)
class Continued(Generated):
    """A piece of text, and where it ends.

    n_back: how many bytes at the end of the pieces before it turned out to be the stop's: they are none of the text.
    """

    carry: Carry
    n_back: int


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a text is.

    n_chars: how many characters were scored. error: what is wrong with the text; empty where nothing is.
    log_probs: nats, of each character scored, where they were asked for.
    """

    nats: float
    n_chars: int
    bits_per_char: float
    error: str
    log_probs: Floats | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Started:
    """Where a text stands after its prompt, and the logits_V of what comes next."""

    carry: Carry
    logits: Floats
    error: str


@dataclasses.dataclass(frozen=True, eq=False)
class Neurons:
    """What the units of a layer hold after each character that was read: h_PxH, and of an LSTM c_PxH."""

    h: Floats
    n_chars: int
    error: str
    c: Floats | None = None


class Client(Connection):
    """One model on one server, as text. Settings and errors are the Connection's.

    Where one text is asked about, and the model refuses it, that is a StageError; of a list of texts the refused rows
    come back with their `error` set, and the others are answered.
    """

    @overload
    def generate(self, prompt: Text = ..., length: int = ..., **sampling: Unpack[Sampling]) -> Generated: ...
    @overload
    def generate(self, prompt: Texts, length: Each[int] = ..., **sampling: Unpack[EachSampling]) -> list[Generated]: ...
    def generate(self, prompt: Text | Texts = "", length: Each[int] = 500, **sampling: Any) -> Any:
        """Continues a prompt by `length` characters, or a list of prompts in one call.

        sampling: see Sampling; of a list, each setting (and the length) is one for all, or a list too.
        """
        inputs = {"prompt": prompt, "length": length, **_sampling(sampling)}
        answer, _ = self.predict("generate", _columns(prompt, inputs))
        return self._rows(prompt, Generated, "generate", answer)

    def stream(
        self, prompt: Text = "", length: int = 500, *, piece: int = 128, **sampling: Unpack[Sampling]
    ) -> Iterator[str]:
        """The text that `generate` would write, as it comes: joined, the pieces are the same text.

        piece: the characters that are asked for at a time, at most; the first pieces are shorter. Each is a call with a
        deadline of its own, all to one version. `length` may be more than the model writes in one call.
        """
        return _decoded(self.stream_bytes(prompt, length, piece=piece, **sampling))

    def stream_bytes(
        self, prompt: Text = "", length: int = 500, *, piece: int = 128, **sampling: Unpack[Sampling]
    ) -> Iterator[bytes]:
        """The same as drawn: a character of UTF-8 may be cut between two pieces."""
        settings = _sampling(sampling)
        # What is wrong is to be known now, not later.
        _columns("", {"prompt": prompt, "length": length, "piece": piece, **settings})
        if piece < 1:
            raise UsageError(f"a piece has one character or more, got {piece}")
        return self._pieces(prompt, length, piece, settings)

    def _pieces(self, prompt: Text, length: int, piece: int, settings: dict[str, Any]) -> Iterator[bytes]:
        stop = _bytes(settings["stop"])
        carry, held, size = None, b"", min(FIRST_PIECE, piece)
        while True:
            part = self.continue_(carry, prompt, min(size, length), **settings)
            text, length = held + part.text_bytes, length - size
            over = length <= 0 or part.finish_reason == "stop"
            end = len(text) - (part.n_back if over else _begun(text, stop))
            if end:
                yield text[:end]
            if over:
                return
            held, carry, prompt, size = text[end:], part.carry, "", min(2 * size, piece)

    @overload
    def score(self, text: Text, *, characters: bool = ...) -> Score: ...
    @overload
    def score(self, text: Texts, *, characters: bool = ...) -> list[Score]: ...
    def score(self, text: Text | Texts, *, characters: bool = False) -> Any:
        """How likely a text is from its beginning, or each of a list; with `characters`, each character as well."""
        signature = "score_chars" if characters else "score"
        answer, _ = self.predict(signature, _columns(text, {"text": text}))
        return self._rows(text, Score, signature, answer)

    def start(self, prompt: Text = "") -> Started:
        """Reads a prompt, for `continue_` to go on from, as often as is wanted."""
        answer, version = self.predict("start", _columns(prompt, {"prompt": prompt}))
        return self._rows(prompt, Started, "start", answer, version)

    def continue_(
        self, carry: Carry | None = None, prompt: Text = "", length: int = 500, **sampling: Unpack[Sampling]
    ) -> Continued:
        """Goes on from a carry (None: with a fresh text) after reading `prompt`, and gives the one to go on from next.

        With the same seed throughout, the pieces joined are what one `generate` writes, less the `n_back` bytes ahead
        of a piece that a stop has ended. It is the carry's version that answers, whatever the latest is by then.
        """
        if not isinstance(carry, Carry | None):
            raise UsageError(f"a carry is the one of a result, such as start(...).carry, got a {type(carry).__name__}")
        data, version = (carry.data, carry.version) if carry else (b"", None)
        inputs = {"carry_bytes": data, "prompt": prompt, "length": length, **_sampling(sampling)}
        answer, version = self.predict("continue", _columns(prompt, inputs), version)
        return self._rows(prompt, Continued, "continue", answer, version)

    def neurons(self, text: Text, layer: int = 0) -> Neurons:
        """What the units of a layer (0 reads the characters) hold after each character of a text."""
        answer, _ = self.predict("neurons", _columns(text, {"text": text, "layer": layer}))
        return self._rows(text, Neurons, "neurons", answer)

    def info(self) -> dict[str, Any]:
        """What the model says of itself: vocabulary, unit, config, bits per character, limits, ..."""
        answer, _ = self.predict("info", _columns("", {"ignored": ""}))
        about: dict[str, Any] = json.loads(answer["info"][0])
        return about

    def _rows(self, asked: Any, kind: type, signature: str, answer: Mapping[str, Array], version: int = 0) -> Any:
        """The rows of an answer as a kind of result: one, or a list where a list was asked. Raises StageError."""
        try:
            count = len(asked) if isinstance(asked, list) else 1
            rows = [_row(kind, answer, b, version) for b in range(count)]
        except LookupError as error:
            raise StageError(
                f"{self._where} answers '{signature}' without {error}: it was exported by something else than this "
                "release's python -m export savedmodel"
            ) from None
        if isinstance(asked, list):
            return rows
        if rows[0].error:
            raise StageError(f"{self._where} refuses: {rows[0].error}")
        return rows[0]


def _row(kind: type, answer: Mapping[str, Array], b: int, version: int) -> Any:
    """Row b of an answer, as a dataclass whose fields bear the outputs' names; one with a default may be missing."""
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
                row[field.name] = value.item() if value.ndim == 0 else value[:length]  # padded behind
    return kind(**row)


def _error(said: str) -> str:
    """What is wrong, where an output says so ("error: ..."), else nothing."""
    reason, _, error = said.partition("error: ")
    return "" if reason else error


def _bytes(text: Text) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


# Every input of every signature, and the piece of a stream: its type, and what makes a value of it.
INPUTS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    **dict.fromkeys(("prompt", "text", "stop", "carry_bytes", "ignored"), (object, _bytes)),
    **dict.fromkeys(("length", "piece", "top_k", "layer"), (np.int32, operator.index)),
    **dict.fromkeys(("temperature", "top_p", "repetition_penalty"), (np.float32, float)),
    "seed": (np.int64, operator.index),
}


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of sampling, those not given by default. Raises UsageError for one that there is not."""
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise UsageError(f"no setting of sampling is called '{unknown[0]}'; there are: {', '.join(DEFAULTS)}")
    return {**DEFAULTS, **given}


def _columns(asked: Any, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Inputs as arrays [B], where `asked` is one text (B = 1) or a list of B. Raises UsageError."""
    if asked == []:
        raise UsageError("a list of texts has one or more")
    columns: dict[str, Array] = {}
    for name, value in inputs.items():
        dtype, convert = INPUTS[name]
        if isinstance(value, list) and not isinstance(asked, list):
            raise UsageError(f"'{name}' is a list, so the text must be one too: a text for each")
        if isinstance(value, list) and len(value) != len(asked):
            raise UsageError(f"'{name}' must be one for all {len(asked)} texts, or one for each, got {len(value)}")
        count = len(asked) if isinstance(asked, list) else 1
        values = value if isinstance(value, list) else [value] * count
        try:
            with np.errstate(over="raise"):
                columns[name] = np.array([convert(one) for one in values], dtype)
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise UsageError(f"'{name}': {error}, got {value!r}") from None
    return columns


def _begun(text: bytes, stop: bytes) -> int:
    """How many bytes at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _decoded(pieces: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
