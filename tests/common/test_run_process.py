import sys
from pathlib import Path

import pytest

from common import processes
from common.errors import StageError


def test_output_is_returned(tmp_path: Path) -> None:
    program = "import os; print(os.getcwd())"
    output = processes.run([sys.executable, "-c", program], "failed", cwd=tmp_path)
    assert output == f"{tmp_path}\n"


@pytest.mark.parametrize(
    ("program", "message"),
    [("raise ValueError('the reason')", "it failed: ValueError: the reason"), ("exit(3)", "it failed: no message")],
)
def test_failure_reports_last_line_of_stderr(program: str, message: str) -> None:
    with pytest.raises(StageError) as error:
        processes.run([sys.executable, "-c", program], "it failed")
    assert str(error.value) == message
