"""Terminal output and exit codes."""

import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from rich.table import Table

from common import console
from common.errors import StageError, UsageError
from common.settings import make, read_config, settings

TEXT = "a\x1b[31mb\r\x07\x9bc\td\né\x00".encode() + b"\xff"


@pytest.mark.parametrize("color", [False, True])
def test_piped_text_is_written_unchanged(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, color: bool
) -> None:
    if color:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
    console.write_text(TEXT)
    assert capfdbinary.readouterr().out == TEXT + b"\n"


def test_terminal_output_replaces_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.Terminal, "is_terminal", True)
    console.write_text(TEXT)
    assert capsys.readouterr().out == "a\ufffd[31mb\ufffd\ufffd\ufffdc\td\né\ufffd\ufffd\n"


def test_printed_names_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a\x1b[31m", title="b\x07")
    table.add_row("c\u202e")
    for shown in (table, "d\x9b [e]\n\tf"):
        console.out.print(shown)
    output = capsys.readouterr().out
    assert all(f"{letter}\ufffd" in output for letter in "abcd")
    assert not set("\x1b\x07\u202e\x9b") & set(output)
    assert output.endswith(" [e]\n        f\n")


def tensorflow(name: str, message: str = "it\nat op") -> Exception:
    """Build an error as TensorFlow raises it."""
    error = type(name, (type("OpError", (Exception,), {}),), {})(message)
    error.message = message
    return error


# A graph's error, as TensorFlow formats it.
GRAPH_ERROR = """Graph execution error:

Detected at node Loss defined at (most recent call last):
<stack traces unavailable>
{}
\t [[{{{{node Loss}}}}]] [Op:__inference_train_123]"""
TWO_ERRORS = """2 root error(s) found.
  (0) UNIMPLEMENTED:  no kernel
\t [[{{node Loss}}]]
  (1) CANCELLED:  stopped
0 successful operations.
0 derived errors ignored."""


EXHAUSTED = """OOM when allocating tensor with shape[9] and type float
\t [[{{node Loss}}]]
Hint: If you want to see a list of allocated tensors when OOM happens, add report_tensor_allocations_upon_oom.
 [Op:__inference_f_11]"""


def fail_with(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("a wrong\n  setting"), 2, "error: a wrong setting\n"),
        (StageError("no data [in] x"), 1, "error: no data [in] x\n"),
        (KeyboardInterrupt(), 130, "\nerror: stopped\n"),  # on its own line, after the ^C
        (
            FileNotFoundError(2, "No such file or directory", "a[b]:c:.txt"),
            1,
            "error: a[b]:c:.txt: No such file or directory\n",
        ),
        (click.BadParameter("not a number"), 2, "error: Invalid value: not a number\n"),
        (StageError("x" * 5000), 1, f"error: {'x' * 200}…\n"),
        (
            KeyError("a\x1b\n" + "b" * 5000),
            1,
            f"error: KeyError: 'a\\x1b\\n{'b' * 192}… (this is a bug: run again with --traceback)\n",
        ),
        (
            RecursionError("too deep"),
            1,
            "error: RecursionError: too deep (this is a bug: run again with --traceback)\n",
        ),
        (
            tensorflow("DataLossError"),
            1,
            "error: TensorFlow failed: a file is corrupted: it (--traceback shows where)\n",
        ),
        (
            tensorflow("ResourceExhaustedError", "x; No space left on device"),
            1,
            "error: TensorFlow failed: No space left on device (--traceback shows where)\n",
        ),
        (
            tensorflow("UnimplementedError", GRAPH_ERROR.format("not deterministic")),
            1,
            "error: TensorFlow failed: UnimplementedError: not deterministic (--traceback shows where)\n",
        ),
        (
            tensorflow("UnimplementedError", GRAPH_ERROR.format(TWO_ERRORS)),
            1,
            "error: TensorFlow failed: UnimplementedError: UNIMPLEMENTED: no kernel (--traceback shows where)\n",
        ),
        (
            tensorflow("ResourceExhaustedError", GRAPH_ERROR.format(EXHAUSTED)),
            1,
            f"error: TensorFlow failed: out of memory: {EXHAUSTED.splitlines()[0]} (--traceback shows where)\n",
        ),
    ],
)
def test_errors_print_one_line_and_set_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(SystemExit) as exit:
        console.run(click.command(fail_with(error)))
    assert (exit.value.code, capsys.readouterr().err) == (code, message)


