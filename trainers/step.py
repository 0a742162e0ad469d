"""The loss, one training step and one evaluation step over all replicas. The only place that calls strategy.run.

Legend: B lanes (of all replicas, of one replica or of one tower), T time steps, L layers, H units, V vocabulary.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from pipeline.lanes import Batch
from trainers.devices import Devices
from trainers.model import CharRNN


class Totals(NamedTuple):
    """What a step saw: the sum of its targets' losses in nats, their number, the gradient's norm before clipping."""

    nats: tf.Tensor
    targets: tf.Tensor
    gradient_norm: tf.Tensor


def total_nats(logits_BxTxV: tf.Tensor, targets_BxT: tf.Tensor, count_B: tf.Tensor) -> tf.Tensor:
    """The sum of -ln p(target) over the real targets: the first `count` of each row. The one definition of the loss."""
    nats_BxT = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(targets_BxT, tf.int32), logits_BxTxV)
    real_BxT = tf.sequence_mask(count_B, tf.shape(targets_BxT)[1], dtype=nats_BxT.dtype)
    return tf.reduce_sum(nats_BxT * real_BxT)


def take(batch: Batch, rows: slice) -> Batch:
    """Some of a batch's lanes."""
    return Batch(*(None if part is None else part[rows] for part in batch))


class Steps:
    """Runs batches and carries through a model on the given devices.

    A batch is a pipeline.lanes.Batch of per-replica values, a carry a per-replica carry_BxLx2xH; both come from
    `distribute`/`scatter` and are handed from step to step as they are.
    """

    def __init__(
        self,
        devices: Devices,
        model: CharRNN,
        optimizer: Any = None,  # a keras.Optimizer; none where nothing is trained
        clip: float = 5.0,
        seed: int = 1,
    ):
        self.devices, self.strategy = devices, devices.strategy
        self.model, self.optimizer = model, optimizer
        self.clip, self.seed = clip, seed

    def distribute(self, batches: tf.data.Dataset) -> Any:
        """Splits each global batch into contiguous rows, in replica order."""
        return self.strategy.experimental_distribute_dataset(batches)

    def scatter(self, carry_BxLx2xH: Any) -> Any:
        """Lays the rows of one array over the replicas, in the order in which `distribute` lays lanes."""
        shares = tf.split(tf.convert_to_tensor(carry_BxLx2xH), self.devices.replicas)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )

    def gather(self, carry: Any) -> tf.Tensor:
        """The rows of all replicas as one array: what `scatter` takes."""
        return tf.concat(self.strategy.experimental_local_results(carry), 0)

    @tf.function
    def train(self, batch: Batch, carry: Any, step: tf.Tensor) -> tuple[Totals, Any]:
        """One update of the weights. `step` counts updates from 0, and seeds dropout. Gives totals and next carry."""
        nats, targets, norm, carry = self.strategy.run(self._update, args=(batch, carry, step))
        return self._totals(nats, targets, norm), carry

    @tf.function
    def evaluate(self, batch: Batch, carry: Any) -> tuple[Totals, Any]:
        """Loss only: no dropout, no update."""

        def replica(batch: Batch, carry_BxLx2xH: tf.Tensor) -> tuple[tf.Tensor, ...]:
            nats, carries = [], []
            for rows in self._towers(batch):
                part = take(batch, rows)
                logits_BxTxV, carry = self.model(part.ids_BxT, carry_BxLx2xH[rows], reset_BxT=part.reset_BxT)
                nats.append(total_nats(logits_BxTxV, part.targets_BxT, part.count_B))
                carries.append(carry)
            return tf.add_n(nats), tf.reduce_sum(batch.count_B), tf.concat(carries, 0)

        nats, targets, carry = self.strategy.run(replica, args=(batch, carry))
        return self._totals(nats, targets, tf.zeros([])), carry

    def _totals(self, nats: Any, targets: Any, norm: Any) -> Totals:
        add = tf.distribute.ReduceOp.SUM
        norm = self.strategy.experimental_local_results(norm)[0]
        return Totals(self.strategy.reduce(add, nats, axis=None), self.strategy.reduce(add, targets, axis=None), norm)

    def _update(self, batch: Batch, carry_BxLx2xH: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """On one replica: its loss, its next carry, and its copy of the weights moved by all replicas' gradient."""
        context = tf.distribute.get_replica_context()
        B, T = batch.ids_BxT.shape
        lanes = B * self.devices.replicas
        masks = self.model.dropout_masks(lanes, T, tf.stack([self.seed, tf.cast(step, tf.int32)]))
        first = context.replica_id_in_sync_group * B
        sums, carries = [], []
        for rows in self._towers(batch):
            mine = [mask[first : first + B][rows] for mask in masks]
            nats, carry, gradients = self._tower(take(batch, rows), carry_BxLx2xH[rows], mine, lanes * T)
            sums.append([nats, *gradients])
            carries.append(carry)
        nats, *gradients = [tf.add_n(parts) for parts in zip(*sums, strict=True)]
        # Clipping wants the whole gradient, so it is summed over the replicas here. A Keras optimizer sums once more
        # what it is given, now equal on all replicas: hence the share.
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        gradients, norm = tf.clip_by_global_norm(gradients, self.clip)
        self.optimizer.apply([g / self.devices.replicas for g in gradients], self.model.trainable_variables)
        return nats, tf.reduce_sum(batch.count_B), norm, tf.concat(carries, 0)

    def _towers(self, batch: Batch) -> list[slice]:
        """The rows of each tower: equal shares of a replica's lanes, independent, so that they run side by side."""
        B = batch.ids_BxT.shape[0]
        towers = self.devices.towers(B)
        return [slice(tower * B // towers, (tower + 1) * B // towers) for tower in range(towers)]

    def _tower(
        self, batch: Batch, carry_BxLx2xH: tf.Tensor, masks: list[tf.Tensor], targets_a_step: int
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            logits_BxTxV, carry_BxLx2xH = self.model(batch.ids_BxT, carry_BxLx2xH, masks, batch.reset_BxT)
            nats = total_nats(logits_BxTxV, batch.targets_BxT, batch.count_B)
            # The mean over a full step, also where an epoch's last window is not full: every target weighs the same.
            loss = nats / targets_a_step
        return nats, carry_BxLx2xH, tape.gradient(loss, self.model.trainable_variables)
