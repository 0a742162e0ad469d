"""The files beside a model's versions, with which one command starts a server.

served/NAME/
    1/, 2/, ...             the versions (export.serve.saved_model)
        batching_params.pbtxt   its batching: at most its own row limit
    models.config           the versions that a server loads, and their labels (export.serve.labels)
    batching_params.pbtxt   the threads of all batches, and the batch size of a server without the versions' own files
    monitoring.config       the path of the server's metrics, for Prometheus
    compose.yaml            docker compose: the server, and the front before it
    kubernetes.yaml         kubectl apply
    front/                  the front's image (export.serve.front_image)
    MODEL_CARD.md           the model's data, scores, uses and limits
    SHA256SUMS              the checksums of these files and of the versions' facts (export.checksums)

Only models.config holds state: the labels. The other files are regenerated from it and from the versions. A running
server rereads it every POLL_SECONDS, so that a label moves without a restart.
"""

import contextlib
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from common import console
from common.errors import StageError
from common.files import WRONG_SHAPE, exclusive, load_json, read_json, reading, whole_file, write_record
from export import checksums
from export.serve import front_image, labels
from export.serve.card import TABLE, ServedVersion, cell, row_limit, table
from export.serve.labels import CANARY, MODELS, ORIGIN, STABLE, ServingConfig

BATCHING = "batching_params.pbtxt"
Wait = Callable[[str, set[int]], None]  # the model's name, and the versions to wait for
TEMPLATES = (BATCHING, "monitoring.config", "compose.yaml", "kubernetes.yaml", "MODEL_CARD.md")
FACTS = "assets.extra/facts.json"

# The server of the TensorFlow release that wrote the graph.
IMAGE = "tensorflow/serving:2.21.0"
GRPC_PORT, REST_PORT = 8500, 8501
CPUS = 2
MEMORY_GB = 4
POLL_SECONDS = 10
TIMEOUT_SECONDS = 30  # of a REST request

# A server opens its ports only after the first load has ended, all retries included. By default it retries five times,
# a minute apart, so a corrupted canary would keep a restarted server from answering for the stable version.
LOAD_RETRIES = 1
LOAD_RETRY_SECONDS = 1
WARM_UP_SECONDS = 30  # of a version whose facts do not record it
SLOWER = 2  # a server's load than the export's own replay of the requests, at most


def batch_sizes(rows: int) -> list[int]:
    """Batch sizes that warm a server up: the powers of two below a call's row limit, and the limit.

    >>> batch_sizes(64), batch_sizes(5)
    ([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 5])
    """
    return [1 << power for power in range((rows - 1).bit_length())] + [rows]


