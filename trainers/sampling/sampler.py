"""Sampling text, scoring it, and looking inside: functions of rows in plain graph ops, the same on the command line,
in the exported SavedModel and, through it, in TF Serving.

No XLA, no Python in a loop, no custom op: a stock server runs it. Every input has one entry a row, every output too.
A row's answer depends on its own inputs alone, its seed included, never on the rows beside it; a row that cannot be
answered has a problem of its own, and its mates are answered. The limits are part of the graph.

Legend: B rows as asked, R rows as run, P ids of the longest prompt, N characters, S steps of a loop (N or P, rounded
up), M characters remembered, L layers, H units, V vocabulary, W 32-bit words of a carry.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common.errors import StageError, UsageError
from pipeline.vocab import Vocab
from trainers import checkpoint
from trainers.model.char_rnn import CharRNN, States, join_carry, split_carry
from trainers.run import read_run
from trainers.sampling import draw
from trainers.sampling.codec import Codec, Ids, first_problem, named
from trainers.sampling.stepper import Stepper, alike, lay_out

MEMORY = 64  # M: the characters that the repetition penalty looks back on, and the longest stop
PIECE = 1024  # characters that the command line writes at a time

# Steps a turn of a loop. The turn itself costs as much as some of a small model's steps; the last turn may overshoot.
DRAW_TURN, READ_TURN = 8, 2


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one call may ask for. Raises UsageError for what no call could."""

    length: int = 4096  # characters that a row writes
    prompt: int = 4096  # characters that it reads
    rows: int = 64
    pictured: int = 1024  # characters that `neurons` tells of: each is two vectors

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 1 <= getattr(self, field.name) <= 1 << 20:
                raise UsageError(f"limits: {field.name} must be 1 to {1 << 20:,}, got {getattr(self, field.name)}")


Step = Callable[..., tuple[Any, list[tf.Tensor]]]  # state, found = step(state, *inputs)
Close = Callable[[list[tf.Tensor]], list[tf.Tensor]]
Outputs = list[tuple[tf.DType, list[int]]]  # of outputs: type, and shape behind the row's axis
DRAWN: Outputs = [(tf.float32, []), (tf.int32, [])]  # log-probabilities and ids


class Asked(NamedTuple):
    """What a call asks of each row, a column each."""

    prompt_B: tf.Tensor  # string
    length_B: tf.Tensor  # int32: characters to write
    temperature_B: tf.Tensor  # float32; 0: greedy
    seed_B: tf.Tensor  # int64
    # Options; a call has them all, or none of them.
    top_k_B: Any = None  # int32; 0: all
    top_p_B: Any = None  # float32; 1: all
    penalty_B: Any = None  # float32: of repetition; 1: none
    stop_B: Any = None  # string; empty: none

    @property
    def columns(self) -> list[tf.Tensor]:
        return [column for column in self if column is not None]


KINDS = (tf.string, tf.int32, tf.float32, tf.int64, tf.int32, tf.float32, tf.float32, tf.string)  # of the columns
SAFE = ("", 0, 1.0, 0, 0, 1.0, 1.0, "")  # what stands in the columns for a row that has a problem


class Written(NamedTuple):
    """What was written, a row each."""

    text_bytes: tf.Tensor  # without the stop, or the end of the document, that ended it
    n_chars: tf.Tensor  # int32
    log_prob: tf.Tensor  # float32, nats: of the text, as the model has it, whatever the temperature and the options
    finish_reason: tf.Tensor  # length | stop | error: …
    n_back: tf.Tensor  # int32: of the stop that ended it, the bytes that earlier pieces have given out


class Drawn(NamedTuple):
    """What a loop has drawn, before it is text."""

    ids_RxS: tf.Tensor
    log_prob_RxS: tf.Tensor
    count_R: tf.Tensor  # how many of the ids are a row's, with the stop or the end that ended it
    stopped_R: tf.Tensor  # by its stop
    ended_R: tf.Tensor  # with its document


class Place(NamedTuple):
    """Where a text stands: all that going on with it needs. As bytes, a carry."""

    states: States
    recent_RxM: tf.Tensor  # the last characters, the latest last; -2 - id if read, not drawn; -1: there have been none
    drawn_R: tf.Tensor  # int64: how many characters were drawn, and random numbers used


