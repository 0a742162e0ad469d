"""Training benchmark: arithmetic on made-up rounds, errors, and one real run of two peers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import train
from bench.__main__ import cli
from bench.machine import provenance
from bench.peers import PEERS, Size, flops_per_character, weights_per_character
from common import console
from common.errors import StageError, UsageError


def test_flops_match_a_hand_count() -> None:
    # Two layers of 3 units. Recurrent kernels 3 x 12, the second layer's kernel 3 x 12, the dense layer 3 x 256; with
    # an embedding as wide as the layers, the first layer's kernel is 3 x 12 too.
    size = Size(2, 3)
    assert weights_per_character(size, gathers=True) == 36 + 36 + 36 + 768
    assert weights_per_character(size, gathers=False) == 36 + 36 + 36 + 36 + 768
    assert flops_per_character(size, gathers=True) == 6 * 876


def test_embedding_is_at_most_as_wide_as_the_vocabulary() -> None:
    extra = weights_per_character(Size(1, 512), gathers=False) - weights_per_character(Size(1, 512), gathers=True)
    assert extra == 256 * 4 * 512


def test_ratio_is_the_median_of_per_round_ratios() -> None:
    # The host is three times as fast in round 2; ours is twice as fast as the peer except in round 3.
    rates = {"ours, float32": [20.0, 60.0, 10.0], "peer": [10.0, 30.0, 10.0]}
    assert train.ratios(rates, "ours, float32") == {"peer": {"median_of_ratios": 2.0, "ratio_of_medians": 2.0}}
    rates["peer"] = [10.0, 30.0, 20.0]
    assert train.ratios(rates, "ours, float32")["peer"] == {"median_of_ratios": 2.0, "ratio_of_medians": 1.0}


def test_ceilings_are_the_fastest_products_of_each_round() -> None:
    result = made_up("bfloat16")
    assert train.ceilings(result) == [
        {"float32": 4, "bfloat16": 10},
        {"float32": 20, "bfloat16": 40},
        {"float32": 10, "bfloat16": 40},
    ]
    assert "float32 at 4 to 20, bfloat16 at 10 to 40 GFLOP/s" in str(train.table(result).caption)


@pytest.mark.parametrize(
    ("device", "multiplies", "expected"),
    [("cpu", True, "bfloat16"), ("cpu", False, "float32"), ("gpu", True, "tf32")],
)
def test_default_precision_depends_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, device: str, multiplies: bool, expected: str
) -> None:
    monkeypatch.setattr(train, "multiplies_bfloat16_faster", lambda: multiplies)
    assert train.default_precision(device) == expected


def made_up(default: str) -> dict[str, object]:
    """Return a result with one FLOP per weight and round GFLOP/s."""
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
        "rounds": {name: [{"characters_per_second": rate} for rate in each] for name, each in rates.items()}
        | {
            "tensorflow": [
                {"float32": 3.0, "bfloat16": 5.0},
                {"float32": 20.0, "bfloat16": 40.0},
                {"float32": 9.0, "bfloat16": 8.0},
            ],
            "torch": [
                {"float32": 4.0, "bfloat16": 10.0},
                {"float32": 8.0, "bfloat16": 9.0},
                {"float32": 10.0, "bfloat16": 40.0},
            ],
        },
        "ratios": {name: train.ratios(rates, name) for name in rates if name.startswith("ours")},
    }


def printed(result: dict[str, object]) -> dict[str, list[str]]:
    """Return the table's rows by their first cell, and its caption's lines."""
    table = train.table(result)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    captions = str(table.caption).splitlines()
    return {name: [cell for cell in cells if cell] for name, *cells in rows} | {line: [] for line in captions}


def test_table_compares_with_the_default_precision() -> None:
    rows = printed(made_up("bfloat16"))
    ends = ["3.0 s", "7.5 s", "5"]
    assert rows["ours, bfloat16 *"] == ["8,000,000,000", "8.0", "20.0%", *ends]
    assert rows["ours, float32"] == ["4,000,000,000", "2.00 x", "4.0", "40.0%", *ends]
    assert rows["keras.layers.LSTM, fit"] == ["1,000,000,000", "4.00 x", "2.00 x", "1.0", "10.0%", *ends]
    assert rows["torch nn.LSTM, bfloat16"] == ["5,000,000,000", "1.60 x", "1.60 x", "5.0", "12.5%", *ends]
    assert "ours by default is 1.60 x as fast as torch in its faster precision" in rows
    assert "ours by default is 0.80 x as fast as torch in its faster precision" in printed(made_up("float32"))


def test_a_failed_peer_has_a_row_and_its_error() -> None:
    result = made_up("float32") | {"failed": {"torch nn.GRU": "torch nn.GRU exited with code 1"}}
    rows = printed(result)
    assert rows["torch nn.GRU"] == ["failed"]
    assert "torch nn.GRU failed: torch nn.GRU exited with code 1" in rows


def test_a_short_warm_up_is_noted() -> None:
    result = made_up("float32")
    assert "first, warm: from process start to the end of step 1 and of step 20" in printed(result)
    result["peers"]["keras.layers.LSTM, fit"]["warm_steps"] = 7  # type: ignore[index]
    line = "first, warm: from process start to the end of step 1 and of step 20 (keras.layers.LSTM, fit to step 7)"
    assert line in printed(result)


def test_size_names() -> None:
    assert train.size_named("2x256") == Size(2, 256, 50, 50)
    assert train.size_named("3x512") == Size(3, 512, 100, 100)
    assert train.size_named("3x512", "gpu") == Size(3, 512, 256, 128)
    assert train.size_named("1x8") == Size(1, 8, 50, 50)
    for wrong in ("2", "0x8", "2x", "2x8x3", "axb"):
        with pytest.raises(UsageError, match=f"a size must be LAYERSxUNITS, got '{wrong}'"):
            train.size_named(wrong)


def test_without_a_gpu_it_exits_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "gpu_of", lambda package: False)
    with console.err.capture() as seen:
        done = CliRunner().invoke(cli, ["train", "--device", "gpu"])
    assert (done.exit_code, done.output) == (0, "")
    assert seen.get() == "TensorFlow sees no GPU: nothing to measure\n"


def test_each_device_has_its_precisions() -> None:
    names = {device: [name for name, peer in PEERS.items() if device in peer.devices] for device in ("cpu", "gpu")}
    assert not [name for name in names["cpu"] if "tf32" in name or ", float16" in name]
    for precision in ("float32", "tf32", "float16", "bfloat16"):
        assert {f"ours, {precision}", f"torch nn.LSTM, {precision}"} <= set(names["gpu"])


def test_a_copy_without_a_repository_takes_its_commit_from_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(train, "gpu_of", lambda package: True)
    monkeypatch.setattr(train, "compare", lambda *arguments: calls.append(arguments))
    done = CliRunner().invoke(cli, ["train", "--device", "gpu", "--size", "2x512", "--commit", "0123abc"])
    assert done.exit_code == 0, done.output
    assert calls == [(Size(2, 512, 128, 128), "gpu", 5, 2.0, Path("results"), "0123abc")]
    monkeypatch.setattr("bench.machine.describe", lambda gpu: "with a GPU" if gpu else "without")
    assert provenance("0123abc", gpu=True).items() >= {"commit": "0123abc", "machine": "with a GPU"}.items()


def test_all_and_a_size_exclude_each_other() -> None:
    done = CliRunner().invoke(cli, ["train", "--all", "--size", "2x128"])
    assert done.exit_code == 2
    assert "--all includes every size" in done.output


def test_torch_is_skipped_if_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "has", lambda package: package != "torch")
    monkeypatch.setattr(train, "multiplies_bfloat16_faster", lambda: True)
    with console.err.capture() as seen:
        usable = [name for name, peer in PEERS.items() if train._usable(name, peer, "cpu")]
    assert usable == ["ours, float32", "ours, bfloat16", "keras.layers.LSTM, fit"]
    assert "torch nn.LSTM, float32: torch is not installed (pip install torch), skipped" in seen.get()


def test_unsupported_precisions_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "has", lambda package: True)
    monkeypatch.setattr(train, "multiplies_bfloat16_faster", lambda: False)
    with console.err.capture() as seen:
        usable = [name for name, peer in PEERS.items() if train._usable(name, peer, "cpu")]
    assert usable == ["ours, float32", "keras.layers.LSTM, fit", "torch nn.LSTM, float32"]
    assert "torch nn.LSTM, bfloat16: this processor multiplies float32 faster, skipped" in seen.get()


def test_error_of_a_peer_includes_its_command() -> None:
    worker = train.Worker("a peer", "cpu", "bench.peers", "no such peer", "cpu")
    with pytest.raises(
        StageError, match=r"a peer exited with code 1: for its errors, run .*bench.peers 'no such peer' cpu"
    ):
        worker.read()


@pytest.mark.slow
def test_short_run_of_two_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["ours, float32", "keras.layers.LSTM, fit"]
    broken = {"a broken peer": PEERS[names[0]]}  # unknown to bench.peers, so its process fails
    monkeypatch.setattr(train, "PEERS", {name: PEERS[name] for name in names} | broken)
    monkeypatch.setattr("bench.machine.commit", lambda: "a commit")
    monkeypatch.setattr(train, "_import_once", lambda package: None)
    train.compare(Size(1, 8, lanes=4, window=5), "cpu", rounds=2, seconds=0.1, out=tmp_path)
    result = json.loads(
        (tmp_path / f"bench-train-1x8-{train.default_precision('cpu')}.json").read_text(encoding="utf-8")
    )
    assert list(result["peers"]) == names
    assert "a broken peer exited with code 1" in result["failed"]["a broken peer"]
    for name in names:
        peer = result["peers"][name]
        assert peer["characters_per_second"] > 0
        assert 0 < peer["first_step_seconds"] < peer["warm_seconds"]
        assert peer["warm_steps"] <= 20
        assert peer["peak_bytes"] > 50e6  # in bytes; each of these libraries alone takes more
        assert len(result["rounds"][name]) == 2
    assert set(result["ratios"]["ours, float32"]) == {names[1]}
    assert all(top["float32"] > 1 for top in train.ceilings(result))
    assert result["commit"] == "a commit"


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
def test_torch_learns_in_all_supported_precisions() -> None:
    """Run in a separate process, since torch's threads and TensorFlow's conflict."""
    code = """
from bench.peers import Size, torch_lstm
from common.machine import multiplies_bfloat16_faster
import torch
torch.manual_seed(1)
losses = []
item = torch.Tensor.item
torch.Tensor.item = lambda tensor: losses.append(item(tensor)) or losses[-1]
for precision in ("float32", *(["bfloat16"] if multiplies_bfloat16_faster() else [])):
    run = torch_lstm(precision)(Size(1, 16, 4, 8), "cpu")
    run(1), run(60)
    assert losses[-1] < 0.9 * losses[-2], losses
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
