"""The command line: python -m export savedmodel | label | serve | query | front | tflite | run-lite | web | keras
| verify | show."""

import ipaddress
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common import console, options
from common.files import bytes_to_json
from common.machine import hide_gpus
from export.client.query import query, target_options

if TYPE_CHECKING:
    from export.client.client import Client

PATH = click.Path(path_type=Path)
CAP = click.IntRange(1, 1 << 20)
PAGE = click.option(
    "--page",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="site/NAME",
    help="Also serve this page of `export web`, at /.",
)
SERVER = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="HOST:PORT",
    help="gRPC address of a running server that follows the folder; may be repeated. Labels wait until all have loaded "
    "the version.",
)


def _networks(value: str | None) -> list[str]:
    """Split a list of addresses and networks. Raises click.BadParameter for anything else."""
    parts = [part.strip() for part in value.split(",")] if value else []
    for part in parts:
        try:
            ipaddress.ip_network(part)
        except ValueError as error:
            raise click.BadParameter(f"--proxy must be addresses or networks, comma-separated: {error}") from None
    return parts


def waiting(targets: tuple[str, ...]) -> Callable[[str, set[int]], None] | None:
    """Return a function that waits until servers have loaded versions of a model; None without servers."""
    from export.client.connection import Connection

    def wait(model: str, versions: set[int]) -> None:
        for target in targets:
            with (
                Connection(target, model) as connection,
                console.err.status(f"waiting for {target} to load the version"),
            ):
                connection.wait_until_loaded(sorted(versions))

    return wait if targets else None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Export a trained run: TF Serving, devices, browsers, Keras."""
    hide_gpus()


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.option("--out", type=PATH, help="TF Serving's base path.  [default: served/NAME]")
@click.option("--version", type=click.IntRange(1, options.VERSION.max), help="Version to write.  [default: the next]")
@click.option("--force", is_flag=True, help="Overwrite that version (without --version: the latest).")
@click.option("--most-length", type=CAP, default=4096, show_default=True, help="Characters to write per row, at most.")
@click.option("--most-prompt", type=CAP, default=4096, show_default=True, help="Characters of a row's prompt, at most.")
@click.option(
    "--most-rows", type=click.IntRange(1, 1024), default=64, show_default=True, help="Rows per call and batch, at most."
)
@SERVER
def savedmodel(
    run: Path,
    out: Path | None,
    version: int | None,
    force: bool,
    most_length: int,
    most_prompt: int,
    most_rows: int,
    targets: tuple[str, ...],
) -> None:
    """Export a SavedModel for TF Serving, with the files that start a server.

    Exports the run's best checkpoint, and verifies it in a fresh process that reads the files alone. The limits are
    part of the graph. If the latest version already holds the same model, nothing is written. The first version is
    labelled stable, a later one has no label; with --target, it becomes canary if there is none.

    \b
    Example:
      python -m export savedmodel runs/stdlib --out served/stdlib
    """
    with console.quiet():
        from export.serve.package import label_canary
        from export.serve.saved_model import export_saved_model
        from trainers.sampling.rows import Limits
    limits = Limits(length=most_length, prompt=most_prompt, rows=most_rows)
    out = out or Path("served") / run.resolve().name
    version = export_saved_model(run, out, version, force, limits)
    if wait := waiting(targets):
        label_canary(out, version, wait)


@cli.command()
@click.argument("base", type=PATH, metavar="served/NAME")
@click.argument("changes", nargs=-1, metavar="[LABEL=VERSION|LABEL=|VERSION]...")
@SERVER
def label(base: Path, changes: tuple[str, ...], targets: tuple[str, ...]) -> None:
    """Label the versions of a model: stable, canary.

    LABEL=VERSION moves a label, LABEL= removes it, VERSION makes servers load a version without a label. Without
    arguments, the labels are printed. Running servers follow within seconds. Versions that lose their label stay loaded
    until the next change, so that rolling back is quick.

    A server accepts a label only for a version that it has loaded. With --target, the version is loaded first, and the
    label moves once the server reports it AVAILABLE.

    \b
    Examples:
      python -m export label served/stdlib stable=2           # promote; roll back with stable=1
      python -m export label served/stdlib canary=3 --target localhost:8500
    """
    with console.quiet():
        from export.serve.package import relabel
    relabel(base, changes, waiting(targets))


@cli.command()
@click.argument("folder", type=PATH, metavar="runs/NAME|served/NAME")
@click.option("--port", type=click.IntRange(0, 65535), default=8501, show_default=True, help="0: any.")
@PAGE
def serve(folder: Path, port: int, page: Path | None) -> None:
    """Serve a run or an export on this machine, until Ctrl-C.

    Starts a server and a front before it (see `front`). The server is tensorflow_model_server if it is on the PATH,
    else TensorFlow Serving in docker if that runs here, else a stand-in in Python that is for trying things out. A run
    is first exported to served/NAME, as `savedmodel` does, unless a model is there already.

    \b
    Examples:
      python -m export serve runs/stdlib
      python -m export serve served/stdlib --page site/stdlib
    """
    with console.quiet():
        from export.serve.labels import MODELS
        from export.serve.start import started
    from export.client.client import Client
    from export.front import app

    base = folder
    if (folder / "run.json").exists():
        base = Path("served") / folder.resolve().name
        if (base / MODELS).exists():
            console.note(f"serving {base} as it is; to export {folder} again: python -m export savedmodel {folder}")
        else:
            with console.quiet():
                from export.serve.saved_model import export_saved_model
            export_saved_model(folder, base, version=None, force=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by default, the server would live on
    with (
        app.listen("127.0.0.1", port) as listener,
        started(base) as server,
        Client(server.target, server.model, label="stable") as client,
    ):
        front = app.Front(client, app.FrontSettings(rows=server.rows, page=page))
        with console.err.status(f"waiting for {base} to answer"):
            server.wait(front.answers)
        app.serve(app.server(front), listener, front.model)


@cli.command()
@target_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any.")
@click.option("--certificate", "pem", type=PATH, metavar="PEM", help="Serve TLS with this certificate and --key.")
@click.option("--key", "pem_key", type=PATH, metavar="PEM", help="The certificate's key.")
@PAGE
@click.option("--allow-origin", multiple=True, metavar="URL", help="Origin of web pages that may call; repeatable.")
@click.option("--record", type=PATH, metavar="FILE.jsonl", help="Append the callers' texts, for `pipeline validate`.")
@click.option(
    "--proxy",
    metavar="ADDRESS,...",
    callback=lambda context, option, value: _networks(value),
    help="Proxies, or networks such as 10.0.0.0/8, whose X-Forwarded-For contains the client's address.",
)
@click.option("--rows", type=CAP, default=64, show_default=True, help="Rows per call, at most.")
@click.option("--characters", type=CAP, default=65536, show_default=True, help="Read and written per call, at most.")
@click.option(
    "--calls", type=click.IntRange(1, 1024), default=32, show_default=True, help="Calls at once; half for one client."
)
@click.option("--per-minute", type=CAP, default=600, show_default=True, help="Calls per minute and client, at most.")
def front(
    client: "Client",
    host: str,
    port: int,
    pem: Path | None,
    pem_key: Path | None,
    page: Path | None,
    allow_origin: tuple[str, ...],
    record: Path | None,
    proxy: list[str],
    **limits: int,
) -> None:
    """Serve a model over HTTP, in front of TF Serving.

    Checks every call against the model's signatures and the limits before the server sees it. Offers TF Serving's REST
    API, OpenAI's completions with streaming, /healthz and /metrics. Prompts are not stored without --record.

    \b
    Example:
      python -m export front --target localhost:8500 --model stdlib
      curl localhost:8080/v1/completions -d '{"model": "stdlib", "prompt": "def "}'
    """
    if (pem is None) != (pem_key is None):
        raise click.UsageError("--certificate and --key go together: pass both or neither")
    from export.front import app

    front = app.Front(client, app.FrontSettings(page=page, origins=allow_origin, record=record, **limits))
    tls = {"ssl_certfile": pem, "ssl_keyfile": pem_key}
    with app.listen(host, port) as listener:
        app.serve(app.server(front, forwarded_allow_ips=proxy, **tls), listener, front.model)


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.option("--out", type=PATH, help="Output folder.  [default: devices/NAME]")
@click.option(
    "--precision",
    default="float32,float16,int8-dynamic",
    show_default=True,
    metavar="NAME,...",
    help="Precisions, one file each.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="PRECISION=BITS",
    help="Accepted loss in bits per character; may be repeated.  [default: 0.0001, 0.001, 0.02]",
)
@click.option("--data", type=PATH, help="Data set, if it has moved since training.")
@click.option("--force", is_flag=True, help="Overwrite a different model.")
def tflite(run: Path, out: Path | None, precision: str, allow: tuple[str, ...], data: Path | None, force: bool) -> None:
    """Export .tflite files for devices, one per precision.

    Exports the run's best checkpoint as one step, with the carry in and out. Each file is measured on up to 100,000
    characters of held-out text, with the runtime of devices; a file that loses more than accepted is rejected.

    \b
    Examples:
      python -m export tflite runs/stdlib --out devices/stdlib
      python -m export tflite runs/stdlib --precision int8-dynamic --allow int8-dynamic=0.1
    """
    allowed = {}
    for limit in allow:
        name, _, bits = limit.partition("=")
        try:
            if not math.isfinite(limit_bits := float(bits)):
                raise ValueError
            allowed[name] = limit_bits
        except ValueError:
            rule = "--allow must be PRECISION=BITS (such as int8-dynamic=0.1)"
            raise click.BadParameter(f"{rule}, got '{limit}'") from None
    with console.quiet():
        from export.lite.lite import LiteSettings, export_lite
    settings = LiteSettings(tuple(name for name in precision.split(",") if name), allowed)
    export_lite(run, out or Path("devices") / run.resolve().name, settings, data, force)


@cli.command()
@click.argument("file", type=PATH, metavar="FILE|devices/NAME")
@click.option("--prompt", default="", help="Text to continue.  [default: start as after a newline]")
@options.count
@options.sampling
@click.option(
    "--seed",
    type=options.SEED,
    default=1,
    show_default=True,
    help="The same seed writes the same text; in float32, that of `trainers sample`.",
)
@click.option("--threads", type=click.IntRange(1, 128), default=1, show_default=True, help="Threads of the runtime.")
def run_lite(file: Path, prompt: str, count: int, length: int, threads: int, seed: int, **sampling: Any) -> None:
    """Write text with a .tflite as a device does, without TensorFlow. In a folder, int8-dynamic.tflite is used.

    With --count, texts are JSON lines: prompt, seed and text. Each equals that of a separate call.

    \b
    Examples:
      python -m export run-lite models/shakespeare --prompt "KING "
      python -m export run-lite devices/stdlib/float32.tflite --prompt "def " --temperature 0.5
      python -m export run-lite models/names --count 1000 --length 40 > names.jsonl
    """
    from export.lite.runner import LiteModel, Sampling

    file = file / "int8-dynamic.tflite" if file.is_dir() else file
    model, text = LiteModel(file, threads), os.fsencode(prompt)  # the bytes as typed, in any locale
    if count == 1:
        console.write_pieces(model.stream(text, length, Sampling(seed=seed, **sampling)), before=text)
        return
    for index in range(count):
        row_seed = options.later_seed(seed, index)
        written = bytes_to_json(model.generate(text, length, Sampling(seed=row_seed, **sampling)))
        row = {"prompt": bytes_to_json(text), "seed": row_seed, "text": written}
        console.write_text(json.dumps(row, ensure_ascii=False).encode())


@cli.command()
@click.argument("folders", type=PATH, metavar="devices/NAME...", nargs=-1, required=True)
@click.option("--out", type=PATH, help="Output folder.  [default: site/NAME; site/all for several models]")
@click.option("--force", is_flag=True, help="Overwrite a different page.")
@click.option("--serve", is_flag=True, help="Serve the page on this machine until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), help="With --serve; 0: any.  [default: 8000]")
def web(folders: tuple[Path, ...], out: Path | None, force: bool, serve: bool, port: int | None) -> None:
    """Export a page that runs the models in the browser.

    The output is a static folder for any web server and path; once opened, the page works offline. npm fetches
    LiteRT.js the first time. Each model is included in every precision that its folder has.

    \b
    Examples:
      python -m export web devices/stdlib --serve
      python -m export web devices/stdlib devices/names --out site/both
    """
    if port is not None and not serve:
        raise click.UsageError("--port requires --serve")
    from export.web.build import export_page
    from export.web.build import serve as show

    out = out or Path("site") / (folders[0].resolve().name if len(folders) == 1 else "all")
    export_page(folders, out, force)
    if serve:
        show(out, 8000 if port is None else port)


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.option("--out", type=PATH, help="Output folder.  [default: exported/NAME]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Rows of every call.")
@click.option("--force", is_flag=True, help="Overwrite a different model.")
def keras(run: Path, out: Path | None, batch: int, force: bool) -> None:
    """Export a .keras file of stock layers.

    Exports the run's best checkpoint, and verifies it in a fresh process that has Keras but not this project. Its
    layers are stateful: each call resumes from the previous one. They cannot reset inside a window: for data made of
    documents, start a new window at the end of each, and reset the layers before it.

    \b
    Example:
      python -m export keras runs/stdlib --out exported/stdlib
    \b
    Then in any Python that has Keras 3.8 or later, on TensorFlow or JAX, with the ids of model.json:
      model = keras.models.load_model("exported/stdlib/model.keras")
      logits = model(np.array([list(b"def ")]))             # [batch, length, vocabulary]
      for layer in model.layers:
          if hasattr(layer, "reset_states"):
              layer.reset_states()                          # start another text
    """
    with console.quiet():
        from export.keras_model import export_keras
    export_keras(run, out or Path("exported") / run.resolve().name, batch, force)


@cli.command()
@click.argument("run", type=PATH, metavar="runs/NAME")
@click.option("--served", type=PATH, help="TF Serving's base path.  [default: served/NAME]")
@click.option("--devices", type=PATH, help="Folder of the .tflite files.  [default: devices/NAME]")
def show(run: Path, served: Path | None, devices: Path | None) -> None:
    """Print a run's results, exports and samples.

    \b
    Example:
      python -m export show runs/stdlib
    """
    with console.quiet():
        from export.show import show as show_run
    show_run(run, served or Path("served") / run.resolve().name, devices or Path("devices") / run.resolve().name)


@cli.command()
@click.argument("folders", type=PATH, metavar="FOLDER...", nargs=-1, required=True)
def verify(folders: tuple[Path, ...]) -> None:
    """Compare exports with the checksums that were written with them.

    A folder is one of served/ (all versions), devices/, exported/ or site/. Prints a line for each file that is missing
    or corrupted; the exit code is then 1. In each folder, `sha256sum -c SHA256SUMS` does the same.

    \b
    Example:
      python -m export verify served/stdlib devices/stdlib
    """
    from export import checksums

    problems = {folder: checksums.verify(folder) for folder in folders}
    for folder, lines in problems.items():
        for line in lines or [f"{folder} is intact"]:
            console.out.print(line)
    if any(problems.values()):
        raise click.exceptions.Exit(1)


cli.add_command(query)

if __name__ == "__main__":
    console.run(cli)
