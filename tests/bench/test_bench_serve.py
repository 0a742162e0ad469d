"""Sampling benchmark: arithmetic on made-up rounds, and a short run with a tiny model."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import sampling
from bench.loops import PEERS, check_logits
from bench.peers import Size
from bench.random_model import VOCAB
from bench.served import Exported
from common.errors import StageError

TINY = Size(2, 8)


def test_weight_bytes_match_a_hand_count() -> None:
    # Recurrent kernels 3 x 12, the second layer's kernel 3 x 12, the dense layer 3 x 100; 4 bytes per weight.
    assert sampling.weight_bytes(Size(1, 3)) == 4 * (36 + 300)
    assert sampling.weight_bytes(Size(2, 3)) == 4 * (36 + 36 + 36 + 300)


def test_different_weights_are_rejected() -> None:
    logits = {"ours": np.float32([1, 2]), "torch": np.float32([1, 2.00005]), "torch int8": np.float32([1, 3])}
    off = {"ours": 0, "torch": pytest.approx(5e-5, rel=0.01), "torch int8": 1}
    assert check_logits(logits, "ours", ["torch int8"]) == off
    for wrong in (2.001, np.nan):
        with pytest.raises(StageError, match="torch has different weights: its logits differ by"):
            check_logits({**logits, "torch": np.float32([1, wrong])}, "ours", ["torch int8"])


def test_share_of_the_bound_and_speed_relative_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {
        "ours": [10.0, 20.0, 10.0],
        "torch a": [20.0, 40.0, 60.0],  # 2, 2 and 6 times as long
        "torch b": [30.0, 30.0, 30.0],  # 3, 1.5 and 3 times
    }
    monkeypatch.setattr("bench.machine.commit", lambda: "a commit")
    monkeypatch.setattr(sampling, "PEERS", dict.fromkeys(rounds, PEERS["ours"]))
    monkeypatch.setattr(sampling, "export", lambda size, base: Exported(base, 1.5, 2_000_000))
    monkeypatch.setattr(sampling, "Worker", FakeWorker)
    bounds = [{"read": 1e9, "copy": 4e9}, {"read": 2e9, "copy": 3e9}]
    monkeypatch.setattr(sampling, "_turns", lambda *_: (dict.fromkeys((1, 16), rounds), bounds))
    sampling.compare(Size(2, 3), 3, 1, tmp_path)
    result = json.loads((tmp_path / "bench-serve-sampling-2x3.json").read_text(encoding="utf-8"))
    weights = 4 * (36 + 36 + 36 + 300)  # 1,632 bytes at 2 GB/s: 0.816 us
    assert result["bound"]["us_a_step"] == {"read": weights / 2e9 * 1e6, "copy": weights / 4e9 * 1e6}
    assert result["peers"]["ours"]["rows"]["16"] == {
        "us_a_step": 10.0,
        "characters_per_second": 1.6e6,
        "share_of_read": pytest.approx(0.0816),
        "share_of_copy": pytest.approx(0.0408),
    }
    assert "1 row: ours is 2.00 x as fast as torch's fastest loop (target: 4 x)" in str(sampling.table(result).caption)
    assert result["commit"] == "a commit"


class FakeWorker:
    """Worker that reports ready and takes no turns."""

    def __init__(self, *_: str):
        self.process = self

    def read(self) -> dict[str, Any]:
        return {"logits": [1.0], "load_seconds": 1.0, "first_seconds": 2.0}

    def kill(self) -> None: ...


@pytest.mark.slow
def test_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cover the check that all peers have the same model: compare() compares their logits before timing."""
    names = ["ours", "ours, ids", *(["torch nn.LSTM", "torch LSTMCell"] if importlib.util.find_spec("torch") else [])]
    monkeypatch.setattr(sampling, "PEERS", {name: PEERS[name] for name in names})
    monkeypatch.setattr("bench.machine.commit", lambda: "a commit")
    sampling.compare(TINY, rounds=1, seconds=0.1, out=tmp_path)
    result = json.loads((tmp_path / "bench-serve-sampling-2x8.json").read_text(encoding="utf-8"))
    assert list(result["peers"]) == names
    for peer in result["peers"].values():
        assert peer["logits_off"] <= 1e-4
        assert 0 < peer["load_seconds"] < peer["first_seconds"]
        assert all(peer["rows"][rows]["us_a_step"] > 0 for rows in ("1", "16"))
    assert result["export"]["bytes"] > 4 * 100 * 32  # the first kernel's rows alone
    assert all(rate > 1e8 for rate in result["bound"]["bytes_per_second"].values())


def test_vocabulary_has_100_characters_of_up_to_three_bytes() -> None:
    assert (VOCAB.size, max(map(len, VOCAB.symbols))) == (100, 3)
