"""The comparison's arithmetic on made-up rounds, its refusals, and one real run of two peers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import train
from bench.__main__ import cli
from bench.peers import PEERS, Size, flops_a_character, weights_a_character
from common import console
from common.errors import StageError, UsageError


def test_flops_against_a_hand_count() -> None:
    # Two layers of 3 units. Recurrent kernels 3 x 12, the second layer's 3 x 12, the dense layer 3 x 256; where the
    # first layer's is multiplied, it is 3 x 12 as well: the embedding is as wide as the layers.
    size = Size(2, 3)
    assert weights_a_character(size, gathers=True) == 36 + 36 + 36 + 768
    assert weights_a_character(size, gathers=False) == 36 + 36 + 36 + 36 + 768
    assert flops_a_character(size, gathers=True) == 6 * 876


def test_an_embedding_is_never_wider_than_the_vocabulary() -> None:
    extra = weights_a_character(Size(1, 512), gathers=False) - weights_a_character(Size(1, 512), gathers=True)
    assert extra == 256 * 4 * 512


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The host was three times as fast in round 2, and ours twice as fast as the peer but in round 3.
    rates = {"ours, float32": [20.0, 60.0, 10.0], "peer": [10.0, 30.0, 10.0]}
    assert train.ratios(rates, "ours, float32") == {"peer": {"median_of_ratios": 2.0, "ratio_of_medians": 2.0}}
    rates["peer"] = [10.0, 30.0, 20.0]
    assert train.ratios(rates, "ours, float32")["peer"] == {"median_of_ratios": 2.0, "ratio_of_medians": 1.0}


def test_the_ceiling_is_the_best_of_all_libraries_and_rounds() -> None:
    tf = [{"float32": 4.0, "bfloat16": 5.0}, {"float32": 3.0, "bfloat16": 6.0}]
    torch = [{"float32": 1.0, "bfloat16": 9.0}, {"float32": 2.0, "bfloat16": 8.0}]
    expected = {"float32": {"gflops": 4.0, "library": "tensorflow"}, "bfloat16": {"gflops": 9.0, "library": "torch"}}
    assert train.ceiling({"tensorflow": tf, "torch": torch}) == expected


@pytest.mark.parametrize(
    ("device", "multiplies", "expected"),
    [("cpu", True, "bfloat16"), ("cpu", False, "float32"), ("gpu", True, "float32")],
)
def test_the_default_precision_is_the_processors(
    monkeypatch: pytest.MonkeyPatch, device: str, multiplies: bool, expected: str
) -> None:
    monkeypatch.setattr(train, "multiplies_bfloat16", lambda: multiplies)
    assert train.default_precision(device) == expected


def made_up(default: str) -> dict[str, object]:
    """A result in which one weight is one FLOP, and chars/s are round numbers of GFLOP/s."""
    rates = {
        "ours, float32": [2e9, 4e9, 4e9],
        "ours, bfloat16": [4e9, 8e9, 8e9],
        "keras.layers.LSTM, fit": [1e9, 2e9, 1e9],
        "torch nn.LSTM, float32": [2e9, 2e9, 2e9],
        "torch nn.LSTM, bfloat16": [2e9, 5e9, 5e9],
    }
    started = {"first_step_seconds": 3.0, "warm_seconds": 7.5, "warm_steps": 20, "peak_bytes": 5_000_000}
    return {
        "work": {**Size(2, 3)._asdict(), "device": "cpu"},
        "default_precision": default,
        "peers": {
            name: {"characters_per_second": sorted(each)[1], "flops_a_character": 1, **started}
            for name, each in rates.items()
        },
        "ceiling": {
            "float32": {"gflops": 10.0, "library": "tensorflow"},
            "bfloat16": {"gflops": 40.0, "library": "torch"},
        },
        "ratios": {name: train.ratios(rates, name) for name in rates if name.startswith("ours")},
    }


def printed(result: dict[str, object]) -> dict[str, list[str]]:
    """The table's rows by their first cell, and its caption's lines."""
    table = train.table(result)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    captions = str(table.caption).splitlines()
    return {name: [cell for cell in cells if cell] for name, *cells in rows} | {line: [] for line in captions}


def test_the_table_is_about_the_default_precision() -> None:
    rows = printed(made_up("bfloat16"))
    ends = ["3.0 s", "7.5 s", "5"]
    assert rows["ours, bfloat16 *"] == ["8,000,000,000", "8.0", "20.0%", *ends]
    assert rows["ours, float32"] == ["4,000,000,000", "2.00 x", "4.0", "40.0%", *ends]
    assert rows["keras.layers.LSTM, fit"] == ["1,000,000,000", "4.00 x", "2.00 x", "1.0", "10.0%", *ends]
    assert rows["torch nn.LSTM, bfloat16"] == ["5,000,000,000", "1.60 x", "1.60 x", "5.0", "12.5%", *ends]
    assert "ours by default is 1.60 x as fast as the better of torch's" in rows
    assert "ours by default is 0.80 x as fast as the better of torch's" in printed(made_up("float32"))


def test_a_peer_that_failed_is_a_row_that_says_so() -> None:
    result = made_up("float32") | {"failed": {"torch nn.GRU": "torch nn.GRU ended with code 1"}}
    rows = printed(result)
    assert rows["torch nn.GRU"] == ["failed"]
    assert "torch nn.GRU failed: torch nn.GRU ended with code 1" in rows


def test_a_warm_up_that_was_cut_short_is_said() -> None:
    result = made_up("float32")
    assert "first, warm: from the command to the first step's end, and to the 20th's" in printed(result)
    result["peers"]["keras.layers.LSTM, fit"]["warm_steps"] = 7  # type: ignore[index]
    line = "first, warm: from the command to the first step's end, and to the 20th's (keras.layers.LSTM, fit to step 7)"
    assert line in printed(result)


def test_sizes_by_name() -> None:
    assert train.size_named("2x256") == Size(2, 256, 50, 50)
    assert train.size_named("3x512") == Size(3, 512, 100, 100)
    assert train.size_named("1x8") == Size(1, 8, 50, 50)
    for wrong in ("2", "0x8", "2x", "2x8x3", "axb"):
        with pytest.raises(UsageError, match=f"a size is LAYERSxUNITS, got '{wrong}'"):
            train.size_named(wrong)


def test_without_a_gpu_it_says_so_and_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "gpu_of", lambda package: False)
    with console.err.capture() as seen:
        done = CliRunner().invoke(cli, ["train", "--device", "gpu"])
    assert (done.exit_code, done.output) == (0, "")
    assert seen.get() == "TensorFlow sees no GPU here: nothing is measured\n"


def test_all_and_a_size_exclude_each_other() -> None:
    done = CliRunner().invoke(cli, ["train", "--all", "--size", "2x128"])
    assert done.exit_code == 2
    assert "--all names the sizes" in done.output


def test_torch_is_left_out_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "has", lambda package: package != "torch")
    monkeypatch.setattr(train, "multiplies_bfloat16", lambda: True)
    with console.err.capture() as seen:
        usable = [name for name, peer in PEERS.items() if train._usable(name, peer, "cpu")]
    assert usable == ["ours, float32", "ours, bfloat16", "keras.layers.LSTM, fit"]
    assert "torch nn.LSTM, float32: torch is not installed (pip install torch), left out" in seen.get()


def test_a_precision_that_the_processor_does_not_multiply_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "has", lambda package: True)
    monkeypatch.setattr(train, "multiplies_bfloat16", lambda: False)
    with console.err.capture() as seen:
        usable = [name for name, peer in PEERS.items() if train._usable(name, peer, "cpu")]
    assert usable == ["ours, float32", "keras.layers.LSTM, fit", "torch nn.LSTM, float32"]
    assert "torch nn.LSTM, bfloat16: this processor has no bfloat16 instructions, left out" in seen.get()


def test_a_peer_that_ends_is_named_with_the_command_that_shows_why() -> None:
    worker = train.Worker("a peer", "cpu", "bench.peers", "no such peer", "cpu")
    with pytest.raises(StageError, match=r"a peer ended with code 1: to see why, run .*bench.peers 'no such peer' cpu"):
        worker.read()


@pytest.mark.slow
def test_two_peers_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["ours, float32", "keras.layers.LSTM, fit"]
    broken = {"a broken peer": PEERS[names[0]]}  # bench.peers knows no such name, so its process ends
    monkeypatch.setattr(train, "PEERS", {name: PEERS[name] for name in names} | broken)
    monkeypatch.setattr(train, "commit", lambda: "a commit")
    monkeypatch.setattr(train, "_import_once", lambda packages: None)
    train.compare(Size(1, 8, lanes=4, window=5), "cpu", rounds=2, seconds=0.1, out=tmp_path)
    result = json.loads((tmp_path / "bench-train-1x8.json").read_text(encoding="utf-8"))
    assert list(result["peers"]) == names
    assert "a broken peer ended with code 1" in result["failed"]["a broken peer"]
    for name in names:
        peer = result["peers"][name]
        assert peer["characters_per_second"] > 0
        assert 0 < peer["first_step_seconds"] < peer["warm_seconds"]
        assert peer["warm_steps"] <= 20
        assert peer["peak_bytes"] > 50e6  # less than any such library takes; bytes, not kilobytes
        assert len(result["rounds"][name]) == 2
    assert set(result["ratios"]["ours, float32"]) == {names[1]}
    assert all(top["gflops"] > 1 for top in result["ceiling"].values())
    assert result["commit"] == "a commit"


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
def test_torch_learns_in_the_processor_s_precisions() -> None:
    """In a process of its own: torch's threads and TensorFlow's do not get on."""
    code = """
from bench.peers import Size, torch_lstm
from common.machine import multiplies_bfloat16
import torch
torch.manual_seed(1)
losses = []
item = torch.Tensor.item
torch.Tensor.item = lambda tensor: losses.append(item(tensor)) or losses[-1]
for precision in ("float32", *(["bfloat16"] if multiplies_bfloat16() else [])):
    run = torch_lstm(precision)(Size(1, 16, 4, 8), "cpu")
    run(1), run(60)
    assert losses[-1] < 0.9 * losses[-2], losses
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