class Going(NamedTuple):
    """What a loop that draws takes from step to step."""

    states: States
    recent_RxM: tf.Tensor
    going_R: tf.Tensor  # neither stopped nor ended, nor as long as was asked for
    stopped_R: tf.Tensor
    ended_R: tf.Tensor
    count_R: tf.Tensor  # characters drawn


class Rows:
    """The rows of a call as they are run: as many as `alike` wants, but none of a call of more than `most`."""

    def __init__(self, first_B: tf.Tensor, most: int):
        self.asked = tf.shape(first_B)[0]
        self.most, fits = most, self.asked <= most
        self.taken = tf.where(fits, self.asked, 0)
        self.run = alike(self.taken)

    def enter(self, *columns_B: tf.Tensor) -> list[tf.Tensor]:
        """The columns, with rows of nothing behind. A call whose columns are not all as long as the first fails."""
        columns_B = tuple(tf.reshape(column_B, [self.asked]) for column_B in columns_B)
        return [tf.pad(column_B[: self.taken], [[0, self.run - self.taken]]) for column_B in columns_B]

    def leave(self, x: tf.Tensor) -> tf.Tensor:
        """As many rows as were asked for: those that were run, or zeros."""
        return tf.pad(x[: self.taken], [[0, self.asked - self.taken]] + [[0, 0]] * (len(x.shape) - 1))

    def problem(self, problem_R: tf.Tensor) -> tf.Tensor:
        """The rows' problems as they are answered: "error: …", or empty."""
        problem_B = self.leave(problem_R)
        many = tf.strings.join([f"at most {self.most} rows a call, got ", tf.strings.as_string(self.asked)])
        problem_B = tf.where(self.asked > self.most, many, problem_B)
        return tf.where(problem_B == "", "", "error: " + problem_B)


