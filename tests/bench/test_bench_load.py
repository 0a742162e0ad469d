"""`bench serve load` against an HTTP server of known speed."""

import http.server
import itertools
import json
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
from click.testing import CliRunner

from bench import load
from bench.__main__ import cli
from common.errors import StageError


class Handler(http.server.BaseHTTPRequestHandler):
    """Server that writes 20 characters per call and answers with the status codes in `codes` in turn."""

    codes: ClassVar[Iterator[int]]
    bodies: ClassVar[list[dict[str, object]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append({"path": self.path, **body["inputs"]})
        answer = json.dumps({"outputs": {"n_chars": [20]}}).encode()
        self.send_response(next(self.codes))
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64  # the default of 5 resets connections when 32 callers connect at once


@pytest.fixture
def target() -> Iterator[str]:
    Handler.codes, Handler.bodies = itertools.repeat(200), []
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def run(target: str) -> str:
    command = ["serve", "load", "--target", target, "--model", "book", "--length", "20", "--seconds", "0.3"]
    return CliRunner().invoke(cli, command, catch_exceptions=False).output


def test_a_row_per_number_of_callers(target: str) -> None:
    lines = [line.split("│") for line in run(target).splitlines() if "│" in line]
    rows = [[cell.strip().replace(",", "") for cell in line[1:-1]] for line in lines]
    assert [row[0] for row in rows] == ["1", "8", "32"]
    for _, answers, median, p95, rate, refused in rows:
        assert 0 < float(median) <= float(p95)
        assert 20 * int(answers) / 5 < float(rate) < 20 * int(answers) / 0.29
        assert refused == "0"
    assert {body["path"] for body in Handler.bodies} == {"/v1/models/book/labels/stable:predict"}
    seeds = [tuple(body["seed"]) for body in Handler.bodies]  # type: ignore[arg-type]
    assert len(set(seeds)) >= len(seeds) / 2  # so a cache could not answer


def test_refused_calls_are_counted_and_not_timed(target: str) -> None:
    Handler.codes = itertools.cycle([429, 503])
    row = load.measure([load.http_caller(target, "book", 20) for _ in range(2)], 0.1)
    assert (row.answers, row.refused > 0) == (0, True)


def test_errors_end_the_measurement(target: str) -> None:
    Handler.codes = itertools.repeat(400)
    with pytest.raises(StageError, match="the server answered 400: "):
        run(target)
    with pytest.raises(
        StageError, match=r"127\.0\.0\.1:1 does not answer over HTTP \(ConnectionError\): check the port"
    ):
        run("127.0.0.1:1")
