"""Shared by the exports: the origin of a model, reuse of an existing export, the tolerance of logits, test prompts."""

from pathlib import Path
from typing import Any

from common import console
from common.errors import StageError
from common.files import read_json
from export import checksums
from pipeline.vocab import Vocab
from trainers.checkpoint import Checkpoint, weights_sha256
from trainers.run import Run

LOGITS_TOLERANCE = 1e-4


def origin_of(run: Run, chosen: Checkpoint) -> dict[str, Any]:
    """Describe the run and checkpoint that a model comes from, as the JSON written beside it."""
    return {
        "format_version": 1,
        "run": run.folder.name,
        "step": chosen.step,
        "val_nats": chosen.val_nats,
        "weights_sha256": weights_sha256(chosen),
        "data_sha256": run.data_sha256,
        "config": run.config.to_json(),
        "vocab": run.vocab.to_json(),
    }


def is_current(target: Path, about: str, origin: dict[str, Any], fix: str) -> bool:
    """Check whether `target` already holds the same model, and print a note if so.

    about: the JSON file in `target` that describes its origin. fix: the option that keeps both models.
    Raises StageError if it holds a different model, or if one of its files is missing or corrupted.
    """
    if not target.exists() or not any(target.iterdir()):
        return False
    checksums.check(target, f"rebuild all with --force, or pass {fix}")
    existing = read_json(target / about)
    if {**existing, **origin} != existing:
        raise StageError(f"{target} already holds a different model: pass {fix} or --force")
    console.note(f"{target} is up to date with step {origin['step']} of {origin['run']}")
    return True


def check_logits(difference: float, name: str) -> None:
    """Raise StageError if an exported model's logits differ from the checkpoint's by more than LOGITS_TOLERANCE."""
    if not difference <= LOGITS_TOLERANCE:
        raise StageError(f"{name}'s logits differ by {difference:.1g}; at most {LOGITS_TOLERANCE:g} is allowed")


def known(text: bytes, vocab: Vocab) -> bytes:
    """Drop unknown symbols from a text. If none is left, return the vocabulary's first symbols."""
    return vocab.decode(vocab.encode_known(text, keep_unknown=False).ids) or vocab.decode(range(min(8, vocab.size)))
