import contextlib
import dataclasses
import http.server
import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from common.errors import StageError, UsageError
from common.files import write_json
from export import checksums
from export.__main__ import cli
from export.origin import origin_of
from export.serve import front_image, labels, package
from export.serve.card import cell
from export.serve.facts import facts_of
from export.serve.package import batch_sizes, host_name, relabel, write_package
from export.serve.stand_in import StandIn, serving
from export.serve.stand_in_batching import CallError
from pipeline.vocab import byte_vocab
from trainers import checkpoint
from trainers.run import read_run

ABOUT = {
    "format_version": 1,
    "run": "plays",
    "step": 4321,
    "val_nats": 1.25,
    "weights_sha256": "ab" * 32,
    "data_sha256": "cd" * 32,
    "config": {"model": {"cell": "gru", "units": 96, "layers": 3, "embedding": 8}, "train": {}},
    "vocab": byte_vocab().to_json(),
    "limits": {"length": 4096, "prompt": 2048, "rows": 64},
}
FACTS = {
    "format_version": 1,
    "parameters": 1234567,
    "test": {"nats": 1.5, "bits": 1.5 / math.log(2), "targets": 98765},
    "data": {
        "name": "plays",
        "tokens": {"train": 1_003_854, "val": 55_770},
        "validated": True,
        "sources": ["input.txt"],
        "files": 1,
        "bytes": 1_115_394,
        "corpora": [
            {
                "name": "shake|speare",
                "licence": "<b>public</b> domain",
                "address": "https://example.com/in_put.txt",
                "from": None,
                "text_sha256": "ef" * 32,
                "date": "2026-11-23",
            }
        ],
    },
    "tools": {"python": "3.11.7", "tensorflow": "2.21.0"},
}
PACKAGE = {labels.MODELS, *package.TEMPLATES}


def write_version(base: Path, version: int, **about: object) -> None:
    """Write the files of a version that the package reads."""
    for name in labels.VERSION_FILES:
        (base / str(version) / name).parent.mkdir(parents=True, exist_ok=True)
        (base / str(version) / name).write_bytes(b"")
    write_json(base / str(version) / labels.ORIGIN, ABOUT | about)


def export_versions(base: Path, *versions: int) -> Path:
    """Export versions, and label the second canary, as if servers had already loaded it."""
    for version in versions:
        write_version(base, version)
        write_package(base, version, FACTS)
        if version == 2:
            labels_now = labels.read(base)
            assert labels_now is not None
            if "canary" not in labels_now.labels:
                relabel(base, ["canary=2"])
    return base


def files(base: Path) -> dict[str, str]:
    return {
        path.name: path.read_text()
        for path in base.iterdir()
        if path.is_file() and path.name not in (".lock", "SHA256SUMS")
    }


def image_files(base: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (base / "front").iterdir()}


def config(base: Path) -> ModelServerConfig:
    return text_format.Parse((base / "models.config").read_text(), ModelServerConfig())


def expected_config(name: str, labels: dict[str, int], *versions: int) -> ModelServerConfig:
    expected = ModelServerConfig()
    model = expected.model_config_list.config.add()
    model.name, model.base_path, model.model_platform = name, f"/models/{name}", "tensorflow"
    model.model_version_policy.specific.versions.extend(versions)
    for label, version in labels.items():
        model.version_labels[label] = version
    return expected


def test_first_version_is_stable_and_later_ones_unlabelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = export_versions(tmp_path / "plays", 1)
    assert config(base) == expected_config("plays", {"stable": 1}, 1)
    write_version(base, 2)
    write_package(base, 2, FACTS)
    assert config(base) == expected_config("plays", {"stable": 1}, 1, 2)
    relabel(base, ["canary=2"])
    assert config(base) == expected_config("plays", {"stable": 1, "canary": 2}, 1, 2)
    capsys.readouterr()
    export_versions(base, 5)  # servers reject labels on versions that they have not loaded
    assert config(base) == expected_config("plays", {"stable": 1, "canary": 2}, 1, 2, 5)
    assert capsys.readouterr().err.splitlines() == [
        f"{base}: stable is 1, canary is 2, 5 is loaded without a label",
        f"once servers have loaded 5: python -m export label {base} canary=5",
    ]
    relabel(base, ["canary=5"])
    assert config(base) == expected_config("plays", {"stable": 1, "canary": 5}, 1, 2, 5)


def test_export_unloads_no_version(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1, 2)
    relabel(base, ["stable=2"])
    export_versions(base, 3, 4)
    assert config(base) == expected_config("plays", {"stable": 2, "canary": 2}, 1, 2, 3, 4)
    relabel(base, ["stable=1"])  # version 1 is still loaded
    assert config(base) == expected_config("plays", {"stable": 1, "canary": 2}, 1, 2, 3, 4)


