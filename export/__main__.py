"""The command line: python -m export savedmodel | label | query | tflite | run-lite | web | keras | show."""

import math
import os
import secrets
from pathlib import Path

import click

from common import console, options

FOLDER = click.Path(path_type=Path)
CAP = click.IntRange(1, 1 << 20)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """A trained run to the forms in which it is used."""


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option("--out", type=FOLDER, help="TF Serving's base path. Default: served/NAME.")
@click.option("--version", type=click.IntRange(1), help="The version to write below it.  [default: the next one]")
@click.option("--force", is_flag=True, help="Replace that version (without --version: the latest).")
@click.option("--most-length", type=CAP, default=4096, show_default=True, help="Characters that a row may ask for.")
@click.option("--most-prompt", type=CAP, default=4096, show_default=True, help="Characters that it may give to read.")
@click.option(
    "--most-rows", type=click.IntRange(1, 1024), default=64, show_default=True, help="Rows of a call, and of a batch."
)
def savedmodel(
    run: Path, out: Path | None, version: int | None, force: bool, most_length: int, most_prompt: int, most_rows: int
) -> None:
    """Writes a SavedModel for TF Serving, and what a server is started with.

    The run's best checkpoint, proven by a fresh process that answers from the files alone. What callers may ask for at
    most is part of the graph. Where the latest version holds the same model, nothing is made.

    \b
    Example:
      python -m export savedmodel runs/stdlib --out served/stdlib
    """
    with console.quiet():
        from export.serve.saved_model import export_saved_model
        from trainers.sampling.rows import Limits
    limits = Limits(length=most_length, prompt=most_prompt, rows=most_rows)
    export_saved_model(run, out or Path("served") / run.name, version, force, limits)


@cli.command()
@click.argument("base", type=FOLDER, metavar="served/NAME")
@click.argument("changes", nargs=-1, metavar="[LABEL=VERSION|LABEL=|VERSION]...")
def label(base: Path, changes: tuple[str, ...]) -> None:
    """Says which version of a model is stable, which is canary.

    LABEL=VERSION moves a label, LABEL= removes it, VERSION has servers load a version without a label; without any, the
    labels are shown. Servers that run read it within seconds. Versions that were labelled until now stay loaded until
    the next change, so that going back is quick.

    \b
    Example:
      python -m export label served/stdlib stable=2           # promote, or back with stable=1
    """
    with console.quiet():
        from export.serve.package import relabel
    relabel(base, changes)


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option("--out", type=FOLDER, help="The folder to make. Default: devices/NAME.")
@click.option(
    "--precision",
    default="float32,float16,int8-dynamic,int8-full",
    show_default=True,
    metavar="NAME,...",
    help="What to make, a file each.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="PRECISION=BITS",
    help="Let it lose so many bits a character; may be repeated.  [default: 0.0001, 0.001, 0.02, 0.05]",
)
@click.option("--data", type=FOLDER, help="The data set, where it has moved since training.")
@click.option("--force", is_flag=True, help="Replace it where another model lies there.")
def tflite(run: Path, out: Path | None, precision: str, allow: tuple[str, ...], data: Path | None, force: bool) -> None:
    """Writes a .tflite for devices, in every precision.

    The run's best checkpoint as one step, carry in and out, and as 16 steps at once. Each file is measured on up to
    100,000 characters of held-out text, on the runtime that devices have; one that loses more than it may is refused.
    int8-full is calibrated on the validation split.

    \b
    Examples:
      python -m export tflite runs/stdlib --out devices/stdlib
      python -m export tflite runs/stdlib --precision int8-dynamic --allow int8-dynamic=0.1
    """
    allowed = {}
    for each in allow:
        name, _, bits = each.partition("=")
        try:
            allowed[name] = float(bits)
        except ValueError:
            raise click.BadParameter(f"--allow wants PRECISION=BITS (such as int8-full=0.1), got '{each}'") from None
    with console.quiet():
        from export.lite.lite import Wanted, export_lite
    wanted = Wanted(tuple(name for name in precision.split(",") if name), allowed)
    export_lite(run, out or Path("devices") / run.name, wanted, data, force)


