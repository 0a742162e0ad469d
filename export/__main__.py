"""The command line: python -m export savedmodel | label | tflite | keras | show."""

from pathlib import Path

import click

from common import console

FOLDER = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """A trained run to the forms in which it is used."""


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option("--out", type=FOLDER, help="TF Serving's base path. Default: served/NAME.")
@click.option("--version", type=click.IntRange(1), default=1, show_default=True, help="The version to write below it.")
@click.option("--force", is_flag=True, help="Replace that version where another model lies there.")
def savedmodel(run: Path, out: Path | None, version: int, force: bool) -> None:
    """Writes a SavedModel for TF Serving.

    The run's best checkpoint, proven by a fresh process that answers from the files alone.

    \b
    Example:
      python -m export savedmodel runs/stdlib --out served/stdlib
    """
    with console.hushed():
        from export.saved_model import export_saved_model
    export_saved_model(run, out or Path("served") / run.name, version, force)


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
    with console.hushed():
        from export.serving import relabel
    relabel(base, changes)


@cli.command()
@click.argument("run", type=FOLDER, metavar="runs/NAME")
@click.option("--out", type=FOLDER, help="The folder to make. Default: devices/NAME.")
@click.option("--force", is_flag=True, help="Replace it where another model lies there.")
def tflite(run: Path, out: Path | None, force: bool) -> None:
    """Writes a .tflite for devices.

    The run's best checkpoint as one step, carry in and out, proven on the runtime that devices have.

    \b
    Example:
      python -m export tflite runs/stdlib --out devices/stdlib
    """
    with console.hushed():
        from export.lite import export_lite
    export_lite(run, out or Path("devices") / run.name, force)


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
    with console.hushed():
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
    with console.hushed():
        from export.show import show as show_run
    show_run(run, served or Path("served") / run.name, devices or Path("devices") / run.name)


if __name__ == "__main__":
    console.run(cli)
