"""Device exports without their measurements, which take seconds."""

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from export.lite.quality import Quality


def unmeasured() -> AbstractContextManager[Any]:
    """Report no loss, and the same speed, for every .tflite."""
    return mock.patch.multiple(
        "export.lite.lite",
        probe=lambda path: {"us_a_step": 1.0, "peak_bytes": 1},
        measure=lambda model, files, text: (1.0, dict.fromkeys(files, Quality(1, 0, 0, 1))),
    )
