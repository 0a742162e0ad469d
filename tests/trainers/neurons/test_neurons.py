"""Activations against the equations in float64, and the neurons command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from once import once

from common.errors import StageError, UsageError
from common.files import load_json
from pipeline.manifest import Manifest
from pipeline.vocab import Vocab, byte_vocab, char_vocab
from trainers.config import ModelConfig
from trainers.model.char_rnn import CharRNN
from trainers.neurons import neurons as module
from trainers.neurons.labels import Label
from trainers.neurons.neurons import NeuronOptions, Passage, likeliest, neurons_run, read, record
from trainers.training.devices import Devices

CELLS = [  # model settings, and whether the text has documents
    ({"cell": "lstm", "layers": 2}, False),
    ({"cell": "lstm", "layers": 1, "layer_norm": True}, True),
    ({"cell": "gru", "layers": 3, "embedding": 4, "layer_norm": True}, False),
    ({"cell": "gru", "layers": 1}, True),
    ({"cell": "rnn", "layers": 2, "embedding": 3}, True),
]
Activations = list[dict[str, np.ndarray]]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def equations(model: CharRNN, ids_N: np.ndarray, end_id: int | None) -> tuple[Activations, np.ndarray]:
    """Compute every layer's activations after each id, and the logits, in float64 by the equations of cells.py."""
    w = {variable.path: np.array(variable, np.float64) for variable in model.weights}
    states = np.zeros((len(model.rnns), 2, model.config.units))
    activations: list[list[dict[str, np.ndarray]]] = [[] for _ in model.rnns]
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
            activations[index].append(now)
            if model.norms:
                norm = model.norms[index]
                y = (h - h.mean()) / np.sqrt(h.var() + norm.epsilon) * w[norm.gamma.path] + w[norm.beta.path]
        logits.append(y @ w[model.dense.kernel.path] + w[model.dense.bias.path])
    return [{name: np.stack([now[name] for now in layer]) for name in layer[0]} for layer in activations], np.stack(
        logits
    )


@pytest.mark.parametrize(
    ("settings", "documents"),
    [pytest.param(*CELLS[i], marks=[pytest.mark.slow] * (i in (0, 2))) for i in range(len(CELLS))],
)
def test_read_matches_equations(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], documents: bool
) -> None:
    monkeypatch.setattr(module, "WINDOW", 13)  # three windows, the last one partial
    vocab = Vocab("char", tuple(c.encode() for c in "\nabcdefghi"), end_id=0 if documents else None)
    model = CharRNN(ModelConfig(units=7, **settings), vocab.size, seed=3)
    for weight in model.weights:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    ids_N = rng.integers(0, vocab.size, 31)
    expected, logits = equations(model, np.append(4, ids_N), vocab.end_id)
    traces = list(read(model, vocab, Passage("", ids_N, "text", first=4)))
    assert [len(trace.logits_nxV) for trace in traces] == [12, 13, 6]
    np.testing.assert_allclose(np.concatenate([trace.logits_nxV for trace in traces]), logits[1:], atol=2e-5)
    for layer, by_name in enumerate(expected):
        assert set(traces[0].activations[layer]) == set(by_name)
        for name, x_NxH in by_name.items():
            actual = np.concatenate([trace.activations[layer][name] for trace in traces])
            np.testing.assert_allclose(actual, x_NxH[1:], atol=2e-5, err_msg=f"{name} of layer {layer}")


