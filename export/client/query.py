"""What `python -m export query` does: asks a served model, and shows what it says."""

import base64
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from common import console
from common.printable import visible
from export.client.client import Client, Sampling, Tls

__all__ = ["Client", "Sampling", "Tls", "info", "score", "status", "write"]


def write(
    client: Client, prompt: bytes, length: int, sampling: Sampling, *, stream: bool, as_json: bool, tell_seed: bool
) -> None:
    """Puts the prompt and what the model writes after it on standard output, as it comes or all at once.

    As JSON, the new text alone. tell_seed: on standard error, for a text that may be wanted again.
    """
    if as_json:
        generated = client.generate(prompt, length, **sampling)
        drawn = {"b64": base64.b64encode(generated.text_bytes).decode()}  # as TF Serving's REST puts bytes
        put_json({**dataclasses.asdict(generated), "text_bytes": drawn, "seed": sampling["seed"]})
        return
    pieces: Iterator[bytes]
    if not stream:
        pieces = iter([client.generate(prompt, length, **sampling).text_bytes])
    elif console.out.is_terminal:  # whole characters, so that none is shown as broken
        pieces = (text.encode() for text in client.stream(prompt, length, **sampling))
    else:
        pieces = client.stream_bytes(prompt, length, **sampling)
    console.write_pieces(_told(pieces, sampling["seed"]) if tell_seed else pieces, before=prompt)


def _told(pieces: Iterator[bytes], seed: int) -> Iterator[bytes]:
    """The pieces, and the seed told once the first is there: a refusal is to be one line."""
    for count, piece in enumerate(pieces):
        if not count:
            console.note(f"seed {seed}")
        yield piece


def score(client: Client, text: bytes, as_json: bool) -> None:
    """Shows how likely the model finds a text."""
    scored = client.score(text)
    if as_json:
        put_json({key: value for key, value in dataclasses.asdict(scored).items() if value is not None})
        return
    unit = client.info()["unit"]
    console.out.print(f"{scored.bits_per_char:.3f} bits per {unit}: {scored.nats:.2f} nats over {scored.n_chars:,}")


def info(client: Client, as_json: bool) -> None:
    """Shows what the model says of itself."""
    about = client.info()
    put_json(about, indent=None if as_json else 2)


def status(client: Client, as_json: bool) -> None:
    """Shows the versions that the server knows, and the signatures of the one that would answer, if any is ready."""
    versions = client.status()
    ready = any(version.state == "AVAILABLE" for version in versions)
    signatures = client.metadata() if ready else {}
    if as_json:
        put_json([dataclasses.asdict(version) for version in versions])
        return
    for version in versions:
        console.out.print(visible(f"version {version.version}: {version.state} {version.error}".rstrip()))
    for name, signature in signatures.items():
        takes, gives = ", ".join(signature.inputs), ", ".join(signature.outputs)
        console.out.print(visible(f"{name}: {takes} -> {gives}"))


def put_json(value: Any, indent: int | None = None) -> None:
    """One JSON value on standard output; on a terminal too, nothing of it can drive the terminal."""
    console.write_text(json.dumps(value, indent=indent).encode())