def model_name(base: Path) -> str:
    """Name of the model on a server: the folder's, with a hyphen for each character that a URL would have to escape."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", base.resolve().name)


def host_name(base: Path) -> str:
    """Name of the model in DNS, Kubernetes and compose. A hash distinguishes folders whose names become equal."""
    name = base.resolve().name
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain == name and len(plain) <= 40:
        return f"char-rnn-{plain}"
    mark = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:6]
    return "-".join(part for part in ("char-rnn", plain[:40].strip("-"), mark) if part)


def write_package(base: Path, version: int, facts: dict[str, Any]) -> None:
    """Regenerate the package after `version` has been written.

    The first version becomes stable. A later one is loaded without a label, for `relabel` to move a label to once
    servers have loaded it. A version that was packaged before changes no label.

    facts: the version's (export.serve.facts).
    """
    with exclusive(base):
        before, old_facts = labels.read(base), read_facts(base, version)
        served = before or ServingConfig({STABLE: version}, frozenset([version]))
        if before and not old_facts and version not in before.labels.values():
            served = ServingConfig(before.labels, before.versions | {version})
        _write(base, served, {version: _merged(old_facts, facts)})
    if served == before:
        return
    console.note(f"{base}: {served}")
    if version not in served.labels.values():
        console.note(f"once servers have loaded {version}: python -m export label {base} {CANARY}={version}")


def relabel(base: Path, changes: Sequence[str], wait: Wait | None = None) -> None:
    """Change the labels of a model's versions and regenerate the package; without changes, print the labels.

    Versions that lose their label stay loaded until the next change, so that no request by label fails in between, and
    rolling back is quick.

    changes: "LABEL=VERSION"; "LABEL=" removes the label; "VERSION" makes servers load a version without a label.
    wait: called with the model's name and the versions that labels move to, before they move; returns when servers have
    loaded them.
    Raises UsageError for an invalid change, StageError as `labels.apply` and `wait` do.
    """
    parsed = labels.parse(changes)
    if not base.is_dir():
        raise StageError(f"no model in {base}: create one with python -m export savedmodel runs/NAME")
    if wait and (moved := set(parsed.moved.values())):
        _change(base, labels.LabelChanges({}, set(), moved | parsed.loaded))
        wait(model_name(base), moved)
    console.out.print(f"{base}: {_change(base, parsed) if changes else _read(base)}")


def label_canary(base: Path, version: int, wait: Wait) -> None:
    """Label a new version canary once servers have loaded it, unless it has a label or another version is canary."""
    served = labels.read(base)
    if served and version not in served.labels.values() and CANARY not in served.labels:
        relabel(base, [f"{CANARY}={version}"], wait)


def _read(base: Path) -> ServingConfig:
    served = labels.read(base)
    if served is None:
        raise StageError(f"{base} has no {MODELS}: export a model to it first")
    return served


def _change(base: Path, changes: labels.LabelChanges) -> ServingConfig:
    with exclusive(base):
        served = _read(base)
        for version in (*changes.moved.values(), *changes.loaded):
            if (base / str(version) / checksums.FILE).exists():
                checksums.check(base / str(version), "export it again, or choose another version")
        _write(base, labels.apply(base, served, changes), {})
        return _read(base)


def flags(name: str, rows: int, folder: str = "") -> list[str]:
    """Flags of tensorflow_model_server. rows: the largest batch. folder: default: the container's."""
    folder = folder or f"/models/{name}"
    threads = 2 * rows  # a call holds a thread while it waits and runs: enough for one batch and the next
    return [
        f"--port={GRPC_PORT}",
        f"--rest_api_port={REST_PORT}",
        f"--model_config_file={folder}/{MODELS}",
        f"--model_config_file_poll_wait_seconds={POLL_SECONDS}",
        f"--file_system_poll_wait_seconds={POLL_SECONDS}",
        f"--max_num_load_retries={LOAD_RETRIES}",
        f"--load_retry_interval_micros={1_000_000 * LOAD_RETRY_SECONDS}",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching=true",
        f"--batching_parameters_file={folder}/{BATCHING}",
        "--enable_per_model_batching_parameters=true",
        f"--monitoring_config_file={folder}/monitoring.config",
        f"--tensorflow_intra_op_parallelism={CPUS}",
        f"--tensorflow_inter_op_parallelism={CPUS}",
        f"--rest_api_num_threads={threads}",
        f"--grpc_max_threads={threads}",
        f"--rest_api_timeout_in_ms={1000 * TIMEOUT_SECONDS}",
    ]


def startup_seconds(versions: Sequence[ServedVersion]) -> int:
    """Seconds in which a server opens its ports: whole minutes, at least five.

    Allows each version to load LOAD_RETRIES more times.

    >>> startup_seconds([])
    300
    """
    warm_up = sum(version.facts.get("warm_up_seconds", WARM_UP_SECONDS) + LOAD_RETRY_SECONDS for version in versions)
    return 60 * max(5, math.ceil(SLOWER * (1 + LOAD_RETRIES) * warm_up / 60))


def health_path(name: str) -> str:
    """URL path that answers 200 only while the stable version can be queried: its signatures.

    The shorter path of the model's status also answers 200 while a version is loading or has failed.
    """
    return f"/v1/models/{name}/labels/{STABLE}/metadata"


def health_check(name: str) -> str:
    """Bash command that requests `health_path`: the image has no curl."""
    request = f"printf '%s\\r\\n' 'GET {health_path(name)} HTTP/1.0' '' >&3"
    return f"exec 3<>/dev/tcp/127.0.0.1/{REST_PORT} && {request} && head -n 1 <&3 | grep -q ' 200 '"