def test_label_moves_once_the_server_has_loaded_the_version(fake: Path, tmp_path: Path) -> None:
    base, over, rejected = tmp_path / "plays", threading.Event(), list[CallError]()

    def export(version: int) -> None:
        write_version(base, version)
        shutil.copytree(fake / str(version), base / str(version), dirs_exist_ok=True)
        write_package(base, version, FACTS)

    def poll() -> None:
        while not over.wait(0.5):
            try:
                stand_in.poll()
            except CallError as error:
                rejected.append(error)

    export(1)
    relabel(base, ["canary=1"])
    stand_in = StandIn(base)
    with serving(stand_in) as target:
        server = threading.Thread(target=poll)
        server.start()
        export(2)
        assert cli.main(["label", str(base), "canary=2", "--target", target], standalone_mode=False) is None
        assert 2 in stand_in.versions
        while stand_in.labels["canary"] != 2:
            time.sleep(0.1)
        over.set()
        server.join()
    assert not rejected
    assert stand_in.labels == {"stable": 1, "canary": 2}


def test_repeated_export_keeps_labels(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1, 2)
    relabel(base, ["canary="])
    before = files(base)
    write_package(base, 2, FACTS)
    assert files(base) == before
    (base / "models.config").unlink()
    write_package(base, 2, FACTS)
    assert config(base) == expected_config("plays", {"stable": 2}, 2)


STEPS = [
    # after exports of 1 and 2: calls, then the expected labels and loaded versions
    ([["stable=2"]], {"stable": 2, "canary": 2}, [1, 2]),
    ([["stable=2"], ["stable=1"]], {"stable": 1, "canary": 2}, [1, 2]),
    ([["stable=2", "canary="]], {"stable": 2}, [1, 2]),
    ([["stable=2", "canary="], ["stable=2"]], {"stable": 2}, [2]),
    ([["canary="], ["3"], ["canary=3"]], {"stable": 1, "canary": 3}, [1, 3]),
    ([["3"]], {"stable": 1, "canary": 2}, [1, 2, 3]),
    ([["3"], ["stable=2"]], {"stable": 2, "canary": 2}, [1, 2, 3]),  # 3 is newer than all labelled versions
    ([["3"], ["canary=3"], ["stable=3"]], {"stable": 3, "canary": 3}, [1, 3]),
    ([["3"], ["blue-1=3"]], {"stable": 1, "canary": 2, "blue-1": 3}, [1, 2, 3]),
]


@pytest.mark.parametrize(("calls", "labels", "versions"), STEPS)
def test_versions_stay_loaded_when_labels_move(
    calls: list[list[str]], labels: dict[str, int], versions: list[int], tmp_path: Path
) -> None:
    base = export_versions(tmp_path / "plays", 1, 2)
    write_version(base, 3)
    for changes in calls:
        relabel(base, changes)
    assert config(base) == expected_config("plays", labels, *versions)


INVALID_CHANGES = [
    (["stable=9"], StageError, r"9 is incomplete, saved_model\.pb is missing; complete versions: 1, 2, 3$"),
    (["stable=4"], StageError, r"4 is incomplete, variables/variables\.index is missing; complete versions: 1, 2, 3$"),
    (
        ["stable=3"],
        StageError,
        r"first run python -m export label \S+ 3, and once servers have loaded it, stable=3; or pass",
    ),
    (["blue=3"], StageError, r"first run python -m export label \S+ 3, and once servers have loaded it, blue=3; or"),
    (["blue="], StageError, r"has no label blue to remove: stable is 1, canary is 2$"),
    (["stable="], UsageError, r"^stable cannot be removed"),
    (["canary=1", "canary=2"], UsageError, r"canary is given twice$"),
    (["canary=2", "canary="], UsageError, r"canary is given twice$"),
    *(
        ([change], UsageError, rf"^expected LABEL=VERSION, .*; got '{re.escape(change)}'$")
        for change in ("", "=", "=1", "1x", "a b=1", "a/b=1", "a:b=1", "9a=1", "é=1", "a=-1", "a=0", "a=1=2", "a=²")
    ),
]


@pytest.mark.parametrize(("changes", "error", "match"), INVALID_CHANGES)
def test_invalid_label_changes_are_rejected(
    changes: list[str], error: type[Exception], match: str, tmp_path: Path
) -> None:
    base = export_versions(tmp_path / "plays", 1, 2)
    write_version(base, 3)
    write_version(base, 4)
    (base / "4" / "variables" / "variables.index").unlink()
    before = files(base)
    with pytest.raises(error, match=match):
        relabel(base, ["canary=1", *changes] if changes[0].startswith("stable") else changes)
    assert files(base) == before


