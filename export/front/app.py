"""The front's routes and limits. Prompts and texts are never logged, and stored only on request (`record`)."""

import asyncio
import functools
import json
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TextIO

import anyio.to_thread
import numpy as np
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from common import console
from common.errors import StageError, UsageError
from common.settings import settings
from common.types import Array
from export.client.client import Client, ServingError, Signature
from export.front import bodies, completions

BODY_BYTES = 4 << 20
BODY_SECONDS = 10
ANSWER_BYTES = 8 << 20  # of the server's answer; its JSON takes some ten times as much memory
HEALTH_SECONDS = 2.0
SIGNATURE_SECONDS = 10  # after which a version's signatures are requested again
PROBE = {"prompt": np.array([b""], object), "length": np.ones(1, np.int32)}
PROBE |= {"temperature": np.zeros(1, np.float32), "seed": np.zeros(1, np.int64)}
PATH = re.compile(r"([^/:]+)(?:/versions/(\d{1,18})|/labels/([^/:]+))?(:predict|/metadata)?")
STATUS = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
FAILED = {
    429: "the server is at its limits: try again later",
    500: "the server failed",
    503: "the server is busy or not ready: try again later",
    504: "no answer within the time limit: request fewer characters",
}
# As TF Serving converts messages.
to_dict = functools.partial(MessageToDict, always_print_fields_with_no_presence=True, preserving_proto_field_name=True)


@settings
class Limits:
    """rows, and characters read and written, per call; calls at once; calls per minute and client address."""

    rows: int = 64
    characters: int = 65_536
    calls: int = 32
    per_minute: int = 600


