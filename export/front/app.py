"""The front: routes, limits and HTTP server. Prompts and texts are never logged, and stored only on request."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import uvicorn
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from common import console
from common.errors import StageError, UsageError
from common.files import open_private
from common.headers import page_headers
from common.printable import brief, error_line
from common.settings import settings
from common.types import Array
from export.client.client import Client, ServingError, Signature
from export.front import bodies, completions

BODY_BYTES = 2 << 20  # 64 carries of 2 x 512 units take 0.7 MB in base64
BODY_SECONDS = 10
ANSWER_BYTES = 2 << 20  # of the server's answer; its conversion to JSON takes some twenty times as much memory
KEEP_ALIVE_SECONDS = 75  # longer than proxies keep a connection: a call on one that closes would fail
SIGNATURE_SECONDS = 10  # after which a version's signatures are requested again
PATH = re.compile(r"([^/:]+)(?:/versions/([0-9]{1,18})|/labels/([^/:]+))?(:predict|/metadata)?")
COUNTED = (":predict", "/v1/completions", "/v1/models", "/healthz", "/metrics")  # other paths are counted as /
# The HTTP status of a gRPC code, and its message; empty: the server's own.
FAILURES = {
    StatusCode.INVALID_ARGUMENT: (400, ""),
    StatusCode.FAILED_PRECONDITION: (400, ""),
    StatusCode.NOT_FOUND: (404, ""),
    StatusCode.RESOURCE_EXHAUSTED: (429, "the server is at its limits: try again later"),
    StatusCode.UNAVAILABLE: (503, "the server is busy or not ready: try again later"),
    StatusCode.DEADLINE_EXCEEDED: (504, "no answer within the time limit: request fewer characters"),
}
FAILED = (500, "the server failed")
# How TF Serving converts messages.
AS_DICT = {"always_print_fields_with_no_presence": True, "preserving_proto_field_name": True}


@settings
class FrontSettings:
    """Limits and files of a front.

    rows, and characters read and written, per call; calls at once, of which one client may make half; calls per minute
    and client address.
    page: folder of `export web` for /. origins: origins of web pages that may call.
    record: file to which the texts of all answered calls are appended, for `pipeline validate --requests`.
    """

    rows: int = 64
    characters: int = 65_536
    calls: int = 32
    per_minute: int = 600
    page: Path | None = None
    origins: tuple[str, ...] = ()
    record: Path | None = None

    def check(self, rows: int, count: int) -> None:
        """Check the rows and the characters of a call. Raises UsageError."""
        if not 1 <= rows <= self.rows:
            raise UsageError(f"a call must have 1 to {self.rows} rows, got {rows}")
        if count > self.characters:
            raise UsageError(f"a call may read and write {self.characters:,} characters in all rows, got {count:,}")


class CheckedClient(Client):
    """Client whose calls are checked and recorded by a front."""

    front: "Front"

    def predict(self, signature: str, inputs: Mapping[str, Array], version: int | None = None) -> Any:
        self.front.settings.check(*bodies.size(inputs))
        answer = super().predict(signature, inputs, version)
        self.front.record(inputs)
        return answer


def problem(path: str, status: int, message: str, wait: int = 1) -> JSONResponse:
    """Answer an error in the form of the API that was called. wait: seconds, of a call that may be repeated."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    wrapped = {"message": message, "type": kind, "param": None, "code": None}
    content = {"error": wrapped if path.startswith("/v1/completions") else message}
    return JSONResponse(content, status, {"Retry-After": str(wait)} if status in (429, 503) else None)


