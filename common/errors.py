"""Errors that end a command. A message is one line: the rule, what was expected, what was given, and the fix."""


class UsageError(Exception):
    """Invalid argument or setting, reported before any work starts. Exit code 2."""


class StageError(Exception):
    """The data, the run or the machine prevented the stage from finishing. Exit code 1."""


class Stopped(Exception):  # noqa: N818 stopping on request is not an error
    """A signal stopped the command at a safe point; the message says how to resume. Exit code 128 + signal."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.code = 128 + signal
