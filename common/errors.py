"""Errors that end a command. A message is one line: the rule, what was expected, what was given, and the fix."""

import errno

from common.printable import brief


class UsageError(Exception):
    """Invalid argument or setting, reported before any work starts. Exit code 2."""


class StageError(Exception):
    """Failure of a stage because of the data, the run or the machine. Exit code 1."""


class Stopped(Exception):  # noqa: N818 stopping on request is not an error
    """Stop by a signal, at a safe point; the message explains how to resume. Exit code 128 + signal."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.code = 128 + signal


# Causes by the name of TensorFlow's exception, since this module does not import TensorFlow.
_CAUSES = {
    "DataLossError": "a file is corrupted",
    "OutOfRangeError": "a file is truncated",
    "ResourceExhaustedError": "out of memory",
    "UnavailableError": "another process does not answer",
}
FULL = {"No space left on device": errno.ENOSPC, "File too large": errno.EFBIG}


def tensorflow_cause(error: BaseException) -> str:
    """Cause of a TensorFlow error, with the line that explains it; empty for any other error."""
    names = [cls.__name__ for cls in type(error).__mro__]
    if "OpError" not in names:
        return ""
    reason = brief(_reason(str(getattr(error, "message", ""))))
    if full := next((text for text in FULL if text in str(error)), None):
        return full
    return f"{next((_CAUSES[name] for name in names if name in _CAUSES), names[0])}: {reason}"


def _reason(message: str) -> str:
    """Line of a TensorFlow error's message that explains it: a graph's error starts with where the op was defined, and
    ends with its node in brackets, and a hint if memory is exhausted."""
    lines = [line.strip() for line in message.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("[[", "[Op:", "Hint:"))]
    if not lines or lines[0] != "Graph execution error:":
        return lines[0] if lines else ""
    return next((line for line in lines if line.startswith("(0) ")), lines[-1]).removeprefix("(0) ")
