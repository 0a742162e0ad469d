"""What lies beside the versions of a model, so that a server of it is started with one command.

served/NAME/
    1/, 2/, ...             the versions (export.serve.saved_model)
    models.config           which of them a server loads, and which label stands for which
    batching_params.pbtxt   how requests share a batch
    monitoring.config       where the server's figures are read
    compose.yaml            docker compose
    kubernetes.yaml         kubectl apply
    MODEL_CARD.md           what the model is, can do, and is not for

models.config is the only one that keeps something: the labels. All others follow from it and from the versions. A
server that runs reads it again every POLL_SECONDS, so that a label moves without a restart.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from common import console
from common.errors import StageError, UsageError
from common.files import exclusive, whole_file, write_json
from export.serve.card import Version, cell, table

MODELS = "models.config"
CARD = "MODEL_CARD.md"
TEMPLATES = ("batching_params.pbtxt", "monitoring.config", "compose.yaml", "kubernetes.yaml", CARD)
MADE_FROM = "assets.extra/export.json"
FACTS = "assets.extra/facts.json"
OF_A_VERSION = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001", MADE_FROM)

STABLE, CANARY = "stable", "canary"

# The server of the same TensorFlow as the graph. Older ones should read it as well: attributes that have their default
# are stripped from it, and its ops are of years ago; but that has not been run.
IMAGE = "tensorflow/serving:2.21.0"
GRPC_PORT, REST_PORT = 8500, 8501
CPUS = 2
MEMORY_GB = 4
POLL_SECONDS = 10
TIMEOUT_SECONDS = 30  # of a request over REST


@dataclasses.dataclass(frozen=True)
class Listed:
    """What models.config says. versions: those that a server loads, the labelled ones among them."""

    labels: dict[str, int]
    versions: frozenset[int]

    def __str__(self) -> str:
        found = [f"{label} is {version}" for label, version in sorted(self.labels.items(), reverse=True)]
        others = sorted(self.versions - set(self.labels.values()))
        return ", ".join([*found, *(f"{version} is loaded besides" for version in others)])


@dataclasses.dataclass(frozen=True)
class Changes:
    """What `relabel` is asked for: labels with their new versions, labels that are to go, versions without a label."""

    moved: dict[str, int]
    removed: set[str]
    loaded: set[int]


def batch_sizes(rows: int) -> list[int]:
    """The sizes of batches that a server is warmed up with: the powers of two below a call's most rows, and those.

    >>> batch_sizes(64), batch_sizes(5)
    ([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 5])
    """
    return [1 << power for power in range((rows - 1).bit_length())] + [rows]


def model_name(base: Path) -> str:
    """The name that a server knows the model by: the folder's, with a hyphen for whatever a URL would have to escape.
    A server takes the escape for a part of the name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", base.resolve().name)


def host_name(base: Path) -> str:
    """A name as DNS, Kubernetes and compose want them. Two models that would get the same one are told apart."""
    name = base.resolve().name
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain == name and len(plain) <= 40:
        return f"char-rnn-{plain}"
    mark = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:6]
    return "-".join(part for part in ("char-rnn", plain[:40].strip("-"), mark) if part)


def write_package(base: Path, version: int, facts: dict[str, Any]) -> None:
    """Makes the package anew, now that `version` is in place.

    facts: of the version (export.serve.facts). The first version gets the label stable. A later one gets canary, where
    no other has it; else it is loaded beside them, for `relabel` to move the label to. One that has been packaged
    before changes no label.
    """
    with exclusive(base):
        before, kept = read(base), _read_json(base / str(version) / FACTS)
        served = before or Listed({STABLE: version}, frozenset([version]))
        if before and not kept and version not in before.labels.values():
            labels = {CANARY: version} | before.labels
            served = Listed(labels, before.versions | {version})
        _write(base, served, {version: _refreshed(kept, facts)})
    if served == before:
        return
    console.note(f"{base}: {served}")
    if version not in served.labels.values():
        console.note(f"when servers have loaded {version}: python -m export label {base} {CANARY}={version}")


