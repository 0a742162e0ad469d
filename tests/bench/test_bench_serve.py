"""What is measured of a served model: the arithmetic on made-up rounds, and a moment of each part with a tiny model."""

import copy
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from grpc import StatusCode
from serving_batching import Batcher, Batching, Refused, Task

from bench import clients, load, sampling, soak
from bench.__main__ import cli
from bench.loops import PEERS, VOCAB
from bench.peers import Size
from bench.served import Exported, StandIn, export
from bench.soak import Found, Hostile, Request
from common.errors import StageError
from export.serve.signatures import INPUTS

TINY = Size(2, 8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(TINY, tmp_path_factory.mktemp("serve") / "tiny")


# Sampling


def test_a_step_reads_every_weight_that_it_multiplies_by() -> None:
    # Recurrent kernels 3 x 12, the second layer's 3 x 12, the dense layer 3 x 100, 4 bytes each.
    assert sampling.weight_bytes(Size(1, 3)) == 4 * (36 + 300)
    assert sampling.weight_bytes(Size(2, 3)) == 4 * (36 + 36 + 36 + 300)


def test_other_weights_are_not_compared() -> None:
    logits = {"ours": np.float32([1, 2]), "torch": np.float32([1, 2.00005])}
    assert sampling.check_logits(logits) == {"ours": 0, "torch": pytest.approx(5e-5, rel=0.01)}
    for wrong in (2.001, np.nan):
        with pytest.raises(StageError, match="torch has not the same weights: its logits differ by"):
            sampling.check_logits({**logits, "torch": np.float32([1, wrong])})


def test_the_share_of_the_bound_and_the_better_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {
        "ours": [10.0, 20.0, 10.0],
        "torch a": [20.0, 40.0, 60.0],  # 2, 2 and 6 times as long
        "torch b": [30.0, 30.0, 30.0],  # 3, 1.5 and 3 times
    }
    monkeypatch.setattr(sampling, "commit", lambda: "a commit")
    monkeypatch.setattr(sampling, "PEERS", dict.fromkeys(rounds, PEERS["ours"]))
    monkeypatch.setattr(sampling, "export", lambda size, base: Exported(base, None, 1.5, 2_000_000))  # type: ignore[arg-type]
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
    assert sampling.better_torch(result, 1) == pytest.approx(2.0)
    assert "1 row: ours is 2.00 x as fast as the better of torch's; the target is 4 x" in str(
        sampling.table(result).caption
    )
    assert result["commit"] == "a commit"


class FakeWorker:
    """Says that it is ready, and is never asked for more."""

    def __init__(self, *_: str):
        self.process = self

    def read(self) -> dict[str, Any]:
        return {"logits": [1.0], "load_seconds": 1.0, "first_seconds": 2.0}

    def kill(self) -> None: ...


def test_loops_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that those named have one model: the logits are compared before anything is timed."""
    names = ["ours", "ours, ids", *(["torch nn.LSTM", "torch LSTMCell"] if importlib.util.find_spec("torch") else [])]
    monkeypatch.setattr(sampling, "PEERS", {name: PEERS[name] for name in names})
    monkeypatch.setattr(sampling, "commit", lambda: "a commit")
    sampling.compare(TINY, rounds=1, seconds=0.1, out=tmp_path)
    result = json.loads((tmp_path / "bench-serve-sampling-2x8.json").read_text(encoding="utf-8"))
    assert list(result["peers"]) == names
    for peer in result["peers"].values():
        assert peer["logits_off"] <= 1e-4
        assert 0 < peer["load_seconds"] < peer["first_seconds"]
        assert all(peer["rows"][rows]["us_a_step"] > 0 for rows in ("1", "16"))
    assert result["export"]["bytes"] > 4 * 100 * 32  # the first kernel's rows alone
    assert all(rate > 1e8 for rate in result["bound"]["bytes_per_second"].values())


# Load


def turn(rate: float, **batches: int) -> dict[str, Any]:
    figures = {"requests_per_second": rate, "characters_per_second": 100 * rate, "p50": 1 / rate, "p99": None}
    return {**figures, "refused": {"UNAVAILABLE": 2}, "clients_processor": 0.1, "batches": batches}


def test_figures_are_medians_and_counts_are_added_up() -> None:
    assert load.medians([turn(1, a=1), turn(4, b=2), turn(2, a=3)]) == {
        "requests_per_second": 2,
        "characters_per_second": 200,
        "p50": 0.5,
        "p99": None,
        "clients_processor": 0.1,
        "refused": {"UNAVAILABLE": 6},
        "batches": {"a": 4, "b": 2},
    }


def test_what_batching_gains_is_the_median_of_the_rounds_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "CLIENTS", (1, 32))
    turns = {
        "batching": {1: [turn(1), turn(1), turn(1)], 32: [turn(40), turn(90), turn(8)]},
        "no batching": {1: [turn(2), turn(2), turn(2)], 32: [turn(10), turn(30), turn(1)]},
    }
    assert load.gains(turns) == {1: 0.5, 32: 4}
    assert load.gains({"localhost:8500": turns["batching"]}) == {}


def test_a_target_needs_a_model() -> None:
    done = CliRunner().invoke(cli, ["serve", "load", "--target", "localhost:8500"])
    assert done.exit_code == 2
    assert "--target and --model go together" in done.output


def test_load_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Exported) -> None:
    monkeypatch.setattr("bench.served.export", lambda size, base: exported)
    monkeypatch.setattr(load, "commit", lambda: "a commit")
    monkeypatch.setattr(load, "CLIENTS", (1, 3))
    load.compare(TINY, rounds=1, seconds=0.1, out=tmp_path)
    result = json.loads((tmp_path / "bench-serve-load-2x8.json").read_text(encoding="utf-8"))
    assert "is not TF Serving" in result["server"]
    assert "is not TF Serving" in str(load.table(result).title)
    for name, counts in result["rounds"].items():
        for count, (figures,) in counts.items():
            assert figures["characters_per_second"] == pytest.approx(100 * figures["requests_per_second"])
            assert 0 < figures["p50"] <= figures["p99"]
            assert figures["refused"] == {}
            rows = sum(int(size) * runs for size, runs in figures["batches"].items())
            assert rows >= figures["calls"] if name == "batching" else rows == 0
            assert max(map(int, figures["batches"]), default=0) <= 2 * int(count)  # filled up to a power of two
    assert set(result["batching_gains"]) == {"1", "3"}


def test_refused_calls_are_counted_and_not_timed() -> None:
    class Full:
        def generate(self, *_: object, **__: object) -> None:
            raise soak.ServingError("full", StatusCode.UNAVAILABLE)

    found = clients.ask([Full(), Full()], 100, 0.01)  # type: ignore[list-item]
    assert (found["calls"], found["characters"]) == ([], 0)
    assert set(found["refused"]) == {"UNAVAILABLE"}  # type: ignore[call-overload]


# Soak


@pytest.fixture(scope="module")
def asked(exported: Exported) -> list[Request]:
    return soak.requests(exported.served)


@pytest.fixture(scope="module")
def hostile(exported: Exported) -> list[Hostile]:
    """Those that no two servers answer differently."""
    names = ("NaN temperature", "huge length", "cut carry", "rank 2, one input", "1,000 rows", "unknown signature")
    return [one for one in soak.hostiles(exported.served) if one.name in names]


@pytest.fixture(scope="module")
def server(exported: Exported) -> Iterator[StandIn]:
    with StandIn(exported.base, batching=True) as server:
        yield server


def test_a_server_that_answers_rightly_passes(
    server: StandIn, asked: list[Request], hostile: list[Hostile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "GROWTH", 10.0)  # two seconds say nothing of memory
    of_each = list({request.signature: request for request in asked}.values())
    found = soak.soak(server, of_each, hostile, 2)
    assert found.problems() == []
    assert set(found.right) == set(INPUTS)
    assert {name.split(":")[0] for name in found.refused} == {one.name for one in hostile}
    assert found.memory[-1] > 50e6


def test_a_server_that_answers_wrongly_is_caught(
    server: StandIn, asked: list[Request], hostile: list[Hostile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The references are tampered with instead: one character of what `generate` writes, one number of `score`; and
    what is good is taken for hostile."""
    monkeypatch.setattr(soak, "GROWTH", 10.0)
    other = [copy.deepcopy(request) for request in asked if request.signature in ("generate", "score")]
    for request in other:
        if request.signature == "generate":
            request.expected["text"][-1] += b"!"
        else:
            request.expected["nats"][0] += np.float32(0.01)
    fine = Hostile("a good call", "info", {"ignored": np.array([b""], object)})
    found = soak.soak(server, other, [fine], 1)
    assert not found.right
    said = Counter(one.partition(" differs")[0].partition(": answered")[0] for one in found.wrong)
    what = "the written SavedModel's "
    assert set(said) == {f"{what}generate.text", f"{what}score.nats", "a good call"}
    assert any(problem.startswith(f"wrong answers: {len(found.wrong):,}, such as ") for problem in found.problems())


def test_a_server_that_is_gone_does_not_pass(asked: list[Request], hostile: list[Hostile]) -> None:
    class Gone:
        model, target = "tiny", "localhost:1"
        process = type("Ended", (), {"poll": lambda self: 1})()

    found = soak.soak(Gone(), asked, hostile, 0.1)  # type: ignore[arg-type]
    assert found.problems()[-1] == "no call was answered right"


def test_a_soak_that_found_something_says_so_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*_: object) -> Found:
        one = Found()
        one.right["score"], one.memory, one.wrong = 3, [100, 100], ["score.nats differs"]
        return one

    class Ended(StandIn):
        def __init__(self, *_: object):
            self.process = type("Process", (), {"poll": lambda self: -6})()

        def __exit__(self, *_: object) -> None: ...

        def last_words(self) -> str:
            return "Aborted"

    monkeypatch.setattr(soak, "commit", lambda: "a commit")
    monkeypatch.setattr(soak, "export", lambda size, base: Exported(base, None, 0, 0))  # type: ignore[arg-type]
    monkeypatch.setattr(soak, "requests", lambda served: [])
    monkeypatch.setattr(soak, "hostiles", lambda served: [])
    monkeypatch.setattr(soak, "StandIn", Ended)
    monkeypatch.setattr(soak, "soak", found)
    told = "the server ended with code -6: Aborted; wrong answers: 1, such as score.nats differs"
    with pytest.raises(StageError, match=f"^batching: {told}$"):
        soak.compare(TINY, 1, tmp_path)
    result = json.loads((tmp_path / "bench-serve-soak-2x8.json").read_text(encoding="utf-8"))
    assert result["servers"]["no batching"]["problems"] == told.split("; ")


