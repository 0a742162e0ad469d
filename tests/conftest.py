"""Shared fixtures and options. Must not import TensorFlow: only the tests that need it do."""

import signal
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any

import numpy as np
import pytest
import serving
import tiny_data

from common import console
from pipeline.manifest import Manifest

console.quiet_libraries()

# Shells start background jobs with SIGINT ignored, and child processes inherit that; some tests send SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


class NoTensorFlow(MetaPathFinder):
    """Skips test modules that import TensorFlow or Beam, for `--fast`."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname in ("tensorflow", "keras", "tensorflow_data_validation", "apache_beam"):
            raise pytest.skip.Exception("needs TensorFlow or Beam", allow_module_level=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip the tests that import TensorFlow or Beam")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        sys.meta_path.insert(0, NoTensorFlow())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        for item in items:
            if item.get_closest_marker("processes"):
                item.add_marker(pytest.mark.skip("starts TensorFlow, Beam or a browser"))


def pytest_collection_finish() -> None:
    """Give TensorFlow two logical CPUs, so that two replicas run on any machine. Must run before its first op."""
    tf = sys.modules.get("tensorflow")
    if tf:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report which server the client's tests used; pytest omits its header under -q."""
    terminalreporter.write_line(f"TF Serving: {serving.kind()}")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random generator with a fresh seed per test; pytest shows the printed seed on failure."""
    seed = int(np.random.default_rng().integers(2**31))
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Manifest]:
    """make_data(folder, shard_tokens, train=text, val=text): write a data set without Beam."""
    return tiny_data.make_data
