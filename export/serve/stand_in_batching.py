"""TF Serving's batching rules, reimplemented from its source for the stand-in."""

import dataclasses
import itertools
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
from grpc import StatusCode

Run = Callable[[dict[str, Any], float | None], list[Any]]  # (arrays by tensor name, timeout in seconds) -> outputs


class CallError(Exception):
    """Error that a caller receives. code: gRPC's status code."""

    def __init__(self, code: StatusCode, message: str):
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Batching:
    """Batching parameters of the server, with its defaults."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0  # only with splitting; 0: max_batch_size
    pad_variable_length_inputs: bool = False  # accepted in files; true is not implemented

    @property
    def largest(self) -> int:
        """Maximum rows per run of the graph."""
        return (self.enable_large_batch_splitting and self.max_execution_batch_size) or self.max_batch_size

    @classmethod
    def read(cls, path: Path) -> "Batching":
        """Read a --batching_parameters_file: `max_batch_size { value: 32 }`, `allowed_batch_sizes: 8`."""
        text = re.sub(r"#.*", "", path.read_text())
        entries = re.findall(r"(\w+)\s*(?::|\{\s*value\s*:)\s*(\w+)\s*\}?", text)
        sizes = tuple(int(value) for name, value in entries if name == "allowed_batch_sizes")
        single = {name: value == "true" if value in ("true", "false") else int(value) for name, value in entries}
        return cls(**{**single, "allowed_batch_sizes": sizes})  # type: ignore[arg-type]


@dataclasses.dataclass
class Task:
    """Call that waits in a batch, or a slice of a split call."""

    inputs: dict[str, Any]
    rows: int
    deadline: float | None
    outputs: futures.Future[list[Any]] = dataclasses.field(default_factory=futures.Future)


class Queue:
    """Pending batches of one signature; the last is still open."""

    def __init__(self, run: Run, rules: Batching):
        self.run, self.rules, self.batches, self.opened = run, rules, deque[list[Task]]([[]]), 0.0

    @property
    def open_rows(self) -> int:
        return sum(task.rows for task in self.batches[-1])


class Batcher:
    """Batcher that merges calls of a signature into one run of the graph, and splits its outputs among them.

    A batch without rows never runs: its calls wait, past their deadlines, until the signature receives a row. A batch's
    deadlines are checked when it is taken from the queue.
    """

    def __init__(self, rules: Batching):
        self.rules, self.queues, self.changed = rules, dict[Any, Queue](), threading.Condition()
        self.ran: list[int] = []  # rows per run, including padding
        for _ in range(rules.num_batch_threads):
            threading.Thread(target=self._work, daemon=True).start()

    def close(self) -> None:
        """Fail pending calls; those without rows would wait forever."""
        with self.changed:
            waiting = [task for queue in self.queues.values() for batch in queue.batches for task in batch]
            self.queues.clear()
        for task in waiting:
            task.outputs.set_exception(CallError(StatusCode.CANCELLED, "the stand-in was stopped"))

    def __call__(
        self, key: Any, run: Run, inputs: dict[str, Any], timeout: float | None, rules: Batching | None = None
    ) -> list[Any]:
        """Run a call. rules: the version's batching parameters; default: the server's."""
        invalid, sizes = StatusCode.INVALID_ARGUMENT, {array.shape[:1] for array in inputs.values()}
        if not inputs:
            raise CallError(invalid, "Batching Run() must have at least one input tensor")
        if () in sizes:
            raise CallError(invalid, "Batching Run() input tensors must have at least one dimension")
        if len(sizes) > 1:
            raise CallError(invalid, "Batching Run() input tensors must have equal 0th-dimension size")
        deadline = time.monotonic() + timeout if timeout is not None else None
        with self.changed:
            queue = self.queues.setdefault(key, Queue(run, rules or self.rules))
            tasks = self._schedule(queue, inputs, sizes.pop()[0], deadline)
            self.changed.notify_all()
        parts = [task.outputs.result() for task in tasks]
        return parts[0] if len(parts) == 1 else [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def _schedule(self, queue: Queue, inputs: dict[str, Any], rows: int, deadline: float | None) -> list[Task]:
        rules, waiting, full = queue.rules, queue.batches, "The batch scheduling queue to which this task was submitted"
        if rows > rules.max_batch_size:
            larger = f"Task size {rows} is larger than maximum input batch size {rules.max_batch_size}"
            raise CallError(StatusCode.INVALID_ARGUMENT, larger)
        room = rules.largest - queue.open_rows
        cuts = [0, rows]
        if rules.enable_large_batch_splitting:
            capacity = (rules.max_enqueued_batches - len(waiting)) * rules.largest + room
            if rows > capacity:
                message = f"{full} is full; task size is {rows} but scheduling capacity is only {capacity}"
                raise CallError(StatusCode.UNAVAILABLE, message)
            if rows > room:
                cuts = sorted({0, *range(room, rows, rules.largest), rows})
        elif rows > room and len(waiting) >= rules.max_enqueued_batches:
            counts = f"currently {len(waiting)} batches enqueued and max_enqueued_batches is {len(waiting)}"
            raise CallError(StatusCode.UNAVAILABLE, f"{full} is full; {counts}")
        tasks = []
        for start, end in itertools.pairwise(cuts):
            task = Task({name: array[start:end] for name, array in inputs.items()}, end - start, deadline)
            if queue.open_rows + task.rows > rules.largest:
                waiting.append([])
            if not queue.open_rows:
                queue.opened = time.monotonic()
            waiting[-1].append(task)
            tasks.append(task)
        return tasks

    def _due(self) -> tuple[Queue | None, float | None]:
        """Return a queue whose first batch is due, or the seconds until one is."""
        soonest = None
        for queue in self.queues.values():
            left = queue.opened + queue.rules.batch_timeout_micros / 1e6 - time.monotonic()
            due = left <= 0 or queue.open_rows >= queue.rules.largest
            if len(queue.batches) > 1 or (queue.open_rows and due):
                return queue, None
            if queue.open_rows:
                soonest = left if soonest is None else min(soonest, left)
        return None, soonest

    def _work(self) -> None:
        while True:
            with self.changed:
                queue, left = self._due()
                while queue is None:
                    self.changed.wait(left)
                    queue, left = self._due()
                batch = queue.batches.popleft()
                if not queue.batches:
                    queue.batches.append([])
            try:
                for task, outputs in zip(batch, self._outputs(queue, batch), strict=True):
                    task.outputs.set_result(outputs)
            except Exception as error:
                for task in batch:
                    task.outputs.set_exception(error)

    def _outputs(self, queue: Queue, batch: list[Task]) -> list[list[Any]]:
        deadlines = [task.deadline for task in batch if task.deadline is not None]
        timeout = max(deadlines) - time.monotonic() if len(deadlines) == len(batch) else None
        if timeout is not None and timeout <= 0:
            raise CallError(StatusCode.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")
        rows = sum(task.rows for task in batch)
        padded = next((size for size in queue.rules.allowed_batch_sizes if size >= rows), rows)
        # TF Serving pads a batch with the first row of its last call.
        filler = [{name: array[:1] for name, array in batch[-1].inputs.items()}] * (padded - rows)
        parts = [*(task.inputs for task in batch), *filler]
        for part in parts:
            for name, array in part.items():
                if array.shape[1:] != batch[0].inputs[name].shape[1:]:
                    raise CallError(
                        StatusCode.FAILED_PRECONDITION,
                        f"Tensors with name '{name}' from different tasks have different shapes and padding is turned "
                        "off. Set pad_variable_length_inputs to true, or ensure that all tensors with the same name "
                        "have equal dimensions starting with the first dim.",
                    )
        merged = {name: np.concatenate([part[name] for part in parts]) for name in batch[0].inputs}
        self.ran.append(padded)
        outputs = queue.run(merged, timeout)
        if any(array.ndim == 0 for array in outputs):
            raise CallError(StatusCode.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if any(len(array) != padded for array in outputs):
            raise CallError(
                StatusCode.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors",
            )
        cuts = np.cumsum([task.rows for task in batch])
        return [[array[end - task.rows : end] for array in outputs] for task, end in zip(batch, cuts, strict=True)]