def relabel(base: Path, changes: Sequence[str]) -> None:
    """Changes which version a label stands for, and makes the package anew; without changes, says how it is.

    changes: "LABEL=VERSION"; "LABEL=" removes the label; "VERSION" has servers load it without one. Versions that were
    labelled until now stay loaded until the next change: no request by label falls between, and going back is quick.

    Raises UsageError for what is no such change; StageError for a version that is not there in full, a label that is
    not there to be removed, and a label that would move to a version that servers are not told to load yet: they
    refuse that, with all else that the file says, until they are started again.
    """
    asked = _parsed(changes)
    if not base.is_dir():
        raise StageError(f"there is no model in {base}: make one with python -m export savedmodel runs/NAME")
    with exclusive(base):
        served = read(base)
        if served is None:
            raise StageError(f"{base} has no {MODELS}: export a model to it first")
        if changes:
            served = _changed(base, served, asked)
            _write(base, served, {})
    console.out.print(f"{base}: {served}")


def _changed(base: Path, before: Listed, asked: Changes) -> Listed:
    """What is served after the changes. Raises as `relabel` says."""
    for version in (*asked.loaded, *asked.moved.values()):
        if missing := _missing(base, version):
            raise StageError(f"{base / str(version)} is no whole version, it has no {missing}; {_there(base)}")
    for label in asked.removed:
        if label not in before.labels:
            raise StageError(f"{base} has no label {label} to remove: {before}")
    for label, version in asked.moved.items():
        old = before.labels.get(label, version)
        if version not in (old, *before.versions) and not _missing(base, old):
            raise StageError(
                f"a server moves a label only to a version that it has loaded; of {base} {before}: first "
                f"python -m export label {base} {version}, and when servers have it, {label}={version}"
            )
    labels = {label: version for label, version in before.labels.items() if label not in asked.removed} | asked.moved
    stay = before.versions
    if asked.moved or asked.removed:  # what was labelled, and what is so new that its label is to come
        newest = max(labels.values())
        stay = frozenset(v for v in stay if v > newest or v in before.labels.values())
    return Listed(labels, stay | {*labels.values(), *asked.loaded})


def read(base: Path) -> Listed | None:
    """What models.config says; None where there is none. Raises StageError where it is not as it is written here."""
    path = base / MODELS
    if not path.exists():
        return None
    try:
        found = text_format.Parse(path.read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig())
        (model,) = found.model_config_list.config
    except (ValueError, text_format.ParseError) as error:
        what = " ".join(str(error).split())
        raise StageError(f"{path} is broken ({what}): remove it, and export again") from None
    return Listed(dict(model.version_labels), frozenset(model.model_version_policy.specific.versions))


def flags(name: str, rows: int) -> list[str]:
    """How the server is started, wherever it is. rows: of a batch, at most."""
    folder = f"/models/{name}"
    callers = 2 * rows  # a caller holds a thread while its batch fills and runs: enough for a batch and the next
    return [
        f"--port={GRPC_PORT}",
        f"--rest_api_port={REST_PORT}",
        f"--model_config_file={folder}/{MODELS}",
        f"--model_config_file_poll_wait_seconds={POLL_SECONDS}",
        f"--file_system_poll_wait_seconds={POLL_SECONDS}",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching=true",
        f"--batching_parameters_file={folder}/batching_params.pbtxt",
        f"--monitoring_config_file={folder}/monitoring.config",
        f"--tensorflow_intra_op_parallelism={CPUS}",
        f"--tensorflow_inter_op_parallelism={CPUS}",
        f"--rest_api_num_threads={callers}",
        f"--grpc_max_threads={callers}",
        f"--rest_api_timeout_in_ms={1000 * TIMEOUT_SECONDS}",
    ]


def health_path(name: str) -> str:
    """What answers with 200 where the stable version can be asked, and with another status where not: its signatures.

    A model's status (the same path, without the end) answers with 200 also while a version is loading or has failed,
    and does not look at labels.
    """
    return f"/v1/models/{name}/labels/{STABLE}/metadata"


def health_check(name: str) -> str:
    """The same as a command of bash: the image has no curl."""
    request = f"printf '%s\\r\\n' 'GET {health_path(name)} HTTP/1.0' '' >&3"
    return f"exec 3<>/dev/tcp/127.0.0.1/{REST_PORT} && {request} && head -n 1 <&3 | grep -q ' 200 '"