def test_label_of_a_deleted_version_can_be_moved(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1)
    (base / "1" / "saved_model.pb").unlink()
    write_version(base, 2)
    with pytest.raises(
        StageError, match=r"stable of \S+ is version 1, whose saved_model\.pb is missing; complete versions: 2; move"
    ):
        write_package(base, 2, FACTS)
    relabel(base, ["stable=2"])
    assert config(base) == expected_config("plays", {"stable": 2}, 2)


def test_label_moves_only_after_the_server_has_loaded_the_version(tmp_path: Path) -> None:
    """Check that neither the order of exports and label changes nor the time of the server's polls matters."""
    base = export_versions(tmp_path / "plays", 1, 2)
    write_version(base, 3)
    with pytest.raises(StageError, match="first run"):
        relabel(base, ["canary=", "blue=3"])
    relabel(base, ["canary="])
    write_package(base, 3, FACTS)  # within the same poll interval
    assert config(base) == expected_config("plays", {"stable": 1}, 1, 2, 3)
    write_version(base, 4)
    waits: list[tuple[str, set[int], ModelServerConfig]] = []

    def wait(model: str, versions: set[int]) -> None:
        waits.append((model, versions, config(base)))

    relabel(base, ["canary=4", "stable=3"], wait)
    loading = expected_config("plays", {"stable": 1}, 1, 2, 3, 4)
    assert waits == [("plays", {3, 4}, loading)]
    assert config(base) == expected_config("plays", {"stable": 3, "canary": 4}, 1, 3, 4)

    def fail(model: str, versions: set[int]) -> None:
        raise StageError("cannot load")

    write_version(base, 5)
    with pytest.raises(StageError, match="cannot load"):
        relabel(base, ["canary=5"], fail)
    assert config(base) == expected_config("plays", {"stable": 3, "canary": 4}, 1, 3, 4, 5)


def test_new_version_becomes_canary_once_loaded(tmp_path: Path) -> None:
    base = tmp_path / "plays"
    waits: list[set[int]] = []
    for version in (1, 2, 3):
        write_version(base, version)
        write_package(base, version, FACTS)
        package.label_canary(base, version, lambda model, versions: waits.append(versions))
    assert waits == [{2}]  # 1 becomes stable, and when 3 is exported there is already a canary
    assert config(base) == expected_config("plays", {"stable": 1, "canary": 2}, 1, 2, 3)


