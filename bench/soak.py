"""Good and hostile callers at once, for minutes: whether every good answer is the checkpoint's own, to the end.

Good requests are of all signatures, of 1 to 8 rows, and some of their rows are wrong: those must be refused by
themselves, in the checkpoint's own words. A text must be the same to the last byte, a number within 1e-5. Hostile
requests must be refused, as a whole or in every row.
"""

import datetime
import importlib.metadata
import itertools
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from grpc import StatusCode
from rich.table import Table

from bench.load import BATCHING, PLAIN, STAND_IN
from bench.machine import commit, machine
from bench.peers import Size
from bench.served import StandIn, export
from common import console
from common.errors import StageError
from common.files import write_json
from export.client.client import Client, ServingError
from export.serve.saved_model import compare as check
from export.serve.signatures import DTYPES, INPUTS, Served

GOOD, HOSTILE = 8, 4  # callers
REQUESTS = 25  # different good ones of each signature
MOST_ROWS = 8
GROWTH = 0.05  # of memory, at most
WARM_UP = 0.2  # of the minutes, and a minute at most
LOOK_EVERY = 1.0  # seconds, at memory
# What a call may fail with by no fault of its own: it stood in one batch with a call whose inputs had another shape,
# and TF Serving refuses them together. It is asked again, and counted.
MATE, MATE_SAYS, TIMES = StatusCode.FAILED_PRECONDITION, "from different tasks have different shapes", 20
# How a server refuses what it does not take; anything else is a server in trouble.
REFUSALS = {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION}
GONE = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}

Columns = dict[str, np.ndarray]


class Request(NamedTuple):
    """A call, and what the checkpoint answers."""

    signature: str
    inputs: Columns
    expected: Columns


class Hostile(NamedTuple):
    name: str
    signature: str
    inputs: Columns
    version: int | None = None


