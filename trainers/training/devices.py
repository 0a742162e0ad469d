"""The devices of a run, and the division of its lanes over them. Call `prepare` once, before using any device."""

import os
from dataclasses import dataclass

import tensorflow as tf

from common import console, machine
from common.errors import UsageError
from common.files import parse_json
from trainers.training.signals import immediate

SHARE = 2048  # MiB of a GPU for each of the replicas that share it


@dataclass(frozen=True)
class Cluster:
    """Worker processes of a run, usually one per machine, from TF_CONFIG. Worker 0 is the chief."""

    workers: tuple[str, ...]  # host:port of each
    index: int  # of this process

    @classmethod
    def from_environment(cls) -> "Cluster | None":
        """Parse TF_CONFIG; None if unset or without workers. Raises UsageError if invalid."""
        text = os.environ.get("TF_CONFIG")
        if not text:
            return None
        rule = (
            'TF_CONFIG must be like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        )
        try:
            value = parse_json(text)
            if value == {} or value["cluster"] == {}:
                return None
            jobs, task = value["cluster"], value["task"]
            if not all(isinstance(hosts, list) for hosts in jobs.values()):
                raise TypeError("a job must be a list of host:port")
            workers, index = [*jobs.get("chief", []), *jobs.get("worker", [])], int(task["index"])
            if set(jobs) - {"chief", "worker"} or task["type"] not in jobs or not 0 <= index < len(jobs[task["type"]]):
                raise ValueError(f"unknown {task['type']} {index}, or a job other than chief and worker")
            if task["type"] == "worker":
                index += len(jobs.get("chief", []))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{rule}: {type(error).__name__} {error}") from None
        return cls(tuple(workers), index)


@dataclass(frozen=True)
class Devices:
    """Replicas of a run, one per device, under MirroredStrategy or MultiWorkerMirroredStrategy. On a CPU a replica
    divides its lanes over towers."""

    strategy: tf.distribute.Strategy
    replicas: int  # over all workers
    cores: int = 1  # per replica, for towers
    gpu: bool = False
    workers: int = 1
    worker: int = 0  # this process
    fewest: int = 8  # lanes per tower; with fewer, the products are too small to pay for it

    @property
    def chief(self) -> bool:
        """True in the process that writes the files."""
        return self.worker == 0

    def rows(self, lanes: int) -> range:
        """Lanes of this worker, contiguous, in worker order."""
        share = lanes // self.workers
        return range(self.worker * share, (self.worker + 1) * share)

    def towers(self, lanes: int) -> int:
        """Towers of a replica with this many lanes: one per core, if there are enough lanes."""
        return max(1, min(self.cores, lanes // self.fewest))

    def describe(self, lanes: int) -> str:
        """Describe the devices in a few words, for `lanes` over all replicas."""
        towers = self.towers(lanes // self.replicas)
        kind = f"{'GPU' if self.gpu else 'CPU'} replica{'s' if self.replicas > 1 else ''}"
        workers = f" on {self.workers} workers" if self.workers > 1 else ""
        return f"{self.replicas} {kind}{workers}" + (f" of {towers} towers" if towers > 1 else "")


def plan(lanes: int, replicas: int | None = None, cluster: Cluster | None = None, share: bool = False) -> int:
    """Choose the replicas per worker: `replicas`, by default all GPUs, or 1 on a CPU.

    share: allow more replicas than GPUs.
    Raises UsageError for more replicas than GPUs, or if the lanes do not divide over them, with the counts that work.
    """
    gpus = tf.config.list_physical_devices("GPU")
    workers = len(cluster.workers) if cluster else 1
    count = replicas or len(gpus) or 1
    if gpus and count > len(gpus) and not share:
        raise UsageError(f"at most {len(gpus)} replicas, one per GPU, got {count}: for a test, pass --share-gpus")
    if cluster and count != (len(gpus) or 1):
        raise UsageError(f"a worker of TF_CONFIG uses all its GPUs, or one CPU: omit --replicas {count}")
    if lanes % (count * workers):
        fits = ", ".join(str(n) for n in range(1, lanes + 1) if lanes % n == 0)
        raise UsageError(f"{lanes} lanes do not divide over {count * workers} replicas; numbers that do: {fits}")
    return count


def prepare(
    count: int, cluster: Cluster | None = None, precision: str = "float32", deterministic: bool = True
) -> Devices:
    """Set up a strategy over `count` GPUs, or logical CPUs without GPUs, of each worker. Once per process.

    More replicas than GPUs share them, each with SHARE MiB.
    precision: on a GPU, all but float32 round the factors of float32 products to TF32's 10 bits.
    deterministic: whether equal steps on a GPU give equal bits, as a resumed run must.

    On a CPU the kernels of a step are too small to split over cores. So each core runs a tower, a share of the lanes,
    with single-threaded kernels.
    """
    gpus, cores = tf.config.list_physical_devices("GPU"), len(os.sched_getaffinity(0))
    for index, gpu in enumerate(gpus):
        if (sharing := len(range(index, count, len(gpus)))) > 1:
            each = tf.config.LogicalDeviceConfiguration(memory_limit=SHARE)
            tf.config.set_logical_device_configuration(gpu, [each] * sharing)
        else:
            tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        if deterministic:
            tf.config.experimental.enable_op_determinism()
            # cuBLAS needs its own workspace for that, even in cuDNN's recurrent layers.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")
    else:
        if machine.gpus() and "CUDA_VISIBLE_DEVICES" not in os.environ:
            console.note("TensorFlow sees no GPU, nvidia-smi does: install CUDA's libraries with make setup GPU=1")
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores)
    if cluster:
        console.note(f"worker {cluster.index} of {len(cluster.workers)}: waiting for the others")
        with immediate():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()  # reads TF_CONFIG and waits for the others
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
