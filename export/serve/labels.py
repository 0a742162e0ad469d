"""models.config: which versions of a model a server loads, and the label of each."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from common.errors import StageError, UsageError

MODELS = "models.config"
MADE_FROM = "assets.extra/export.json"
VERSION_FILES = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001", MADE_FROM)
STABLE, CANARY = "stable", "canary"
CHANGE = re.compile(r"(?:([A-Za-z][A-Za-z0-9_-]{0,62})=)?([1-9][0-9]{0,17})?")


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """The content of models.config. versions: all that servers load, with and without a label."""

    labels: dict[str, int]
    versions: frozenset[int]

    def __str__(self) -> str:
        labelled = [f"{label} is {version}" for label, version in sorted(self.labels.items(), reverse=True)]
        others = sorted(self.versions - set(self.labels.values()))
        return ", ".join([*labelled, *(f"{version} is loaded without a label" for version in others)])


@dataclasses.dataclass(frozen=True)
class LabelChanges:
    """Labels to move, labels to remove, and versions to load without a label."""

    moved: dict[str, int]
    removed: set[str]
    loaded: set[int]


def read(base: Path) -> ServingConfig | None:
    """Read models.config; None if there is none. Raises StageError if it is invalid."""
    path = base / MODELS
    if not path.exists():
        return None
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig())
        (model,) = config.model_config_list.config
    except (ValueError, text_format.ParseError) as error:
        reason = " ".join(str(error).split())
        raise StageError(f"{path} is corrupted ({reason}): remove it, and export again") from None
    return ServingConfig(dict(model.version_labels), frozenset(model.model_version_policy.specific.versions))


def to_text(name: str, labels: dict[str, int], versions: list[int]) -> str:
    """Format models.config for the model `name`, with `versions` as those to load."""
    config = model_server_config_pb2.ModelServerConfig()
    model = config.model_config_list.config.add(
        name=name, base_path=f"/models/{name}", model_platform="tensorflow", version_labels=labels
    )
    model.model_version_policy.specific.versions.extend(versions)
    header = "# Made by the export, which overwrites it. Move labels with: python -m export label\n"
    return header + text_format.MessageToString(config)


def parse(changes: Sequence[str]) -> LabelChanges:
    """Parse "LABEL=VERSION", "LABEL=" (remove the label) and "VERSION" (load it). Raises UsageError."""
    parsed = LabelChanges({}, set(), set())
    for change in changes:
        match = CHANGE.fullmatch(change)
        if not match or not change:
            rule = "expected LABEL=VERSION, LABEL= or VERSION, a label of letters, digits, - and _, as stable=2 canary="
            raise UsageError(f"{rule}; got '{change}'")
        label, version = match.groups()
        if label and (label in parsed.moved or label in parsed.removed):
            raise UsageError(f"a label belongs to one version; {label} is given twice")
        if label == STABLE and not version:
            raise UsageError(f"{STABLE} cannot be removed, callers and health checks use it: move it")
        if not label:
            parsed.loaded.add(int(version))
        elif version:
            parsed.moved[label] = int(version)
        else:
            parsed.removed.add(label)
    return parsed


def apply(base: Path, before: ServingConfig, changes: LabelChanges) -> ServingConfig:
    """Apply changes to the versions below `base`.

    Raises StageError for an incomplete version, for a label to remove that does not exist, and for a label of a version
    that servers have not been configured to load. A server that has the label at another version rejects such a file as
    a whole, until restart; and it may not have read yet that a label was removed.
    """
    for version in (*changes.loaded, *changes.moved.values()):
        if missing := missing_file(base, version):
            raise StageError(f"{base / str(version)} is incomplete, {missing} is missing; {describe_complete(base)}")
    for label in changes.removed:
        if label not in before.labels:
            raise StageError(f"{base} has no label {label} to remove: {before}")
    for label, version in changes.moved.items():
        old = before.labels.get(label)
        deleted = old is not None and missing_file(base, old)
        if version != old and version not in before.versions and not deleted:
            raise StageError(
                f"a server takes a label only for a version that it has loaded; in {base} {before}: first run "
                f"python -m export label {base} {version}, and once servers have loaded it, {label}={version}; "
                "or pass --target HOST:PORT, to do both"
            )
    kept = {label: version for label, version in before.labels.items() if label not in changes.removed}
    labels = kept | changes.moved
    versions = before.versions
    if changes.moved or changes.removed:  # keep what had a label until now, and what is too new to have one
        newest = max(labels.values())
        versions = frozenset(v for v in versions if v > newest or v in before.labels.values())
    return ServingConfig(labels, versions | {*labels.values(), *changes.loaded})


def missing_file(base: Path, version: int) -> str | None:
    """Return the first file that a version lacks, if any."""
    return next((name for name in VERSION_FILES if not (base / str(version) / name).is_file()), None)


def complete_versions(base: Path) -> list[int]:
    """List the complete versions below `base`."""
    versions = sorted(int(path.name) for path in base.glob("*") if path.name.isdigit())
    return [version for version in versions if not missing_file(base, version)]


def describe_complete(base: Path) -> str:
    """Describe the complete versions below `base`, for an error message."""
    return f"complete versions: {', '.join(map(str, complete_versions(base))) or 'none'}"
