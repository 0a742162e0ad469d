"""The front's HTTP server."""

import contextlib
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import uvicorn

from common import console
from common.errors import StageError
from export.front.app import Front


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0: any. Raises StageError if it is not available."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise StageError(f"{host}:{port} is not available ({error.strerror}): pass another --port") from None


def server(front: Front, tls: tuple[Path, Path] | None = None, proxy: str | None = None) -> uvicorn.Server:
    """Create a server. tls: certificate and key. proxy: the address whose X-Forwarded-For is trusted."""
    if tls:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*tls)
        except OSError as error:
            raise StageError(f"{tls[0]} and {tls[1]} are not a certificate and its key: {error}") from None
    settings: dict[str, Any] = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls else {}
    settings |= {"proxy_headers": proxy is not None, "forwarded_allow_ips": proxy, "server_header": False}
    settings |= {"log_level": "error", "access_log": False, "lifespan": "off", "ws": "none"}
    seconds = int(front.client.settings.timeout) + 1  # to finish the running calls
    return uvicorn.Server(uvicorn.Config(front.app, timeout_graceful_shutdown=seconds, **settings))


def serve(
    front: Front, listener: socket.socket, tls: tuple[Path, Path] | None = None, proxy: str | None = None
) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    http_server, (host, port, *_) = server(front, tls, proxy), listener.getsockname()
    url = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    body = json.dumps({"model": front.model, "prompt": "", "max_tokens": 200})
    console.note(f"serving {front.model} at {url} (Ctrl-C to stop)")
    console.note(f"try: curl -s {url}/v1/completions -d '{body}'")
    with contextlib.suppress(KeyboardInterrupt):
        http_server.run([listener])
