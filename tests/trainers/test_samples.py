import doctest
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from common.errors import UsageError
from common.settings import make
from pipeline.manifest import Manifest
from pipeline.vocab import byte_vocab
from trainers import checkpoint, samples
from trainers.devices import Devices
from trainers.generate import sample_run
from trainers.samples import Sweep, sweep_run, varied
from trainers.step import total_nats


def test_doctest() -> None:
    assert doctest.testmod(samples).failed == 0


def test_how_varied_texts_are_by_hand() -> None:
    found = varied(["a b a b a b", "a b c"], {"a", "c"})
    # runs: aba bab aba bab, abc; stretches of 20: none
    assert {key: found[key] for key in ("distinct_runs", "repeated", "words_known")} == {
        "distinct_runs": 3 / 5,
        "repeated": 0.0,
        "words_known": 5 / 9,
    }
    assert varied(["x" * 30, "x" * 20], set())["repeated"] == 10 / 12
    assert varied(["a" * 5000], set())["compressed"] < 0.01 < 1 < varied(["qz"], set())["compressed"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperatures": ()}, r"samples: temperatures are one number or more from 0 to 10, got \(\)"),
        ({"temperatures": (0.5, 11.0)}, "from 0 to 10"),
        ({"kind": "prose"}, "kind is auto, c, latex, wiki, python, play, names or text, got prose"),
        ({"length": 0}, "'length': input should be greater than 0, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(Sweep, values, "samples")


@pytest.fixture
def prose(tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices]) -> Path:
    make_data(tmp_path / "data", 1000, train=tiny_run.TEXT, val=tiny_run.TEXT, test=tiny_run.TEXT[:100])
    tiny_run.tiny_training(tmp_path / "run", tmp_path / "data", on(), 40).go()
    return tmp_path / "run"


def test_the_sweep_of_a_run(prose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(temperatures=(0.5, 1.5), texts=3, length=30, seed=7)
    sweep_run(prose, None, sweep, force=False)
    found = json.loads((prose / "samples.json").read_text())
    assert [(row["temperature"], row["texts"], row["characters"]) for row in found["rows"]] == [
        (0.5, 3, 90),
        (1.5, 3, 90),
    ]
    texts = [b"".join(sample_run(prose, b"", 30, 0.5, seed)).decode(errors="replace") for seed in (7, 8, 9)]
    assert found["rows"][0]["text"] == "\n".join(texts)
    # What is real: the test split, each text begun as one that is drawn, after a newline.
    run = checkpoint.read_run(prose)
    model, nats = checkpoint.load_model(run), 0.0
    for text in (tiny_run.TEXT[:100][k : k + 30] for k in range(0, 90, 30)):
        ids = np.frombuffer(b"\n" + text, np.uint8)[None]
        logits, _ = model(ids[:, :-1], model.initial_carry(1))
        nats += float(total_nats(logits, ids[:, 1:], np.array([30])))
    real = found["held_out"]
    assert (real["split"], real["texts"], real["characters"]) == ("test", 3, 90)
    assert real["bits"] == pytest.approx(nats / 90 / math.log(2), rel=1e-5)
    assert (real["words_known"], real["copied"]) == (1.0, {"longest": 30, "copied_20": 1.0})
    assert (found["kind"], found["searched"]) == ("text", len(tiny_run.TEXT))
    before = (prose / "samples.json").stat().st_mtime_ns
    sweep_run(prose, None, sweep, force=False)
    assert (prose / "samples.json").stat().st_mtime_ns == before
    out, err = capsys.readouterr()
    assert "samples.json is already made from checkpoint" in err
    assert out.splitlines()[0] == f"{prose} at step 40, 3 texts at each temperature"
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["0.5", "1.5", "test"]


def test_names_are_judged_as_names(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices], capsys: pytest.CaptureFixture[str]
) -> None:
    text = b"Ann\nBob\nCy\nDee\n" * 12
    make_data(tmp_path / "data", 1000, byte_vocab(end="newline"), train=text, val=b"Ann\nEve\nAl\n" * 4)
    tiny_run.tiny_training(tmp_path / "run", tmp_path / "data", on(), 20).go()
    sweep_run(tmp_path / "run", None, Sweep(temperatures=(1.0,), texts=5, length=12), force=False)
    found = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert found["kind"] == "names"
    real = found["held_out"]
    assert (real["split"], real["text"]) == ("val", "Ann\nEve\nAl\nAnn\nEve")
    assert real["coherence"] == {"new": 3 / 5, "distinct": 3 / 5}
    (row,) = found["rows"]
    drawn = [
        b"".join(sample_run(tmp_path / "run", b"", 12, 1.0, seed)).decode(errors="replace") for seed in range(1, 6)
    ]
    assert row["text"] == "\n".join(drawn)
    new = [name not in ("Ann", "Bob", "Cy", "Dee") for name in drawn if name]
    assert row["coherence"]["new"] == sum(new) / len(new)
    assert "temperature 1: " in capsys.readouterr().out


def test_names_that_are_all_empty_are_new_in_nothing(
    tmp_path: Path, make_data: Callable[..., Manifest], on: Callable[..., Devices], capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(tmp_path / "data", 1000, byte_vocab(end="newline"), train=b"\n" * 200, val=b"\n" * 60)
    tiny_run.tiny_training(tmp_path / "run", tmp_path / "data", on(), 60).go()
    sweep_run(tmp_path / "run", None, Sweep(temperatures=(0.0,), texts=3, length=12), force=False)
    (row,) = json.loads((tmp_path / "run" / "samples.json").read_text())["rows"]
    assert (row["text"], row["coherence"]) == ("\n\n", {})
    assert (tmp_path / "run" / "report.html").is_file()
    assert "new" not in capsys.readouterr().out
