"""Server under test: the one at TF_SERVING_TARGET, a tensorflow_model_server started here, or the stand-in.

TF_SERVING_TARGET=host:port must serve all versions of the model that `python tests/export/fake_model.py BASE` writes,
under the name `fake`, with version 1 labelled `stable` (CONFIG below). Other models use a server started here.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from export.client.client import Client, ServingError

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
def served(base: Path, name: str = "fake") -> Iterator[Endpoint]:
    """Serve all versions of a model, with version 1 labelled `stable`."""
    if TARGET and name == "fake":
        yield Endpoint(TARGET, name)
    elif BINARY:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        config = base.parent / f"{name}.config"
        config.write_text(CONFIG.format(base=base, name=name))
        settings = [f"--port={port}", f"--model_config_file={config}"]
        process = subprocess.Popen([BINARY, *settings, "--allow_version_labels_for_unavailable_models=true"])
        try:
            wait_for(Endpoint(f"localhost:{port}", name))
            yield Endpoint(f"localhost:{port}", name)
        finally:
            process.terminate()
            process.wait()
    else:
        from export.serve.stand_in import StandIn, serving

        with serving(StandIn(base, name, labels={"stable": 1})) as target:
            yield Endpoint(target, name)


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