class Sampler:
    """A model and its vocabulary as functions from text to text.

    limits: without any, none but what memory has.
    frozen: lay the weights out now, once, in variables of their own; otherwise every call follows the model's.
    """

    def __init__(self, model: CharRNN, vocab: Vocab, limits: Limits | None = None, frozen: bool = False):
        self.model, self.vocab, self.codec = model, vocab, Codec(vocab)
        self.limits = limits or Limits(length=1 << 20, prompt=1 << 20, rows=1 << 20, pictured=1 << 20)
        self.laid = tf.nest.map_structure(tf.Variable, lay_out(model)) if frozen else None

    def generate(self, asked: Asked) -> Written:
        """Continues each prompt by `length` characters, or to its stop, or to the end of its document.

        The first n characters are the same whatever length is asked for.
        """
        rows = Rows(asked.prompt_B, self.limits.rows)
        asked, no_problem_R = Asked(*rows.enter(*asked.columns)), tf.fill([rows.run], "")
        fresh_R, place = no_problem_R == "", self._nothing(rows.run)
        written, problem_R, _ = self._write(place, fresh_R, asked, no_problem_R, keep=False)
        return _answer(rows, written, rows.problem(problem_R))

    def go_on(self, carry_B: tf.Tensor, asked: Asked) -> tuple[Written, tf.Tensor]:
        """`generate` from where a text stands, and the carry after it.

        carry: of `start` or `go_on`; empty: a new text begins. In pieces, under one seed, the text is the one that
        `generate` writes at once. A stop that began in an earlier piece is found; what that piece gave out of it is
        counted in n_back.
        """
        rows = Rows(asked.prompt_B, self.limits.rows)
        carry_R, *columns = rows.enter(carry_B, *asked.columns)
        place, problem_R = self._unpack(carry_R)
        written, problem_R, place = self._write(place, carry_R == "", Asked(*columns), problem_R, keep=True)
        problem_B = rows.problem(problem_R)
        return _answer(rows, written, problem_B), tf.where(problem_B == "", rows.leave(self._pack(place)), "")

    def start(self, prompt_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Reads each prompt: the carry after it, the logits_BxV of the character that follows, problem_B."""
        rows = Rows(prompt_B, self.limits.rows)
        encoded = self.codec.encode(rows.enter(prompt_B)[0], self.limits.prompt, "prompt")
        fine_R = encoded.problem_B == ""
        place = self._read(self._nothing(rows.run), encoded, fine_R)
        logits_RxV = self._stepper().logits(place.states)[:, : self.vocab.size]
        logits_RxV = tf.where(fine_R[:, None], logits_RxV, 0)
        carry_R = tf.where(fine_R, self._pack(place), "")
        return rows.leave(carry_R), rows.leave(logits_RxV), rows.problem(encoded.problem_B)

    def score(self, text_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """log_prob_BxP (nats, of each character, 0 behind the last), n_chars_B, problem_B.

        A text of its own, which begins after the end of a document, or where there is no such end after a newline: what
        `generate` draws without a prompt has this probability.
        """
        rows = Rows(text_B, self.limits.rows)
        stepper, encoded, count_R = self._own(rows.enter(text_B)[0], self.limits.prompt)

        def step(states: States, ids_R: tf.Tensor) -> tuple[States, list[tf.Tensor]]:
            return stepper.read(ids_R, states), [stepper.logits(states), ids_R]

        log_prob_RxP = self._along(encoded, step, DRAWN, _log_probability)[0]
        log_prob_RxP = tf.where(tf.sequence_mask(count_R, tf.shape(log_prob_RxP)[1]), log_prob_RxP, 0)
        return rows.leave(log_prob_RxP), rows.leave(count_R), rows.problem(encoded.problem_B)

    def neurons(self, text_B: tf.Tensor, layer_B: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """The state of a layer after each character: h_BxPxH and, if the cell has it, c_BxPxH; n_chars_B; problem_B.

        The text is one of its own, as in `score`; zeros are behind its last character.
        """
        rows = Rows(text_B, self.limits.rows)
        text_R, layer_R = rows.enter(text_B, layer_B)
        stepper, encoded, count_R = self._own(text_R, self.limits.pictured)
        most = self.model.config.layers - 1
        wrong_R = tf.strings.join([f"layer: 0 to {most}, got ", tf.strings.as_string(layer_R)])
        problem_R = first_problem(((layer_R < 0) | (layer_R > most), wrong_R), named(encoded.problem_B))
        count_R, layer_R = tf.where(problem_R == "", count_R, 0), tf.clip_by_value(layer_R, 0, most)

        def step(states: States, ids_R: tf.Tensor) -> tuple[States, list[tf.Tensor]]:
            states = stepper.read(ids_R, states)
            return states, [tf.gather(tf.stack(x, 1), layer_R, batch_dims=1) for x in zip(*states, strict=True)]

        found = self._along(encoded, step, [(tf.float32, [self.model.config.units])] * self.model.cell.states)
        real_RxPx1 = tf.sequence_mask(count_R, tf.shape(found[0])[1])[..., None]
        answers = [rows.leave(tf.where(real_RxPx1, x_RxPxH, 0)) for x_RxPxH in found]
        return answers, rows.leave(count_R), rows.problem(problem_R)

    # Loops

    def _stepper(self) -> Stepper:
        laid = tf.nest.map_structure(tf.convert_to_tensor, self.laid) if self.laid else None
        return Stepper(self.model, self.vocab.end_id, laid)

    def _nothing(self, rows: tf.Tensor) -> Place:
        """Where a text begins."""
        states = split_carry(self.model.initial_carry(rows))
        return Place(states, tf.fill([rows, MEMORY], -1), tf.zeros([rows], tf.int64))

    def _own(self, text_R: tf.Tensor, most: int) -> tuple[Stepper, Ids, tf.Tensor]:
        """A text of its own, with the id that it begins after, and the number of its own characters."""
        encoded = self.codec.encode(text_R, most, "text")
        return self._stepper(), self.codec.begin(encoded, encoded.length_B >= 0), encoded.length_B

    def _along(self, encoded: Ids, step: Step, outputs: Outputs, close: Close = list) -> list[tf.Tensor]:
        """The outputs of a step at each character of a text of its own; none at the id that it begins after."""
        states = self._nothing(tf.shape(encoded.length_B)[0]).states
        _, found = _turns(READ_TURN, step, states, [_filled(tf.transpose(encoded.ids_BxP))], outputs, close)
        return [x[:, 1 : tf.reduce_max(encoded.length_B)] for x in found]

    def _read(self, place: Place, prompt: Ids, fresh_R: tf.Tensor) -> Place:
        """Where the texts stand after their prompts; the `fresh` ones begin as Vocab.prompt_ids has it."""
        begins_R = fresh_R if self.vocab.end_id is not None else fresh_R & (prompt.length_B == 0)
        encoded = self.codec.begin(prompt, begins_R)
        stepper, length_R = self._stepper(), encoded.length_B

        def step(states: States, ids_R: tf.Tensor, real_Rx1: tf.Tensor) -> tuple[States, list[tf.Tensor]]:
            return _where(real_Rx1, stepper.read(ids_R, states), states), []

        ids_SxR = _filled(tf.transpose(encoded.ids_BxP))
        real_SxR = tf.range(tf.shape(ids_SxR)[0])[:, None] < length_R
        states, _ = _turns(READ_TURN, step, place.states, [ids_SxR, real_SxR[..., None]], [])
        # Of what was remembered and what was read, the last. What a text starts after is none of its characters.
        both = tf.concat([place.recent_RxM, -2 - prompt.ids_BxP], axis=1)
        recent_RxM = tf.gather(both, prompt.length_B[:, None] + tf.range(MEMORY)[None], batch_dims=1)
        return Place(states, recent_RxM, place.drawn_R)

    def _write(
        self, place: Place, fresh_R: tf.Tensor, asked: Asked, problem_R: tf.Tensor, keep: bool
    ) -> tuple[Written, tf.Tensor, Place]:
        """Reads the prompts and goes on with them; what was written, what is wrong with a row, where the texts stand.

        A row that has a problem stays where it is. keep: as in `_draw`.
        """
        encoded = self.codec.encode(asked.prompt_B, self.limits.prompt, "prompt")
        stop_R = tf.zeros_like(problem_R) if asked.stop_B is None else asked.stop_B
        stop = self.codec.encode(stop_R, MEMORY, "stop", exact=True)
        found = [problem_R, *self._problems(asked), stop.problem_B, encoded.problem_B]
        problem_R = first_problem(*map(named, found))
        fine_R = problem_R == ""
        place = self._read(place, encoded._replace(length_B=tf.where(fine_R, encoded.length_B, 0)), fresh_R & fine_R)
        asked = Asked(*(tf.where(fine_R, column_R, safe) for column_R, safe in zip(asked.columns, SAFE, strict=False)))
        drawn, place = self._draw(place, asked, stop, keep)
        stop_length_R = tf.where(drawn.stopped_R, stop.length_B, 0)
        count_R = drawn.count_R - stop_length_R - tf.cast(drawn.ended_R, tf.int32)
        back_R = tf.strings.length(self.codec.decode(stop.ids_BxP, tf.maximum(-count_R, 0)))
        count_R = tf.maximum(count_R, 0)
        real_RxS = tf.sequence_mask(count_R, tf.shape(drawn.ids_RxS)[1])
        reason_R = tf.where(drawn.stopped_R | drawn.ended_R, "stop", "length")
        written = Written(
            self.codec.decode(drawn.ids_RxS, count_R),
            count_R,
            tf.reduce_sum(tf.where(real_RxS, drawn.log_prob_RxS, 0), axis=1),
            reason_R,
            back_R,
        )
        return written, problem_R, place

    def _problems(self, asked: Asked) -> list[tf.Tensor]:
        """What is wrong with the rows' numbers, a problem_R for each rule."""
        finite, most = tf.math.is_finite, self.limits.length
        length_R, warm_R = asked.length_B, asked.temperature_B
        rules = [
            ((length_R >= 0) & (length_R <= most), f"length: 0 to {most}, got ", length_R),
            (finite(warm_R) & (warm_R >= 0), "temperature: a number, 0 (greedy) or more, got ", warm_R),
        ]
        if asked.stop_B is not None:
            top_k_R, top_p_R, penalty_R = asked.top_k_B, asked.top_p_B, asked.penalty_B
            rules += [
                (top_k_R >= 0, "top_k: 0 (all) or more, got ", top_k_R),
                ((top_p_R > 0) & (top_p_R <= 1), "top_p: more than 0, at most 1 (all), got ", top_p_R),
                (finite(penalty_R) & (penalty_R > 0), "repetition_penalty: a number above 0, got ", penalty_R),
            ]
        return [tf.where(kept_R, "", tf.strings.join([rule, _shown(x)])) for kept_R, rule, x in rules]

    def _draw(self, place: Place, asked: Asked, stop: Ids, keep: bool) -> tuple[Drawn, Place]:
        """Draws. keep: every row's place stays what it is after its own last character; else it is of no use after."""
        stepper, end_id = self._stepper(), self.vocab.end_id
        cumulate = draw.cumulation(stepper.laid.dense_bias_V.shape[0])
        longest, sharpness_R = _whole(tf.reduce_max(asked.length_B), DRAW_TURN), draw.sharpness(asked.temperature_B)
        uniform_SxR = draw.uniforms(asked.seed_B, place.drawn_R, sharpness_R, longest)
        wanted_SxR = tf.range(longest)[:, None] < asked.length_B
        sharpness_Rx1, with_options = sharpness_R[:, None], asked.stop_B is not None
        may_stop = with_options or end_id is not None  # else every row goes to its length, and nothing is counted
        if with_options:
            penalises = tf.reduce_any(asked.penalty_B != 1)
            narrows = tf.reduce_any((asked.top_k_B > 0) | (asked.top_p_B < 1))
        # The stops, aligned with what is remembered: the last character last, and before it whatever there is.
        stop_RxM, any_RxM = _align_right(stop, MEMORY)
        stops_R = stop.length_B > 0

        def step(state: Going, uniform_Rx1: tf.Tensor, wanted_R: tf.Tensor) -> tuple[Going, list[tf.Tensor]]:
            states, recent_RxM, going_R, stopped_R, ended_R, count_R = state
            logits_RxV = scaled_RxV = stepper.logits(states)
            if with_options:
                scaled_RxV = tf.cond(
                    penalises,
                    lambda: draw.penalised(logits_RxV, tf.maximum(recent_RxM, -2 - recent_RxM), asked.penalty_B),
                    lambda: logits_RxV,
                )
            scaled_RxV *= sharpness_Rx1
            if with_options:
                scaled_RxV = tf.cond(
                    narrows, lambda: draw.narrowed(scaled_RxV, asked.top_k_B, asked.top_p_B), lambda: scaled_RxV
                )
            ids_R = draw.choose(scaled_RxV, uniform_Rx1, cumulate)
            after = stepper.read(ids_R, states)
            if may_stop:
                going_R &= wanted_R
                count_R += tf.cast(going_R, tf.int32)
            going_Rx1 = going_R[:, None]
            states = _where(going_Rx1, after, states) if keep else after
            if with_options:
                shifted_RxM = tf.concat([recent_RxM[:, 1:], ids_R[:, None]], axis=1)
                recent_RxM = tf.where(going_Rx1, shifted_RxM, recent_RxM) if keep else shifted_RxM
                stopped_R |= going_R & stops_R & tf.reduce_all(any_RxM | (stop_RxM == recent_RxM), axis=1)
                going_R &= ~stopped_R
            if end_id is not None:
                ended_R |= going_R & (ids_R == end_id)
                going_R &= ~ended_R
            return Going(states, recent_RxM, going_R, stopped_R, ended_R, count_R), [logits_RxV, ids_R]

        no_R, count_R = tf.zeros_like(stops_R), tf.zeros_like(asked.length_B) if may_stop else asked.length_B
        state = Going(place.states, place.recent_RxM, asked.length_B > 0, no_R, no_R, count_R)
        inputs, more = [uniform_SxR[..., None], wanted_SxR], _any_goes if may_stop else None
        state, (log_prob_RxS, ids_RxS) = _turns(DRAW_TURN, step, state, inputs, DRAWN, _log_probability, more)
        place = Place(state.states, state.recent_RxM, place.drawn_R + tf.cast(state.count_R, tf.int64))
        return Drawn(ids_RxS, log_prob_RxS, state.count_R, state.stopped_R, state.ended_R), place

    # The carry as bytes

    @functools.cached_property
    def fingerprint(self) -> list[int]:
        """Two 32-bit words that tell this model's carries from others."""
        digest = hashlib.sha256(self.vocab.sha256.encode())
        with tf.init_scope():  # while a graph is traced, too
            for weight in self.model.get_weights():
                digest.update(weight.tobytes())
        return np.frombuffer(digest.digest()[:8], np.int32).tolist()

    def _pack(self, place: Place) -> tf.Tensor:
        """carry_R: fingerprint, drawn, recent, states, in 32-bit words, little-endian."""
        R = tf.shape(place.drawn_R)[0]
        words = [
            tf.tile(tf.constant([self.fingerprint]), [R, 1]),
            tf.bitcast(place.drawn_R, tf.int32),
            place.recent_RxM,
            tf.reshape(tf.bitcast(join_carry(place.states), tf.int32), [R, self._state_words]),
        ]
        size = 4 * (2 + 2 + MEMORY + self._state_words)
        # A serialized tensor ends with its bytes as they lie in memory.
        serialized_R = tf.map_fn(
            tf.io.serialize_tensor, tf.concat(words, axis=1), fn_output_signature=tf.TensorSpec([], tf.string)
        )
        return tf.strings.substr(serialized_R, -size, size)

    @property
    def _state_words(self) -> int:
        return int(np.prod(self.model.initial_carry(1).shape))

    def _unpack(self, carry_R: tf.Tensor) -> tuple[Place, tf.Tensor]:
        """Where the texts stand, at their beginning where the carry is empty or has a problem; problem_R."""
        R, W = tf.shape(carry_R)[0], 2 + 2 + MEMORY + self._state_words
        whole_R = tf.strings.length(carry_R) == 4 * W
        words_RxW = tf.io.decode_raw(tf.where(whole_R, carry_R, bytes(4 * W)), tf.int32)
        words_RxW = tf.ensure_shape(words_RxW, [None, W])
        mark, drawn, recent_RxM, flat = tf.split(words_RxW, [2, 2, MEMORY, self._state_words], axis=1)
        drawn_R = tf.bitcast(drawn, tf.int64)
        carry_BxLxSxH = tf.reshape(tf.bitcast(flat, tf.float32), [R, *self.model.initial_carry(1).shape[1:]])
        good_R = (
            whole_R
            & tf.reduce_all(mark == tf.constant([self.fingerprint]), axis=1)
            & tf.reduce_all((recent_RxM >= -1 - self.vocab.size) & (recent_RxM < self.vocab.size), axis=1)
            & (drawn_R >= 0)
            & (drawn_R < 1 << 62)
            & tf.reduce_all(tf.math.is_finite(carry_BxLxSxH), axis=[1, 2, 3])
            & tf.reduce_all(tf.abs(carry_BxLxSxH[:, :, 0]) < 2, axis=[1, 2])  # h: of all cells a tanh, or between some
        )
        nothing = self._nothing(R)
        place = Place(
            _where(good_R[:, None], split_carry(carry_BxLxSxH), nothing.states),
            tf.where(good_R[:, None], recent_RxM, nothing.recent_RxM),
            tf.where(good_R, drawn_R, nothing.drawn_R),
        )
        what = tf.fill([R], "carry_bytes: not a carry of this model; take one that start or continue gave")
        return place, first_problem((~good_R & (carry_R != ""), what))


def _answer(rows: Rows, written: Written, problem_B: tf.Tensor) -> Written:
    """What was written in the rows that were asked for."""
    answer = Written(*(rows.leave(x) for x in written))
    return answer._replace(finish_reason=tf.where(problem_B == "", answer.finish_reason, problem_B))


def _turns(
    turn: int,
    step: Step,
    state: Any,
    inputs: list[tf.Tensor],
    outputs: Outputs,
    close: Close = list,
    more: Callable[[Any], tf.Tensor] | None = None,
) -> tuple[Any, list[tf.Tensor]]:
    """state, found = step(state, *inputs[s]) for s = 0, 1, … S-1, so many steps a turn of a loop.

    inputs: SxR… each, S whole turns, one or more. outputs: what they are like, an entry a row.
    close: makes the outputs, turn x R… each, of what the steps of a turn found, stacked.
    more: tells from the state whether another turn is needed; without it, all are.
    Gives the last state, and the outputs RxS….
    """
    turns = tf.shape(inputs[0])[0] // turn
    inputs = [tf.reshape(x, [-1, turn, *([tf.shape(x)[1], *x.shape[2:]])]) for x in inputs]

    def body(index: Any, state: Any, arrays: Any) -> tuple[Any, ...]:
        found = []
        for row in zip(*(tf.unstack(tf.gather(x, index), num=turn) for x in inputs), strict=True):
            state, one = step(state, *row)
            found.append(one)
        columns = close([tf.stack(column) for column in zip(*found, strict=True)])
        return index + 1, state, [array.write(index, x) for array, x in zip(arrays, columns, strict=True)]

    def wanted(index: Any, state: Any, arrays: Any) -> tf.Tensor:
        return (index < turns) & ((index == 0) | more(state)) if more else index < turns

    arrays = [tf.TensorArray(kind, size=turns, element_shape=[turn, None, *shape]) for kind, shape in outputs]
    done, state, arrays = tf.while_loop(wanted, body, (0, state, arrays), parallel_iterations=1)
    stacked = [array.gather(tf.range(done)) for array in arrays]
    joined = [tf.reshape(x, [done * turn, tf.shape(x)[2], *x.shape[3:]]) for x in stacked]
    return state, [tf.transpose(x, [1, 0, *range(2, len(x.shape))]) for x in joined]


def _log_probability(columns: list[tf.Tensor]) -> list[tf.Tensor]:
    """Of the logits and ids of a turn: the log-probabilities, and the ids where they are asked for."""
    logits_TxRxV, ids_TxR = columns
    log_prob_N = draw.log_probability(tf.reshape(logits_TxRxV, [-1, logits_TxRxV.shape[-1]]), tf.reshape(ids_TxR, [-1]))
    return [tf.reshape(log_prob_N, tf.shape(ids_TxR)), ids_TxR]


def _any_goes(state: Going) -> tf.Tensor:
    return tf.reduce_any(state.going_R)


def _whole(count: tf.Tensor, turn: int) -> tf.Tensor:
    """`count` rounded up to whole turns, at least one."""
    return tf.maximum(-(-count // turn), 1) * turn


def _filled(ids_PxR: tf.Tensor) -> tf.Tensor:
    """Ids for whole turns of reading."""
    P = tf.shape(ids_PxR)[0]
    return tf.pad(ids_PxR, [[0, _whole(P, READ_TURN) - P], [0, 0]])


def _shown(x: tf.Tensor) -> tf.Tensor:
    return tf.strings.as_string(x, shortest=x.dtype.is_floating)


def _where(mask_Rx1: tf.Tensor, a: States, b: States) -> States:
    return tf.nest.map_structure(lambda x, y: tf.where(mask_Rx1, x, y), a, b)


def _align_right(ids: Ids, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The ids of each row at the end of `width` places, and the places before them."""
    index_RxM = tf.range(width)[None] - (width - ids.length_B[:, None])
    most = tf.shape(ids.ids_BxP)[1] - 1
    return tf.gather(ids.ids_BxP, tf.clip_by_value(index_RxM, 0, most), batch_dims=1), index_RxM < 0


def sample_run(
    folder: Path,
    prompt: bytes,
    length: int,
    temperature: float,
    seed: int,
    top_k: int = 0,
    top_p: float = 1.0,
    penalty: float = 1.0,
    stop: bytes = b"",
) -> Iterator[bytes]:
    """What a run's best checkpoint writes after `prompt`, a piece at a time.

    Raises StageError for a prompt, or a stop, that the vocabulary does not have.
    """
    run = read_run(folder)
    for text in (prompt, stop):
        run.vocab.encode(text)  # says at which byte what is wrong
    sampler = Sampler(checkpoint.load_model(run), run.vocab, frozen=True)
    go_on = tf.function(sampler.go_on, autograph=False)
    carry_B, held = tf.constant([b""]), b""
    for done in range(0, length, PIECE):
        columns = (prompt, min(PIECE, length - done), temperature, seed, top_k, top_p, penalty, stop)
        asked = Asked(*(tf.constant([x], kind) for x, kind in zip(columns, KINDS, strict=True)))
        written, carry_B = go_on(carry_B, asked)
        (reason,), prompt = written.finish_reason.numpy(), b""
        if reason.startswith(b"error: "):
            raise StageError(reason.decode().removeprefix("error: "))
        held += written.text_bytes.numpy()[0]
        if reason == b"stop":
            held = held[: len(held) - int(written.n_back[0])]
            break
        # What could be the beginning of the stop waits for the next piece.
        sure = max(len(held) - max(len(stop) - 1, 0), 0)
        yield held[:sure]
        held = held[sure:]
    yield held
