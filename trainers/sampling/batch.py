"""Many texts at a time, drawn or scored in batches; prompts from files, results as JSON lines.

A row's result does not depend on the other rows: it equals that of a separate call.

Legend: R rows of a batch, padded (`stepper.padded_rows`); P ids of the longest.
"""

import codecs
import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common import console
from common.errors import StageError
from common.files import bytes_from_json, bytes_to_json, parse_json, whole_file
from common.options import later_seed
from common.types import Array
from pipeline.vocab import CONTINUATION
from trainers import checkpoint
from trainers.model.char_rnn import States
from trainers.run import read_run
from trainers.sampling import loop
from trainers.sampling.carry_bytes import initial_state
from trainers.sampling.rows import REQUEST_TYPES, Request
from trainers.sampling.sampler import Sampler
from trainers.sampling.stepper import padded_rows

BATCH = 256  # rows at a time
PIECE = 4096  # ids scored per call, a multiple of loop.READ_TURN
BATCH_IDS = 1 << 20  # scored at a time, padding included


class Start(NamedTuple):
    """Prompt, seed and temperature, which determine a text together with its length and the options."""

    prompt: bytes
    seed: int
    temperature: float


class SampledText(NamedTuple):
    """Drawn text, without the stop or the end of document that ended it.

    log_prob: of the text under the model at temperature 1, in nats. finish_reason: length or stop.
    """

    text: bytes
    log_prob: float
    finish_reason: str


def draw(
    sampler: Sampler,
    starts: Iterable[Start],
    length: int,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: bytes = b"",
) -> Iterator[SampledText]:
    """Draw a text for each start, in order.

    Raises StageError for a prompt or a stop that the vocabulary cannot encode.
    """
    generate = tf.function(sampler.generate, autograph=False, reduce_retracing=True)
    options: tuple[Any, ...] = (top_k, top_p, repetition_penalty, stop)
    if options == (0, 1.0, 1.0, b""):
        options = ()  # a graph without them takes less time
    rest = iter(starts)
    while batch := list(itertools.islice(rest, BATCH)):
        rows = ((start.prompt, length, start.temperature, start.seed, *options) for start in batch)
        generated = generate(Request(*map(tf.constant, zip(*rows, strict=True), REQUEST_TYPES)))
        reasons = [reason.decode() for reason in generated.finish_reason.numpy()]
        if error := next((reason for reason in reasons if reason.startswith("error: ")), None):
            raise StageError(error.removeprefix("error: "))
        yield from map(SampledText, generated.text_bytes.numpy(), generated.log_prob.numpy().tolist(), reasons)


def score(sampler: Sampler, ids_of_texts: Sequence[Array]) -> Iterator[tuple[int, float]]:
    """Score texts of any length, each as a new text. Yields each one's index and loss (nats), shortest first."""
    stepper = sampler.stepper()

    @tf.function(reduce_retracing=True, autograph=False)
    def piece(states: States, ids_RxP: tf.Tensor) -> tuple[States, list[tf.Tensor]]:
        def step(states: States, ids_R: tf.Tensor) -> tuple[States, list[tf.Tensor]]:
            return stepper.read(ids_R, states), [stepper.logits(states), ids_R]

        ids_SxR = loop.read_steps(ids_RxP)
        return loop.run_steps(loop.READ_TURN, step, states, [ids_SxR], loop.LOG_PROB_AND_ID, loop.log_probabilities)

    for batch in _batches(ids_of_texts):
        length_R = np.zeros(int(padded_rows(tf.constant(len(batch)))), int)
        length_R[: len(batch)] = [len(ids_of_texts[index]) for index in batch]
        ids_RxP = np.full((len(length_R), 1 + length_R.max()), sampler.vocab.start_id, sampler.vocab.dtype)
        for row, index in enumerate(batch):
            ids_RxP[row, 1 : 1 + length_R[row]] = ids_of_texts[index]
        states, nats_R = initial_state(sampler.model, len(length_R)).states, np.zeros(len(length_R))
        for start in range(0, ids_RxP.shape[1], PIECE):
            states, (log_prob_RxS, _) = piece(states, tf.constant(ids_RxP[:, start : start + PIECE].astype(np.int32)))
            position_S = np.arange(start, start + log_prob_RxS.shape[1])
            real_RxS = (position_S > 0) & (position_S <= length_R[:, None])
            nats_R -= np.where(real_RxS, log_prob_RxS.numpy(), 0).sum(1, dtype=np.float64)
        yield from zip(batch, nats_R[: len(batch)].tolist(), strict=True)