def test_unexpected_errors_name_the_command_and_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["program", "serve", "load"])
    for error in (KeyError(1), SyntaxError("invalid", ("code.py", 1, 1, ""))):
        load = click.Command("load", callback=fail_with(error))
        with pytest.raises(SystemExit):
            console.run(click.Group(commands=[click.Group("serve", commands=[load])]))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: KeyError: 1 (this is a bug in serve load: run again with --traceback)"
    assert second.startswith("error: code.py: SyntaxError: ")


LONG = "it's long, " * 500


@settings
class Wheel:
    spokes: int = 1


@pytest.mark.parametrize(
    "act",
    [
        lambda: make(Wheel, {LONG: 1}, "a.toml"),
        lambda: make(Wheel, {"spokes": LONG}, "a.toml"),
        lambda: read_config(Path(os.devnull), [f"{LONG}.spokes=1"]),
        fail_with(StageError(f"unknown corpus '{LONG}'; the corpora are stdlib, linux")),
        fail_with(click.BadParameter(f"{LONG!r} is not a number")),
    ],
)
def test_errors_shorten_values_with_spaces(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]
) -> None:
    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(SystemExit):
        console.run(click.command(act))
    message = capsys.readouterr().err
    assert LONG[:190] in message
    assert LONG[:201] not in message
    assert len(message) < 350


def test_the_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["program", "--traceback"])
    with pytest.raises(KeyError):
        console.run(click.command(fail_with(KeyError("a"))))


def test_non_ascii_names_are_escaped_on_an_ascii_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    monkeypatch.setattr("sys.argv", ["program"])
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def command() -> None:
        console.out.print("Gedächtnis")
        raise StageError("no data in Gedächtnis")

    with pytest.raises(SystemExit, match="1"):
        console.run(click.command(command))
    written = {name: stream.buffer.getvalue() for name, stream in streams.items() if not stream.flush()}
    assert written == {"stdout": b"Ged\\xe4chtnis\n", "stderr": b"error: no data in Ged\\xe4chtnis\n"}


def test_quiet_drops_chatter_only(capfd: pytest.CaptureFixture[str]) -> None:
    with console.quiet():
        os.write(
            2, b"I0000 00:00:17 port.cc:153] oneDNN\nW0000 what matters\nWARNING: All log messages before absl::\nx\n"
        )
    assert capfd.readouterr().err == "W0000 what matters\nx\n"


def test_quiet_withholds_modules_until_its_end() -> None:
    sys.modules.pop("colorsys", None)
    with console.quiet(withhold=["colorsys", "sys"]):
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
        assert importlib.import_module("sys") is sys, "already imported"
    importlib.import_module("colorsys")


def test_quiet_replays_stderr_when_an_import_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImportError), console.quiet():
        os.write(2, b"the reason\n")
        raise ImportError
    assert capfd.readouterr().err == "the reason\n"


def test_quiet_passes_on_the_last_words_of_an_abort() -> None:
    code = "import os; from common import console\nwith console.quiet(): os.write(2, b'I0000 x\\nfatal'); os.abort()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGABRT, "fatal\n")


def test_closed_streams_are_not_a_bug() -> None:
    code = """
import click, os, sys
from common import console
@click.command()
def command():
    console.write_text(b"x")
    console.note("y")
    assert sys.stdin.read() == ""
console.run(command)
"""
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(closed, check=False).returncode == 0
