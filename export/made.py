"""What the exports share: what a model was made from, whether it lies there already, how near its logits must be, and
prompts to ask it."""

from pathlib import Path
from typing import Any

from common import console
from common.errors import StageError
from common.files import read_json
from pipeline.vocab import Vocab
from trainers.checkpoint import Checkpoint, weights_sha256
from trainers.run import Run

LOGITS_TOLERANCE = 1e-4


def made_from(run: Run, chosen: Checkpoint) -> dict[str, Any]:
    """What a model is made from, as the JSON that lies with it says."""
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


def already_made(target: Path, about: str, origin: dict[str, Any], way_out: str) -> bool:
    """Whether the same model lies in `target`, whose file `about` says what it was made from; says so if it does.

    Raises StageError where another model lies there.
    """
    if not target.exists() or not any(target.iterdir()):
        return False
    found = read_json(target / about)
    if {**found, **origin} != found:
        raise StageError(f"{target} is full: another model lies there; give {way_out} or --force")
    console.note(f"{target} is already made from step {origin['step']} of {origin['run']}")
    return True


def check_logits(difference: float, what: str) -> None:
    """Raises StageError where a written model's logits are further from the checkpoint's than LOGITS_TOLERANCE."""
    if not difference <= LOGITS_TOLERANCE:
        raise StageError(f"{what}'s logits differ by {difference:.1g}; at most {LOGITS_TOLERANCE:g} is allowed")


def known(text: bytes, vocab: Vocab) -> bytes:
    """As much of a text as a vocabulary has, and where it has none of it, its own first symbols."""
    return vocab.decode(vocab.encode_known(text, keep_unknown=False).ids) or vocab.decode(range(min(8, vocab.size)))
