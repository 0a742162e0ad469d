"""The ways a command ends before its end. A message is one line: rule, expected, got, way out."""


class UsageError(Exception):
    """A wrong argument or setting: the user's to mend before any work starts. Exit code 2."""


class StageError(Exception):
    """The data, the run or the machine did not allow the stage to finish. Exit code 1."""


class Stopped(Exception):  # noqa: N818 it is no error
    """A signal asked for an end, and all was left in order; the message says how to go on. Exit code 128 + signal."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.code = 128 + signal


def last_line(output: str) -> str:
    """Return the last line that a failed command printed, which tells why."""
    return (output.strip().splitlines() or ["no message"])[-1]
