"""Server under test: the one at TF_SERVING_TARGET, a tensorflow_model_server started here, or the stand-in.

TF_SERVING_TARGET=host:port must serve all versions of the model that `python tests/export/fake_model.py BASE` writes,
under the name `fake`, with version 1 labelled `stable` (CONFIG below). Other models use a server started here.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from export.client.client import Client, ServingError

ROOT = Path(__file__).parents[1]
BINARY = shutil.which("tensorflow_model_server")
TARGET = os.environ.get("TF_SERVING_TARGET", "")
STARTS_WITHIN = 60  # seconds

CONFIG = """model_config_list {{ config {{
  name: "{name}" base_path: "{base}" model_platform: "tensorflow"
  model_version_policy {{ all {{}} }}
  version_labels {{ key: "stable" value: 1 }}
}} }}
"""


class Endpoint(NamedTuple):
    target: str
    model: str


def kind() -> str:
    """Describe the server that `served` starts or uses."""
    return f"the server at {TARGET}" if TARGET else BINARY or "the stand-in, no TF Serving was found"


@contextlib.contextmanager
def served(base: Path, name: str = "fake", batching: Path | None = None) -> Iterator[Endpoint]:
    """Serve all versions of a model, with version 1 labelled `stable`. batching: file of parameters."""
    if TARGET and name == "fake" and not batching:
        yield Endpoint(TARGET, name)
    elif BINARY:
        with process(base, name, batching) as (endpoint, _):
            yield endpoint
    else:
        from export.serve.stand_in import Batching, StandIn, serving

        rules = Batching.read(batching) if batching else None
        with serving(StandIn(base, name, labels={"stable": 1}, batching=rules)) as target:
            yield Endpoint(target, name)


@contextlib.contextmanager
def process(base: Path, name: str = "fake", batching: Path | None = None) -> Iterator[tuple[Endpoint, int]]:
    """Serve like `served`, but always in another process, and yield its id too. The stand-in then has no labels."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        endpoint = Endpoint(f"localhost:{probe.getsockname()[1]}", name)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "models.config")
        config.write_text(CONFIG.format(base=base, name=name))
        program = [BINARY or sys.executable]
        if not BINARY:
            program += ["-m", "export.serve.stand_in", str(base), f"--model_name={name}"]
        flags = [f"--port={endpoint.target.rpartition(':')[2]}", f"--model_config_file={config}"]
        flags += ["--allow_version_labels_for_unavailable_models=true"]
        if batching:
            flags += ["--enable_batching=true", f"--batching_parameters_file={batching}"]
        server = subprocess.Popen([*program, *flags], cwd=ROOT)
        try:
            wait_for(endpoint)
            yield endpoint, server.pid
            assert server.poll() is None, f"the server ended with {server.returncode}"
        finally:
            server.kill()
            server.wait()


def wait_for(server: Endpoint) -> None:
    """Wait until the server has loaded the model."""
    deadline = time.monotonic() + STARTS_WITHIN
    with Client(server.target, server.model) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(ServingError):
                if all(version.state == "AVAILABLE" for version in client.status()):
                    return
            time.sleep(0.2)
    raise TimeoutError(f"{server.target} did not load '{server.model}' within {STARTS_WITHIN} s")


@contextlib.contextmanager
def front_process(server: Endpoint, *options: str) -> Iterator[tuple[str, int]]:
    """Run `export front` for a server, without a limit of calls per minute. Yields its URL and process id."""
    command = [sys.executable, "-m", "export", "front", "--target", server.target, "--model", server.model]
    command += ["--port", "0", "--per-minute", str(1 << 20), *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as front:
        assert front.stderr
        try:
            yield front.stderr.readline().split()[3], front.pid
            assert front.poll() is None, f"the front ended with {front.returncode}"
        finally:
            front.kill()