def front_check() -> str:
    """Python program that fails unless the front is healthy: its image has no curl."""
    return f"from urllib import request; request.urlopen('http://127.0.0.1:{front_image.PORT}/healthz', timeout=4)"


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Update the facts of a version that is packaged again, except for the tools that wrote it."""
    return old | {name: value for name, value in new.items() if not old or (value is not None and name != "tools")}


def _write(base: Path, served: ServingConfig, new_facts: dict[int, dict[str, Any]]) -> None:
    """Write the package. Render everything first, and write models.config, which servers act on, last."""
    for label, version in served.labels.items():
        if missing := labels.missing_file(base, version):
            raise StageError(
                f"{label} of {base} is version {version}, whose {missing} is missing; "
                f"{labels.describe_complete(base)}; move the label: python -m export label {base} {label}=VERSION"
            )
    versions = served_versions(base, served, new_facts)
    if (base / checksums.FILE).exists():
        for problem in checksums.problems(base):
            console.note(problem)
    image = front_image.front_files()
    texts = _render(base, versions, f"{host_name(base)}-front:{front_image.tag(image)}")
    texts[MODELS] = labels.to_text(model_name(base), served.labels, [version.number for version in versions])
    files = {f"front/{name}": content for name, content in image.items()}
    files |= {name: text.encode() for name, text in texts.items()}
    for name, content in files.items():
        with whole_file(base / name) as partial:
            partial.write_bytes(content)
    for version, facts in new_facts.items():
        write_record(base / str(version) / FACTS, facts)
    facts_files = [path.relative_to(base).as_posix() for path in base.glob(f"*/{FACTS}")]
    checksums.write(base, [*files, *facts_files])


def served_versions(
    base: Path, served: ServingConfig, new_facts: dict[int, dict[str, Any]] | None = None
) -> list[ServedVersion]:
    """List the complete versions that servers load. new_facts: facts that are not written yet.

    Raises StageError if a version with a label is corrupted. One without is left out, so that a label can be moved back
    from a corrupted version.
    """
    versions = []
    for number in sorted(served.versions):
        try:
            if not labels.missing_file(base, number):
                versions.append(_version(base, number, served, new_facts or {}))
        except StageError as error:
            if number in served.labels.values():
                raise
            console.note(f"{error}; servers no longer load it")
    return versions


def largest_batch(base: Path, versions: list[ServedVersion]) -> int:
    """Largest row limit of all versions below `base`, except for those whose record is corrupted."""
    rows = [version.rows for version in versions]
    for number in labels.complete_versions(base):
        with contextlib.suppress(*WRONG_SHAPE):
            rows.append(row_limit(read_json(base / str(number) / ORIGIN)))
    return max(rows)


def _version(base: Path, number: int, served: ServingConfig, new_facts: dict[int, dict[str, Any]]) -> ServedVersion:
    folder = base / str(number)
    own_labels = sorted((label for label, version in served.labels.items() if version == number), reverse=True)
    origin = read_json(folder / ORIGIN)
    if not origin:
        raise StageError(f"{folder / ORIGIN} is corrupted: export the version again with --force")
    version = ServedVersion(number, own_labels, origin, new_facts.get(number) or read_facts(base, number))
    # Read all that the package uses of both files, which may have any shape.
    with reading(folder / "assets.extra", "export the version again with --force"):
        startup_seconds([version])
        row_limit(origin)
        for describe in TABLE.values():
            describe(version)
    return version


def read_facts(base: Path, version: int) -> dict[str, Any]:
    """Read the facts of a version; empty if there are none. Raises StageError if they are corrupted."""
    path = base / str(version) / FACTS
    try:
        facts = load_json(path) if path.exists() else {}
        if not isinstance(facts, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        fix = "remove it, then run python -m export savedmodel again, which renews it from the run"
        raise StageError(f"{path} is corrupted ({error}): {fix}") from None
    return facts


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("export.serve", "templates"),
        autoescape=False,  # not HTML: each value is quoted by a filter of its file's format
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"yaml": json.dumps, "cell": cell}
    return environment


def _render(base: Path, versions: list[ServedVersion], image: str) -> dict[str, str]:
    """Render the templates. Returns the texts by their paths below `base`. image: the front's."""
    values = _values(base, versions) | {"front_image": image}
    # If a batch cannot hold the version's largest warm-up request, the version does not load. If it holds more rows
    # than the graph accepts, all of its callers are rejected. So each version has its own batch size.
    own = {f"{version.number}/{BATCHING}": (BATCHING, values | {"rows": version.rows}) for version in versions}
    files = own | {file: (file, values) for file in TEMPLATES}
    return {path: _templates().get_template(f"{file}.j2").render(values) for path, (file, values) in files.items()}


def _values(base: Path, versions: list[ServedVersion]) -> dict[str, Any]:
    """Variables of the templates."""
    rows, name = largest_batch(base, versions), model_name(base)
    return {
        "name": name,
        "folder": base.resolve().name,
        "host": host_name(base),
        "image": IMAGE,
        "grpc": GRPC_PORT,
        "rest": REST_PORT,
        "front": front_image.PORT,
        "front_check": front_check(),
        "cpus": CPUS,
        "memory": MEMORY_GB,
        "timeout": TIMEOUT_SECONDS,
        "flags": flags(name, rows),
        "startup": startup_seconds(versions),
        "health_path": health_path(name),
        "health_check": health_check(name),
        "rows": rows,
        "versions": versions,
        "unit": next(version.vocab.unit for version in versions if STABLE in version.labels),
        "table": table(versions),
    }
