"""The loops over characters: reading a text step by step, and drawing one.

Legend: R rows, P ids of the longest text, S steps of a loop (rounded up to whole turns), M characters remembered,
V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trainers.model.char_rnn import States
from trainers.sampling import draw
from trainers.sampling.carry_bytes import MEMORY, TextState, select_rows
from trainers.sampling.codec import Ids
from trainers.sampling.rows import Request
from trainers.sampling.stepper import Stepper

# Steps per turn of tf.while_loop. A turn costs as much as several steps of a small model; the last one may overshoot.
DRAW_TURN, READ_TURN = 8, 2

Step = Callable[..., tuple[Any, list[tf.Tensor]]]  # state, outputs = step(state, *inputs)
Combine = Callable[[list[tf.Tensor]], list[tf.Tensor]]
Outputs = list[tuple[tf.DType, list[int]]]  # type of each output, and its shape without the row axis
LOG_PROB_AND_ID: Outputs = [(tf.float32, []), (tf.int32, [])]


def run_steps(
    turn: int,
    step: Step,
    state: Any,
    inputs: list[tf.Tensor],
    outputs: Outputs,
    combine: Combine = list,
    more: Callable[[Any], tf.Tensor] | None = None,
) -> tuple[Any, list[tf.Tensor]]:
    """Run state, outputs = step(state, *inputs[s]) for s = 0, 1, … S-1, `turn` steps per turn of a tf.while_loop.

    inputs: SxR… each; S is a multiple of `turn`, and not 0. outputs: their types and shapes.
    combine: computes the outputs, turn x R… each, from those of a turn's steps, stacked.
    more: checks whether a state needs another turn; by default all turns run.
    Returns the last state and the outputs, RxS… each.
    """
    turns = tf.shape(inputs[0])[0] // turn
    inputs = [tf.reshape(x, [-1, turn, *([tf.shape(x)[1], *x.shape[2:]])]) for x in inputs]

    def body(index: Any, state: Any, arrays: Any) -> tuple[Any, ...]:
        rows = []
        for row in zip(*(tf.unstack(tf.gather(x, index), num=turn) for x in inputs), strict=True):
            state, values = step(state, *row)
            rows.append(values)
        columns = combine([tf.stack(column) for column in zip(*rows, strict=True)])
        return index + 1, state, [array.write(index, x) for array, x in zip(arrays, columns, strict=True)]

    def running(index: Any, state: Any, arrays: Any) -> tf.Tensor:
        return (index < turns) & ((index == 0) | more(state)) if more else index < turns

    arrays = [tf.TensorArray(dtype, size=turns, element_shape=[turn, None, *shape]) for dtype, shape in outputs]
    done, state, arrays = tf.while_loop(running, body, (0, state, arrays), parallel_iterations=1)
    stacked = [array.gather(tf.range(done)) for array in arrays]
    joined = [tf.reshape(x, [done * turn, tf.shape(x)[2], *x.shape[3:]]) for x in stacked]
    return state, [tf.transpose(x, [1, 0, *range(2, len(x.shape))]) for x in joined]


def log_probabilities(columns: list[tf.Tensor]) -> list[tf.Tensor]:
    """Combine a turn's logits and ids into log-probabilities (nats) and ids."""
    logits_TxRxV, ids_TxR = columns
    log_prob_N = draw.log_probability(tf.reshape(logits_TxRxV, [-1, logits_TxRxV.shape[-1]]), tf.reshape(ids_TxR, [-1]))
    return [tf.reshape(log_prob_N, tf.shape(ids_TxR)), ids_TxR]


def read_steps(ids_RxP: tf.Tensor) -> tf.Tensor:
    """Transpose ids to ids_SxR, padded to whole turns of reading."""
    ids_PxR = tf.transpose(ids_RxP)
    P = tf.shape(ids_PxR)[0]
    return tf.pad(ids_PxR, [[0, _round_up(P, READ_TURN) - P], [0, 0]])


class Drawn(NamedTuple):
    """Result of a drawing loop, not yet decoded."""

    ids_RxS: tf.Tensor
    log_prob_RxS: tf.Tensor
    count_R: tf.Tensor  # ids that belong to the row, including the stop or the end of document that ended it
    stopped_R: tf.Tensor  # by its stop
    ended_R: tf.Tensor  # by the end of its document


class DrawState(NamedTuple):
    """Loop state while drawing."""

    states: States
    recent_RxM: tf.Tensor
    active_R: tf.Tensor  # neither stopped, nor ended, nor at its full length
    stopped_R: tf.Tensor
    ended_R: tf.Tensor
    count_R: tf.Tensor  # characters drawn


