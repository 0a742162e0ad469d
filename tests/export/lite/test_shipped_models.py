"""The trained models in the repository: intact, small, and able to generate text without TensorFlow."""

import json
from pathlib import Path

import pytest

from export import checksums
from export.lite.runner import LiteModel, Sampling

MODELS = sorted(path.parent for path in Path("models").glob("*/model.json"))
MOST_BYTES, MOST_BYTES_IN_ALL = 1_200_000, 8_500_000


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_models_fit_the_repository() -> None:
    assert MODELS
    sizes = {folder.name: size(folder) for folder in MODELS}
    assert max(sizes.values()) <= MOST_BYTES, sizes
    assert sum(sizes.values()) <= MOST_BYTES_IN_ALL, sizes


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_model_is_intact_and_generates_text(folder: Path) -> None:
    assert checksums.verify(folder) == []
    about = json.loads((folder / "model.json").read_text())
    card = (folder / "MODEL_CARD.md").read_text()
    kept = json.loads((Path("results") / f"{about['run']}.json").read_text())
    assert kept["weights_sha256"] == about["weights_sha256"], "the recorded results belong to different weights"
    assert f"{kept['nats']:.3f} nats" in card
    assert "| licence of the text |" in card
    model = LiteModel(folder / "int8-dynamic.tflite")
    for snapshot in about["config"]["train"].get("snapshots", []):
        earlier = LiteModel(folder / f"step-{snapshot}" / "int8-dynamic.tflite")
        assert (earlier.about["step"], earlier.vocab) == (snapshot, model.vocab)
    text = model.generate(b"", 100, Sampling(0.7, seed=3))
    assert text == model.generate(b"", 100, Sampling(0.7, seed=3))
    assert all(character.isprintable() or character.isspace() for character in text.decode(errors="replace"))