class Found:
    """What the callers saw, and what the server's memory was."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.right: Counter[str] = Counter()  # by signature
        self.refused: Counter[str] = Counter()  # hostile ones, by name and how
        self.again = 0  # good ones that were refused with a batch mate
        self.wrong: list[str] = []
        self.unanswered: list[str] = []
        self.memory: list[int] = []  # bytes, at every look after the warm-up

    def problems(self) -> list[str]:
        """What must not be, a line each."""
        counted = [(self.wrong, "wrong answers"), (self.unanswered, "calls without an answer")]
        found = [f"{what}: {len(each):,}, such as {each[0]}" for each, what in counted if each]
        if not self.right:
            found.append("no call was answered right")
        if (growth := self.growth) > GROWTH:
            found.append(f"memory grew by {growth:.1%}; at most {GROWTH:.0%} is allowed")
        return found

    @property
    def growth(self) -> float:
        """Of memory, from the lowest tenth of the time to the last: what a server frees late hides nothing it loses."""
        size = max(1, len(self.memory) // 10)
        tenths = [statistics.median(self.memory[at : at + size]) for at in range(0, len(self.memory) - size + 1, size)]
        return statistics.median(self.memory[-size:]) / min(tenths) - 1


Ask = Callable[[Client, Any, Found], None]


def compare(size: Size, minutes: float, out: Path) -> None:
    """Soaks the stand-in for so many minutes with batching, and as many without; writes out/bench-serve-soak-LxH.json.

    Raises StageError where the code is not committed, and, once all is written, for a server that ended, grew, did not
    answer, or answered otherwise than the checkpoint.
    """
    made_at = {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}
    found: dict[str, Found] = {}
    ends: dict[str, list[str]] = {BATCHING: [], PLAIN: []}
    with tempfile.TemporaryDirectory() as scratch:
        with console.err.status("exporting, asking the checkpoint"):
            base, served, *_ = export(size, Path(scratch) / "bench")
            asked, hostile = requests(served), hostiles(served)
        for name in (BATCHING, PLAIN):
            with StandIn(base, name == BATCHING) as server, console.err.status(f"soaking, {name}"):
                found[name] = soak(server, asked, hostile, 60 * minutes)
                if (code := server.process.poll()) is not None:
                    ends[name].append(f"the server ended with code {code}: {server.last_words()}")
    problems = {name: ends[name] + each.problems() for name, each in found.items()}
    result: dict[str, Any] = {
        "format_version": 1,
        "server": STAND_IN,
        "work": {"layers": size.layers, "units": size.units, "minutes": minutes, "good": GOOD, "hostile": HOSTILE},
        "servers": {
            name: {
                "right": dict(each.right),
                "refused": dict(sorted(each.refused.items())),
                "again": each.again,
                "wrong": len(each.wrong),
                "unanswered": len(each.unanswered),
                "memory_bytes": each.memory[:: max(1, len(each.memory) // 60)],
                "memory_lowest": min(each.memory),
                "memory_last": each.memory[-1],
                "memory_growth": each.growth,
                "problems": problems[name],
            }
            for name, each in found.items()
        },
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "grpcio")},
        **made_at,
    }
    write_json(out / f"bench-serve-soak-{size.name}.json", result)
    console.out.print(table(result))
    for name, each in problems.items():
        if each:
            raise StageError(f"{name}: {'; '.join(each)}")


def soak(server: StandIn, asked: list[Request], hostile: list[Hostile], seconds: float) -> Found:
    """Asks a server for each thing once, and then for so long, all callers at once, after a warm-up of the same. Ends
    early where the server does."""
    found, over = Found(), threading.Event()
    connection: dict[str, Any] = {"target": server.target, "model": server.model, "timeout": 60, "retries": 0}

    def caller(number: int, ask: Ask, calls: list[Any]) -> None:
        order = itertools.cycle(random.Random(number).sample(calls, len(calls)))  # each caller his own
        with Client(**connection) as client:
            while not over.is_set():
                attempt(ask, client, next(order), found)

    with Client(**connection) as client:
        for ask, call in [(good, request) for request in asked] + [(bad, request) for request in hostile]:
            attempt(ask, client, call, found)
            if found.unanswered:
                break
    work = [(good, asked)] * GOOD + [(bad, hostile)] * HOSTILE
    threads = [threading.Thread(target=caller, args=(number, *one)) for number, one in enumerate(work)]
    for thread in threads:
        thread.start()
    start, warm = time.monotonic(), min(60.0, WARM_UP * seconds)
    while (since := time.monotonic() - start) < warm + seconds and server.process.poll() is None:
        if since >= warm:
            found.memory.append(server.memory())
        time.sleep(min(LOOK_EVERY, seconds / 20))
    over.set()
    for thread in threads:
        thread.join()
    found.memory = [look for look in found.memory if look] or [1]  # none of a server that was gone by then
    return found


def attempt(ask: Ask, client: Client, call: Any, found: Found) -> None:
    try:
        ask(client, call, found)
    except Exception as error:  # an answer that cannot even be read
        with found.lock:
            found.wrong.append(f"{call.signature}: {error!r}")


def good(client: Client, request: Request, found: Found) -> None:
    """Makes a call whose answer is known."""
    for _ in range(TIMES):
        try:
            answer, _ = client.predict(request.signature, request.inputs)
        except ServingError as error:
            with found.lock:
                if error.code == MATE and MATE_SAYS in str(error):
                    found.again += 1
                    continue
                (found.unanswered if error.code in GONE else found.wrong).append(f"{request.signature}: {error}")
                return
        problem = differs(request, answer)
        with found.lock:
            if problem:
                found.wrong.append(problem)
            else:
                found.right[request.signature] += 1
        return
    with found.lock:
        found.unanswered.append(f"{request.signature}: refused {TIMES} times with its batch")


def bad(client: Client, request: Hostile, found: Found) -> None:
    """Makes a call that must be refused."""
    try:
        answer, _ = client.predict(request.signature, request.inputs, request.version)
    except ServingError as error:
        with found.lock:
            found.refused[f"{request.name}: {error.code.name}"] += 1
            if error.code not in REFUSALS:
                lost = error.code in GONE
                (found.unanswered if lost else found.wrong).append(f"{request.name}: {error.code.name}: {error}")
        return
    said = answer.get("finish_reason", answer.get("error", np.array([b""], object))).tolist()
    with found.lock:
        found.refused[f"{request.name}: {'its rows' if said else 'no rows'}"] += 1
        if not all(one.startswith(b"error: ") for one in said):
            found.wrong.append(f"{request.name}: answered as if nothing were wrong")


def differs(request: Request, answer: Columns) -> str:
    """What of an answer is not the checkpoint's; empty where all is."""
    if answer.keys() != request.expected.keys():
        return f"{request.signature} gives {', '.join(answer)}, not {', '.join(request.expected)}"
    try:
        for name, expected in request.expected.items():
            got = answer[name]
            if len(got) != len(expected):
                return f"{request.signature}.{name} has {len(got)} rows, not {len(expected)}"
            if got.ndim > 1:  # as wide as the longest text of all that shared its batch, with zeros behind its own
                wide = expected.shape[1]
                check(f"{request.signature}.{name}, behind its text", got[:, wide:], np.zeros_like(got[:, wide:]))
                got = got[:, :wide]
            for row in range(len(expected)):  # one by one: a carry that was refused is shorter than others
                check(f"{request.signature}.{name}", got[row : row + 1], expected[row : row + 1])
    except (StageError, ValueError) as error:  # the latter for what is no carry at all
        return str(error)
    return ""


