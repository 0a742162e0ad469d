"""Cost of the largest call of each signature: seconds and memory of the server, size of the answer.

    python -m bench.limits FOLDER SIGNATURE

One process per signature loads a version from its files and runs it in a Session, as TF Serving does. Prints the costs
as JSON: of the largest call that the front accepts by default, and of the largest that the graph accepts.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.machine import provenance
from bench.peers import Size
from common import console, processes
from common.errors import StageError
from common.files import load_json, write_json
from common.machine import memory

CHARACTER = "—".encode()  # of the vocabulary, with the most bytes


def compare(size: Size, out: Path) -> None:
    """Print a table and write out/bench-serve-limits-LxH.json. Raises StageError for uncommitted code or a failure."""
    origin, calls = provenance(), {}
    with console.quiet():
        from bench.served import export
        from export.serve.signatures import INPUTS
    with tempfile.TemporaryDirectory() as scratch, console.progress("signatures") as bar:
        base = export(size, Path(scratch) / "bench").base
        for signature in bar.track(INPUTS, description=size.name):
            command = [sys.executable, "-m", "bench.limits", str(base / "1"), signature]
            calls[signature] = json.loads(processes.run(command, f"the largest call of {signature} failed"))
        limits = load_json(base / "1" / "assets.extra/export.json")["limits"]
    result = {
        "format_version": 1,
        "work": {"layers": size.layers, "units": size.units},
        "limits": limits,
        "calls": calls,
        **origin,
    }
    write_json(out / f"bench-serve-limits-{size.name}.json", result)
    console.out.print(table(result))


def table(result: dict[str, Any]) -> Table:
    """Render the results for the terminal and docs/benchmarks.md."""
    title = f"{result['work']['layers']} x {result['work']['units']}, the largest call of each signature"
    shown = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("", "limits of", "rows", "read", "written", "seconds", "+ MB", "answer, MB", "JSON, MB"):
        shown.add_column(column, justify="left" if column in ("", "limits of") else "right", no_wrap=True)
    for signature, calls in result["calls"].items():
        for call in calls:
            size = (f"{call[name]:,}" for name in ("rows", "read", "written"))
            megabytes = (f"{call[name] / 1e6:,.1f}" for name in ("answer_bytes", "json_bytes"))
            added = f"{call['added_bytes'] / 1e6:,.0f}"
            shown.add_row(signature, call["limits"], *size, f"{call['seconds']:.2f}", added, *megabytes)
    shown.caption = "\n".join(
        (
            "limits of: the front (its defaults), or the graph (those of the export)",
            "read, written: characters per row; + MB: peak memory during the call, above that of the loaded model",
            "answer: over gRPC; JSON: as the front writes it",
        )
    )
    return shown


def largest(signature: str, limits: dict[str, int], states_bytes: int) -> list[dict[str, Any]]:
    """Return the largest call that the front accepts, and the largest that the graph accepts.

    limits: of the version. states_bytes: of a character's activations in the answer of `neurons`.
    """
    from export.front.app import ANSWER_BYTES, FrontSettings
    from export.serve.signatures import INPUTS

    inputs = INPUTS[signature]
    read = limits["pictured"] if signature == "neurons" else limits["prompt"] * bool({"prompt", "text"} & {*inputs})
    written = limits["length"] * ("length" in inputs)
    rows = min(limits["rows"], FrontSettings().characters // max(read + written, 1))
    if signature == "neurons":
        rows = min(rows, (ANSWER_BYTES - 1) // (read * states_bytes))
    call = {"read": read, "written": written}
    return [{"limits": "front", "rows": rows, **call}, {"limits": "graph", "rows": limits["rows"], **call}]


def _main(folder: str, name: str) -> None:
    """Make the calls of one signature, and print their costs."""
    import tensorflow as tf

    from export.front import bodies
    from export.serve.session import answer
    from export.serve.signatures import INPUTS
    from trainers.model.cells import CELLS

    about = load_json(Path(folder) / "assets.extra/export.json")
    model, limits = about["config"]["model"], about["limits"]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], folder).signature_def

        def run(rows: int, read: int, written: int) -> dict[str, Any]:
            text = CHARACTER * read
            values = {"prompt": text, "text": text, "length": written, "temperature": 1.0, "seed": 1, "ignored": b""}
            values |= {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.2, "stop": "—ñ".encode() * 32, "layer": 0}
            if name == "continue":
                values["carry_bytes"] = answer(session, signatures["start"], {"prompt": [text[:3]]})["carry_bytes"][0]
            return answer(session, signatures[name], {key: [values[key]] * rows for key in INPUTS[name]})

        run(1, 1, 1)
        states_bytes = 4 * model["units"] * CELLS[model["cell"]].states
        calls, answers = largest(name, limits, states_bytes), []
        for call in calls:
            before, start = memory(), time.perf_counter()
            answers.append(run(call["rows"], call["read"], call["written"]))
            call |= {"seconds": time.perf_counter() - start, "added_bytes": max(memory(peak=True) - before, 0)}
    for call, outputs in zip(calls, answers, strict=True):  # after all calls, because JSON takes memory too
        errors = outputs.get("finish_reason", outputs.get("error", []))
        if any(error.startswith(b"error: ") for error in errors):
            raise StageError(f"the graph rejects it: {errors[0].decode()}")
        strings = [value for value in outputs.values() if value.dtype == object]
        numbers = sum(value.nbytes for value in outputs.values() if value.dtype != object)
        call["answer_bytes"] = numbers + sum(len(cell) for value in strings for cell in value)
        call["json_bytes"] = len(json.dumps(bodies.answer(outputs, "outputs")))
    print(json.dumps(calls))


if __name__ == "__main__":
    _main(*sys.argv[1:])