class Guard:
    """ASGI middleware that limits calls below /v1/, rejects those of other sites' pages, and counts and times all
    requests. A stream runs until its end."""

    def __init__(self, app: Any, limits: FrontSettings):
        self.app, self.limits, self.running = app, limits, list[str]()  # the client of each call
        self.minute, self.calls = 0, Counter[str]()  # by client
        self.count, self.seconds = Counter[str](), defaultdict[str, float](float)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status, path, client = time.monotonic(), 0, scope["path"], (scope["client"] or [""])[0]  # none: gone
        route, limited = next((name for name in COUNTED if name in path), "/"), path.startswith("/v1/")

        async def send_and_record(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        app = self.app
        if limited and not self._may_call(Headers(scope=scope)):
            app = problem(path, 403, "pages of this origin may not call: start the front with --allow-origin")
        elif limited and (wait := self._wait(client)):
            app = problem(path, 429, f"too many calls: try again in {wait} s", wait)
        self.running += [client] * limited
        try:
            await app(scope, receive, send_and_record)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # only its type is logged, because its message may contain a prompt
            console.note(f"{route}: {type(error).__name__}")
        finally:
            if limited:
                self.running.remove(client)
            self.count[f'route="{route}",code="{status}"'] += 1
            self.seconds[route] += time.monotonic() - start

    def _may_call(self, headers: Headers) -> bool:
        """Report whether a caller is no web page, a page of this front, or one of an allowed origin."""
        origin = headers.get("origin")
        if origin is None or origin in self.limits.origins or "*" in self.limits.origins:
            return True
        return origin.partition("://")[2] == headers.get("host")

    def _wait(self, client: str) -> int:
        """Compute the seconds until the client may call again; 0: now."""
        now = int(time.time())
        if now // 60 != self.minute:
            self.minute, self.calls = now // 60, Counter()
        if len(self.running) >= self.limits.calls or 2 * self.running.count(client) >= self.limits.calls:
            return 1
        self.calls[client] += 1
        return 60 - now % 60 if self.calls[client] > self.limits.per_minute else 0


class Front:
    """Routes to one served model. client: sets the version or label for callers who name none."""

    def __init__(self, client: Client, settings: FrontSettings):
        self.client = CheckedClient(**{**vars(client.settings), "max_message_bytes": ANSWER_BYTES})
        self.client.front, self.model, self.settings = self, client.settings.model, settings
        self.uncounted = client  # for the front's own calls
        self.signatures: dict[Any, tuple[float, dict[str, Signature]]] = {}
        self.record_file = open_private(settings.record, "--record") if settings.record else None
        self.unit, self.rows, self.failed_streams, self.answered = "", 0, 0, 0.0
        self.healthy, self.probed, self.probing = False, 0.0, asyncio.Lock()
        self.threads = anyio.CapacityLimiter(settings.calls)
        self.converting, self.counting = threading.Lock(), threading.Lock()
        models = [{"id": self.model, "object": "model", "created": 0, "owned_by": "unreasonable-rnn"}]
        routes: list[Any] = [
            Route("/healthz", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", JSONResponse({"object": "list", "data": models}), methods=["GET"]),
            Route("/v1/models/{path:path}", self.in_thread(self.tf_serving), methods=["GET", "POST"]),
            Route("/v1/completions", self.in_thread(self.completions), methods=["POST"]),
        ]
        routes += [Mount("/", StaticFiles(directory=settings.page, html=True))] if settings.page else []
        handlers: Any = dict.fromkeys((UsageError, StageError, HTTPException), self.error)
        self.guard = Guard(Starlette(routes=routes, exception_handlers=handlers), settings)
        self.app = CORSMiddleware(self.guard, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"])

    def error(self, request: Request, error: Exception) -> Response:
        """Answer an error in one line."""
        _, rejected, message = str(error).rpartition("rejects the request: ")
        status, path = 400 if rejected or isinstance(error, UsageError) else 502, request.scope["path"]
        if isinstance(error, HTTPException):
            status, message = error.status_code, error.detail
        elif isinstance(error, ServingError):
            status, known = (400, "") if "is too large" in message else FAILURES.get(error.code, FAILED)
            message = known or message.replace(f" at {self.client.settings.target}", "")
            console.note(f"{brief(path)}: {error.code.name}")
        return problem(path, status, error_line(message))

    def in_thread(self, endpoint: Callable[[Request, bytes], Response]) -> Callable[[Request], Awaitable[Response]]:
        """Read the body, then run an endpoint in a thread of the calls."""

        async def respond(request: Request) -> Response:
            body = bytearray()
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    async for chunk in request.stream():
                        body += chunk
                        if len(body) > BODY_BYTES:
                            raise HTTPException(413, f"the body is larger than {BODY_BYTES:,} bytes")
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS} s") from None
            return await anyio.to_thread.run_sync(endpoint, request, bytes(body), limiter=self.threads)

        return respond

    def signatures_of(self, client: Client) -> dict[str, Signature]:
        key, now = (client.settings.version, client.settings.label), time.monotonic()
        if self.signatures.get(key, (0.0, {}))[0] < now:
            self.signatures[key] = now + SIGNATURE_SECONDS, client.metadata()
        return self.signatures[key][1]

    def record(self, inputs: Mapping[str, Array]) -> None:
        """Count an answered call, and append its texts to the record, if there is one."""
        self.answered = time.monotonic()
        with self.counting:
            self.rows += len(next(iter(inputs.values())))
        texts = [text.decode(errors="surrogateescape") for name in ("prompt", "text") for text in inputs.get(name, ())]
        if self.record_file and any(texts):
            try:
                self.record_file.write(json.dumps({"texts": [*filter(None, texts)]}) + "\n")
            except OSError as error:  # a full disk must not stop the service
                console.note(f"{self.record_file.name}: {error.strerror}")

    # Endpoints.

    def tf_serving(self, request: Request, body: bytes) -> Response:
        """TF Serving's REST API."""
        match = PATH.fullmatch(request.path_params["path"])
        model, version, label, action = match.groups() if match else [""] * 4
        if model != self.model or (action == ":predict") != (request.method == "POST"):
            raise HTTPException(404, f"the model is {self.model}: GET its status or /metadata, POST to :predict")
        client = self.client.at(version=version and int(version), label=label) if version or label else self.client
        if action == ":predict":
            content = bodies.parse(body)
            outputs, _ = client.predict(*bodies.read(content, self.signatures_of(client)))
            with self.converting:  # one at a time, for its memory
                text = json.dumps(bodies.answer(outputs, "predictions" if "instances" in content else "outputs"))
            return Response(text, media_type="application/json")
        if action == "/metadata":
            spec, signatures = (MessageToDict(message, **AS_DICT) for message in client.raw_metadata())
            answer = {"model_spec": spec, "metadata": {"signature_def": signatures}}
        else:
            if label:
                version = str(client.raw_metadata()[0].version.value)
            versions = MessageToDict(client.raw_status(), **AS_DICT)["model_version_status"]
            versions = [entry for entry in versions if version in (None, entry["version"])]
            if not versions:
                raise HTTPException(404, f"Could not find version {version} of model {self.model}")
            answer = {"model_version_status": versions}
        return Response(json.dumps(answer), media_type="application/json")

    def completions(self, request: Request, body: bytes) -> Response:
        """OpenAI's completions."""
        completion = completions.parse(bodies.parse(body), self.model)
        self.settings.check(*completion.size)
        self.unit = self.unit or self.uncounted.info()["unit"]
        if not completion.stream:
            return JSONResponse(completion.answer(self.client, self.unit))
        events = completion.events(self.client, self.unit)
        # An error before the first piece is not an event.
        return StreamingResponse(self._stream(next(events), events), media_type="text/event-stream")

    async def _stream(self, first: bytes, events: Iterator[bytes]) -> AsyncIterator[bytes]:
        yield first
        try:
            while event := await anyio.to_thread.run_sync(next, events, b"", limiter=self.threads):
                yield event
        except StageError as error:
            console.note(f"a stream of /v1/completions: {brief(str(getattr(error, 'code', error)))}")
            self.failed_streams += 1
            yield completions.event({"error": {"message": FAILED[1], "type": "server_error"}})

    async def health(self, request: Request) -> Response:
        """Answer 200 while the server answers rows. A row is requested once a second at most."""
        async with self.probing:
            if time.monotonic() - self.probed > 1:
                # Not in a thread of the calls.
                self.healthy, self.probed = await anyio.to_thread.run_sync(self.answers), time.monotonic()
        return PlainTextResponse("ok\n") if self.healthy else PlainTextResponse("the server does not answer\n", 503)

    def answers(self) -> bool:
        """Report whether the server answers or is busy; request a character if it has not answered for a second."""
        try:
            if time.monotonic() - self.answered > 1:
                self.uncounted.at(timeout=2).generate("", 1)
                self.answered = time.monotonic()
        except StageError:
            # The row may wait behind a long batch: a server that answers its calls in time is busy, not down.
            return time.monotonic() - self.answered < (self.client.settings.timeout if self.guard.running else 1)
        return True

    async def metrics(self, request: Request) -> Response:
        """Answer in Prometheus's text format."""
        lines = ["# TYPE front_requests_total counter"]
        lines += [f"front_requests_total{{{labels}}} {count}" for labels, count in self.guard.count.items()]
        lines += ["# TYPE front_seconds_total counter"]
        lines += [f'front_seconds_total{{route="{route}"}} {time:.6f}' for route, time in self.guard.seconds.items()]
        lines += ["# TYPE front_rows_total counter", f"front_rows_total {self.rows}"]
        lines += ["# TYPE front_failed_streams_total counter", f"front_failed_streams_total {self.failed_streams}"]
        lines += ["# TYPE front_calls_running gauge", f"front_calls_running {len(self.guard.running)}", ""]
        return PlainTextResponse("\n".join(lines), media_type="text/plain; version=0.0.4")


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0: any. Raises StageError if it is not available."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise StageError(f"{host}:{port} is not available ({error.strerror}): pass another --host or --port") from None
    # Otherwise an answer's body waits until the client acknowledges the headers, which takes 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def server(front: Front, **settings: Any) -> uvicorn.Server:
    """Create a server. settings: more of uvicorn's. Raises StageError for an invalid certificate or key."""
    settings |= {"log_level": "error", "access_log": False, "lifespan": "off", "ws": "none", "server_header": False}
    settings |= {"headers": list(page_headers(front.settings.page).items()) if front.settings.page else []}
    settings |= {"timeout_graceful_shutdown": int(front.client.settings.timeout) + 1}  # for the running calls
    settings |= {"timeout_keep_alive": KEEP_ALIVE_SECONDS}
    config = uvicorn.Config(front.app, **{"forwarded_allow_ips": [], **settings})
    try:
        config.load()
    except OSError as error:
        pair = f"{config.ssl_certfile} and {config.ssl_keyfile}"
        raise StageError(f"{pair} are not a certificate and its key: {error}") from None
    return uvicorn.Server(config)


def serve(http_server: uvicorn.Server, listener: socket.socket, model: str) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    host, port, *_ = listener.getsockname()
    url = f"http{'s' * http_server.config.is_ssl}://{f'[{host}]' if ':' in host else host}:{port}"
    body = json.dumps({"model": model, "prompt": "", "max_tokens": 200})
    console.note(f"serving {model} at {url} (Ctrl-C to stop)")
    console.note(f"try: curl -s {url}/v1/completions -d '{body}'")
    with contextlib.suppress(KeyboardInterrupt):
        http_server.run([listener])
