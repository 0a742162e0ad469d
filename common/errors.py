"""The two ways a command ends badly. A message is one line: the rule, what was expected, what came, the way out."""


class UsageError(Exception):
    """A wrong argument or setting: the user's to mend before any work starts. Exit code 2."""


class StageError(Exception):
    """The data, the run or the machine did not allow the stage to finish. Exit code 1."""
