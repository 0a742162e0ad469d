"""Page of a run's neurons in a real browser; each JavaScript test is one pytest test."""

import json
from pathlib import Path

import numpy as np
import pytest
from javascript import CHROMIUM, names, node, results, settle

from pipeline.vocab import byte_vocab
from trainers.neurons.page import Excerpt, Page, write_page

pytestmark = pytest.mark.processes
SCRIPT = Path(__file__).parent / "neurons.test.mjs"
TEXT = 'aé "b</script>" c\ndf{{ e }}\xff\n g'
UNITS = 3


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory, out: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    node()
    if not CHROMIUM:
        pytest.skip("Chromium is missing, the page is not tested (apt install chromium)")
    rng, vocab, folder = np.random.default_rng(), byte_vocab(), tmp_path_factory.mktemp("neurons")
    data = TEXT.encode().replace(b"\xc3\xbf", b"\xff")  # a byte that is not UTF-8
    E = len(data)
    colour_ExU = rng.uniform(-1, 1, (E, 2 * UNITS)).astype(np.float32)
    colour_ExU[:, 1] = np.abs(colour_ExU[:, 1])
    colour_ExU[:2] = np.array([[-0.9], [0.9]])  # so that only unit 4, set below, has low contrast
    values_ExU = np.arctanh(colour_ExU)
    values_ExU[:, 4] = np.arange(5, 5 + E)
    ids_ExK = rng.permuted(np.tile(np.arange(256), (E, 1)), axis=1)[:, :5]
    ids_ExK[2] = [10, 32, 0xE9, ord("<"), 0]  # after é, which is two bytes
    p_ExK = np.sort(rng.dirichlet(np.ones(9), E))[:, ::-1][:, :5]
    place = {"layer": 1, "unit": 2, "score": 0.95, "inverted": True, "about": "inside <quotes>", "measure": "auc"}
    nothing = {"about": "inside a comment", "measure": "auc", "essay": "comment", "verdict": "not in this text"}
    report = {
        "step": 1234,
        "text": {"name": "<b>test</b>", "language": "text", "read": E, "searched": E},
        "colour": "tanh(c)",
        "neurons": [place],
        "labels": [place | {"essay": "quote", "verdict": "found", "chance": 0.6}, nothing],
        "gates": [
            {"layer": layer, "gate": gate, "left": [0.1, 0.2, 0.3], "right": [0.5, 0.0, 0.7]}
            for layer in (1, 2)
            for gate in ("input", "forget")
        ],
    }
    page = Page("a <run>", "byte", 2, UNITS, colour_ExU.var(0), report)
    excerpt = Excerpt.of(vocab.encode(data), vocab, 7, values_ExU, ids_ExK, p_ExK, cells=True)
    write_page(folder / "neurons.html", page, excerpt, page.first)
    last = [k for k in range(E) if k + 1 == E or data[k + 1] & 0xC0 != 0x80]  # last byte of each character
    cases = {
        "page": str(folder / "neurons.html"),
        "text": data.decode(errors="replace").replace("\n", "↵"),
        "second": ["↵", "␣", "e9", "<", "\ufffd"],
        "colours": {
            f"{layer}.{unit}": colour_ExU[last, (layer - 1) * UNITS + unit - 1].tolist()
            for layer in (1, 2)
            for unit in (1, 2, 3)
            if (layer, unit) != (2, 2)
        },
        "own": ((2 * np.array(last) - last[0] - last[-1]) / (last[-1] - last[0])).tolist(),
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    return results(SCRIPT, folder / "cases.json", out, request)


@pytest.mark.parametrize("name", names(SCRIPT))
def test_page(browsed: dict[str, str], name: str) -> None:
    settle(browsed, name)