def test_labelling_without_a_model_raises(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no model in"):
        relabel(tmp_path / "none", ["stable=1"])
    with pytest.raises(StageError, match=r"has no models\.config: export a model to it first$"):
        relabel(tmp_path, ["stable=1"])
    for invalid in ("model_config_list {", "model_config_list {}", "\xff"):
        (tmp_path / "models.config").write_text(invalid, encoding="latin-1")
        with pytest.raises(StageError, match=r"models\.config is corrupted \(.+\): remove it, export again and set"):
            relabel(tmp_path, ["stable=1"])


def test_command_moves_and_prints_labels(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1, 2)
    for changes in (["stable=2", "canary="], []):
        result = CliRunner().invoke(cli, ["label", str(base), *changes], catch_exceptions=False)
        assert result.output == f"{base}: stable is 2, 1 is loaded without a label\n"
        assert config(base) == expected_config("plays", {"stable": 2}, 1, 2)


def test_all_users_can_read_the_package_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        base = export_versions(tmp_path / "plays", 1, 2)
        (base / "secrets.env").write_text("mine")
        relabel(base, ["canary=2"])
    finally:
        os.umask(before)
    modes = {path.relative_to(base).as_posix(): path.stat().st_mode & 0o777 for path in base.rglob("*")}
    assert modes.pop("secrets.env") == 0o600
    assert modes.pop(".lock") == 0o600
    assert {mode & 0o555 for name, mode in modes.items() if (base / name).is_dir()} == {0o555}
    assert {mode & 0o444 for name, mode in modes.items()} == {0o444}


@pytest.mark.parametrize("name", [*package.TEMPLATES, "front/Dockerfile"])
def test_files_of_the_user_are_not_overwritten(tmp_path: Path, name: str) -> None:
    base = export_versions(tmp_path / "plays", 1, 2)
    relabel(base, ["canary=2"])
    (base / name).write_text("mine\n" + (base / name).read_text())
    before = files(base)
    with pytest.raises(StageError, match=f"{name} was not written by an export, which would overwrite it: move it$"):
        relabel(base, ["stable=2"])
    assert files(base) == before


def test_package_is_reproducible_and_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = export_versions(tmp_path / "a" / "plays", 1, 2), export_versions(tmp_path / "b" / "plays", 1, 2)
    assert files(base) == files(other)
    assert set(files(base)) == PACKAGE
    assert image_files(base) == image_files(other)
    for text in files(base).values():
        assert "Generated by the export, which overwrites it." in text.splitlines()[0]
    monkeypatch.setattr(package, "table", lambda versions: {}[0])
    before = files(base)
    with pytest.raises(KeyError):
        relabel(base, ["stable=2"])
    assert files(base) == before


# From TF Serving's session_bundle_config.proto and monitoring_config.proto, which no package contains.
BATCHING = {
    "max_batch_size": "Int64Value",
    "batch_timeout_micros": "Int64Value",
    "max_enqueued_batches": "Int64Value",
    "num_batch_threads": "Int64Value",
    "enable_large_batch_splitting": "BoolValue",
}


def message(name: str) -> Any:
    """Create an empty message of a type whose descriptor is built here."""
    pool, field = descriptor_pool.DescriptorPool(), descriptor_pb2.FieldDescriptorProto
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="serving.proto", package="serving", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")

    def add(to: Any, name: str, kind: int, label: int = field.LABEL_OPTIONAL, type_name: str | None = None) -> None:
        to.field.add(name=name, number=len(to.field) + 1, type=kind, label=label, type_name=type_name)

    batching = file.message_type.add(name="BatchingParameters")
    for setting, wrapper in BATCHING.items():
        add(batching, setting, field.TYPE_MESSAGE, type_name=f".google.protobuf.{wrapper}")
    add(batching, "allowed_batch_sizes", field.TYPE_INT64, field.LABEL_REPEATED)
    add(batching, "pad_variable_length_inputs", field.TYPE_BOOL)
    prometheus = file.message_type.add(name="PrometheusConfig")
    add(prometheus, "enable", field.TYPE_BOOL)
    add(prometheus, "path", field.TYPE_STRING)
    monitoring = file.message_type.add(name="MonitoringConfig")
    add(monitoring, "prometheus_config", field.TYPE_MESSAGE, type_name=".serving.PrometheusConfig")
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"serving.{name}"))()


def max_batch_size(file: Path) -> int:
    return text_format.Parse(file.read_text(), message("BatchingParameters")).max_batch_size.value


@pytest.mark.parametrize("first", [1, 5, 8, 64, 100])
@pytest.mark.parametrize("second", [1, 5, 8, 64, 100])
def test_each_version_batches_up_to_its_row_limit(first: int, second: int, tmp_path: Path) -> None:
    base = tmp_path / "plays"
    for version, rows in ((1, first), (2, second)):
        write_version(base, version, limits={"length": 10, "rows": rows})
        write_package(base, version, FACTS)
    for changes in ([], ["stable=2"], ["stable=2"]):  # the last call unloads version 1; its folder is kept
        relabel(base, changes)
        for version, rows in ((1, first), (2, second)):
            # With a smaller limit, the version's warm-up fails; with a larger one, its graph rejects merged batches.
            assert max_batch_size(base / str(version) / "batching_params.pbtxt") == max(batch_sizes(rows)) == rows
        assert max_batch_size(base / "batching_params.pbtxt") == max(first, second)
    flags = yaml.safe_load((base / "compose.yaml").read_text())["services"]["serving"]["command"]
    threads = 2 * max(first, second)  # for two batches
    assert {f"--grpc_max_threads={threads}", f"--rest_api_num_threads={threads}"} <= set(flags)
    assert "--enable_per_model_batching_parameters=true" in flags


