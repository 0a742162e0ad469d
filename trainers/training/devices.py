"""The devices a run uses, and how the lanes are laid over them. Called once, before anything is placed on a device."""

import json
import os
from dataclasses import dataclass

import tensorflow as tf

from common import console
from common.errors import UsageError
from trainers.training.signals import immediate


@dataclass(frozen=True)
class Cluster:
    """The processes of a run, one a machine as a rule, as TF_CONFIG names them. Worker 0 is the chief."""

    workers: tuple[str, ...]  # host:port of each
    index: int  # of this one

    @classmethod
    def from_environment(cls) -> "Cluster | None":
        """What TF_CONFIG says; None where it is not set. Raises UsageError where it does not name a worker."""
        text = os.environ.get("TF_CONFIG")
        if not text:
            return None
        rule = (
            'TF_CONFIG must be as {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        )
        try:
            value = json.loads(text)
            if value == {}:
                return None
            jobs, task = value["cluster"], value["task"]
            if not all(isinstance(hosts, list) for hosts in jobs.values()):
                raise TypeError("a job must be a list of host:port")
            workers, index = [*jobs.get("chief", []), *jobs.get("worker", [])], int(task["index"])
            if set(jobs) - {"chief", "worker"} or task["type"] not in jobs or not 0 <= index < len(jobs[task["type"]]):
                raise ValueError(f"there is no {task['type']} {index}, or a job that is neither chief nor worker")
            if task["type"] == "worker":
                index += len(jobs.get("chief", []))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{rule}: {type(error).__name__} {error}") from None
        return cls(tuple(workers), index)


@dataclass(frozen=True)
class Devices:
    """Lanes divide over replicas (one a device, by MirroredStrategy, over several workers by
    MultiWorkerMirroredStrategy), and on a CPU over the towers of a replica."""

    strategy: tf.distribute.Strategy
    replicas: int  # of all workers
    cores: int = 1  # that a replica may use for towers
    gpu: bool = False
    workers: int = 1
    worker: int = 0  # this one
    fewest: int = 8  # lanes of a tower: below that the products are too small to pay for one

    @property
    def chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self.worker == 0

    def rows(self, lanes: int) -> range:
        """The lanes of this worker's replicas: contiguous, in the order of the workers."""
        share = lanes // self.workers
        return range(self.worker * share, (self.worker + 1) * share)

    def towers(self, lanes: int) -> int:
        """The towers that a replica of so many lanes is split into: as many as its cores, if the lanes suffice."""
        return max(1, min(self.cores, lanes // self.fewest))

    def describe(self, lanes: int) -> str:
        """The devices in a few words, for `lanes` over all replicas."""
        towers = self.towers(lanes // self.replicas)
        kind = f"{'GPU' if self.gpu else 'CPU'} replica{'s' if self.replicas > 1 else ''}"
        workers = f" on {self.workers} workers" if self.workers > 1 else ""
        return f"{self.replicas} {kind}{workers}" + (f" of {towers} towers" if towers > 1 else "")


def plan(lanes: int, replicas: int | None = None, cluster: Cluster | None = None) -> int:
    """How many replicas each worker will have: all GPUs, or where there is none 1 CPU, unless `replicas` says else.

    Raises UsageError when the lanes do not divide over all of them, with the numbers that work, or when more are asked
    for than there are GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    workers = len(cluster.workers) if cluster else 1
    count = replicas or len(gpus) or 1
    if gpus and count > len(gpus):
        raise UsageError(f"{count} replicas asked for, but there are {len(gpus)} GPUs")
    if cluster and count != (len(gpus) or 1):
        raise UsageError(f"a worker of TF_CONFIG uses all its GPUs, or one CPU: leave out the {count} replicas")
    if lanes % (count * workers):
        fits = ", ".join(str(n) for n in range(1, lanes + 1) if lanes % n == 0)
        raise UsageError(f"{lanes} lanes do not divide over {count * workers} replicas; numbers that do: {fits}")
    return count


def prepare(count: int, cluster: Cluster | None = None) -> Devices:
    """Sets up a strategy over so many GPUs, or logical CPUs where there is none, of each worker. Once a process.

    On a CPU the kernels of one step are too small to be worth splitting over cores. So each core is given a tower of
    its own, a share of the lanes, and runs it with single-threaded kernels.
    """
    gpus, cores = tf.config.list_physical_devices("GPU"), len(os.sched_getaffinity(0))
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores)
    if cluster:
        console.note(f"worker {cluster.index} of {len(cluster.workers)}: waiting for the others")
        with immediate():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()  # it reads TF_CONFIG, and waits for the others
        workers = len(cluster.workers)
        return Devices(
            strategy, strategy.num_replicas_in_sync, 1 if gpus else cores, bool(gpus), workers, cluster.index
        )
    if gpus:
        return Devices(tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(count)]), count, gpu=True)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])
    return Devices(strategy, count, cores=max(1, cores // count))
