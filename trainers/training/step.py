"""The loss, and the training and evaluation step over all replicas. The only place that calls strategy.run.

Legend: B lanes (of all replicas, of one replica or of one tower), T time steps, L layers, H units, V vocabulary.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from pipeline.lanes import Batch
from trainers.model.char_rnn import CharRNN, Masks
from trainers.training.devices import Devices

# Multiplies the loss in float16, whose numbers lose bits below 6e-5 and end at 65,504. Divided out of the gradients; a
# power of two, so exactly.
LOSS_SCALE = 1024.0


class Totals(NamedTuple):
    """Sums over a step: its targets' losses in nats, their number, and the gradient norm before clipping, 0 if the
    gradient was beyond float16's range. For several steps: an array of each."""

    nats: tf.Tensor
    targets: tf.Tensor
    gradient_norm: tf.Tensor


def target_nats(logits_BxTxV: tf.Tensor, targets_BxT: tf.Tensor, count_B: tf.Tensor) -> tf.Tensor:
    """Compute the losses nats_BxT: -ln p(target) of each row's first `count` targets, 0 for the others."""
    nats_BxT = _nats(logits_BxTxV, tf.cast(targets_BxT, tf.int32))
    # In float32: TensorFlow compares integers of a GPU on the host, which would wait for the GPU at each step.
    step_T = tf.range(nats_BxT.shape[1], dtype=tf.float32)
    return nats_BxT * tf.cast(step_T < tf.cast(count_B, tf.float32)[:, None], tf.float32)


def total_nats(logits_BxTxV: tf.Tensor, targets_BxT: tf.Tensor, count_B: tf.Tensor) -> tf.Tensor:
    """Sum of `target_nats`."""
    return tf.reduce_sum(target_nats(logits_BxTxV, targets_BxT, count_B))