def _parsed(changes: Sequence[str]) -> Changes:
    asked = Changes({}, set(), set())
    for change in changes:
        found = re.fullmatch(r"(?:([A-Za-z][A-Za-z0-9_-]{0,62})=)?([1-9][0-9]{0,17})?", change)
        if not found or not change:
            rule = "expected LABEL=VERSION, LABEL= or VERSION, a label of letters, digits, - and _, as stable=2 canary="
            raise UsageError(f"{rule}; got '{change}'")
        label, version = found.groups()
        if label and (label in asked.moved or label in asked.removed):
            raise UsageError(f"a label stands for one version; {label} is given twice")
        if label == STABLE and not version:
            raise UsageError(f"{STABLE} cannot be removed, callers and health checks ask for it: move it")
        if not label:
            asked.loaded.add(int(version))
        elif version:
            asked.moved[label] = int(version)
        else:
            asked.removed.add(label)
    return asked


def _missing(base: Path, version: int) -> str | None:
    """A file that a version lacks, where it lacks one."""
    return next((name for name in OF_A_VERSION if not (base / str(version) / name).is_file()), None)


def _there(base: Path) -> str:
    """Which whole versions there are."""
    found = sorted(int(path.name) for path in base.glob("*") if path.name.isdigit())
    return f"there are: {', '.join(str(version) for version in found if not _missing(base, version)) or 'none'}"


def _refreshed(kept: dict[str, Any] | None, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a version that is packaged again: with what came since, but with the tools that made it."""
    if not kept:
        return facts
    return kept | {name: value for name, value in facts.items() if value is not None and name != "tools"}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(base: Path, served: Listed, new_facts: dict[int, dict[str, Any]]) -> None:
    """Writes the whole package: all is made before anything is written, and the file that servers act on comes last."""
    for label, version in served.labels.items():
        if missing := _missing(base, version):
            raise StageError(
                f"{label} of {base} is version {version}, which has no {missing}; {_there(base)}; move the label: "
                f"python -m export label {base} {label}=VERSION"
            )
    there = [version for version in sorted(served.versions) if not _missing(base, version)]
    versions = [_version(base, version, served, new_facts) for version in there]
    texts = _texts(base, versions)
    texts[MODELS] = _config(model_name(base), served.labels, there)
    for name, text in texts.items():
        with whole_file(base / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for version, facts in new_facts.items():
        write_json(base / str(version) / FACTS, facts)


def _config(name: str, labels: dict[str, int], versions: list[int]) -> str:
    config = model_server_config_pb2.ModelServerConfig()
    model = config.model_config_list.config.add(
        name=name, base_path=f"/models/{name}", model_platform="tensorflow", version_labels=labels
    )
    model.model_version_policy.specific.versions.extend(versions)
    return (
        "# Made by the export, which overwrites it. Labels are moved with: python -m export label\n"
        + text_format.MessageToString(config)
    )


def _version(base: Path, number: int, served: Listed, new_facts: dict[int, dict[str, Any]]) -> Version:
    folder = base / str(number)
    labels = sorted((label for label, version in served.labels.items() if version == number), reverse=True)
    about = _read_json(folder / MADE_FROM)
    if about is None:
        raise StageError(f"{folder / MADE_FROM} is damaged: export the version again with --force")
    return Version(number, labels, about, new_facts.get(number) or _read_json(folder / FACTS) or {})


def _texts(base: Path, versions: list[Version]) -> dict[str, str]:
    """The files that follow from the versions, by name."""
    rows = min(version.rows for version in versions)
    name = model_name(base)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("export.serve", "templates"),
        autoescape=False,  # no page: each value is quoted as its own file wants it
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"yaml": json.dumps, "cell": cell}
    values = {
        "name": name,
        "folder": base.resolve().name,
        "host": host_name(base),
        "image": IMAGE,
        "grpc": GRPC_PORT,
        "rest": REST_PORT,
        "cpus": CPUS,
        "memory": MEMORY_GB,
        "timeout": TIMEOUT_SECONDS,
        "poll": POLL_SECONDS,
        "flags": flags(name, rows),
        "health_path": health_path(name),
        "health_check": health_check(name),
        "rows": rows,
        "versions": versions,
        "unit": next(version.vocab.unit for version in versions if STABLE in version.labels),
        "table": table(versions),
    }
    return {file: environment.get_template(f"{file}.j2").render(values) for file in TEMPLATES}
