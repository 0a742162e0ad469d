"""The devices a run uses, and how the lanes are laid over them. Called once, before anything is placed on a device."""

import os
from dataclasses import dataclass

import tensorflow as tf

from common.errors import UsageError


@dataclass(frozen=True)
class Devices:
    """Lanes divide over replicas (one a device, by MirroredStrategy), and on a CPU over the towers of a replica."""

    strategy: tf.distribute.Strategy
    replicas: int
    cores: int = 1  # that a replica may use for towers
    gpu: bool = False

    def towers(self, lanes: int) -> int:
        """The towers that a replica of so many lanes is split into: as many as its cores, if the lanes divide."""
        return max(towers for towers in range(1, self.cores + 1) if lanes % towers == 0)

    def describe(self, lanes: int) -> str:
        """The devices in a few words, for `lanes` over all replicas."""
        towers = self.towers(lanes // self.replicas)
        kind = f"{'GPU' if self.gpu else 'CPU'} replica{'s' if self.replicas > 1 else ''}"
        return f"{self.replicas} {kind}" + (f" of {towers} towers" if towers > 1 else "")


def plan(lanes: int, replicas: int | None = None) -> int:
    """How many replicas there will be: all GPUs, or where there is none, 1 CPU, unless `replicas` says otherwise.

    Raises UsageError when the lanes do not divide over them, with the numbers that work, or when more are asked for
    than there are GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    count = replicas or len(gpus) or 1
    if lanes % count:
        fits = ", ".join(str(n) for n in range(1, lanes + 1) if lanes % n == 0)
        raise UsageError(f"{lanes} lanes do not divide over {count} replicas; numbers that do: {fits}")
    if gpus and count > len(gpus):
        raise UsageError(f"{count} replicas asked for, but there are {len(gpus)} GPUs")
    return count


def prepare(count: int) -> Devices:
    """Sets up MirroredStrategy over so many GPUs, or logical CPUs where there is none. Once a process.

    On a CPU the kernels of one step are too small to be worth splitting over cores. So each core is given a tower of
    its own, a share of the lanes, and runs it with single-threaded kernels.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        return Devices(tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(count)]), count, gpu=True)
    cores = len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])
    return Devices(strategy, count, cores=max(1, cores // count))
