"""Plots of training curves."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from common.errors import StageError, UsageError
from trainers.judging.plot import BELOW, draw, plot, read


def train_row(step: int, nats: float, seconds: float = 2.0) -> dict[str, Any]:
    row = {"step": step, "epoch": step / 10, "train_nats": nats, "seconds": seconds}
    return row | {"gradient_norm": nats / 4, "learning_rate": 0.1 / step, "per_second": 100.0 / seconds}


def val_row(step: int, nats: float) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "val_nats": nats, "val_bits": nats / math.log(2)}


ROWS = [
    val_row(0, 5.5),
    train_row(3, 4.0),
    train_row(5, 3.0, 1.0),
    val_row(5, 3.5),
    train_row(8, 2.0),
    val_row(8, 3.75),
]


def make_run(folder: Path, rows: list[dict[str, Any]], unit: str = "byte") -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"vocab": {"unit": unit}}))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def points_by_panel(figure: Figure) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the points of every line, by panel."""
    panels = dict(zip(("loss", *BELOW), figure.axes, strict=True))
    return {
        name: [list(zip(np.asarray(x.get_xdata()), np.asarray(x.get_ydata()), strict=True)) for x in axes.lines]
        for name, axes in panels.items()
    }


def test_plot_draws_reported_metrics(tmp_path: Path) -> None:
    figure = draw([read(make_run(tmp_path / "a", ROWS), "a", "step")], "step")
    assert points_by_panel(figure) == {
        "loss": [[(3, 4.0), (5, 3.0), (8, 2.0)], [(0, 5.5), (5, 3.5), (8, 3.75)], [(5, 3.5)]],  # train, val, best
        "gradient_norm": [[(3, 1.0), (5, 0.75), (8, 0.5)]],
        "learning_rate": [[(3, 0.1 / 3), (5, 0.02), (8, 0.0125)]],
        "per_second": [[(3, 50.0), (5, 100.0), (8, 50.0)]],
    }
    figure.draw_without_rendering()  # updates the limits of the secondary axis
    loss = figure.axes[0]
    assert (loss.get_ylabel(), loss.child_axes[0].get_ylabel()) == ("nats per byte", "bits per byte")
    np.testing.assert_allclose(loss.child_axes[0].get_ylim(), np.array(loss.get_ylim()) / math.log(2))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a: best 3.5000 nats, 5.0494 bits at step 5"]


@pytest.mark.parametrize(
    ("x", "expected"), [("epoch", [0, 0.3, 0.5, 0.5, 0.8, 0.8]), ("seconds", [0, 2.0, 3.0, 3.0, 5.0, 5.0])]
)
def test_x_axis_unit(tmp_path: Path, x: Any, expected: list[float]) -> None:
    assert read(make_run(tmp_path / "a", ROWS), "a", x).x == expected


def test_runs_are_distinguishable(tmp_path: Path) -> None:
    names = ["one", "$2$", "an" * 40, *"defghi"]
    runs = [read(make_run(tmp_path / name, ROWS[:1] if name == "one" else ROWS[1:2]), name, "step") for name in names]
    figure = draw(runs, "step")
    lines = [line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names)
    assert [text.get_text().partition(": ") for text in figure.legends[0].get_texts()] == [
        ("one", ": ", "best 5.5000 nats, 7.9348 bits at step 0"),
        *((name, ": ", "not validated yet") for name in (r"\$2\$", "an" * 14 + "a…" + "an" * 15, *"defghi")),
    ]


def test_empty_panels_are_labelled(tmp_path: Path) -> None:
    figure = draw([read(make_run(tmp_path / "a", ROWS[:1], "char"), "a", "epoch")], "epoch")
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert texts == [[], *[["no data yet"]] * 3]
    assert figure.axes[3].get_title() == "chars per second"


def test_failed_save_keeps_previous_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make_run(tmp_path / "a", ROWS), make_run(tmp_path / "other" / "a", ROWS)
    out = tmp_path / "out" / "curves.png"
    plot((a, b, a), out, "step")
    picture = out.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture.endswith(b"IEND\xaeB`\x82")

    def fail(self: Figure, path: Path, **_: object) -> None:
        path.write_bytes(b"truncated")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        plot((a,), out, "step")
    assert [path.name for path in out.parent.iterdir()] == ["curves.png"]
    assert out.read_bytes() == picture


def test_runs_with_the_same_name_show_their_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (make_run(tmp_path / name, ROWS) for name in ("a", "x/a", "c"))
    plot((a, b, c, a), tmp_path / "curves.svg", "step")
    assert capsys.readouterr().err == f"{tmp_path}/curves.svg: {a}, {b}, c\n"


def test_invalid_runs_and_outputs_are_rejected(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS)
    empty, corrupted = make_run(tmp_path / "empty", []), make_run(tmp_path / "corrupted", ROWS)
    (corrupted / "run.json").write_text("{")
    for folder, message in (
        (tmp_path / "none", "no run in .*none"),
        (empty, r"empty has no metrics yet: metrics.jsonl is empty$"),
        (corrupted, r"run.json is corrupted \(JSONDecodeError"),
    ):
        with pytest.raises(StageError, match=message):
            plot((run, folder), tmp_path / "curves.png", "step")
    (tmp_path / "folder.png").mkdir()
    for out, got in ((tmp_path / "folder.png", r".* \(a folder\)"), (tmp_path / "curves.gif", r".*curves\.gif")):
        with pytest.raises(UsageError, match=rf"^--out must be a file NAME.png, .svg or .pdf, got {got}$"):
            plot((run,), out, "step")
    assert not (tmp_path / "curves.png").exists()