# What is asked


def requests(served: Served) -> list[Request]:
    """Good requests of every signature, and what the checkpoint answers."""
    chance, made = random.Random(0), []
    carries = [b"", *served.answer("start", {"prompt": texts(served, chance, 5)})["carry_bytes"]]
    for signature, _ in itertools.product(INPUTS, range(REQUESTS)):
        rows = chance.randint(1, MOST_ROWS)
        inputs = columns(signature, [row(served, chance, carries) for _ in range(rows)])
        made.append(Request(signature, inputs, served.answer(signature, inputs)))
    return made


def texts(served: Served, chance: random.Random, count: int) -> list[bytes]:
    """Of the model's characters, up to 40 each."""
    symbols = served.sampler.vocab.symbols
    return [b"".join(chance.choices(symbols, k=chance.randint(0, 40))) for _ in range(count)]


def row(served: Served, chance: random.Random, carries: list[bytes]) -> dict[str, Any]:
    """Every input of every signature; of ten rows one has something wrong."""
    text, prompt, stop = texts(served, chance, 3)
    values: dict[str, Any] = {
        "prompt": prompt,
        "text": text,
        "length": chance.randint(0, 60),
        "temperature": chance.choice([0.0, 0.5, 1.0, 1.5]),
        "seed": chance.randint(-(1 << 63), (1 << 63) - 1),
        "top_k": chance.choice([0, 0, 1, 5, 1000]),
        "top_p": chance.choice([1.0, 1.0, 0.5, 0.9]),
        "repetition_penalty": chance.choice([1.0, 1.0, 1.3, 0.8]),
        "stop": chance.choice([b"", stop[:1], b"e"]),
        "carry_bytes": chance.choice(carries),
        "layer": chance.randrange(served.sampler.model.config.layers),
        "ignored": b"",
    }
    if chance.random() < 0.1:
        wrong: list[dict[str, Any]] = [
            {"length": -1},
            {"temperature": float("nan")},
            {"prompt": b"\xff", "text": b"\xff"},
            {"prompt": "é€".encode(), "text": "é€".encode()},  # the latter is not in the vocabulary
            {"top_p": 0.0},
            {"carry_bytes": b"short"},
            {"layer": 99},
        ]
        values |= chance.choice(wrong)
    return values


def columns(signature: str, rows: Iterable[dict[str, Any]]) -> Columns:
    """Rows as the inputs of a signature."""
    rows = list(rows)
    return {name: np.array([row[name] for row in rows], DTYPES[name].as_numpy_dtype) for name in INPUTS[signature]}


