"""The terminal: results go to standard output, everything else (progress, notes, errors) to standard error."""

import codecs
import contextlib
import itertools
import os
import re
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.errors import StageError, Stopped, UsageError

# No markup: what is printed holds names that users chose, brackets and all.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=True)

# Lines that libraries write as they start, whatever their settings, and that tell a user nothing he could act on.
CHATTER = re.compile(
    rb"^I\d{4} "  # TensorFlow's C++: the CPU's features, no CUDA driver
    rb"|^WARNING: All log messages before absl"  # the line that announces those
    rb"|^INFO: Created TensorFlow Lite"
    rb"|^fully_quantize: "  # TensorFlow Lite's converter, at each int8 conversion
    rb"|^Unable to import IPython|^TFDV visualization APIs"  # of use in a notebook only
)


# What turns the direction of all that follows: Unicode's Bidi_Control.
DIRECTIONS = {*map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))}


def visible(text: str, keep: str = "") -> str:
    """A text without what could drive a terminal or turn its lines round: control characters, but for those of `keep`,
    and those of direction become U+FFFD."""
    hidden = {c for c in set(text) - set(keep) if unicodedata.category(c) == "Cc"} | DIRECTIONS
    return "".join("\ufffd" if c in hidden else c for c in text)


def note(message: str) -> None:
    """Says one thing that the user may want to know, on standard error."""
    err.print(visible(message))


def write_text(text: bytes) -> None:
    """Puts a model's text and a newline on standard output (`write_pieces`)."""
    write_pieces([text])


def write_pieces(pieces: Iterable[bytes], before: bytes = b"") -> None:
    """Puts a model's text on standard output as it comes, and a newline: byte for byte into a file or a pipe; on a
    terminal with U+FFFD for what is not UTF-8, and for the control characters that could drive the terminal.

    before: comes first, but not before the first piece is there: where there is none, nothing is written.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(piece: bytes, last: bool = False) -> None:
        shown = visible(decoder.decode(piece, last), keep="\n\t").encode() if out.is_terminal else piece
        sys.stdout.buffer.write(shown + b"\n" * last)
        sys.stdout.buffer.flush()

    rest = iter(pieces)
    first = next(rest, b"")
    sys.stdout.flush()
    try:
        for piece in itertools.chain([before + first], rest):
            put(piece)
    finally:
        with contextlib.suppress(BrokenPipeError):  # then the loop has raised it
            put(b"", last=True)


def progress(unit: str = "") -> Progress:
    """A progress bar on standard error, removed when done; where that is no terminal, nothing is drawn."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),  # as wide as the terminal leaves room for
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        refresh_per_second=4,  # to draw it takes a millisecond, of the cores that train
        transient=True,
        disable=not err.is_terminal,
    )


def hush() -> None:
    """Keeps what libraries tell each other (deprecations, the log lines of gRPC and of TensorFlow's C++) out of sight.

    What goes wrong in C++ is raised in Python as well; TensorFlow's Python warnings stay. Must run before they are
    imported. A user who set these variables himself keeps his values.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if not sys.warnoptions:
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """`hush`, and for the block, in which TensorFlow is imported, its start-up chatter is taken out of standard error.

    TensorFlow's C++ writes some lines to file descriptor 2 before it reads any setting. So what comes there during the
    block is kept, and all but the lines known to be chatter is passed on when it ends.
    """
    hush()
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            kept.seek(0)
            lines = [line for line in kept if not CHATTER.search(line)]
            os.write(2, b"".join(lines))


def run(cli: Callable[..., object]) -> None:
    """Runs a click command as a program: an error is one line; exit 2 for usage, 1 for failure, 130 for Ctrl-C."""
    try:
        code = cli.main(standalone_mode=False)  # type: ignore[attr-defined]
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
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    one_line = visible(" ".join(message.split()))
    err.print(f"error: {one_line}", style="red")
    return code
