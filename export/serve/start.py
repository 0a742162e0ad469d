"""Start a server of an exported model on this machine: TensorFlow Serving, from the PATH or in docker, or the stand-in.

It is reachable from this machine only, because servers trust their callers.
"""

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import console
from common.errors import StageError
from export.serve import labels, package

BINARY = "tensorflow_model_server"
STAND_IN = "no TensorFlow Serving found: answering with the Python stand-in, for trying things out"
ROOT = Path(__file__).parents[2]
STOP_SECONDS = 10
LIBC = ctypes.CDLL(None)  # loaded here, because a child process may not load libraries between fork and exec


@dataclasses.dataclass(frozen=True)
class LocalServer:
    """Local server. target: its gRPC address; rows: per call, at most; seconds: to load the model, at most."""

    target: str
    model: str
    rows: int
    process: subprocess.Popen[bytes]
    log: Path
    seconds: int

    def wait(self, answers: Callable[[], bool]) -> None:
        """Wait until `answers` is true. Raises StageError if the server ends first, or takes too long."""
        until = time.monotonic() + self.seconds
        while not answers():
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            reason = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
            if self.process.poll() is not None:
                raise StageError(f"the server of {self.model} ended: {reason}")
            if time.monotonic() > until:
                raise StageError(f"the server of {self.model} does not answer after {self.seconds} s: {reason}")
            time.sleep(0.2)


@contextlib.contextmanager
def started(base: Path) -> Iterator[LocalServer]:
    """Start a server of the model at a base path, and stop it after the block.

    Raises StageError for a folder without models.config.
    """
    served = labels.read(base)
    if served is None:
        raise StageError(f"{base} has no {labels.MODELS}: create it with python -m export savedmodel runs/NAME")
    name, versions = package.model_name(base), package.served_versions(base, served)
    rows = package.largest_batch(base, versions)
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        path, base = Path(folder), base.resolve()
        target, cleanup = f"unix:{path}/grpc", None
        # Of a repeated flag, the last counts. Without ports, because the server would open them to the network.
        flags = [*package.flags(name, rows, str(base)), "--port=0", f"--grpc_socket_path={path}/grpc"]
        flags += ["--rest_api_port=0"]
        if binary := shutil.which(BINARY):
            numbers = [version.number for version in versions]
            config = path / labels.MODELS  # the package's own has the paths of the container
            config.write_text(labels.to_text(name, served.labels, numbers, str(base)), encoding="utf-8")
            command = [binary, *flags, f"--model_config_file={config}"]
            console.note(f"answering with {binary}")
        elif _docker_runs():
            target, command, cleanup = _compose(base, path)
            console.note("answering with TensorFlow Serving in docker; the first time, its image is downloaded")
        else:
            command = [sys.executable, "-m", "export.serve.stand_in", str(base), f"--model_name={name}", *flags]
            console.note(STAND_IN)
        log = path / "log"
        with log.open("wb") as output, contextlib.ExitStack() as stack:
            prepare = functools.partial(_end_with, os.getpid())
            with _deferred_signals():
                # Its own session, so that Ctrl-C does not end it before the calls in progress are answered.
                process = subprocess.Popen(
                    command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True, preexec_fn=prepare
                )
                stack.callback(_stop, process, cleanup)
            yield LocalServer(target, name, rows, process, log, package.startup_seconds(versions))


@contextlib.contextmanager
def _deferred_signals() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM to the end of the block: while a process starts, Python may drop their exceptions."""
    pending, numbers = list[int](), (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, _: pending.append(number)) for number in numbers}
    try:
        yield
    finally:
        for stop, handler in handlers.items():
            signal.signal(stop, handler)
        for number in pending:
            signal.raise_signal(number)


def _end_with(parent: int) -> None:
    """Ask Linux to send this process SIGTERM when its parent ends, killed or not (PR_SET_PDEATHSIG)."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    LIBC.prctl(1, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def _stop(process: subprocess.Popen[bytes], cleanup: list[str] | None) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    process.kill()
    process.wait()
    if cleanup:
        subprocess.run(cleanup, capture_output=True, check=False)


def _docker_runs() -> bool:
    """Check for docker, its compose plugin and a running daemon."""
    return bool(shutil.which("docker")) and (
        subprocess.run(["docker", "compose", "ls", "--quiet"], capture_output=True, check=False).returncode == 0
    )


def _compose(base: Path, folder: Path) -> tuple[str, list[str], list[str]]:
    """Return the address of the package's server in docker, the command that runs it, and the one that removes it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    local = {"restart": "no", "ports": [f"127.0.0.1:{port}:{package.GRPC_PORT}"]}
    (folder / "local.yaml").write_text(json.dumps({"services": {"serving": local}}))  # YAML contains JSON
    files = [base / "compose.yaml", base / "compose.override.yaml", folder / "local.yaml"]
    compose = ["docker", "compose", "--project-name", f"{package.host_name(base)}-local"]
    compose += [f"--file={file}" for file in files if file.exists()]
    return f"127.0.0.1:{port}", [*compose, "up", "serving"], [*compose, "down"]