def _batches(ids_of_texts: Sequence[Array]) -> Iterator[list[int]]:
    """Divide texts into batches by length, so that they have little padding; a long text has its own."""
    batch: list[int] = []
    for index in sorted(range(len(ids_of_texts)), key=lambda index: len(ids_of_texts[index])):
        if batch and (len(batch) == BATCH or (len(batch) + 1) * len(ids_of_texts[index]) > BATCH_IDS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def sample_lines(
    folder: Path, starts: Sequence[Start], count: int, length: int, choice: str = "best", **options: Any
) -> Iterator[dict[str, Any]]:
    """Draw `count` texts for each start, with seeds that count up from its own; yield the rows of a JSON lines file.

    choice: the checkpoint (`checkpoint.choose`). options, errors: those of `draw`.
    """
    run = read_run(folder)
    for number, start in enumerate(starts, 1):
        with _named(f"prompt {number}"):
            run.vocab.encode(start.prompt)
    later = (start._replace(seed=later_seed(start.seed, index)) for start in starts for index in range(count))
    drawn, named = itertools.tee(later)  # billions of texts fit in memory
    sampler = Sampler(checkpoint.load_model(run, checkpoint.choose(run, choice)), run.vocab, frozen=True)
    with console.progress("texts") as bar:
        task = bar.add_task("sampling", total=len(starts) * count)
        for start, text in zip(named, draw(sampler, drawn, length, **options), strict=True):
            written = {"prompt": bytes_to_json(start.prompt), "seed": start.seed, **text._asdict()}
            yield written | {"text": bytes_to_json(text.text)}
            bar.advance(task)


def score_lines(folder: Path, files: list[Path], by_line: bool, choice: str = "best") -> Iterator[dict[str, Any]]:
    """Score each file, or each of its lines without the newline, as a separate text; rows of a JSON lines file.

    Raises StageError for a text that the vocabulary cannot encode.
    """
    run, rows, ids_of_texts = read_run(folder), list[dict[str, Any]](), list[Array]()
    for file in files:
        name = os.fsencode(file).decode(errors="replace")
        for number, text in enumerate(_lines(file) if by_line else [file.read_bytes()], 1):
            line = {"line": number} if by_line else {}
            with _named(f"{name}:{number}" if by_line else name):
                ids_of_texts.append(run.vocab.encode(text))
            rows.append({"file": name, **line, "characters": len(text.translate(None, CONTINUATION))})
    sampler = Sampler(checkpoint.load_model(run, checkpoint.choose(run, choice)), run.vocab, frozen=True)
    with console.progress("texts") as bar:
        task = bar.add_task("scoring", total=len(rows))
        for index, nats in score(sampler, ids_of_texts):
            characters = rows[index]["characters"]
            bits = nats / math.log(2) / characters if characters else None
            rows[index] |= {"nats": nats, "bits_per_character": bits}
            bar.advance(task)
    yield from rows


def read_prompts(path: Path, seed: int) -> Iterator[tuple[bytes, int]]:
    """Read prompts and seeds: one per line, or the "prompt" and, if any, the "seed" of each line of a .jsonl file.

    Raises StageError for an invalid line.
    """
    for number, line in enumerate(_lines(path), 1):
        line = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).removesuffix(b"\r")  # from Windows
        if path.suffix.lower() != ".jsonl":
            yield line, seed
            continue
        try:
            value = parse_json(line)
            prompt, own = bytes_from_json(value["prompt"]), value.get("seed", seed)
            if not isinstance(own, int) or not -(1 << 63) <= own < 1 << 63:
                raise ValueError(f"seed {own}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            rule = 'expected an object such as {"prompt": "Once", "seed": 1}'
            raise StageError(f"{path}:{number}: {rule} ({type(error).__name__}: {error})") from None
        yield prompt, own


def write_lines(rows: Iterable[dict[str, Any]], out: Path | None) -> None:
    """Write rows as JSON lines: to a file once all are computed, or to standard output one by one."""
    lines = (json.dumps(row, ensure_ascii=False).encode() for row in rows)
    if out is None:
        for line in lines:
            console.write_text(line)
        return
    with whole_file(out) as partial, partial.open("wb") as file:
        count = sum(file.write(line + b"\n") > 0 for line in lines)
    console.note(f"{out}: {count:,} row{'s' * (count != 1)}")


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Prefix a StageError of the block with a name."""
    try:
        yield
    except StageError as error:
        raise StageError(f"{name}: {error}") from None


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().removesuffix(b"\n").split(b"\n")
