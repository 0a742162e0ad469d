"""Commands that query a model on TF Serving: python -m export query text | score | info | status."""

import base64
import dataclasses
import functools
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common import console, options
from common.errors import StageError

if TYPE_CHECKING:  # at run time gRPC is imported by the command, so that --help is quick
    from export.client.client import Client

FILE = click.Path(path_type=Path)
TARGET = ("target", "model", "version", "label", "timeout")
STABLE = "stable"
TLS = ("root_certificates", "key", "certificate", "server_name")
TARGET_OPTIONS = (
    click.option("--target", default="localhost:8500", show_default=True, metavar="HOST:PORT", help="gRPC address."),
    click.option("--model", required=True, metavar="NAME", help="The model's name on the server."),
    click.option("--version", type=options.VERSION, help="Model version."),
    click.option(
        "--label", metavar="NAME", help="Model version by its label.  [default: stable, if the server has it]"
    ),
    click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds per call, retries included."),
    click.option("--tls", is_flag=True, help="Connect over TLS; any other --tls-... option implies it."),
    click.option("--tls-root", TLS[0], type=FILE, metavar="PEM", help="Trusted authorities.  [default: public ones]"),
    click.option("--tls-key", TLS[1], type=FILE, metavar="PEM", help="Client key; needs --tls-cert."),
    click.option("--tls-cert", TLS[2], type=FILE, metavar="PEM", help="Client certificate; needs --tls-key."),
    click.option("--tls-name", TLS[3], metavar="NAME", help="Name in the server's certificate, if not its address."),
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")


def target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select a served model. The command receives a connected `Client` in their place."""

    @functools.wraps(command)
    def connected(**values: Any) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's logs repeat what the error reports
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
        from common.settings import make
        from export.client.client import Client, Tls

        target = {name: values.pop(name) for name in TARGET}
        files = {name: values.pop(name) for name in TLS}
        tls = make(Tls, files, "--tls-...") if values.pop("tls") or any(files.values()) else None
        if target["version"] is None and target["label"] is None:
            stable = target | {"label": STABLE}
            target = stable if has_label(Client(**stable, tls=tls)) else target
        with Client(**target, tls=tls) as client:
            command(client, **values)

    for option in reversed(TARGET_OPTIONS):
        connected = option(connected)
    return connected


def has_label(client: "Client") -> bool:
    """Check whether the server has the client's label for the model. Closes the client; raises ServingError."""
    from export.client.client import ServingError

    with client:
        try:
            client.metadata()
        except ServingError as error:
            if error.code.name == "INVALID_ARGUMENT":
                return False
            if error.code.name != "NOT_FOUND":  # the label exists, but its version is not loaded
                raise
    return True


@click.group()
def query() -> None:
    """Query a model that TF Serving serves."""


@query.command()
@target_options
@click.option("--prompt", default="", help="Text to continue.")
@options.count
@options.sampling
@click.option(
    "--seed", type=options.SEED, help="The same seed writes the same text.  [default: random, printed on stderr]"
)
@click.option("--stream/--no-stream", default=True, help="Print the text as it arrives, or all at once.")
@AS_JSON
def text(
    client: "Client",
    prompt: str,
    count: int,
    length: int,
    seed: int | None,
    stream: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Write text: the prompt and its continuation.

    The text is printed as it arrives. Each piece is one call. With --count, each call writes as many texts as the
    server allows, and each text is a line of JSON, as with --json.

    \b
    Examples:
      python -m export query text --model book --prompt "Once " --length 2000 --stop "THE END"
      python -m export query text --model names --count 1000 --seed 1 > names.jsonl
    """
    before = os.fsencode(prompt)  # the bytes as typed, in any locale
    drawn = secrets.randbelow(1 << 31) if seed is None else seed
    if as_json or count > 1:
        for row in _rows(client, before, length, drawn, count, sampling):
            _print_json(row)
        return
    sampling["seed"] = drawn
    pieces: Iterator[bytes]
    if not stream:
        pieces = iter([client.generate(before, length, **sampling).text_bytes])
    elif console.out.is_terminal:  # whole characters: a terminal shows a cut one as broken
        pieces = (piece.encode() for piece in client.stream(before, length, **sampling))
    else:
        pieces = client.stream_bytes(before, length, **sampling)
    console.write_pieces(pieces if seed is not None else _noting_seed(pieces, drawn), before=before)


def _rows(
    client: "Client", prompt: bytes, length: int, drawn: int, count: int, sampling: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Write texts, with seeds that count up from `drawn`, in calls of as many rows as the model's limit.

    Raises StageError for a rejected row.
    """
    most = client.info().get("limits", {}).get("rows", 1) if count > 1 else 1
    for first in range(0, count, most):
        batch = [options.later_seed(drawn, index) for index in range(first, min(first + most, count))]
        texts = client.generate([prompt] * len(batch), length, seed=batch, **sampling)
        for seed, generated in zip(batch, texts, strict=True):
            if generated.error:
                raise StageError(f"{client.settings.target} rejects the request: {generated.error}")
            encoded = {"b64": base64.b64encode(generated.text_bytes).decode()}  # as in TF Serving's REST API
            yield {**dataclasses.asdict(generated), "text_bytes": encoded, "seed": seed}


def _noting_seed(pieces: Iterator[bytes], seed: int) -> Iterator[bytes]:
    """Print the seed once the first piece has arrived, so that the error of a rejected request stays one line."""
    for index, piece in enumerate(pieces):
        if index == 0:
            console.note(f"seed {seed}")
        yield piece


@query.command()
@target_options
@click.option("--text", required=True, help="Text to score.")
@AS_JSON
def score(client: "Client", text: str, as_json: bool) -> None:
    """Score a text: bits per character under the model.

    \b
    Example:
      python -m export query score --model book --text "Once upon a time"
    """
    scored = client.score(os.fsencode(text))
    if as_json:
        _print_json({key: value for key, value in dataclasses.asdict(scored).items() if value is not None})
        return
    unit = client.info()["unit"]
    console.out.print(f"{scored.bits_per_char:.3f} bits per {unit}: {scored.nats:.2f} nats over {scored.n_chars:,}")


@query.command()
@target_options
@AS_JSON
def info(client: "Client", as_json: bool) -> None:
    """Print the model's own description: vocabulary, config, scores, limits."""
    _print_json(client.info(), indent=None if as_json else 2)


@query.command()
@target_options
@AS_JSON
def status(client: "Client", as_json: bool) -> None:
    """Print the model's versions and signatures.

    \b
    Example:
      python -m export query status --target serving.example:443 --tls --model book
    """
    from export.client.client import ServingError

    versions = client.status()
    signatures = {}
    if any(version.state == "AVAILABLE" for version in versions):
        try:
            signatures = client.metadata()
        except ServingError as error:
            if error.code.name != "NOT_FOUND" or client.settings.label != STABLE:  # stable may not be loaded yet
                raise
    if as_json:
        _print_json([dataclasses.asdict(version) for version in versions])
        return
    for version in versions:
        console.out.print(f"version {version.version}: {version.state} {version.error}".rstrip())
    for name, signature in signatures.items():
        inputs, outputs = ", ".join(signature.inputs), ", ".join(signature.outputs)
        console.out.print(f"{name}: {inputs} -> {outputs}")


def _print_json(value: Any, indent: int | None = None) -> None:
    """Print a JSON value. Its escapes keep control characters away from the terminal."""
    console.write_text(json.dumps(value, indent=indent).encode())
