import json

import pytest
import tensorflow as tf

from common.errors import UsageError
from trainers.training.devices import Cluster, Devices, plan

TWO = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("jobs", "task", "expected"),
    [
        (TWO, {"type": "worker", "index": 1}, Cluster(("a:1", "b:1"), 1)),
        ({"chief": ["c:1"], **TWO}, {"type": "chief", "index": 0}, Cluster(("c:1", "a:1", "b:1"), 0)),
        ({"chief": ["c:1"], **TWO}, {"type": "worker", "index": "1"}, Cluster(("c:1", "a:1", "b:1"), 2)),
    ],
)
def test_cluster_from_tf_config(
    monkeypatch: pytest.MonkeyPatch, jobs: dict[str, list[str]], task: dict[str, object], expected: Cluster
) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": jobs, "task": task}))
    assert Cluster.from_environment() == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_invalid_tf_config_raises(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=r"^TF_CONFIG must be like \{\"cluster\": .*\}: \w+Error"):
        Cluster.from_environment()


def test_missing_tf_config_means_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert Cluster.from_environment() is None
    for text in ("{}", '{"cluster": {}}', '{"cluster": {}, "task": {"type": "worker", "index": 0}}'):
        monkeypatch.setenv("TF_CONFIG", text)
        assert Cluster.from_environment() is None


def test_lanes_must_divide_over_replicas() -> None:
    assert plan(6, replicas=2) == 2
    with pytest.raises(UsageError, match=r"6 lanes do not divide over 4 replicas; numbers that do: 1, 2, 3, 6$"):
        plan(6, replicas=4)
    with pytest.raises(UsageError, match=r"7 lanes do not divide over 2 replicas; numbers that do: 1, 7$"):
        plan(7, cluster=Cluster(("a:1", "b:1"), 0))
    with pytest.raises(UsageError, match="a worker of TF_CONFIG uses all its GPUs, or one CPU: omit --replicas 2"):
        plan(8, replicas=2, cluster=Cluster(("a:1", "b:1"), 0))


def test_gpus_are_shared_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    assert plan(6) == 1
    with pytest.raises(UsageError, match="at most 1 replicas, one per GPU, got 2: for a test, pass --share-gpus"):
        plan(6, replicas=2)
    assert plan(6, replicas=2, share=True) == 2


def test_lanes_are_split_in_order_over_workers_and_towers() -> None:
    parts = [Devices(None, replicas=3, workers=3, worker=worker) for worker in range(3)]
    assert [part.rows(12) for part in parts] == [range(4), range(4, 8), range(8, 12)]
    assert [part.chief for part in parts] == [True, False, False]
    devices = Devices(None, replicas=1, cores=4)
    assert [devices.towers(lanes) for lanes in (1, 15, 16, 50, 1000)] == [1, 1, 2, 4, 4]
    assert devices.describe(50) == "1 CPU replica of 4 towers"
    assert parts[0].describe(12) == "3 CPU replicas on 3 workers"