@cli.command()
@click.argument("file", type=FOLDER, metavar="FILE")
@click.option("--prompt", default="", help="The text to continue; none starts as after a newline.")
@options.sampling
@click.option(
    "--seed",
    type=options.SEED,
    default=1,
    show_default=True,
    help="The same seed writes the same text, and in float32 that of `trainers sample`.",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the runtime.")
def run_lite(
    file: Path,
    prompt: str,
    length: int,
    temperature: float,
    seed: int,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    stop: str,
    threads: int,
) -> None:
    """Writes text with a .tflite, as a device does: no TensorFlow.

    \b
    Example:
      python -m export run-lite devices/stdlib/int8-dynamic.tflite --prompt "def " --temperature 0.5
    """
    from export.lite.runner import LiteModel, Sampling

    sampling = Sampling(temperature, seed, top_k, top_p, repetition_penalty, os.fsencode(stop))
    text = os.fsencode(prompt)  # as it was typed, whatever its encoding
    console.write_pieces(LiteModel(file, threads).stream(text, length, sampling), before=text)


@cli.command()
@click.argument("folders", type=FOLDER, metavar="devices/NAME...", nargs=-1, required=True)
@click.option("--out", type=FOLDER, help="The folder to make. Default: site/NAME, of several models site/all.")
@click.option("--force", is_flag=True, help="Replace it where another page lies there.")
@click.option("--serve", is_flag=True, help="Then serve it on this machine, to look at it, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), help="With --serve; 0: any.  [default: 8000]")
def web(folders: tuple[Path, ...], out: Path | None, force: bool, serve: bool, port: int | None) -> None:
    """Writes a page in which a browser runs the models.

    A static folder for any web server and any path on it; it needs no server behind it, and none at all once it has
    been opened. LiteRT.js is fetched by npm the first time. Each model comes in every precision that its folder has.

    \b
    Examples:
      python -m export web devices/stdlib --serve
      python -m export web devices/stdlib devices/names --out site/both
    """
    if port is not None and not serve:
        raise click.UsageError("--port goes with --serve")
    from export.web.build import export_page
    from export.web.build import serve as show

    out = out or Path("site") / (folders[0].resolve().name if len(folders) == 1 else "all")
    export_page(folders, out, force)
    if serve:
        show(out, 8000 if port is None else port)


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option("--out", type=FOLDER, help="The folder to make. Default: exported/NAME.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="The rows of every call.")
@click.option("--force", is_flag=True, help="Replace it where another model lies there.")
def keras(run: Path, out: Path | None, batch: int, force: bool) -> None:
    """Writes a .keras file of stock layers.

    The run's best checkpoint, proven by a fresh process that has Keras, but not this project. Its layers are stateful:
    a call goes on where the one before it ended. They cannot start afresh inside a window: where the data are
    documents, begin a window at the end of each, and reset the layers ahead of it.

    \b
    Example:
      python -m export keras runs/stdlib --out exported/stdlib
    \b
    And in any Python that has Keras, with ids as model.json tells them:
      model = keras.models.load_model("exported/stdlib/model.keras")
      logits = model.predict(np.array([list(b"def ")]))     # [batch, length, vocabulary]
      for layer in model.layers:
          if hasattr(layer, "reset_states"):
              layer.reset_states()                          # another text
    """
    with console.quiet():
        from export.keras_model import export_keras
    export_keras(run, out or Path("exported") / run.name, batch, force)


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option("--served", type=FOLDER, help="The SavedModel's base path. Default: served/NAME.")
@click.option("--devices", type=FOLDER, help="The .tflite's folder. Default: devices/NAME.")
def show(run: Path, served: Path | None, devices: Path | None) -> None:
    """Shows what a run came to, and what it writes.

    \b
    Example:
      python -m export show runs/stdlib
    """
    with console.quiet():
        from export.show import show as show_run
    show_run(run, served or Path("served") / run.name, devices or Path("devices") / run.name)


@cli.command()
@click.option("--target", default="localhost:8500", show_default=True, metavar="HOST:PORT", help="The server's gRPC.")
@click.option("--model", required=True, metavar="NAME", help="The server's name for the model.")
@click.option("--version", type=click.IntRange(0), help="A version of it.  [default: the latest]")
@click.option("--label", metavar="NAME", help="The version that bears this label.")
@click.option("--prompt", default="", help="The text to continue, or to score.")
@options.sampling
@click.option(
    "--seed",
    type=options.SEED,
    help="The same seed writes the same text.  [default: another each time, and told]",
)
@click.option("--stream/--no-stream", default=True, help="Show the text as it comes, or all at once.")
@click.option("--score", is_flag=True, help="Tell how likely the prompt is, instead.")
@click.option("--info", is_flag=True, help="Tell what the model says of itself, instead.")
@click.option("--status", is_flag=True, help="Tell which versions and signatures there are, instead.")
@click.option("--json", "as_json", is_flag=True, help="Answer in one line of JSON.")
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds that a call may take.")
@click.option("--tls", is_flag=True, help="Over TLS; a --tls-... option says so too.")
@click.option("--tls-root", type=FOLDER, metavar="PEM", help="Authorities to trust.  [default: the public ones]")
@click.option("--tls-key", type=FOLDER, metavar="PEM", help="The client's own key, with --tls-cert.")
@click.option("--tls-cert", type=FOLDER, metavar="PEM", help="The client's own certificate.")
@click.option("--tls-name", metavar="NAME", help="The name in the server's certificate, where it is not its address.")
def query(
    target: str,
    model: str,
    version: int | None,
    label: str | None,
    prompt: str,
    length: int,
    temperature: float,
    seed: int | None,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    stop: str,
    stream: bool,
    score: bool,
    info: bool,
    status: bool,
    as_json: bool,
    timeout: float,
    tls: bool,
    tls_root: Path | None,
    tls_key: Path | None,
    tls_cert: Path | None,
    tls_name: str | None,
) -> None:
    """Asks a model that TF Serving serves.

    Writes the text as it comes, in pieces of which each is a call.

    \b
    Examples:
      python -m export query --model book --prompt "Once " --length 2000 --stop "THE END"
      python -m export query --target serving.example:443 --tls --model book --status
    """
    if score + info + status > 1:
        raise click.UsageError("of --score, --info and --status, one at a time")
    for name, value in (("temperature", temperature), ("top-p", top_p), ("repetition-penalty", repetition_penalty)):
        if not math.isfinite(value):
            raise click.BadParameter(f"--{name} must be a finite number, got {value}")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC has to say comes back in the error
    from common.settings import make
    from export.client import query as ask

    files = {"root_certificates": tls_root, "key": tls_key, "certificate": tls_cert, "server_name": tls_name}
    trust = make(ask.Tls, files, "--tls-...") if tls or any(files.values()) else None
    text = os.fsencode(prompt)  # as it was typed, whatever its encoding
    with ask.Client(target, model, version=version, label=label, timeout=timeout, tls=trust) as client:
        if score:
            ask.score(client, text, as_json)
        elif info:
            ask.info(client, as_json)
        elif status:
            ask.status(client, as_json)
        else:
            sampling = ask.Sampling(
                temperature=temperature,
                seed=secrets.randbelow(1 << 31) if seed is None else seed,
                top_k=top_k,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
                stop=os.fsencode(stop),
            )
            ask.write(client, text, length, sampling, stream=stream, as_json=as_json, tell_seed=seed is None)


if __name__ == "__main__":
    console.run(cli)