@pytest.mark.parametrize("cell", ["lstm", *(pytest.param(cell, marks=pytest.mark.slow) for cell in ("gru", "rnn"))])
def test_recording_has_searched_prefix_and_gate_saturation(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, cell: str
) -> None:
    monkeypatch.setattr(module, "WINDOW", 10)
    monkeypatch.setattr(module, "SEARCHED", 23)
    vocab = byte_vocab()
    model = CharRNN(ModelConfig(units=5, layers=2, cell=cell), 256, seed=3)
    for weight in model.weights:
        weight.assign((2 if cell == "rnn" else 4) * weight)  # to saturate gates; at 4, a plain RNN is chaotic
    ids_N = rng.integers(0, 256, 37)
    activations, logits = equations(model, ids_N, None)
    recording = record(model, vocab, Passage("", ids_N, "text"))
    name = "c" if cell == "lstm" else "h"
    expected = np.concatenate([layer[name] for layer in activations], 1)[:23]
    np.testing.assert_allclose(recording.values_SxU, expected, atol=1e-4)
    np.testing.assert_array_equal(recording.ids_SxK, np.argsort(-logits, 1)[:23, :5])
    gates = {"lstm": ["input", "forget", "output"], "gru": ["update", "reset"], "rnn": []}[cell]
    assert [(row["layer"], row["gate"]) for row in recording.gates] == [(1 + k, gate) for k in (0, 1) for gate in gates]
    for row in recording.gates:
        gate_NxH = activations[row["layer"] - 1][row["gate"]]
        assert row["left"] == pytest.approx((gate_NxH < 0.1).mean(0), abs=1e-4)
        assert row["right"] == pytest.approx((gate_NxH > 0.9).mean(0), abs=1e-4)


def test_likeliest_sorts_by_probability() -> None:
    ids, p = likeliest(np.log([[0.1, 0.2, 0.05, 0.3, 0.02, 0.25, 0.08]]) + 7)
    assert ids.tolist() == [[3, 5, 1, 0, 6]]
    np.testing.assert_allclose(p, [[0.3, 0.25, 0.2, 0.1, 0.08]])
    assert likeliest(np.zeros((2, 3)))[0].shape == (2, 3)
    assert likeliest(np.zeros((0, 9)))[0].shape == (0, 5)


@pytest.fixture
def run(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_data: Callable[..., Manifest],
    on: Callable[..., Devices],
) -> Path:
    """Copy of a tiny run at step 5; its data set is shared."""

    def make(folder: Path) -> None:
        make_data(folder / "data", 1000, train=tiny_run.TEXT, val=tiny_run.TEXT, test=tiny_run.TEXT[5:])
        tiny_run.tiny_training(folder / "fox", folder / "data", on(), 5).go()

    return shutil.copytree(once(tmp_path_factory, "neurons", make) / "fox", tmp_path / "fox")


def test_command_writes_report_page_picture_and_activations(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    neurons_run(run, NeuronOptions(png=tmp_path / "fox.png", activations=tmp_path / "fox.npz"))
    out = capsys.readouterr().out
    assert out.startswith("Best unit per label, by tanh(c) over 175 bytes\n")
    scored = next(label for label in json.loads((run / "neurons.json").read_text())["labels"] if "score" in label)
    score = f"{scored['score']:.3f}"
    assert score in out
    assert score in (run / "neurons.html").read_text().split("Best unit per label")[-1]
    assert f"{run} at step 5 on data's test split: {run}/neurons.html, neurons.json" in out
    assert (tmp_path / "fox.png").read_bytes().startswith(b"\x89PNG")
    report = load_json(run / "neurons.json")
    assert list(report) == [
        "format_version",
        "step",
        "weights_sha256",
        "text",
        "colour",
        "neurons",
        "labels",
        "followers",
        "gates",
    ]
    assert f"\n{report['followers']} of 16 units follow a label clearly\n" in out
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
    assert "http" not in html.replace("http-equiv", ""), "the page loads nothing"
    with np.load(tmp_path / "fox.npz") as arrays:
        assert arrays["states2"].shape == (175, 8)


def test_language_follows_the_file_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passages: list[Passage] = []

    def spy(model: CharRNN, vocab: Vocab, passage: Passage, *_: object) -> module.Recording:
        passages.append(passage)
        return record(model, vocab, passage)

    monkeypatch.setattr(module, "record", spy)
    (tmp_path / "a.c").write_bytes(b"int x = 1; /* \xff */\n" * 9)
    out = tmp_path / "out" / "mine.html"
    neurons_run(run, NeuronOptions(text=tmp_path / "a.c", length=100, unit=(2, 3), excerpt=(40, 500), out=out))
    (passage,) = passages
    assert (passage.name, passage.language, passage.first) == ("a.c", "c", 10)
    assert passage.ids_N.tolist() == list((b"int x = 1; /* \xff */\n" * 9)[:100])
    assert {path.name for path in out.parent.iterdir()} == {"mine.json", "mine.html"}
    assert "colour({ layer: 2, unit: 3 });" in out.read_text()
    assert "at byte\n40." in out.read_text()
    neurons_run(run, NeuronOptions(text=tmp_path / "a.c", language="py", out=out))
    assert passages[-1].language == "python"


def test_unrelated_file_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"format_version": 1, "name": "mine"}')
    with pytest.raises(StageError, match=r"package\.json exists and was not written by `trainers neurons`: move it"):
        neurons_run(run, NeuronOptions(out=tmp_path / "package.html"))
    assert (tmp_path / "package.json").read_text() == '{"format_version": 1, "name": "mine"}'
    assert not (tmp_path / "package.html").exists()