def test_growth_is_from_the_lowest_tenth_to_the_last() -> None:
    found = Found()
    found.right["score"] = 1
    found.memory = [200, 200, *[100] * 8, *[100, 300], *[103] * 6, 104, 104]
    assert found.growth == pytest.approx(0.04)
    assert found.problems() == []
    found.memory[-2:] = [106, 106]
    assert found.problems() == ["memory grew by 6.0%; at most 5% is allowed"]


def test_what_of_an_answer_may_differ() -> None:
    expected = {
        "log_probs": np.float32([[1, 2], [3, 0]]),
        "carry_bytes": np.array([np.float32([1, 2]).tobytes(), b""], object),
        "n_chars": np.int32([2, 1]),
    }
    request = Request("continue", {}, expected)

    def said(**changed: np.ndarray) -> str:
        return soak.differs(request, {**expected, **changed})

    assert said() == ""
    assert said(log_probs=np.float32([[1.000001, 2, 0], [3, 0, 0]])) == ""  # a batch mate's text was longer
    assert said(log_probs=np.float32([[1, 2, 0], [3, 0, 1]])).startswith(
        "the written SavedModel's continue.log_probs, behind its text differs"
    )
    assert said(log_probs=np.float32([[1.001, 2], [3, 0]])).startswith("the written SavedModel's continue.log_probs")
    assert said(n_chars=np.int32([2, 2])).startswith("the written SavedModel's continue.n_chars differs")
    assert said(n_chars=np.int32([2])) == "continue.n_chars has 1 rows, not 2"
    assert said(carry_bytes=expected["carry_bytes"][::-1].copy()).startswith(
        "the written SavedModel's continue.carry_bytes is"
    )
    assert "gives log_probs, n_chars, not log_probs" in soak.differs(
        request, {name: expected[name] for name in ("log_probs", "n_chars")}
    )


# The stand-in


def test_calls_of_different_shapes_are_refused_with_their_batch() -> None:
    """Which the soak asks again."""
    tasks = [Task({"x": np.zeros(shape)}, 1, None) for shape in ((1,), (1, 1))]
    with pytest.raises(Refused, match=soak.MATE_SAYS) as refusal:
        Batcher(Batching(num_batch_threads=0))._outputs(lambda arrays, timeout: [], tasks)
    assert refusal.value.code == soak.MATE


def test_the_vocabulary_is_of_100_characters() -> None:
    assert (VOCAB.size, max(map(len, VOCAB.symbols))) == (100, 3)
