"""Completions in OpenAI's form. A token is a character (a byte, if that is the model's unit)."""

import codecs
import dataclasses
import json
import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, FailFast, Field

from common.errors import UsageError
from common.settings import make, settings
from export.client.client import Client

# Unsupported fields, which a client may send with their neutral values.
NEUTRAL = {"best_of": 1, "echo": False, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "suffix": ""}
Texts = Annotated[list[str], FailFast(), BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


@settings
class Completion:
    """Completion request, and its answer. top_k and repetition_penalty are not OpenAI's, but common elsewhere."""

    model: str
    prompt: Annotated[Texts, Field(default_factory=lambda: [""])]
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] = 16
    temperature: Annotated[float, Field(ge=0, le=1000)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=1000)] = 1.0
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63, default_factory=lambda: secrets.randbelow(1 << 63))]
    stop: Annotated[Texts, Field(max_length=1, default_factory=list)]
    stream: bool = False
    stream_options: Annotated[dict[str, bool], Field(default_factory=dict)]
    user: str = ""  # ignored
    id: str = dataclasses.field(init=False, default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = dataclasses.field(init=False, default_factory=lambda: int(time.time()))

    @property
    def size(self) -> tuple[int, int]:
        """Rows, and characters that they read and write."""
        rows = len(self.prompt) * self.n
        return rows, self.n * sum(map(len, self.prompt)) + rows * self.max_tokens

    def answer(self, client: Client, unit: str) -> dict[str, Any]:
        """Write n texts for each prompt, each with its own seed. Raises UsageError for the first row with an error."""
        prompts = [text for text in self.prompt for _ in range(self.n)]
        sampling = self._sampling() | {"seed": self.seed + np.arange(len(prompts))}  # wraps around
        rows = client.generate(prompts, self.max_tokens, **sampling)
        if errors := [row.error for row in rows if row.error]:
            raise UsageError(errors[0])
        usage = self._usage(sum(row.n_chars for row in rows), unit)
        return self._object(*({"text": row.text, "finish_reason": row.finish_reason} for row in rows)) | usage

    def events(self, client: Client, unit: str) -> Iterator[bytes]:
        """Stream the text as server-sent events. Raises as `Client.stream_bytes` does."""
        decoder, written = codecs.getincrementaldecoder("utf-8")("replace"), 0
        for piece in client.stream_bytes(self.prompt[0], self.max_tokens, **self._sampling()):
            text = decoder.decode(piece)
            written += len(piece if unit == "byte" else text)
            yield event(self._object({"text": text, "finish_reason": None}))
        finish = "length" if written >= self.max_tokens else "stop"
        yield event(self._object({"text": decoder.decode(b"", final=True), "finish_reason": finish}))
        if self.stream_options.get("include_usage"):
            yield event(self._object() | self._usage(written, unit))
        yield b"data: [DONE]\n\n"

    def _sampling(self) -> dict[str, Any]:
        names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in names} | {"stop": "".join(self.stop)}

    def _object(self, *rows: dict[str, Any]) -> dict[str, Any]:
        about = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**about, "choices": [{"index": index, "logprobs": None, **row} for index, row in enumerate(rows)]}

    def _usage(self, written: int, unit: str) -> dict[str, dict[str, int]]:
        read = sum(len(text.encode() if unit == "byte" else text) for text in self.prompt)
        return {"usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}}


def parse(body: dict[str, Any], model: str) -> Completion:
    """Check a body. Raises UsageError."""
    fields = {name: value for name, value in body.items() if value is not None and NEUTRAL.get(name, ...) != value}
    completion = make(Completion, fields, "the request")
    if completion.model != model:
        raise UsageError(f"unknown model; choose from: {model}")
    if completion.stream and completion.size[0] != 1:
        raise UsageError("the request: a stream has one prompt, and n is 1")
    try:
        "".join(completion.prompt + completion.stop).encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt and the stop must be valid Unicode") from None
    return completion


def event(content: dict[str, Any]) -> bytes:
    """Format a server-sent event."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"