def test_invalid_options_raise(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for options, message in (
        ({"unit": (3, 1)}, r"fox has layers 1 to 2 and units 1 to 8, got --layer 3 --unit 1$"),
        ({"unit": (1, 9)}, r"got --layer 1 --unit 9$"),
        ({"excerpt": (175, 1)}, r"^--excerpt must be a start from 0 to 174 and a length of at least 1, got 175 1$"),
        ({"excerpt": (0, 0)}, r"got 0 0$"),
        ({"language": "klingon"}, r"^--language: Pygments has no lexer for 'klingon'"),
    ):
        with pytest.raises(UsageError, match=message):
            neurons_run(run, NeuronOptions(**options))  # type: ignore[arg-type]
    for options, message in (
        ({"out": tmp_path / "a.htm"}, r"^--out must be a file NAME\.html, got .*a\.htm$"),
        ({"png": tmp_path}, r"^--png must be a file NAME\.png or \.svg or \.pdf, got"),
        ({"activations": tmp_path / "states"}, r"^--activations must be a file NAME\.npz, got .*states$"),
        ({"text": tmp_path / "empty", "data": tmp_path}, "^--data locates the run's own text"),
    ):
        with pytest.raises(UsageError, match=message):
            NeuronOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(StageError, match=r"^empty is empty: pass another file with --text$"):
        neurons_run(run, NeuronOptions(text=tmp_path / "empty"))
    assert not (run / "neurons.html").exists()


def test_text_outside_the_vocabulary_raises(tmp_path: Path, saved_run: Callable[..., Path]) -> None:
    vocab = char_vocab(dict.fromkeys(tiny_run.TEXT.decode(), 1))  # type: ignore[arg-type]
    run = saved_run(tmp_path, vocab, train=tiny_run.TEXT, val=tiny_run.TEXT)
    (tmp_path / "a.txt").write_text("the é")
    with pytest.raises(
        StageError, match=r"a\.txt: the character 'é' \(U\+00E9\) at offset 4 is not in the vocabulary$"
    ):
        neurons_run(run, NeuronOptions(text=tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(b"the \xe9")
    with pytest.raises(StageError, match=r"a\.txt: not UTF-8"):
        neurons_run(run, NeuronOptions(text=tmp_path / "a.txt"))
    neurons_run(run, NeuronOptions(text=tmp_path / "a.txt", length=4))  # the invalid byte is beyond --length


def test_excerpt_starts_where_the_label_varies_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWN", 20)
    vocab = byte_vocab()
    ids_S = vocab.encode(b"012345678\n" * 12)
    values_S = np.zeros(120, bool)
    values_S[30:40] = values_S[95:105] = True  # half of a picture from 90 has the label
    assert module._most_varied(ids_S, vocab, Label("", values_S)) == 90
    assert module._most_varied(ids_S[:15], vocab, Label("", values_S[:15])) == 7  # too short to choose