@tf.custom_gradient
def _nats(logits_BxTxV: tf.Tensor, targets_BxT: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
    """Compute -ln p(target). TensorFlow's sparse cross entropy does not vectorize exp on a CPU."""
    shifted_BxTxV = logits_BxTxV - tf.reduce_max(logits_BxTxV, -1, keepdims=True)
    exp_BxTxV = tf.exp(shifted_BxTxV)
    sum_BxTx1 = tf.reduce_sum(exp_BxTxV, -1, keepdims=True)
    nats_BxT = tf.math.log(sum_BxTx1[..., 0]) - tf.gather(shifted_BxTxV, targets_BxT, batch_dims=2)

    def grad(dnats_BxT: tf.Tensor) -> tuple[tf.Tensor, None]:
        dnats_BxTx1 = dnats_BxT[..., None]
        one_hot_BxTxV = tf.one_hot(targets_BxT, logits_BxTxV.shape[-1])
        return exp_BxTxV * (dnats_BxTx1 / sum_BxTx1) - dnats_BxTx1 * one_hot_BxTxV, None

    return nats_BxT, grad


def _real(batch: Batch) -> tf.Tensor:
    """Number of a batch's real targets, as float32 (exact to 16 million) to be summed along with the losses, and on
    a GPU, where integers would be summed on the host."""
    return tf.reduce_sum(tf.cast(batch.count_B, tf.float32))


def _all_reduce(values: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sum each value over all replicas, in one reduction. Call it inside strategy.run."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def take(x: Any, rows: slice) -> Any:
    """Take these lanes of a tensor, or of each tensor in a batch.

    All lanes are returned as they are: a slice would run on the GPU, and bring the host's integers there and back.
    """
    if rows == slice(None):
        return x
    return tf.nest.map_structure(lambda part: None if part is None else part[rows], x)


class Steps:
    """Steps of training and evaluation on the given devices.

    A batch has this worker's lanes, `devices.rows`, of which each replica takes an equal share, in order. A carry is a
    per-replica carry_BxLxSxH, which comes from `scatter` and passes from step to step unchanged.
    """

    def __init__(
        self,
        devices: Devices,
        model: CharRNN,
        optimizer: Any = None,  # from .optimizer; like the config, needed only for training
        config: Any = None,  # a TrainConfig
    ):
        self.devices, self.strategy = devices, devices.strategy
        self.model, self.optimizer, self.config = model, optimizer, config

    def scatter(self, carry_BxLxSxH: Any) -> Any:
        """Split the rows of one array over the replicas, in order."""
        shares = tf.split(tf.convert_to_tensor(carry_BxLxSxH), self.devices.replicas)
        carry = self.strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )
        local = self.strategy.experimental_local_results(carry)
        return carry if len(local) > 1 else local[0]  # as strategy.run returns it

    @tf.function(autograph=False)
    def gather(self, carry: Any) -> tf.Tensor:
        """Gather the rows of all replicas of all workers, the inverse of `scatter`. All workers must call it."""
        return self.strategy.gather(carry, axis=0)

    def agree(self, values: list[int]) -> list[int]:
        """Take the maximum of each value over all workers, so that all do the same. All workers must call it."""
        if self.devices.workers == 1:
            return values
        local = self.strategy.experimental_distribute_values_from_function(lambda _: tf.constant([values]))
        return list(map(int, tf.reduce_max(self.gather(local), axis=0)))

    @tf.function
    def train(self, batches: Any, carry: Any, first: tf.Tensor, count: tf.Tensor) -> tuple[Totals, Any]:
        """Update the weights `count` times with the next batches, in one call: its overhead would slow a small model.

        first (int64): the number of earlier updates, which seeds dropout.
        Returns the totals of each step, arrays of `count`, and the carry after the last.
        """
        nats, targets, norm = (tf.TensorArray(tf.float32, count) for _ in range(3))
        first = tf.cast(first, tf.int32)  # TensorFlow adds int32 on the host, which seeds dropout, and int64 on a GPU
        for k in tf.range(count):
            totals, carry = self.strategy.run(self._update, args=(next(batches), carry, first + k))
            totals = self._any(totals)
            nats, targets = nats.write(k, totals.nats), targets.write(k, totals.targets)
            norm = norm.write(k, totals.gradient_norm)
        return Totals(nats.stack(), tf.cast(targets.stack(), tf.int32), norm.stack()), carry

    @tf.function
    def evaluate(self, batch: Any, carry: Any) -> tuple[Totals, Any]:
        """Compute the loss of a batch, without dropout or an update."""
        totals, carry = self.strategy.run(self._score, args=(batch, carry))
        return self._any(totals), carry

    @tf.function
    def losses(self, batch: Any, carry: Any) -> tuple[tf.Tensor, Any]:
        """Compute nats_BxT of all lanes, 0 where there is no target, and the next carry."""
        nats, carry = self.strategy.run(self._losses, args=(batch, carry))
        return self.strategy.gather(nats, axis=0), carry

    @tf.function(autograph=False)
    def internals(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Compute the gradients of all weights and the gates, from an empty carry on one device, for histograms."""
        carry_BxLxSxH = self.model.initial_carry(batch.ids_BxT.shape[0])
        size = batch.ids_BxT.shape[0] * batch.ids_BxT.shape[1]
        _, _, gradients = self._tower(batch, carry_BxLxSxH, [], size)
        named = {f"gradient/{w.path}": g for w, g in zip(self.model.trainable_variables, gradients, strict=True)}
        return named | {f"gate/{name}": x for name, x in self.model.gates(batch.ids_BxT, carry_BxLxSxH).items()}

    def _any(self, totals: Totals) -> Totals:
        """Take one replica's totals, which are equal on all."""
        return Totals(*(self.strategy.experimental_local_results(x)[0] for x in totals))

    @tf.autograph.experimental.do_not_convert
    def _score(self, batch: Batch, carry_BxLxSxH: tf.Tensor) -> tuple[Totals, tf.Tensor]:
        """Return, on one replica, the totals over all replicas and its next carry."""
        nats_BxT, carry_BxLxSxH = self._losses(batch, carry_BxLxSxH)
        nats, targets = _all_reduce([tf.reduce_sum(nats_BxT), _real(self._share(batch))])
        return Totals(nats, targets, tf.zeros([])), carry_BxLxSxH

    @tf.autograph.experimental.do_not_convert
    def _losses(self, batch: Batch, carry_BxLxSxH: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return, on one replica, the loss of each of its targets, nats_BxT, and its next carry."""
        batch = self._share(batch)
        losses, carries = [], []
        for rows in self._towers(batch):
            part = take(batch, rows)
            logits_BxTxV, carry = self.model(part.ids_BxT, take(carry_BxLxSxH, rows), reset_BxT=part.reset_BxT)
            losses.append(target_nats(logits_BxTxV, part.targets_BxT, part.count_B))
            carries.append(carry)
        return tf.concat(losses, 0), tf.concat(carries, 0)

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and the search takes seconds
    def _update(self, batch: Batch, carry_BxLxSxH: tf.Tensor, step: tf.Tensor) -> tuple[Totals, tf.Tensor]:
        """Update one replica's weights by the gradient over all replicas. Returns the totals over all replicas and its
        next carry."""
        batch = self._share(batch)
        B, T = batch.ids_BxT.shape
        lanes = B * self.devices.replicas
        masks = self.model.dropout_masks(lanes, T, tf.stack([self.config.seed, step]))
        first = tf.distribute.get_replica_context().replica_id_in_sync_group * B
        masks = [None if mask is None else mask[first : first + B] for mask in masks]
        sums, carries = [], []
        for rows in self._towers(batch):
            nats, carry, gradients = self._tower(
                take(batch, rows), take(carry_BxLxSxH, rows), take(masks, rows), lanes * T
            )
            sums.append([nats, *gradients])
            carries.append(carry)
        nats, *gradients = [tf.add_n(parts) for parts in zip(*sums, strict=True)]
        nats, targets, *gradients = _all_reduce([nats, _real(batch), *gradients])
        gradients, norm = tf.clip_by_global_norm(gradients, self.config.clip)
        if self.model.matmul_dtype == tf.float16:  # a gradient beyond its range counts as zero
            norm = tf.where(tf.math.is_finite(norm), norm, 0)
            gradients = [tf.where(norm > 0, gradient, 0) for gradient in gradients]
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return Totals(nats, targets, norm), tf.concat(carries, 0)

    def _share(self, batch: Batch) -> Batch:
        """Take one replica's rows of a batch. Call it inside strategy.run."""
        local = self.devices.replicas // self.devices.workers
        if local == 1:
            return batch
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group % local
        # The batches are on a GPU's host, where their integers are needed (see `take`).
        with tf.device("/CPU:0") if self.devices.gpu else contextlib.nullcontext():
            return Batch(*(None if x is None else tf.reshape(x, [local, -1, *x.shape[1:]])[replica] for x in batch))

    def _towers(self, batch: Batch) -> list[slice]:
        """Rows of each tower: shares of a replica's lanes, equal to within one, that run in parallel."""
        B = batch.ids_BxT.shape[0]
        towers = self.devices.towers(B)
        if towers == 1:
            return [slice(None)]
        return [slice(tower * B // towers, (tower + 1) * B // towers) for tower in range(towers)]

    def _tower(
        self, batch: Batch, carry_BxLxSxH: tf.Tensor, masks: Masks, targets_per_step: int
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        scaled = self.model.matmul_dtype == tf.float16
        with tf.GradientTape() as tape:
            logits_BxTxV, carry_BxLxSxH = self.model(batch.ids_BxT, carry_BxLxSxH, masks, batch.reset_BxT)
            nats = total_nats(logits_BxTxV, batch.targets_BxT, batch.count_B)
            # Divide by a full step's targets even in an epoch's short last window, to weigh all targets equally.
            loss = nats / targets_per_step
            if scaled:
                loss *= LOSS_SCALE
        gradients = tape.gradient(loss, self.model.trainable_variables)
        return nats, carry_BxLxSxH, [g / LOSS_SCALE for g in gradients] if scaled else gradients