@pytest.mark.parametrize(("rows", "sizes"), [(64, [1, 2, 4, 8, 16, 32, 64]), (48, [1, 2, 4, 8, 16, 32, 48]), (1, [1])])
def test_batches_are_not_padded_or_split(rows: int, sizes: list[int], tmp_path: Path) -> None:
    write_version(tmp_path / "plays", 1, limits={"length": 10, "rows": rows})
    write_package(tmp_path / "plays", 1, FACTS)
    for file in ("batching_params.pbtxt", "1/batching_params.pbtxt"):
        parameters = text_format.Parse((tmp_path / "plays" / file).read_text(), message("BatchingParameters"))
        as_dict = MessageToDict(parameters, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        assert as_dict == {
            "max_batch_size": str(rows),
            "allowed_batch_sizes": [],  # no padding: empty calls have no row to copy
            "batch_timeout_micros": "2000",
            "num_batch_threads": "1",
            "max_enqueued_batches": "10",
            "enable_large_batch_splitting": False,
            "pad_variable_length_inputs": False,
        }
    assert batch_sizes(rows) == sizes


def test_prometheus_reads_the_configured_path(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1)
    monitoring = text_format.Parse((base / "monitoring.config").read_text(), message("MonitoringConfig"))
    path = "/monitoring/prometheus/metrics"
    assert MessageToDict(monitoring) == {"prometheusConfig": {"enable": True, "path": path}}
    pod = kubernetes(base)["Deployment char-rnn-plays"]["spec"]["template"]["metadata"]["annotations"]
    assert pod == {"prometheus.io/scrape": "true", "prometheus.io/port": "8501", "prometheus.io/path": path}


FLAGS = [
    "--port=8500",
    "--rest_api_port=8501",
    "--model_config_file=/models/plays/models.config",
    "--model_config_file_poll_wait_seconds=10",
    "--file_system_poll_wait_seconds=10",
    "--max_num_load_retries=1",
    "--load_retry_interval_micros=1000000",
    "--allow_version_labels_for_unavailable_models=true",
    "--enable_batching=true",
    "--batching_parameters_file=/models/plays/batching_params.pbtxt",
    "--enable_per_model_batching_parameters=true",
    "--monitoring_config_file=/models/plays/monitoring.config",
    "--tensorflow_intra_op_parallelism=2",
    "--tensorflow_inter_op_parallelism=2",
    "--rest_api_num_threads=128",
    "--grpc_max_threads=128",
    "--rest_api_timeout_in_ms=30000",
]
STABLE = "/v1/models/plays/labels/stable/metadata"


def test_compose_file(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1)
    compose = yaml.safe_load((base / "compose.yaml").read_text())
    image = compose["services"]["front"].pop("image")
    assert image == f"char-rnn-plays-front:{front_image.tag(image_files(base))}"
    check = compose["services"]["serving"]["healthcheck"].pop("test")
    assert check[:3] == ["CMD", "bash", "-c"]
    assert f"GET {STABLE} HTTP" in check[3]
    assert compose == {
        "name": "char-rnn-plays",
        "services": {
            "serving": {
                "image": "tensorflow/serving:2.21.0",
                "platform": "linux/amd64",
                "entrypoint": ["tensorflow_model_server"],
                "command": FLAGS,
                "volumes": [
                    {
                        "type": "bind",
                        "source": ".",
                        "target": "/models/plays",
                        "read_only": True,
                        "bind": {"create_host_path": False},
                    }
                ],
                "user": "65534:65534",
                "read_only": True,
                "tmpfs": ["/tmp:size=64m"],
                "cap_drop": ["ALL"],
                "security_opt": ["no-new-privileges:true"],
                "init": True,
                "restart": "unless-stopped",
                "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
                "deploy": {"resources": {"limits": {"cpus": "2", "memory": "4G"}}},
                "healthcheck": {
                    "interval": "10s",
                    "timeout": "5s",
                    "retries": 3,
                    "start_period": "300s",
                    "start_interval": "2s",
                },
            },
            "front": {
                "build": "front",
                "pull_policy": "build",
                "command": ["--target=serving:8500", "--model=plays", "--label=stable", "--rows=64", "--host=0.0.0.0"],
                "ports": ["127.0.0.1:8501:8080"],  # the only published port: the server is private
                "depends_on": {"serving": {"condition": "service_healthy"}},
                "user": "65534:65534",
                "read_only": True,
                "cap_drop": ["ALL"],
                "security_opt": ["no-new-privileges:true"],
                "restart": "unless-stopped",
                "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
                "stop_grace_period": "40s",
                "deploy": {"resources": {"limits": {"cpus": "1", "memory": "1G"}}},
                "healthcheck": {
                    "test": ["CMD", "python", "-c", package.front_check()],
                    "interval": "10s",
                    "timeout": "5s",
                    "retries": 3,
                    "start_period": "60s",
                    "start_interval": "2s",
                },
            },
        },
    }


def test_startup_probe_allows_all_versions_to_load_twice(tmp_path: Path) -> None:
    base = tmp_path / "plays"
    for version, seconds in ((1, 50), (2, 250)):
        write_version(base, version)
        write_package(base, version, FACTS | {"warm_up_seconds": seconds})
    compose = yaml.safe_load((base / "compose.yaml").read_text())
    assert compose["services"]["serving"]["healthcheck"]["start_period"] == "1260s"  # 2 * 2 * (51 + 251), rounded up
    pod = kubernetes(base)["Deployment char-rnn-plays"]["spec"]["template"]["spec"]
    probe = pod["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1260
    assert kubernetes(base)["Deployment char-rnn-plays"]["spec"]["progressDeadlineSeconds"] > 1260


def kubernetes(base: Path) -> dict[str, Any]:
    """Return the objects of kubernetes.yaml by kind and name."""
    objects = yaml.safe_load_all((base / "kubernetes.yaml").read_text())
    return {f"{each['kind']} {each['metadata']['name']}": each for each in objects}


def test_kubernetes_objects_are_valid_and_consistent(tmp_path: Path) -> None:
    import kubernetes_validate  # has the schemas of all releases since 1.25

    base = export_versions(tmp_path / "plays", 1)
    assert len((base / "kubernetes.yaml").read_text().splitlines()) <= 80
    objects = kubernetes(base)
    for each in objects.values():
        for release in ("1.30", "1.37"):
            kubernetes_validate.validate(each, release, strict=True)
    name = "char-rnn-plays"
    assert set(objects) == {
        f"{kind} {name}" for kind in ("Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget")
    }
    labels = {"app.kubernetes.io/name": "char-rnn", "app.kubernetes.io/instance": name}
    spec = objects[f"Deployment {name}"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == labels
    assert objects[f"PodDisruptionBudget {name}"]["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["labelSelector"]) == ("kubernetes.io/hostname", {"matchLabels": labels})
    service = objects[f"Service {name}"]["spec"]
    assert service["selector"] == labels
    assert service["ports"] == [{"name": "http", "port": 8501, "targetPort": "http"}]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert objects[f"NetworkPolicy {name}"]["spec"] == {
        "podSelector": {"matchLabels": labels},
        "ingress": [{"ports": [{"port": "http"}]}, {"from": [monitoring], "ports": [{"port": "rest"}]}],
    }
    pod = spec["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": name, "readOnly": True}
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65534,
        "runAsGroup": 65534,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    server, front = pod["containers"]
    assert server["args"] == FLAGS
    assert server["startupProbe"]["httpGet"] == server["readinessProbe"]["httpGet"] == {"path": STABLE, "port": "rest"}
    assert server["livenessProbe"]["tcpSocket"] == {"port": "grpc"}
    assert server["resources"]["limits"] == {"cpu": "2", "memory": "4Gi"}
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert server["volumeMounts"][0] == {"name": "model", "mountPath": "/models/plays", "readOnly": True}
    drain_seconds = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert 30 < drain_seconds < pod["terminationGracePeriodSeconds"]
    assert front["image"] == yaml.safe_load((base / "compose.yaml").read_text())["services"]["front"]["image"]
    assert front["args"] == [
        "--target=localhost:8500",
        "--model=plays",
        "--label=stable",
        "--rows=64",
        "--host=0.0.0.0",
    ]
    assert front["ports"] == [{"name": "http", "containerPort": 8080}]  # the Service's target
    assert front["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert front["securityContext"] == server["securityContext"]


@contextlib.contextmanager
def tf_serving(state: str) -> Iterator[int]:
    """Imitate TF Serving's REST API for a model `plays` whose only version, stable, is in `state`. Yields the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, answer = 404, {"error": "Malformed request"}
            if self.path == "/v1/models/plays":
                health = {"error_code": "OK", "error_message": ""}
                status, answer = 200, {"model_version_status": [{"version": "1", "state": state, "status": health}]}
            elif self.path == STABLE and state == "AVAILABLE":
                spec = {"name": "plays", "signature_name": "", "version": "1"}
                status, answer = 200, {"model_spec": spec, "metadata": {"signature_def": {"note": " 200 "}}}
            elif self.path == STABLE:
                answer = {"error": "Servable not found for request: Specific(plays, 1) 200 "}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def healthy(base: Path, port: int) -> bool:
    """Run the health check of compose.yaml in bash, like a container, against a server on `port`."""
    test = yaml.safe_load((base / "compose.yaml").read_text())["services"]["serving"]["healthcheck"]["test"]
    assert "$" not in test[3]  # compose would substitute a variable
    command = [*test[1:3], test[3].replace("/8501 ", f"/{port} ")]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def test_health_check_passes_only_if_stable_answers(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1)
    results = {}
    for state in ("AVAILABLE", "LOADING", "END"):
        with tf_serving(state) as port:
            results[state] = healthy(base, port)
    results["no server"] = healthy(base, port)
    assert results == {"AVAILABLE": True, "LOADING": False, "END": False, "no server": False}
    with tf_serving("AVAILABLE") as port:
        assert not healthy(export_versions(tmp_path / "other", 1), port)


NAMES = {
    "plays": ("plays", r"char-rnn-plays"),
    "Plays": ("Plays", r"char-rnn-plays-[0-9a-f]{6}"),
    "1.5": ("1.5", r"char-rnn-1-5-[0-9a-f]{6}"),
    "no": ("no", "char-rnn-no"),
    "a b": ("a-b", r"char-rnn-a-b-[0-9a-f]{6}"),
    "a-b": ("a-b", "char-rnn-a-b"),
    'it\'s "$HOME" {{ x }}': ("it-s-HOME-x-", r"char-rnn-it-s-home-x-[0-9a-f]{6}"),
    "a:b%20#|`*": ("a-b-20-", r"char-rnn-a-b-20-[0-9a-f]{6}"),
    "Пьесы": ("-", r"char-rnn-[0-9a-f]{6}"),
    "x" * 200: ("x" * 200, rf"char-rnn-{'x' * 40}-[0-9a-f]{{6}}"),
    "line\n- break": ("line---break", r"char-rnn-line-break-[0-9a-f]{6}"),
    "bad\udcffbyte": ("bad-byte", r"char-rnn-bad-byte-[0-9a-f]{6}"),
}


@pytest.mark.parametrize("folder", NAMES)
def test_any_folder_name_is_safe_in_all_files(folder: str, tmp_path: Path) -> None:
    base = tmp_path / folder
    write_version(base, 1)
    write_package(base, 1, FACTS)
    name, host = NAMES[folder]
    assert config(base) == expected_config(name, {"stable": 1}, 1)
    assert re.fullmatch(host, host_name(base))
    assert len(host_name(base)) <= 63
    server = yaml.safe_load((base / "compose.yaml").read_text())
    assert server["name"] == host_name(base)
    assert server["services"]["serving"]["volumes"][0]["target"] == f"/models/{name}"
    objects = kubernetes(base)
    assert {each["metadata"]["name"] for each in objects.values()} == {host_name(base)}
    pod = objects[f"Deployment {host_name(base)}"]["spec"]["template"]["spec"]["containers"][0]
    assert pod["args"] == server["services"]["serving"]["command"] == package.flags(name, 64)
    assert pod["readinessProbe"]["httpGet"]["path"] == f"/v1/models/{name}/labels/stable/metadata"
    lines = (base / "MODEL_CARD.md").read_text().splitlines()
    assert lines[1] == f"# {cell(folder)}"
    assert lines[2] == ""


def test_host_names_are_unique() -> None:
    assert len({host_name(Path("served") / folder) for folder in NAMES}) == len(NAMES)


def card(base: Path) -> dict[str, list[str]]:
    rows = [line for line in (base / "MODEL_CARD.md").read_text().splitlines() if line.startswith("|")]
    cells = [[text.strip() for text in row.strip("|").split("|")] for row in rows]
    return {name: values for name, *values in cells}


def test_card_describes_served_versions(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1)
    write_version(base, 2, val_nats=2.0, step=7, limits={"rows": 64})
    write_package(base, 2, FACTS | {"test": None, "data": None})
    relabel(base, ["canary=2"])
    assert card(base) == {
        "version": ["1 (stable)", "2 (canary)"],
        "---": ["---", "---"],
        "run": ["plays, step 4,321", "plays, step 7"],
        "model": ["GRU, 3 x 96 units, embedding of 8"] * 2,
        "parameters": ["1,234,567"] * 2,
        "vocabulary": ["256 bytes"] * 2,
        "on validation": ["1.803 bits per byte (1.250 nats)", "2.885 bits per byte (2.000 nats)"],
        "on test": ["2.164 bits per byte (1.500 nats), over 98,765", "not evaluated"],
        "data": ["plays: train 1,003,854, val 55,770 bytes; validated", "not available at export"],
        "sources": ["shake&#124;speare, from https://example.com/in_put.txt, 2026-11-23", "unknown"],
        "licence of the sources": [
            "shake&#124;speare: &#60;b&#62;public&#60;/b&#62; domain",
            "not recorded with the data",
        ],
        "limits": ["length 4,096, prompt 2,048, rows 64", "rows 64"],
        "made with": ["python 3.11.7, tensorflow 2.21.0"] * 2,
        "weights, SHA-256": ["ab" * 32] * 2,
        "data, SHA-256": ["cd" * 32] * 2,
    }
    assert "curl -s localhost:8501/v1/models/plays/labels/stable:predict" in (base / "MODEL_CARD.md").read_text()


def test_card_gains_new_facts_and_keeps_old_ones(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1)
    original = card(base)
    write_package(base, 1, FACTS | {"test": None, "data": None, "tools": {"python": "4"}})
    assert card(base) == original
    write_package(base, 1, FACTS | {"test": {"nats": 0.5, "bits": 0.7, "targets": 10}})
    assert card(base) == original | {"on test": ["0.721 bits per byte (0.500 nats), over 10"]}
    export_versions(tmp_path / "moved", 7)  # facts move with their version
    (base / "1").rename(tmp_path / "moved" / "8")
    relabel(tmp_path / "moved", ["8"])
    relabel(tmp_path / "moved", ["canary=8"])
    assert card(tmp_path / "moved")["on test"][1] == "0.721 bits per byte (0.500 nats), over 10"


@pytest.mark.parametrize(
    ("file", "value"),
    [
        (labels.ORIGIN, {"run": "plays"}),
        (labels.ORIGIN, ABOUT | {"vocab": []}),
        (labels.ORIGIN, ABOUT | {"limits": "many"}),
        (package.FACTS, {"test": 3}),
        (package.FACTS, {"warm_up_seconds": "1"}),
    ],
)
def test_malformed_files_are_an_error(tmp_path: Path, file: str, value: dict[str, Any]) -> None:
    base = export_versions(tmp_path / "plays", 1)
    write_json(base / "1" / file, value)
    with pytest.raises(StageError, match=r"1/assets\.extra is corrupted \(\w+Error: .+\): export the version again"):
        relabel(base, ["canary=1"])


def test_corrupted_facts_are_an_error(tmp_path: Path) -> None:
    base = export_versions(tmp_path / "plays", 1)
    facts = base / "1" / "assets.extra" / "facts.json"
    for damage in (facts.read_bytes().replace(b"98765", b"98764"), b"[]", b"{"):
        facts.write_bytes(damage)
        for again in (lambda: write_package(base, 1, FACTS), lambda: relabel(base, ["1"])):
            with pytest.raises(StageError, match=r"facts\.json is corrupted \(.*\): remove it, then run python -m"):
                again()
    facts.unlink()
    write_package(base, 1, FACTS)
    assert checksums.problems(base) == []


def test_labels_of_a_read_only_folder_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = export_versions(tmp_path / "plays", 1)
    (base / ".lock").unlink()
    relabel(base, [])
    assert "stable is 1" in capsys.readouterr().out
    assert not (base / ".lock").exists()


def test_facts_describe_the_run_and_its_data(run: Path, tmp_path: Path) -> None:
    loaded_run = read_run(run)
    best = checkpoint.best(loaded_run)
    facts = facts_of(loaded_run, best)
    tools = facts.pop("tools")
    assert set(tools) == {"python", "tensorflow", "keras", "numpy"}
    assert facts == {
        "format_version": 1,
        "parameters": sum(weight.numpy().size for weight in checkpoint.load_model(loaded_run, best).weights),
        "test": None,
        "data": {
            "name": "data",
            "tokens": {"train": 380, "val": 100},
            "validated": False,
            "sources": [],
            "files": 0,
            "bytes": 0,
            "corpora": [],
        },
    }
    report = run / "evaluation-test.json"
    inputs = {"weights_sha256": checkpoint.weights_sha256(best), "data_sha256": loaded_run.data_sha256}
    score = {"nats": 1.0, "bits": 1.4427, "targets": 99}
    try:
        for stale in ({"weights_sha256": "0"}, {"data_sha256": "0"}):
            write_json(report, {"inputs": inputs | stale, **score})
            assert facts_of(loaded_run, best)["test"] is None
        write_json(report, {"inputs": inputs, **score})
        assert facts_of(loaded_run, best)["test"] == score
        base = tmp_path / "tiny"
        write_version(base, 1, **origin_of(loaded_run, best))
        write_package(base, 1, facts_of(loaded_run, best))
    finally:
        report.unlink()
    rows, nats = card(base), best.val_nats
    assert nats is not None
    assert rows["on validation"] == [f"{nats / math.log(2):.3f} bits per byte ({nats:.3f} nats)"]
    assert rows["on test"] == ["1.443 bits per byte (1.000 nats), over 99"]
    assert rows["weights, SHA-256"] == [checkpoint.weights_sha256(best)]


def test_missing_or_changed_data_has_no_facts(run: Path, tmp_path: Path) -> None:
    loaded_run = read_run(run)
    best = checkpoint.best(loaded_run)
    for other in ({"data": tmp_path / "gone"}, {"data_sha256": "0"}):
        assert facts_of(dataclasses.replace(loaded_run, **other), best)["data"] is None
