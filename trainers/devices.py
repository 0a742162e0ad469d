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
    towers: int

    def describe(self) -> str:
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        towers = f", {self.towers} towers" if self.towers > 1 else ""
        return f"{self.replicas} {kind} replica{'s' if self.replicas > 1 else ''}{towers}"


def prepare(lanes: int, replicas: int | None = None) -> Devices:
    """Sets up MirroredStrategy over all GPUs, or over `replicas` logical CPUs (default 1) where there is none.

    On a CPU the kernels of one step are too small to be worth splitting over cores. So each core is given a tower of
    its own, a share of the lanes, and runs it with single-threaded kernels: as many towers as cores, if lanes divide.

    Raises UsageError when the lanes do not divide over the replicas, with the numbers of replicas that work, or when
    more replicas are asked for than there are GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    count = replicas or len(gpus) or 1
    if lanes % count:
        fits = ", ".join(str(n) for n in range(1, lanes + 1) if lanes % n == 0)
        raise UsageError(f"{lanes} lanes do not divide over {count} replicas; numbers that do: {fits}")
    if gpus:
        if count > len(gpus):
            raise UsageError(f"{count} replicas asked for, but there are {len(gpus)} GPUs")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        return Devices(tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(count)]), count, towers=1)
    cores = len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])
    share = lanes // count
    towers = max(n for n in range(1, max(1, cores // count) + 1) if share % n == 0)
    return Devices(strategy, count, towers)
