"""The terminal: results go to standard output, everything else (progress, notes, errors) to standard error."""

import atexit
import codecs
import contextlib
import gc
import io
import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from common.errors import StageError, Stopped, UsageError, tensorflow_cause
from common.printable import brief, error_line, visible


class Terminal(Console):
    """Console for text that others chose, such as names: control characters are replaced, and brackets kept."""

    def __init__(self, stderr: bool = False):
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=stderr)

    @property
    def is_terminal(self) -> bool:
        """True for a terminal alone, whatever FORCE_COLOR and TTY_COMPATIBLE, which rich obeys, are set to."""
        try:
            return self.file.isatty()
        except (AttributeError, ValueError):  # closed
            return False

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text, keep="\n\t"), **settings)


out, err = Terminal(), Terminal(stderr=True)

TRACEBACK = "--traceback"

# Start-up chatter that libraries print whatever their log level, and that users cannot act on.
CHATTER = (
    "^I[0-9]{4} "  # TensorFlow's C++: the CPU's features, no CUDA driver
    "|^WARNING: All log messages before absl"  # announces the lines above
    "|^INFO: Created TensorFlow Lite"
    "|^fully_quantize: "  # TensorFlow Lite's converter, on each int8 conversion
    "|^Unable to import IPython|^TFDV visualization APIs"  # useful only in a notebook
    "|^WARNING:root:apitools not found"  # Beam, without Google Cloud's clients
)

# Keras imports these if they are installed, for features that are not used here: a quarter of its start-up.
UNUSED = ("pandas", "matplotlib.pyplot")


def note(message: str) -> None:
    """Print a message to standard error."""
    err.print(visible(message))


def write_text(text: bytes) -> None:
    """Write a model's text and a newline to standard output, as `write_pieces` does."""
    write_pieces([text])


def write_pieces(pieces: Iterable[bytes], before: bytes = b"") -> None:
    """Write a model's text to standard output piece by piece, then a newline.

    A file or a pipe receives the exact bytes. A terminal gets U+FFFD for invalid UTF-8 and for control characters.
    before: text to write ahead of the first piece, once that has arrived, so that an early error leaves no output.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(piece: bytes, last: bool = False) -> None:
        output = visible(decoder.decode(piece, last), keep="\n\t").encode() if out.is_terminal else piece
        sys.stdout.buffer.write(output + b"\n" * last)
        sys.stdout.buffer.flush()

    rest = iter(pieces)
    first = next(rest, b"")
    sys.stdout.flush()
    try:
        for piece in itertools.chain([before + first], rest):
            put(piece)
    finally:
        with contextlib.suppress(BrokenPipeError):  # the loop has already raised it
            put(b"", last=True)


def progress(unit: str = "") -> Progress:
    """Progress bar on standard error, removed when done; nothing is drawn unless that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),  # fills the line
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        refresh_per_second=4,  # a redraw takes a millisecond of the cores that train
        transient=True,
        disable=not err.is_terminal,
    )


def quiet_libraries() -> None:
    """Silence deprecation warnings and the logs of gRPC and TensorFlow's C++; call before importing them.

    Errors in C++ are raised in Python too, and TensorFlow's Python warnings still appear. Environment variables that
    are already set keep their values.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if not sys.warnoptions:
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)


@contextlib.contextmanager
def quiet(withhold: Iterable[str] = UNUSED) -> Iterator[None]:
    """Quiet the libraries, and drop their start-up chatter while the block imports TensorFlow.

    TensorFlow's C++ writes to file descriptor 2 before it reads any setting. So the block's standard error goes through
    grep: a process of its own, which also passes on the last words of an abort.

    withhold: modules that cannot be imported within the block, unless they already were.
    """
    quiet_libraries()
    withheld = dict.fromkeys(set(withhold) - sys.modules.keys())
    sys.modules.update(withheld)  # type: ignore[arg-type]
    sys.stderr.flush()
    real = os.dup(2)
    command = ["grep", "--line-buffered", "--text", "--invert-match", "--extended-regexp", CHATTER]
    settings: Any = {"env": {"PATH": os.defpath}, "start_new_session": True}  # any PATH; Ctrl-C is not for grep
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=real, **settings) as grep:
        assert grep.stdin
        os.dup2(grep.stdin.fileno(), 2)
        try:
            yield
        finally:
            for name in withheld:
                del sys.modules[name]
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)


def run(cli: Callable[..., object]) -> None:
    """Run a click command as a program. Errors are one line; exit code 2 for usage, 1 for failure, 130 for Ctrl-C.

    The argument --traceback, anywhere, prints the traceback of an error that no stage expects.
    """
    # Python collects garbage as it ends, which takes seconds once TensorFlow has been used.
    atexit.register(gc.freeze)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as some daemons leave them
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal in ASCII, and a name that is not
    arguments = [argument for argument in sys.argv[1:] if argument != TRACEBACK]
    try:
        code = cli.main(arguments, standalone_mode=False)  # type: ignore[attr-defined]
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = _fail("stopped", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except Stopped as stop:
        note(str(stop))
        code = stop.code
    except UsageError as error:
        code = _fail(str(error), 2)
    except StageError as error:
        code = _fail(str(error), 1)
    except OSError as error:
        code = _fail(f"{error.filename or 'output'}: {error.strerror or error}", 1)
    except Exception as error:
        if TRACEBACK in sys.argv:
            raise
        if cause := tensorflow_cause(error):
            code = _fail(f"TensorFlow failed: {cause} ({TRACEBACK} shows where)", 1)
        else:
            file = f"{path}: " if (path := getattr(error, "filename", "")) else ""
            bug = f"this is a bug{_command(cli, arguments)}: run again with {TRACEBACK}"
            code = _fail(f"{file}{type(error).__name__}: {brief(str(error))} ({bug})", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _command(cli: Any, arguments: Iterable[str]) -> str:
    """Return " in " and the subcommand that the arguments call; empty if there are no subcommands."""
    names = []
    for name in arguments:
        if not (cli := getattr(cli, "commands", {}).get(name)):
            break
        names.append(name)
    return f" in {' '.join(names)}" if names else ""


def _fail(message: str, code: int) -> int:
    err.print(f"error: {error_line(message)}", style="red")
    return code
