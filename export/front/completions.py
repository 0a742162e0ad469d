"""Completions in OpenAI's form. A token is a character (a byte, if that is the model's unit)."""

import codecs
import json
import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from common.errors import UsageError
from common.settings import make, settings
from common.types import Array
from export.client.client import INPUTS, Client

# Unsupported fields, which a client may send with their neutral values.
NEUTRAL = {"best_of": 1, "echo": False, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "suffix": ""}


@settings
class Completion:
    """Validated body. top_k and repetition_penalty are not OpenAI's, but common in other servers."""

    model: str
    prompt: list[str]
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] = 16
    temperature: Annotated[float, Field(ge=0, le=1000)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=1000)] = 1.0
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
    stop: Annotated[list[str], Field(max_length=1)]
    stream: bool = False
    stream_options: Annotated[dict[str, bool], Field(default_factory=dict)]
    user: str = ""  # ignored

    def __post_init__(self) -> None:
        if self.stream and len(self.prompt) * self.n != 1:
            raise ValueError("a stream has one prompt, and n is 1")

    def inputs(self) -> dict[str, Array]:
        """Inputs of the signature `generate`: n rows per prompt, each with its own seed."""
        rows = len(self.prompt) * self.n
        sampling = {"length": self.max_tokens, **self.sampling()}
        columns: dict[str, Array] = {name: np.full(rows, value, INPUTS[name][0]) for name, value in sampling.items()}
        columns["seed"] += np.arange(rows)  # the largest seed is followed by the smallest
        columns["prompt"] = np.array([text.encode() for text in self.prompt for _ in range(self.n)], object)
        return columns

    def sampling(self) -> dict[str, Any]:
        names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in names} | {"stop": "".join(self.stop).encode()}


def parse(body: dict[str, Any], model: str) -> Completion:
    """Check a body. Raises UsageError."""
    fields = {name: value for name, value in body.items() if value is not None and NEUTRAL.get(name, ...) != value}
    for name, default in (("prompt", [""]), ("stop", [])):
        value = fields.get(name, default)
        fields[name] = [value] if isinstance(value, str) else value
    request = make(Completion, {"seed": secrets.randbelow(1 << 63), **fields}, "the request")
    if request.model != model:
        raise UsageError(f"unknown model; choose from: {model}")
    try:
        "".join(request.prompt + request.stop).encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt and the stop must be valid Unicode") from None
    return request


class Answer:
    """The parts of an answer, or the events of a stream, with their common id."""

    def __init__(self, request: Completion, unit: str):
        self.request, self.bytewise = request, unit == "byte"
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, outputs: dict[str, Array]) -> dict[str, Any]:
        """Convert the outputs of `generate`. Raises UsageError for the first row with an error."""
        columns = ([value.decode() for value in outputs[name]] for name in ("text", "finish_reason"))
        rows = list(zip(*columns, strict=True))
        for _, reason in rows:
            if reason.startswith("error: "):
                raise UsageError(reason.removeprefix("error: "))
        return self._object(*rows) | {"usage": self._usage(int(outputs["n_chars"].sum()))}

    def events(self, client: Client) -> Iterator[bytes]:
        """Stream the text as server-sent events. Raises as `Client.stream_bytes` does."""
        request, decoder, written = self.request, codecs.getincrementaldecoder("utf-8")("replace"), 0
        for piece in client.stream_bytes(request.prompt[0], request.max_tokens, **request.sampling()):
            text = decoder.decode(piece)
            written += len(piece if self.bytewise else text)
            yield event(self._object((text, None)))
        finish = "length" if written >= request.max_tokens else "stop"
        yield event(self._object((decoder.decode(b"", final=True), finish)))
        if request.stream_options.get("include_usage"):
            yield event(self._object() | {"usage": self._usage(written)})
        yield b"data: [DONE]\n\n"

    def _object(self, *rows: tuple[str, str | None]) -> dict[str, Any]:
        choices = [
            {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
            for index, (text, finish) in enumerate(rows)
        ]
        same = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.request.model}
        return {**same, "choices": choices}

    def _usage(self, written: int) -> dict[str, int]:
        read = sum(len(text.encode() if self.bytewise else text) for text in self.request.prompt)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"
