"""TensorFlow is set up once for all tests: two logical CPUs, so that two replicas run on any machine."""

import signal
from collections.abc import Callable

import pytest

from common import console
from pipeline.manifest import Manifest

with console.hushed():
    import tensorflow as tf

    CPU = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.list_logical_devices()

import serving
import tiny_data

# What a shell starts in the background ignores Ctrl-C, and so does what that starts; but tests send it to processes.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which server the tests of the client asked; pytest's header would be silent under -q."""
    terminalreporter.write_line(f"TF Serving: {serving.kind()}")


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Manifest]:
    """make_data(folder, shard_tokens, train=text, val=text): writes a data set without Beam."""
    return tiny_data.make_data
