"""Data of the neurons page, and its picture. tests/export/web/test_web_neurons.py tests the page in a browser."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from pipeline.vocab import byte_vocab
from trainers.neurons import page as module
from trainers.neurons.page import Excerpt, Page, draw

TEXT = "a $x$\r\n\u732b\x1b e\n".encode() + b"\xff"
SHOWN = "a $x$←↵\u732b\ufffd e↵\ufffd"


@pytest.mark.filterwarnings("error")
def test_picture_shows_each_character_and_its_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    E, labels = len(TEXT), list[tuple[float, str]]()
    text_of = Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **_: labels.append((x, s)) or text_of(self, x, y, s, **_))
    ids_ExK = np.tile([36, 10], (E, 1))
    excerpt = Excerpt.of(np.frombuffer(TEXT, np.uint8), byte_vocab(), 0, np.eye(E, 6), ids_ExK, np.full((E, 2), 0.5))
    report = {"neurons": [{"layer": 2, "unit": 1, "about": "inside quotes"}]}
    page = Page("fox", "byte", 2, 3, np.arange(6.0), report)
    assert page.first == (2, 1)
    assert [(neuron["layer"], neuron["unit"]) for neuron in page.listed()] == [
        (2, 1),
        (2, 3),
        (2, 2),
        (1, 3),
        (1, 2),
        (1, 1),
    ]
    for name in ("a.png", "a.svg"):
        labels.clear()
        draw(tmp_path / name, page, excerpt, 2, 1)
        assert [s for _, s in labels] == [s for c in SHOWN for s in (c.replace("$", r"\$"), r"\$", "↵")]
    assert [x for x, _ in labels][::3] == [k + 0.5 for k in (*range(7), *range(5), 0)], "a newline starts a new line"
    assert capsys.readouterr().err.startswith(f"{tmp_path}/a.png: unit 1 of layer 2 (inside quotes)\n")


def test_end_of_document_has_its_own_cell() -> None:
    vocab = byte_vocab(end="token")
    ids_E = np.append(vocab.encode("é".encode()), [256, 97]).astype(vocab.dtype)
    excerpt = Excerpt.of(ids_E, vocab, 0, np.eye(4), np.full((4, 1), 256), np.ones((4, 1)))
    assert (excerpt.characters_C, excerpt.symbols[256]) == (["é", "", "a"], "∎")
    assert excerpt.values_CxU.tolist() == np.eye(4)[1:].tolist()


def test_units_with_nearly_constant_colour_are_flat() -> None:
    values_ExU = np.array([[3.0, -9.0, 0.1, 2.0], [5.0, 1.0, 0.2, 2.0], [7.0, 0.0, 0.6, 2.0]])
    colour_ExU, zeros = np.tanh(values_ExU), np.zeros((3, 1), int)
    excerpt = Excerpt.of(np.arange(65, 68), byte_vocab(), 0, values_ExU, zeros, zeros)
    assert excerpt.values_CxU.tolist() == values_ExU.tolist()
    excerpt = Excerpt.of(np.arange(65, 68), byte_vocab(), 0, values_ExU, zeros, zeros, cells=True)
    np.testing.assert_allclose(excerpt.colour_CxU, colour_ExU)
    np.testing.assert_allclose(excerpt.own_CxU.T, [[-1, 0, 1], [-1, 1, 0.8], [-1, -0.6, 1], [0, 0, 0]], atol=1e-9)
    assert excerpt.flat_U.tolist() == [True, False, True, True]


def test_picture_of_long_excerpt_is_truncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "DRAWN", 9)
    monkeypatch.setattr(module, "COLUMNS", 4)
    excerpt = Excerpt.of(
        np.arange(65, 85), byte_vocab(), 0, np.zeros((20, 2)), np.zeros((20, 1), int), np.zeros((20, 1))
    )
    own = " by its own range"  # the unit is constant
    draw(tmp_path / "a.svg", Page("fox", "byte", 1, 2, np.arange(2.0), {"neurons": []}), excerpt, 1, 2)
    assert (
        capsys.readouterr().err == f"{tmp_path}/a.svg: unit 2 of layer 1{own}, the first 9 characters of the excerpt\n"
    )
    assert module._lines(["a"] * 9) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
