"""What units hold, beside the equations in float64; and the command, from a run to the page's list of neurons."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run

from common.errors import StageError, UsageError
from pipeline.manifest import Manifest
from pipeline.vocab import Vocab, byte_vocab, char_vocab
from trainers.config import ModelConfig
from trainers.model.char_rnn import CharRNN
from trainers.neurons import neurons as module
from trainers.neurons.labels import Label
from trainers.neurons.neurons import Text, Wanted, likeliest, neurons_run, read, watch
from trainers.training.devices import Devices

CELLS = [
    {"cell": "lstm", "layers": 2},
    {"cell": "lstm", "layers": 1, "layer_norm": True},
    {"cell": "gru", "layers": 3, "embedding": 4, "layer_norm": True},
    {"cell": "rnn", "layers": 2, "embedding": 3},
]
Held = list[dict[str, np.ndarray]]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def equations(model: CharRNN, ids_N: np.ndarray, end_id: int | None) -> tuple[Held, np.ndarray]:
    """What every layer holds after each id, and the logits, as cells.py writes the equations, in float64."""
    w = {variable.path: np.array(variable, np.float64) for variable in model.weights}
    states = np.zeros((len(model.rnns), 2, model.config.units))
    held: list[list[dict[str, np.ndarray]]] = [[] for _ in model.rnns]
    logits = []
    for token in ids_N:
        if token == end_id:
            states[:] = 0
        y = w["embedding/embeddings"][token] if model.embedding else np.eye(model.vocab_size)[token]
        for index, layer in enumerate(model.rnns):
            cell, (h, c) = layer.cell, states[index]
            kernel, recurrent, bias = (w[x.path] for x in (cell.kernel, cell.recurrent_kernel, cell.bias))
            bias, recurrent_bias = bias if bias.ndim == 2 else (bias, 0)
            x_, h_ = y @ kernel + bias, h @ recurrent + recurrent_bias
            if model.config.cell == "lstm":
                i, f, g, o = np.split(x_ + h_, 4)
                i, f, o, g = sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(g)
                c = f * c + i * g
                h = o * np.tanh(c)
                now = {"h": h, "input": i, "forget": f, "output": o, "candidate": g, "c": c}
            elif model.config.cell == "gru":
                (z, r, x), (hz, hr, hh) = np.split(x_, 3), np.split(h_, 3)
                z, r = sigmoid(z + hz), sigmoid(r + hr)
                g = np.tanh(x + r * hh)
                h = z * h + (1 - z) * g
                now = {"h": h, "update": z, "reset": r, "candidate": g}
            else:
                h = np.tanh(x_ + h_)
                now = {"h": h, "state": h}
            states[index], y = (h, c), h
            held[index].append(now)
            if model.norms:
                norm = model.norms[index]
                y = (h - h.mean()) / np.sqrt(h.var() + norm.epsilon) * w[norm.gamma.path] + w[norm.beta.path]
        logits.append(y @ w[model.dense.kernel.path] + w[model.dense.bias.path])
    return [{name: np.stack([now[name] for now in layer]) for name in layer[0]} for layer in held], np.stack(logits)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell.values())))
def test_what_is_held_is_what_the_equations_say(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, cell: dict[str, Any], documents: bool
) -> None:
    monkeypatch.setattr(module, "WINDOW", 13)  # three windows, of which the last is not full
    vocab = Vocab("char", tuple(c.encode() for c in "\nabcdefghi"), end_id=0 if documents else None)
    model = CharRNN(ModelConfig(units=7, **cell), vocab.size, seed=3)
    for weight in model.weights:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    ids_N = rng.integers(0, vocab.size, 31)
    expected, logits = equations(model, np.append(4, ids_N), vocab.end_id)
    seen = list(read(model, vocab, Text("", ids_N, "text", first=4)))
    assert [len(one.logits_nxV) for one in seen] == [12, 13, 6]
    np.testing.assert_allclose(np.concatenate([one.logits_nxV for one in seen]), logits[1:], atol=2e-5)
    for layer, wanted in enumerate(expected):
        assert set(seen[0].held[layer]) == set(wanted)
        for name, x_NxH in wanted.items():
            found = np.concatenate([one.held[layer][name] for one in seen])
            np.testing.assert_allclose(found, x_NxH[1:], atol=2e-5, err_msg=f"{name} of layer {layer}")


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_what_is_kept_is_the_beginning_and_the_share_of_saturated_gates(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, cell: str
) -> None:
    monkeypatch.setattr(module, "WINDOW", 10)
    monkeypatch.setattr(module, "SEARCHED", 23)
    vocab = byte_vocab()
    model = CharRNN(ModelConfig(units=5, layers=2, cell=cell), 256, seed=3)
    for weight in model.weights:
        weight.assign(4 * weight)
    ids_N = rng.integers(0, 256, 37)
    held, logits = equations(model, ids_N, None)
    watched = watch(model, vocab, Text("", ids_N, "text"))
    name = "c" if cell == "lstm" else "h"
    expected = np.concatenate([layer[name] for layer in held], 1)[:23]
    np.testing.assert_allclose(watched.held_SxU, expected, atol=1e-4)
    np.testing.assert_array_equal(watched.ids_SxK, np.argsort(-logits, 1)[:23, :5])
    gates = {"lstm": ["input", "forget", "output"], "gru": ["update", "reset"], "rnn": []}[cell]
    assert [(row["layer"], row["gate"]) for row in watched.gates] == [(1 + k, gate) for k in (0, 1) for gate in gates]
    for row in watched.gates:
        gate_NxH = held[row["layer"] - 1][row["gate"]]
        assert row["left"] == pytest.approx((gate_NxH < 0.1).mean(0), abs=1e-4)
        assert row["right"] == pytest.approx((gate_NxH > 0.9).mean(0), abs=1e-4)


def test_the_likeliest_come_first_with_their_probabilities() -> None:
    ids, p = likeliest(np.log([[0.1, 0.2, 0.05, 0.3, 0.02, 0.25, 0.08]]) + 7)
    assert ids.tolist() == [[3, 5, 1, 0, 6]]
    np.testing.assert_allclose(p, [[0.3, 0.25, 0.2, 0.1, 0.08]])
    assert likeliest(np.zeros((2, 3)))[0].shape == (2, 3)
    assert likeliest(np.zeros((0, 9)))[0].shape == (0, 5)


@pytest.fixture
def run(tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices]) -> Path:
    make_data(tmp_path / "data", 1000, train=tiny_run.TEXT, val=tiny_run.TEXT, test=tiny_run.TEXT[5:])
    tiny_run.tiny_training(tmp_path / "fox", tmp_path / "data", on(), 5).go()
    return tmp_path / "fox"


def test_a_run_is_read_searched_and_shown(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    neurons_run(run, Wanted(png=tmp_path / "fox.png", activations=tmp_path / "fox.npz"))
    shown = capsys.readouterr()
    assert shown.out.startswith("What units follow, by tanh(c) over 175 bytes\n")
    place = next(label for label in json.loads((run / "neurons.json").read_text())["labels"] if "score" in label)
    score = f"{place['score']:.3f}"
    assert score in shown.out
    assert score in (run / "neurons.html").read_text().split("What was looked for")[-1]
    assert f"{run} at step 5 on data's test split: {run}/neurons.html, neurons.json" in shown.out
    assert (tmp_path / "fox.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((run / "neurons.json").read_text())
    assert list(report) == ["format_version", "step", "weights_sha256", "text", "colour", "neurons", "labels", "gates"]
    assert report["text"] == {"name": "data's test split", "language": "text", "read": 175, "searched": 175}
    assert [label["essay"] for label in report["labels"][:5]] == [
        "quote",
        "line length",
        "if-statement",
        "indentation depth",
        "comment",
    ]
    assert [label["verdict"] for label in report["labels"] if label["about"] == "inside quotes"] == ["not in this text"]
    html = (run / "neurons.html").read_text()
    assert "<title>Neurons of fox</title>" in html
    assert "http" not in html.replace("http-equiv", ""), "nothing is fetched from anywhere"
    with np.load(tmp_path / "fox.npz") as arrays:
        assert arrays["states2"].shape == (175, 8)


def test_a_file_is_read_as_a_text_of_its_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts: list[Text] = []
    monkeypatch.setattr(module, "watch", lambda model, vocab, text, *_: texts.append(text) or watch(model, vocab, text))
    (tmp_path / "a.c").write_bytes(b"int x = 1; /* \xff */\n" * 9)
    out = tmp_path / "out" / "mine.html"
    wanted = Wanted(text=tmp_path / "a.c", length=100, unit=(2, 3), excerpt=(40, 500), out=out)
    neurons_run(run, wanted)
    (text,) = texts
    assert (text.name, text.language, text.first) == ("a.c", "c", 10)
    assert text.ids_N.tolist() == list((b"int x = 1; /* \xff */\n" * 9)[:100])
    assert {path.name for path in out.parent.iterdir()} == {"mine.json", "mine.html"}
    assert "colour({ layer: 2, unit: 3 });" in out.read_text()
    assert "40 on." in out.read_text()
    neurons_run(run, Wanted(text=tmp_path / "a.c", language="py", out=out))
    assert texts[-1].language == "python"


def test_no_file_of_another_kind_is_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"format_version": 1, "name": "mine"}')
    with pytest.raises(StageError, match=r"package\.json is in the way and is no list of neurons of ours: move it"):
        neurons_run(run, Wanted(out=tmp_path / "package.html"))
    assert (tmp_path / "package.json").read_text() == '{"format_version": 1, "name": "mine"}'
    assert not (tmp_path / "package.html").exists()


def test_what_cannot_be_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for wanted, message in (
        ({"unit": (3, 1)}, r"fox has layers 1 to 2 and units 1 to 8, got --layer 3 --unit 1$"),
        ({"unit": (1, 9)}, r"got --layer 1 --unit 9$"),
        ({"excerpt": (175, 1)}, r"^--excerpt wants a first character, 0 to 174, and how many, got 175 1$"),
        ({"excerpt": (0, 0)}, r"got 0 0$"),
        ({"language": "klingon"}, r"^--language: Pygments knows no language"),
    ):
        with pytest.raises(UsageError, match=message):
            neurons_run(run, Wanted(**wanted))  # type: ignore[arg-type]
    for wanted, message in (
        ({"out": tmp_path / "a.htm"}, r"^--out must be a file NAME\.html, got .*a\.htm$"),
        ({"png": tmp_path}, r"^--png must be a file NAME\.png or \.svg or \.pdf, got"),
        ({"activations": tmp_path / "states"}, r"^--activations must be a file NAME\.npz, got .*states$"),
        ({"text": tmp_path / "empty", "data": tmp_path}, "^--data is where the run's own text lies"),
    ):
        with pytest.raises(UsageError, match=message):
            Wanted(**wanted)  # type: ignore[arg-type]
    with pytest.raises(StageError, match=r"^empty is empty: give another --text$"):
        neurons_run(run, Wanted(text=tmp_path / "empty"))
    assert not (run / "neurons.html").exists()


def test_a_text_that_the_vocabulary_has_not_is_told(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices]
) -> None:
    vocab = char_vocab(dict.fromkeys(tiny_run.TEXT.decode(), 1))  # type: ignore[arg-type]
    make_data(tmp_path / "data", 1000, vocab, train=tiny_run.TEXT, val=tiny_run.TEXT)
    tiny_run.tiny_training(tmp_path / "fox", tmp_path / "data", on(), 5).go()
    (tmp_path / "a.txt").write_text("the é")
    with pytest.raises(
        StageError, match=r"a\.txt: the character 'é' \(U\+00E9\) at offset 4 is not in the vocabulary$"
    ):
        neurons_run(tmp_path / "fox", Wanted(text=tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(b"the \xe9")
    with pytest.raises(StageError, match=r"a\.txt is not UTF-8"):
        neurons_run(tmp_path / "fox", Wanted(text=tmp_path / "a.txt"))
    neurons_run(tmp_path / "fox", Wanted(text=tmp_path / "a.txt", length=4))  # what is not read does no harm


def test_the_excerpt_begins_where_the_label_varies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWN", 20)
    vocab = byte_vocab()
    ids_S = vocab.encode(b"012345678\n" * 12)
    values_S = np.zeros(120, bool)
    values_S[30:40] = values_S[95:105] = True  # half of what is shown from 90 on, in the half that counts
    assert module._telling(ids_S, vocab, Label("", values_S)) == 90
    assert module._telling(ids_S[:15], vocab, Label("", values_S[:15])) == 7  # too short to choose
