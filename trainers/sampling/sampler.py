"""From text to text in plain graph ops: generating, scoring and inspecting, the same on the command line, in the
exported SavedModel and so in TF Serving.

No XLA, no Python in a loop, no custom op: a stock server runs it. Every input and output has one entry per row. A row's
result depends on its own inputs alone, its seed included, never on the other rows; an invalid row reports its own
error, and the others run. The limits are part of the graph.

Legend: B rows requested, R rows run, P ids of the longest prompt, S steps of a loop (rounded up to whole turns), M
characters remembered, H units, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from common.errors import StageError
from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.model.char_rnn import CharRNN, States
from trainers.run import read_run
from trainers.sampling import loop
from trainers.sampling.carry_bytes import MEMORY, CarryBytes, TextState, initial_state, select_rows
from trainers.sampling.codec import Codec, Ids, first_problem, named
from trainers.sampling.rows import NEUTRAL, REQUEST_TYPES, Generation, Limits, Request, Rows
from trainers.sampling.stepper import Stepper, pack_weights

PIECE = 1024  # characters per call on the command line


class Sampler:
    """Model and its vocabulary as functions from text to text.

    limits: by default, memory alone.
    frozen: pack the weights once, now, into variables; otherwise each call packs the model's current ones.
    """

    def __init__(self, model: CharRNN, vocab: Vocab, limits: Limits | None = None, frozen: bool = False):
        self.model, self.vocab, self.codec = model, vocab, Codec(vocab)
        self.limits = limits or Limits(length=1 << 20, prompt=1 << 20, rows=1 << 20, pictured=1 << 20)
        self.weights = tf.nest.map_structure(tf.Variable, pack_weights(model)) if frozen else None
        self._carry_bytes = CarryBytes(model, vocab)

    def generate(self, request: Request) -> Generation:
        """Continue each prompt by `length` characters, or up to its stop or the end of its document.

        The first n characters do not depend on the length.
        """
        rows = Rows(request.prompt_B, self.limits.rows)
        request, no_problem_R = Request(*rows.pad(*request.columns)), tf.fill([rows.run], "")
        fresh_R, text = no_problem_R == "", initial_state(self.model, rows.run)
        generated, problem_R, _ = self._generate(text, fresh_R, request, no_problem_R, keep=False)
        return _unpadded(rows, generated, rows.errors(problem_R))

    def resume(self, carry_B: tf.Tensor, request: Request) -> tuple[Generation, tf.Tensor]:
        """Continue a text from its carry; also return the carry after it.

        carry: from `start` or `resume`; empty: start a new text. With the same seed, the pieces join to the text that
        `generate` writes in one call. A stop that began in an earlier piece is recognised; n_back counts its bytes
        that were already returned.
        """
        rows = Rows(request.prompt_B, self.limits.rows)
        carry_R, *columns = rows.pad(carry_B, *request.columns)
        text, problem_R = self._carry_bytes.unpack(carry_R)
        generated, problem_R, text = self._generate(text, carry_R == "", Request(*columns), problem_R, keep=True)
        error_B = rows.errors(problem_R)
        carry_B = tf.where(error_B == "", rows.unpad(self._carry_bytes.pack(text)), "")
        return _unpadded(rows, generated, error_B), carry_B

    def start(self, prompt_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Read each prompt. Returns the carry after it, the next character's logits_BxV, and error_B."""
        rows = Rows(prompt_B, self.limits.rows)
        encoded = self.codec.encode(rows.pad(prompt_B)[0], self.limits.prompt, "prompt")
        valid_R = encoded.problem_B == ""
        text = self._read(initial_state(self.model, rows.run), encoded, valid_R)
        logits_RxV = self.stepper().logits(text.states)[:, : self.vocab.size]
        logits_RxV = tf.where(valid_R[:, None], logits_RxV, 0)
        carry_R = tf.where(valid_R, self._carry_bytes.pack(text), "")
        return rows.unpad(carry_R), rows.unpad(logits_RxV), rows.errors(encoded.problem_B)

    def score(self, text_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Score each text. Returns log_prob_BxP (nats per character, 0 past the last), n_chars_B, error_B.

        Each row is a new text: it follows the end of a document, or a newline where the vocabulary has no such end.
        So this is the probability with which `generate` draws it from an empty prompt.
        """
        rows = Rows(text_B, self.limits.rows)
        stepper, encoded, count_R = self._new_text(rows.pad(text_B)[0], self.limits.prompt)

        def step(states: States, ids_R: tf.Tensor) -> tuple[States, list[tf.Tensor]]:
            return stepper.read(ids_R, states), [stepper.logits(states), ids_R]

        log_prob_RxP = self._along(encoded, step, loop.LOG_PROB_AND_ID, loop.log_probabilities)[0]
        log_prob_RxP = tf.where(tf.sequence_mask(count_R, tf.shape(log_prob_RxP)[1]), log_prob_RxP, 0)
        return rows.unpad(log_prob_RxP), rows.unpad(count_R), rows.errors(encoded.problem_B)

    def neurons(self, text_B: tf.Tensor, layer_B: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Compute a layer's state after each character: h_BxPxH and, if the cell has it, c_BxPxH; n_chars_B; error_B.

        Each row is a new text, as in `score`. Zeros follow its last character.
        """
        rows = Rows(text_B, self.limits.rows)
        text_R, layer_R = rows.pad(text_B, layer_B)
        stepper, encoded, count_R = self._new_text(text_R, self.limits.pictured)
        top = self.model.config.layers - 1
        rule_R = tf.strings.join([f"layer: 0 to {top}, got ", tf.strings.as_string(layer_R)])
        problem_R = first_problem(((layer_R < 0) | (layer_R > top), rule_R), named(encoded.problem_B))
        count_R, layer_R = tf.where(problem_R == "", count_R, 0), tf.clip_by_value(layer_R, 0, top)

        def step(states: States, ids_R: tf.Tensor) -> tuple[States, list[tf.Tensor]]:
            states = stepper.read(ids_R, states)
            return states, [tf.gather(tf.stack(x, 1), layer_R, batch_dims=1) for x in zip(*states, strict=True)]

        state = self._along(encoded, step, [(tf.float32, [self.model.config.units])] * self.model.cell.states)
        real_RxPx1 = tf.sequence_mask(count_R, tf.shape(state[0])[1])[..., None]
        answers = [rows.unpad(tf.where(real_RxPx1, x_RxPxH, 0)) for x_RxPxH in state]
        return answers, rows.unpad(count_R), rows.errors(problem_R)

    def stepper(self) -> Stepper:
        weights = tf.nest.map_structure(tf.convert_to_tensor, self.weights) if self.weights else None
        return Stepper(self.model, self.vocab.end_id, weights)

    def _new_text(self, text_R: tf.Tensor, limit: int) -> tuple[Stepper, Ids, tf.Tensor]:
        """Encode a new text, after the id that starts one; also return its number of characters."""
        encoded = self.codec.encode(text_R, limit, "text")
        return self.stepper(), self.codec.begin(encoded, encoded.length_B >= 0), encoded.length_B

    def _along(
        self, encoded: Ids, step: loop.Step, outputs: loop.Outputs, combine: loop.Combine = list
    ) -> list[tf.Tensor]:
        """Run a step along a new text. Returns its outputs at each character, but not at the start id."""
        states = initial_state(self.model, tf.shape(encoded.length_B)[0]).states
        ids_SxR = loop.read_steps(encoded.ids_BxP)
        _, values = loop.run_steps(loop.READ_TURN, step, states, [ids_SxR], outputs, combine)
        return [x[:, 1 : tf.reduce_max(encoded.length_B)] for x in values]

    def _read(self, text: TextState, prompt: Ids, fresh_R: tf.Tensor) -> TextState:
        """Read the prompts into the text states; `fresh` texts start as in Vocab.prompt_ids."""
        begins_R = fresh_R if self.vocab.end_id is not None else fresh_R & (prompt.length_B == 0)
        encoded = self.codec.begin(prompt, begins_R)
        stepper, length_R = self.stepper(), encoded.length_B

        def step(states: States, ids_R: tf.Tensor, real_Rx1: tf.Tensor) -> tuple[States, list[tf.Tensor]]:
            return select_rows(real_Rx1, stepper.read(ids_R, states), states), []

        ids_SxR = loop.read_steps(encoded.ids_BxP)
        real_SxR = tf.range(tf.shape(ids_SxR)[0])[:, None] < length_R
        states, _ = loop.run_steps(loop.READ_TURN, step, text.states, [ids_SxR, real_SxR[..., None]], [])
        # Keep the last characters remembered or read. The id that starts a text is not one of them.
        both = tf.concat([text.recent_RxM, -2 - prompt.ids_BxP], axis=1)
        recent_RxM = tf.gather(both, prompt.length_B[:, None] + tf.range(MEMORY)[None], batch_dims=1)
        return TextState(states, recent_RxM, text.drawn_R)

    def _generate(
        self, text: TextState, fresh_R: tf.Tensor, request: Request, problem_R: tf.Tensor, keep: bool
    ) -> tuple[Generation, tf.Tensor, TextState]:
        """Read the prompts and continue them. Returns the generated text, problem_R, and the text states after it.

        An invalid row keeps its state. keep: see `loop.draw_ids`.
        """
        encoded = self.codec.encode(request.prompt_B, self.limits.prompt, "prompt")
        stop_R = tf.zeros_like(problem_R) if request.stop_B is None else request.stop_B
        stop = self.codec.encode(stop_R, MEMORY, "stop", exact=True)
        problems = [problem_R, *self._problems(request), stop.problem_B, encoded.problem_B]
        problem_R = first_problem(*map(named, problems))
        valid_R = problem_R == ""
        text = self._read(text, encoded._replace(length_B=tf.where(valid_R, encoded.length_B, 0)), fresh_R & valid_R)
        columns = zip(request.columns, NEUTRAL, strict=False)
        request = Request(*(tf.where(valid_R, column_R, neutral) for column_R, neutral in columns))
        drawn, text = loop.draw_ids(self.stepper(), self.vocab.end_id, text, request, stop, keep)
        stop_length_R = tf.where(drawn.stopped_R, stop.length_B, 0)
        count_R = drawn.count_R - stop_length_R - tf.cast(drawn.ended_R, tf.int32)
        back_R = tf.strings.length(self.codec.decode(stop.ids_BxP, tf.maximum(-count_R, 0)))
        count_R = tf.maximum(count_R, 0)
        real_RxS = tf.sequence_mask(count_R, tf.shape(drawn.ids_RxS)[1])
        reason_R = tf.where(drawn.stopped_R | drawn.ended_R, "stop", "length")
        generated = Generation(
            self.codec.decode(drawn.ids_RxS, count_R),
            count_R,
            tf.reduce_sum(tf.where(real_RxS, drawn.log_prob_RxS, 0), axis=1),
            reason_R,
            back_R,
        )
        return generated, problem_R, text

    def _problems(self, request: Request) -> list[tf.Tensor]:
        """Check the numbers of a request: problem_R for each rule."""
        finite, longest = tf.math.is_finite, self.limits.length
        length_R, temperature_R = request.length_B, request.temperature_B
        rules = [
            ((length_R >= 0) & (length_R <= longest), f"length: 0 to {longest}, got ", length_R),
            (
                finite(temperature_R) & (temperature_R >= 0),
                "temperature: a number, 0 (greedy) or more, got ",
                temperature_R,
            ),
        ]
        if request.stop_B is not None:
            top_k_R, top_p_R, penalty_R = request.top_k_B, request.top_p_B, request.penalty_B
            rules += [
                (top_k_R >= 0, "top_k: 0 (all) or more, got ", top_k_R),
                ((top_p_R > 0) & (top_p_R <= 1), "top_p: more than 0, at most 1 (all), got ", top_p_R),
                (finite(penalty_R) & (penalty_R > 0), "repetition_penalty: a number above 0, got ", penalty_R),
            ]
        return [tf.where(valid_R, "", tf.strings.join([rule, _as_string(x)])) for valid_R, rule, x in rules]


def _unpadded(rows: Rows, generated: Generation, error_B: tf.Tensor) -> Generation:
    """Keep the generated text of the requested rows, with their errors."""
    answer = Generation(*(rows.unpad(x) for x in generated))
    return answer._replace(finish_reason=tf.where(error_B == "", answer.finish_reason, error_B))


def _as_string(x: tf.Tensor) -> tf.Tensor:
    return tf.strings.as_string(x, shortest=x.dtype.is_floating)


def sample_run(
    folder: Path,
    prompt: bytes,
    length: int,
    temperature: float,
    seed: int,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: bytes = b"",
    choice: str = "best",
) -> Iterator[bytes]:
    """Continue `prompt` with a run's checkpoint (`checkpoint.choose`), piece by piece.

    Raises StageError for a prompt or a stop that the vocabulary cannot encode.
    """
    run = read_run(folder)
    for text in (prompt, stop):
        run.vocab.encode(text)  # raises with the position of an invalid byte
    sampler = Sampler(checkpoint.load_model(run, checkpoint.choose(run, choice)), run.vocab, frozen=True)
    resume = tf.function(sampler.resume, autograph=False)
    carry_B, held = tf.constant([b""]), b""
    for done in range(0, length, PIECE):
        columns = (prompt, min(PIECE, length - done), temperature, seed, top_k, top_p, repetition_penalty, stop)
        request = Request(*(tf.constant([x], dtype) for x, dtype in zip(columns, REQUEST_TYPES, strict=True)))
        generated, carry_B = resume(carry_B, request)
        (reason,), prompt = generated.finish_reason.numpy(), b""
        if reason.startswith(b"error: "):
            raise StageError(reason.decode().removeprefix("error: "))
        held += generated.text_bytes.numpy()[0]
        if reason == b"stop":
            held = held[: len(held) - int(generated.n_back[0])]
            break
        # Hold back the bytes that may be the beginning of the stop.
        sure = max(len(held) - max(len(stop) - 1, 0), 0)
        yield held[:sure]
        held = held[sure:]
    yield held