class Guard:
    """ASGI middleware: limits the calls below /v1/, counts and times all requests. A stream runs until its end."""

    def __init__(self, app: Any, limits: Limits):
        self.app, self.limits, self.running = app, limits, 0
        self.minute, self.calls = 0, Counter[str]()  # by client
        self.count, self.seconds = Counter[tuple[str, int]](), defaultdict[str, float](float)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status, path = time.monotonic(), 0, scope["path"]
        known = [name for name in ("/healthz", "/metrics", "/v1/completions", "/v1/models") if path.startswith(name)]
        route, limited = ":predict" if path.endswith(":predict") else ([*known, "/"])[0], path.startswith("/v1/")

        async def send_and_record(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        app, wait = self.app, self._wait(scope["client"][0]) if limited else 0
        if wait:
            app = JSONResponse({"error": f"too many calls: try again in {wait} s"}, 429, {"Retry-After": str(wait)})
        self.running += limited
        try:
            await app(scope, receive, send_and_record)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # only its type is logged, because its message may contain a prompt
            console.note(f"{route}: {type(error).__name__}")
        finally:
            self.running -= limited
            self.count[route, status] += 1
            self.seconds[route] += time.monotonic() - start

    def _wait(self, client: str) -> int:
        """Seconds until the client may call again; 0: now."""
        now = int(time.time())
        if now // 60 != self.minute:
            self.minute, self.calls = now // 60, Counter()
        if self.running >= self.limits.calls:
            return 1
        self.calls[client] += 1
        return 60 - now % 60 if self.calls[client] > self.limits.per_minute else 0


class Front:
    """Routes to one served model.

    client: its version or label is the default of callers that name none. If it has none either, they get the version
    labelled `stable`, if any. page: folder of `export web` for /. origins: origins of web pages that may call.
    record: file to which the texts of all answered calls are appended, for `pipeline validate --requests`.
    """

    def __init__(
        self,
        client: Client,
        limits: Limits,
        page: Path | None = None,
        origins: tuple[str, ...] = (),
        record: Path | None = None,
    ):
        self.client = Client(**{**vars(client.settings), "max_message_bytes": ANSWER_BYTES})
        self.model, self.limits = client.settings.model, limits
        self.signatures: dict[Any, tuple[float, dict[str, Signature]]] = {}
        self.record_file = open_private(record) if record else None
        self.unit, self.rows, self.answered, self.has_stable = "", 0, 0.0, False
        self.healthy, self.probed, self.probing = False, 0.0, asyncio.Lock()
        self.threads = anyio.CapacityLimiter(limits.calls)
        routes: list[Any] = [
            Route("/healthz", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{path:path}", self.tf_serving, methods=["GET", "POST"]),
        ]
        routes += [Mount("/", Page(page))] if page else []
        kinds = (UsageError, StageError, HTTPException)
        self.guard = Guard(Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, self.error)), limits)
        cors = {"allow_origins": origins, "allow_methods": ["*"], "allow_headers": ["*"]}
        self.app = CORSMiddleware(self.guard, **cors) if origins else self.guard  # type: ignore[arg-type]

    def error(self, request: Request, error: Exception) -> Response:
        """Answer an error in one line, in the form of the API that was called."""
        status, message, path = 400, str(error).rpartition("rejects the request: ")[2], request.scope["path"]
        if isinstance(error, HTTPException):
            status, message = error.status_code, error.detail
        elif isinstance(error, ServingError):
            status = 400 if "is too large" in message else STATUS.get(error.code, 500)
            message = FAILED.get(status) or message.replace(f" at {self.client.settings.target}", "")
            console.note(f"{path}: {error.code.name}")
        message = " ".join(message[:300].split())
        wrapped = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        content = {"error": wrapped if path.startswith("/v1/completions") else message}
        return JSONResponse(content, status, {"Retry-After": "1"} if status in (429, 503) else None)

    async def thread(self, function: Any, *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self.threads)

    async def body(self, request: Request) -> dict[str, Any]:
        content = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > BODY_BYTES:
                        raise HTTPException(413, f"the body is larger than {BODY_BYTES:,} bytes")
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS} s") from None
        parsed: dict[str, Any] = await self.thread(bodies.parse, bytes(content))
        return parsed

    def signatures_of(self, client: Client) -> dict[str, Signature]:
        key, now = (client.settings.version, client.settings.label), time.monotonic()
        if self.signatures.get(key, (0.0, {}))[0] < now:
            self.signatures[key] = now + SIGNATURE_SECONDS, client.metadata()
        return self.signatures[key][1]

    def select(self, version: str | None = None, label: str | None = None) -> Client:
        """The client of a version or label, or else the default one."""
        if version or label:
            return self.client.at(version=int(version) if version else None, label=label)
        if self.client.settings.label or self.client.settings.version is not None:
            return self.client
        stable = self.client.at(label="stable")
        try:
            self.has_stable = bool(self.signatures_of(stable))
        except ServingError as error:
            # Never fall back once the label has existed: while it moves, callers must not get the canary.
            if self.has_stable or error.code != StatusCode.INVALID_ARGUMENT:
                raise
            return self.client
        return stable

    def predict(self, client: Client, signature: str, inputs: dict[str, Array]) -> dict[str, Array]:
        self.check(*bodies.size(inputs))
        outputs, _ = client.predict(signature, inputs)
        self.answered, self.rows = time.monotonic(), self.rows + len(next(iter(inputs.values())))
        self.record(inputs)
        return outputs

    def record(self, inputs: dict[str, Array]) -> None:
        """Append the texts of a call to the record, if there is one."""
        columns = [inputs[name] for name in ("prompt", "text") if name in inputs]
        texts = [text.decode(errors="surrogateescape") for column in columns for text in column if text]
        if self.record_file and texts:
            try:
                self.record_file.write(json.dumps({"texts": texts}) + "\n")
            except OSError as error:  # a full disk must not stop the service
                console.note(f"{self.record_file.name}: {error.strerror}")

    def check(self, rows: int, characters: int) -> None:
        if not 1 <= rows <= self.limits.rows:
            raise UsageError(f"a call must have 1 to {self.limits.rows} rows, got {rows}")
        if characters > self.limits.characters:
            limit = f"{self.limits.characters:,} characters in all rows"
            raise UsageError(f"a call may read and write {limit}, got {characters:,}")

    # TF Serving's API.

    async def tf_serving(self, request: Request) -> Response:
        match = PATH.fullmatch(request.path_params["path"])
        if not match or match[1] != self.model or (match[4] == ":predict") != (request.method == "POST"):
            raise HTTPException(404, f"the model is {self.model}: GET its status or /metadata, POST to :predict")
        method = {":predict": self._predict, "/metadata": self._metadata, None: self._status}[match[4]]
        body = await self.body(request) if request.method == "POST" else {}
        return Response(await self.thread(method, body, match[2], match[3]), media_type="application/json")

    def _predict(self, body: dict[str, Any], version: str | None, label: str | None) -> bytes:
        client = self.select(version, label)
        outputs = self.predict(client, *bodies.read(body, self.signatures_of(client)))
        return bodies.to_json(outputs, by_rows="instances" in body)

    def _metadata(self, _: Any, version: str | None, label: str | None) -> bytes:
        spec, signatures = self.select(version, label).raw_metadata()
        about = {"name": spec.name, "signature_name": "", "version": str(spec.version.value)}
        return json.dumps({"model_spec": about, "metadata": {"signature_def": to_dict(signatures)}}).encode()

    def _status(self, _: Any, version: str | None, label: str | None) -> bytes:
        if label:
            version = str(self.select(label=label).raw_metadata()[0].version.value)
        versions = to_dict(self.client.raw_status())["model_version_status"]
        healthy = {"status": {"error_code": "OK", "error_message": ""}}
        versions = [healthy | entry for entry in versions if version in (None, entry["version"])]
        if not versions:
            raise HTTPException(404, f"Could not find version {version} of model {self.model}")
        return json.dumps({"model_version_status": versions}).encode()

    # OpenAI's API.

    async def models(self, request: Request) -> Response:
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "unreasonable-rnn"}
        return JSONResponse({"object": "list", "data": [model]})

    async def completions(self, request: Request) -> Response:
        prepared = completions.parse(await self.body(request), self.model)
        self.check(*bodies.size(prepared.inputs()))
        client = await self.thread(self.select)
        self.unit = self.unit or (await self.thread(client.info))["unit"]
        answer = completions.Answer(prepared, self.unit)
        if not prepared.stream:
            return JSONResponse(answer.whole(await self.thread(self.predict, client, "generate", prepared.inputs())))
        events = answer.events(client)
        first = await self.thread(next, events)  # an error before the first piece is not an event
        await self.thread(self.record, prepared.inputs())
        return StreamingResponse(self._stream(first, events), media_type="text/event-stream")

    async def _stream(self, first: bytes, events: Iterator[bytes]) -> AsyncIterator[bytes]:
        yield first
        try:
            while event := await self.thread(next, events, b""):
                self.answered = time.monotonic()
                yield event
        except StageError:
            yield completions.event({"error": {"message": FAILED[500], "type": "server_error"}})

    # Operation.

    async def health(self, request: Request) -> Response:
        """Answer 200 while the server answers rows. A row is requested once a second at most."""
        async with self.probing:
            if time.monotonic() - max(self.probed, self.answered) > 1:
                self.healthy = await anyio.to_thread.run_sync(self.answers)  # not in a thread of the calls
                self.probed = time.monotonic()
        healthy = self.healthy or time.monotonic() - self.answered <= 1
        return PlainTextResponse("ok\n" if healthy else "the server does not answer\n", 200 if healthy else 503)

    def answers(self) -> bool:
        """Request a row of text, and report whether the server answers or is busy."""
        try:
            return bool(self.predict(self.select().at(timeout=HEALTH_SECONDS), "serving_default", PROBE))
        except StageError:
            # The row may wait behind a long batch: a server that answers its calls in time is busy, not down.
            return self.guard.running > 0 and time.monotonic() - self.answered < self.client.settings.timeout

    async def metrics(self, request: Request) -> Response:
        """Answer in Prometheus's text format."""
        families: dict[str, dict[str, float]] = {
            "requests_total": {f'{{route="{r}",code="{code}"}}': n for (r, code), n in self.guard.count.items()},
            "seconds_total": {f'{{route="{r}"}}': round(n, 6) for r, n in self.guard.seconds.items()},
            "rows_total": {"": self.rows},
            "calls_running": {"": self.guard.running},
        }
        text = ""
        for name, samples in families.items():
            text += f"# TYPE front_{name} {'counter' if name.endswith('_total') else 'gauge'}\n"
            text += "".join(f"front_{name}{labels} {value}\n" for labels, value in sorted(samples.items()))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def open_private(path: Path) -> TextIO:
    """Open a file, readable by its owner alone, to append lines. Raises StageError."""
    try:
        return open(path, "a", buffering=1, encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600))
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}: pass another --record") from None


class Page(StaticFiles):
    """The page of `export web`. Its policy is also a header, for its workers."""

    def __init__(self, folder: Path):
        super().__init__(directory=folder, html=True)
        policy = re.search(r'-Security-Policy"[^"]*"([^"]*)"', (folder / "index.html").read_text(encoding="utf-8"))
        self.policy = " ".join(policy[1].split()) if policy else "default-src 'self'"

    def file_response(self, *arguments: Any, **more: Any) -> Response:
        response = super().file_response(*arguments, **more)
        policy = {"Content-Security-Policy": f"{self.policy}; frame-ancestors 'none'"}
        response.headers.update(policy | {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"})
        return response