def draw_ids(
    stepper: Stepper, end_id: int | None, text: TextState, request: Request, stop: Ids, keep: bool
) -> tuple[Drawn, TextState]:
    """Draw each row's ids, and return the text states after them.

    keep: stop updating a row's state at its last character. Otherwise the returned states are meaningless.
    """
    cumulate = draw.cumulation(stepper.weights.dense_bias_V.shape[0])
    longest, sharpness_R = _round_up(tf.reduce_max(request.length_B), DRAW_TURN), draw.sharpness(request.temperature_B)
    uniform_SxR = draw.uniforms(request.seed_B, text.drawn_R, sharpness_R, longest)
    within_SxR = tf.range(longest)[:, None] < request.length_B
    sharpness_Rx1, with_options = sharpness_R[:, None], request.stop_B is not None
    may_stop = with_options or end_id is not None  # otherwise every row runs to its full length
    if with_options:
        penalises = tf.reduce_any(request.penalty_B != 1)
        narrows = tf.reduce_any((request.top_k_B > 0) | (request.top_p_B < 1))
    # Stops are right-aligned with the memory; the positions before a stop match anything.
    stop_RxM, any_RxM = _align_right(stop, MEMORY)
    stops_R = stop.length_B > 0

    def step(state: DrawState, uniform_Rx1: tf.Tensor, within_R: tf.Tensor) -> tuple[DrawState, list[tf.Tensor]]:
        states, recent_RxM, active_R, stopped_R, ended_R, count_R = state
        logits_RxV = scaled_RxV = stepper.logits(states)
        if with_options:
            scaled_RxV = tf.cond(
                penalises,
                lambda: draw.penalised(logits_RxV, tf.maximum(recent_RxM, -2 - recent_RxM), request.penalty_B),
                lambda: logits_RxV,
            )
        scaled_RxV *= sharpness_Rx1
        if with_options:
            scaled_RxV = tf.cond(
                narrows, lambda: draw.narrowed(scaled_RxV, request.top_k_B, request.top_p_B), lambda: scaled_RxV
            )
        ids_R = draw.choose(scaled_RxV, uniform_Rx1, cumulate)
        after = stepper.read(ids_R, states)
        if may_stop:
            active_R &= within_R
            count_R += tf.cast(active_R, tf.int32)
        active_Rx1 = active_R[:, None]
        states = select_rows(active_Rx1, after, states) if keep else after
        if with_options:
            shifted_RxM = tf.concat([recent_RxM[:, 1:], ids_R[:, None]], axis=1)
            recent_RxM = tf.where(active_Rx1, shifted_RxM, recent_RxM) if keep else shifted_RxM
            stopped_R |= active_R & stops_R & tf.reduce_all(any_RxM | (stop_RxM == recent_RxM), axis=1)
            active_R &= ~stopped_R
        if end_id is not None:
            ended_R |= active_R & (ids_R == end_id)
            active_R &= ~ended_R
        return DrawState(states, recent_RxM, active_R, stopped_R, ended_R, count_R), [logits_RxV, ids_R]

    no_R, count_R = tf.zeros_like(stops_R), tf.zeros_like(request.length_B) if may_stop else request.length_B
    state = DrawState(text.states, text.recent_RxM, request.length_B > 0, no_R, no_R, count_R)
    inputs, more = [uniform_SxR[..., None], within_SxR], _any_active if may_stop else None
    state, (log_prob_RxS, ids_RxS) = run_steps(DRAW_TURN, step, state, inputs, LOG_PROB_AND_ID, log_probabilities, more)
    text = TextState(state.states, state.recent_RxM, text.drawn_R + tf.cast(state.count_R, tf.int64))
    return Drawn(ids_RxS, log_prob_RxS, state.count_R, state.stopped_R, state.ended_R), text


def _any_active(state: DrawState) -> tf.Tensor:
    return tf.reduce_any(state.active_R)


def _round_up(count: tf.Tensor, turn: int) -> tf.Tensor:
    """Round `count` up to whole turns, at least one."""
    return tf.maximum(-(-count // turn), 1) * turn


def _align_right(ids: Ids, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Move each row's ids to the end of `width` positions; also return a mask of the positions before them."""
    index_RxM = tf.range(width)[None] - (width - ids.length_B[:, None])
    last = tf.shape(ids.ids_BxP)[1] - 1
    return tf.gather(ids.ids_BxP, tf.clip_by_value(index_RxM, 0, last), batch_dims=1), index_RxM < 0
