"""Shared fixtures and options. This file must not import TensorFlow; only the tests that need it do."""

import signal
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
import tiny_data

from common import console
from common.machine import hide_gpus
from pipeline.manifest import Manifest

console.quiet_libraries()
# Shells start background jobs with SIGINT ignored, and child processes inherit that; some tests send SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup; some tests send SIGHUP
    signal.signal(signal.SIGHUP, lambda *_: None)

EXPORTED = tuple(f"tests/export/serve/test_{name}" for name in ("saved_model", "served", "rest"))
LONGEST = (*EXPORTED, "tests/conformance/", "export/web/", "test_processes.py", "test_lite.py", "test_validate.py")


class NoTensorFlow(MetaPathFinder):
    """Import hook of `--fast` that skips test modules that import TensorFlow or Beam."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname in ("tensorflow", "keras", "tensorflow_data_validation", "apache_beam"):
            raise pytest.skip.Exception("needs TensorFlow or Beam", allow_module_level=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip the tests that import TensorFlow or Beam")
    parser.addoption("--record", type=Path, metavar="FILE", help="write the trials of tests/faults as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if not _on_gpu(config):
        hide_gpus()  # for the same results on every host
    if config.getoption("--fast"):
        sys.meta_path.insert(0, NoTensorFlow())
    if config.getoption("--record"):
        from bench.machine import provenance

        ORIGIN.update(provenance())


def _on_gpu(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "gpu"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not _on_gpu(config):
            item.add_marker(pytest.mark.skip("needs a GPU: run make test-gpu"))
    if config.getoption("--fast"):
        for item in items:
            if item.get_closest_marker("processes"):
                item.add_marker(pytest.mark.skip("starts TensorFlow, Beam or a browser"))
    # Run the longest files first, so that no worker is left with one at the end.
    items.sort(key=lambda item: next((i for i, part in enumerate(LONGEST) if part in item.nodeid), len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests by file, but send all tests of an export to one worker: loading it takes longer than most of
    them."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return EXPORTED[0] if nodeid.startswith(EXPORTED) else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Give TensorFlow two logical devices of each kind, so that two replicas run on any machine. TensorFlow allows this
    only before the first op."""
    tf = sys.modules.get("tensorflow")
    for kind, memory in (("CPU", None), ("GPU", 3072)) if tf else ():
        for device in tf.config.list_physical_devices(kind)[:1]:
            each = tf.config.LogicalDeviceConfiguration(memory_limit=memory)
            tf.config.set_logical_device_configuration(device, [each] * 2)


STARTED = time.monotonic()
ORIGIN: dict[str, str] = {}  # provenance of the record, from the start, as the code may change during the run
TRIALS: list[dict[str, Any]] = []  # rows of tests/faults, from all workers of pytest-xdist


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        TRIALS.extend(value for name, value in report.user_properties if name == "trials")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report which server the client's tests used (pytest omits its header under -q), and the trials of faults."""
    terminalreporter.write_line(f"TF Serving: {serving.kind()}")
    if TRIALS:
        tried, survived = (sum(row[count] for row in TRIALS) for count in ("tried", "survived"))
        terminalreporter.write_line(f"faults: {tried:,} tried, {survived:,} survived")
    if path := terminalreporter.config.getoption("--record"):
        from bench.reliability import record

        record(TRIALS, time.monotonic() - STARTED, ORIGIN, path)


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
