"""The front's HTTP server."""

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


def serve(front: Front, host: str, port: int, tls: tuple[Path, Path] | None, proxy: str | None) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    http_server = server(front, tls, proxy)
    with listen(host, port) as listener:
        address = f"{host}:{listener.getsockname()[1]}"
        console.note(f"serving {front.model} at http{'s' if tls else ''}://{address} (Ctrl-C to stop)")
        http_server.run([listener])
