"""Page of models/ in a real browser: each model and snapshot, compared with the Python runner."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from javascript import CHROMIUM, names, node, results, settle

from export.lite.runner import LiteModel, Sampling
from export.web.build import write_page

pytestmark = [pytest.mark.slow, pytest.mark.processes]
SCRIPT = Path(__file__).parent / "site.test.mjs"
MODELS = sorted(path.parent for path in Path("models").glob("*/model.json"))
PROMPT, WORD = "Al", "Alan"  # characters that every model knows, or reads as U+FFFD
SETTINGS = {"temperature": 0.7, "seed": 5, "length": 80}


def expected(folder: Path) -> dict[str, Any]:
    """Return a model's texts by snapshot, the trained one last, and its h and logits after WORD."""
    steps = json.loads((folder / "model.json").read_text())["config"]["train"].get("snapshots", [])
    folders = [*(folder / f"step-{step}" for step in steps), folder]
    models = [LiteModel(path / "int8-dynamic.tflite") for path in folders]
    sampling = Sampling(SETTINGS["temperature"], int(SETTINGS["seed"]))
    trained = models[-1]
    read = trained.vocab.decode(trained.vocab.encode(PROMPT.encode()))
    texts = [read + model.generate(PROMPT.encode(), int(SETTINGS["length"]), sampling) for model in models]
    ids = trained.vocab.prompt_ids(WORD.encode())  # in some models, they start with the end of a document
    logits_V, carry_1xLxSxH = trained.read(ids, trained.initial_carry())
    return {
        "name": folder.name,
        "texts": [codecs.getincrementaldecoder("utf-8")("replace").decode(text) for text in texts],
        "steps": len(ids),
        "h": carry_1xLxSxH[0, 0, 0].tolist(),
        "logits": logits_V.tolist(),
    }


@pytest.fixture(scope="module")
def browsed(
    tmp_path_factory: pytest.TempPathFactory, serving_page: Any, out: Path, request: pytest.FixtureRequest
) -> dict[str, str]:
    node()
    if not CHROMIUM:
        pytest.skip("Chromium is missing, the page is not tested (apt install chromium)")
    folder = tmp_path_factory.mktemp("all")
    write_page(MODELS, folder / "site", force=False)
    models = [expected(model) for model in MODELS]
    with serving_page(folder / "site") as url:
        cases = {"url": url, "prompt": PROMPT, "word": WORD, "settings": SETTINGS, "models": models}
        (folder / "cases.json").write_text(json.dumps(cases))
        return results(SCRIPT, folder / "cases.json", out, request)


@pytest.mark.parametrize("name", names(SCRIPT))
def test_site(browsed: dict[str, str], name: str) -> None:
    settle(browsed, name)