def hostiles(served: Served) -> list[Hostile]:
    """Requests that no server should answer."""
    basic = {"prompt": b"def ", "length": 20, "temperature": 0.8, "seed": 1}
    options = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "stop": b""}
    usual = {**basic, **options, "carry_bytes": b"", "text": b"def ", "layer": 0}
    carry = served.answer("start", {"prompt": [b"def "]})["carry_bytes"][0]
    mega = b"x" * (1 << 20)

    def of(signature: str, **changed: Any) -> Columns:
        return columns(signature, [{**usual, **changed}] * 2)

    wrong_rows = {
        "NaN temperature": of("generate", temperature=float("nan")),
        "infinite temperature": of("generate", temperature=float("inf")),
        "negative temperature": of("generate", temperature=-1.0),
        "negative length": of("generate", length=-1),
        "huge length": of("generate", length=(1 << 31) - 1),
        "top_k below 0": of("generate", top_k=-5),
        "top_p of 2": of("generate", top_p=2.0),
        "penalty of 0": of("generate", repetition_penalty=0.0),
        "stop of a megabyte": of("generate", stop=mega),
        "prompt of a megabyte": of("generate", prompt=mega),
        "prompt that is not UTF-8": of("generate", prompt=b"\xc3("),
        "prompt of NULs": of("generate", prompt=bytes(100)),
    }
    found = [Hostile(name, "generate", inputs) for name, inputs in wrong_rows.items()]
    carries = {
        "another model's carry": bytes(4) + carry[4:],
        "cut carry": carry[:-4],
        "carry of a byte": b"\0",
        "carry of a megabyte": mega,
        "carry of NaNs": carry[:-4] + np.float32("nan").tobytes(),
    }
    found += [Hostile(name, "continue", of("continue", carry_bytes=value)) for name, value in carries.items()]
    found += [
        Hostile("huge length, by default", "serving_default", of("serving_default", length=(1 << 31) - 1)),
        Hostile("text of a megabyte", "score", of("score", text=mega)),
        Hostile("text that is not UTF-8", "score_chars", of("score_chars", text=b"\xff\xfe")),
        Hostile("start that is not UTF-8", "start", of("start", prompt=b"\xff")),
        Hostile("layer that is not there", "neurons", of("neurons", layer=7)),
        Hostile("negative layer", "neurons", of("neurons", layer=-1)),
    ]
    plain = of("generate")
    found += [
        Hostile("length as int64", "generate", {**plain, "length": plain["length"].astype(np.int64)}),
        Hostile("prompt as numbers", "generate", {**plain, "prompt": plain["length"]}),
        Hostile("no seed", "generate", {name: value for name, value in plain.items() if name != "seed"}),
        Hostile("an input too many", "generate", {**plain, "unknown": plain["length"]}),
        Hostile("no input at all", "generate", {}),
        Hostile("rank 2", "generate", {name: value[:, None] for name, value in plain.items()}),
        Hostile("rank 2, one input", "generate", {**plain, "length": plain["length"][:, None]}),
        Hostile("rank 0", "generate", {name: value[0:1].reshape(()) for name, value in plain.items()}),
        Hostile("rows that do not match", "generate", {**plain, "seed": plain["seed"][:1]}),
        Hostile("no rows", "generate", {name: value[:0] for name, value in plain.items()}),
        Hostile("1,000 rows", "generate", {name: np.repeat(value, 500) for name, value in plain.items()}),
        Hostile("1,000 texts", "score", {"text": np.array([b"def "] * 1000, object)}),
        Hostile("unknown signature", "no_such", plain),
        Hostile("unknown version", "generate", plain, 99),
    ]
    return found


def table(result: dict[str, Any]) -> Table:
    """The figures, for the terminal and README."""
    work = result["work"]
    callers = f"{work['good']} good and {work['hostile']} hostile callers"
    title = f"{work['layers']} x {work['units']}, {work['minutes']:g} minutes each, {callers}, of {result['server']}"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("", "right", "wrong", "no answer", "again", "hostile", "MB lowest", "last", "growth"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, found in result["servers"].items():
        shown.add_row(
            name,
            f"{sum(found['right'].values()):,}",
            f"{found['wrong']:,}",
            f"{found['unanswered']:,}",
            f"{found['again']:,}",
            f"{sum(found['refused'].values()):,}",
            f"{found['memory_lowest'] / 1e6:,.0f}",
            f"{found['memory_last'] / 1e6:,.0f}",
            f"{found['memory_growth']:.1%}",
        )
    lines = [
        "again: good calls asked again, since they stood in one batch with a call of another shape",
        "hostile: calls that were refused",
        "MB: of the server, after a warm-up of the same load; growth: from the lowest tenth of the time to the last",
    ]
    shown.caption = "\n".join(lines)
    return shown
