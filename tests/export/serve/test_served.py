"""Responses of exported models, in a Session and from a server, against direct calls of the model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_models
import serving
from served_models import LIMITS, ExportedModel, ReferenceLoop, Row, ServedModel, random_model, reference_text

from common.errors import StageError
from export.client.client import Client, Generated
from export.client.query import query
from export.serve.saved_model import ORIGIN
from export.serve.signatures import INPUTS
from export.serve.stand_in import LoadedVersion
from pipeline.vocab import Vocab

ASCII = Vocab("char", tuple(chr(code).encode() for code in (10, *range(32, 123))))


@pytest.fixture(scope="module")
def tiny(run: Path) -> ExportedModel:
    return served_models.exported(run)


@pytest.fixture(scope="module")
def names(documents_run: Path) -> ExportedModel:
    return served_models.exported(documents_run)


@pytest.fixture(scope="module", params=["bytes", "documents"])
def model(request: pytest.FixtureRequest, tiny: ExportedModel, names: ExportedModel) -> ExportedModel:
    """Model of bytes without documents; model of characters with documents and an id for unknown characters."""
    return {"bytes": tiny, "documents": names}[request.param]


of_documents = pytest.mark.parametrize("model", ["documents"], indirect=True)


# Signatures against each other.


def test_log_prob_of_generate_matches_score(model: ExportedModel, rng: np.random.Generator) -> None:
    drawn = 0
    for _ in range(3):  # calls, since texts of the model with documents are short
        rows = [{**model.row(rng), "prompt": b""} for _ in range(64)]
        results = model.query("generate", rows)
        texts = [{"text": result["text_bytes"]} for result in results]
        scores, characters = model.query("score", texts), model.query("score_chars", texts)
        for result, score, char_scores in zip(results, scores, characters, strict=True):
            n = result["n_chars"]
            assert (score["error"], score["n_chars"], char_scores["n_chars"]) == (b"", n, n)
            np.testing.assert_allclose(result["log_prob"], -score["nats"], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(char_scores["log_probs"][:n].sum(), -score["nats"], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(score["bits_per_char"], score["nats"] / max(n, 1) / np.log(2), rtol=1e-5)
            assert not char_scores["log_probs"][n:].any()
            assert {name: char_scores[name] for name in score} == score
            drawn += n
        assert not np.signbit([score["nats"] for score in scores]).any(), "an empty text has 0 nats, not -0"
    assert drawn > 40


def test_continued_pieces_join_to_the_text_of_one_call(model: ExportedModel, rng: np.random.Generator) -> None:
    rows = [model.row(rng, longest=60) for _ in range(64)]
    for row in rows[:48]:  # at lower temperatures, a model of names ends most texts immediately
        row |= {"temperature": 8.0, "top_k": 0, "top_p": 1.0}
    plain = model.query("generate", [{**row, "stop": b""} for row in rows])
    for row, result in zip(rows, plain, strict=True):  # stops of a few characters, most of which occur
        ids = model.vocab.encode(result["text_bytes"])
        start = rng.integers(0, max(len(ids) - 2, 1))
        if rng.random() < 0.7:
            row["stop"] = model.vocab.decode(ids[start : start + rng.integers(1, 7)])
    whole = model.query("generate", rows)
    texts, log_probs, backs, finished = [b""] * 64, np.zeros(64), np.zeros(64, int), [False] * 64
    requests = [{**row, "left": row["length"]} for row in rows]
    while not all(finished):
        active = [index for index in range(64) if not finished[index]]
        piece_requests = [
            {**requests[index], "length": min(requests[index]["left"], rng.integers(0, 5))} for index in active
        ]
        for index, request, piece in zip(active, piece_requests, model.query("continue", piece_requests), strict=True):
            texts[index] += piece["text_bytes"]
            log_probs[index] += piece["log_prob"]
            backs[index] = piece["n_back"]
            requests[index] |= {
                "left": requests[index]["left"] - request["length"],
                "carry_bytes": piece["carry_bytes"],
            }
            requests[index]["prompt"] = b""
            finished[index] = piece["finish_reason"] == b"stop" or not requests[index]["left"]
    for text, log_prob, back, result in zip(texts, log_probs, backs, whole, strict=True):
        assert text[: len(text) - back] == result["text_bytes"]
        if not back:
            np.testing.assert_allclose(log_prob, result["log_prob"], rtol=1e-5, atol=1e-5)
    assert any(backs), "some stops straddle pieces"
    assert sum(result["finish_reason"] == b"stop" for result in whole) > 10


def test_start_and_continue_match_generate(model: ExportedModel, rng: np.random.Generator) -> None:
    rows = [model.row(rng) for _ in range(32)]
    started = model.query("start", rows)
    after = [
        {**row, "prompt": b"", "carry_bytes": result["carry_bytes"]} for row, result in zip(rows, started, strict=True)
    ]
    for result, expected in zip(model.query("continue", after), model.query("generate", rows), strict=True):
        assert result["n_back"] == 0
        same = {name: result[name] for name in expected}
        np.testing.assert_allclose(same.pop("log_prob"), expected.pop("log_prob"), rtol=1e-5, atol=1e-6)
        assert same == expected
    # A prompt in two parts: start reads the first and continue the second.
    for row in rows:
        ids = model.vocab.encode(row["prompt"])
        row["cut"] = len(model.vocab.decode(ids[: len(ids) // 2])) if row["prompt"] else 0
    first = model.query("start", [{"prompt": row["prompt"][: row["cut"]]} for row in rows if row["cut"]])
    rest = [{"prompt": row["prompt"][row["cut"] :], "length": 0} for row in rows if row["cut"]]
    rest = [{**row, "carry_bytes": result["carry_bytes"]} for row, result in zip(rest, first, strict=True)]
    halves = [result["carry_bytes"] for result in model.query("continue", rest)]
    wholes = [result["carry_bytes"] for row, result in zip(rows, started, strict=True) if row["cut"]]
    for half, result in zip(halves, wholes, strict=True):
        np.testing.assert_allclose(*(np.frombuffer(carry, np.float32)[68:] for carry in (half, result)), atol=1e-6)
        assert half[: 4 * 68] == result[: 4 * 68]


def test_text_is_valid_utf_8_counted_in_the_models_unit(model: ExportedModel, rng: np.random.Generator) -> None:
    rows = [{**model.row(rng), "temperature": 5.0} for _ in range(64)]
    for row, result in zip(rows, model.query("generate", rows), strict=True):
        text = result["text"].decode()
        assert text == result["text_bytes"].decode(errors="replace")
        assert result["n_chars"] == (len(text) if model.vocab.unit == "char" else len(result["text_bytes"]))
        if result["finish_reason"] == b"length":
            assert result["n_chars"] == row["length"]
        elif row["stop"]:
            assert row["stop"] not in result["text_bytes"]


def test_stop_cannot_begin_in_the_prompt(model: ExportedModel) -> None:
    for prompt in (b"Zo", b""):
        requests = [{"prompt": prompt, "seed": seed, "length": 9, "temperature": 2.0} for seed in range(20)]
        results = zip(requests, model.query("generate", requests), strict=True)
        row, expected = next((row, result) for row, result in results if result["n_chars"] > 1)
        first = model.vocab.decode(model.vocab.encode(expected["text_bytes"])[:1])
        before = prompt[-1:] or b"\n"
        actual = model.query_row("generate", **row, stop=before + first)
        assert (actual["text"], actual["finish_reason"]) == (expected["text"], expected["finish_reason"])
        started = model.query_row("start", prompt=prompt)["carry_bytes"]
        actual = model.query_row("continue", **{**row, "prompt": b""}, carry_bytes=started, stop=before + first)
        assert (actual["text"], actual["n_back"]) == (expected["text"], 0)


# Signatures against direct calls of the model.


@pytest.fixture(
    scope="module",
    params=["lstm, bytes", "lstm, documents", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gru", "rnn"))],
)
def cell(request: pytest.FixtureRequest, tiny: ExportedModel, names: ExportedModel) -> ServedModel:
    """Model of each cell, with embedding and norms if supported."""
    if request.param == "gru":
        return random_model(ASCII, cell="gru", units=5, layers=3, embedding=4, layer_norm=True)
    if request.param == "rnn":
        return random_model(ASCII, cell="rnn", units=6, layers=1, embedding=3)
    return {"lstm, bytes": tiny, "lstm, documents": names}[request.param]


def test_logits_scores_and_neurons_match_direct_calls(cell: ServedModel, rng: np.random.Generator) -> None:
    texts = [b"", *(cell.text(rng, 40) for _ in range(7))]
    if cell.vocab.end_id is not None:
        texts[-1] = cell.vocab.decode([1, 2, cell.vocab.end_id, 3, cell.vocab.end_id, 4])
    reference, states = ReferenceLoop(cell), cell.net.cell.states
    started = cell.query("start", [{"prompt": text} for text in texts])
    scored = cell.query("score_chars", [{"text": text} for text in texts])
    for text, start, score in zip(texts, started, scored, strict=True):
        logits, carries = reference.read(cell.vocab.prompt_ids(text))
        np.testing.assert_allclose(start["logits"], logits[-1], rtol=1e-5, atol=1e-5)
        packed = np.frombuffer(start["carry_bytes"], np.float32)[68:]
        np.testing.assert_allclose(packed.reshape(carries.shape[1:]), carries[-1], rtol=1e-5, atol=1e-5)
        ids = cell.vocab.encode(text).astype(int)
        logits, carries = reference.read([cell.vocab.start_id, *ids])
        log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
        expected = np.zeros_like(score["log_probs"])
        expected[: len(ids)] = log_probs[np.arange(len(ids)), ids]
        np.testing.assert_allclose(score["log_probs"], expected, rtol=1e-5, atol=1e-5)
    for layer in range(cell.net.config.layers):
        neurons = cell.query("neurons", [{"text": text, "layer": layer} for text in texts])
        for text, result in zip(texts, neurons, strict=True):
            ids = cell.vocab.encode(text).astype(int)
            _, carries = reference.read([cell.vocab.start_id, *ids])
            assert (result["n_chars"], result["error"], sorted(result.keys() - {"n_chars", "error"})) == (
                len(ids),
                b"",
                ["h", "c"][:states][::-1],
            )
            for state, name in enumerate("hc"[:states]):
                expected = np.zeros_like(result[name])
                expected[: len(ids)] = carries[1:, layer, state]
                np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-5)


def test_start_logits_match_a_whole_window(model: ExportedModel, rng: np.random.Generator) -> None:
    for text in (model.text(rng, 60) for _ in range(4)):
        ids = model.vocab.prompt_ids(text).astype(np.int32)[None]
        resets = ids == model.vocab.end_id if model.vocab.end_id is not None else None
        logits, _ = model.net(ids, model.net.initial_carry(1), reset_BxT=resets)
        np.testing.assert_allclose(model.query_row("start", prompt=text)["logits"], logits[0, -1], rtol=1e-5, atol=1e-5)


def test_generated_text_matches_the_reference_loop(cell: ServedModel, rng: np.random.Generator) -> None:
    rows = [cell.row(rng, longest=90) for _ in range(16)]
    rows += [
        {**cell.row(rng, longest=90), "temperature": temperature, "stop": b""} for temperature in (0.0, 0.0, 1.0, 1.0)
    ]
    rows += [{"prompt": cell.text(rng, 80), "length": 90, "repetition_penalty": 4.0, "seed": 2}]
    reference = ReferenceLoop(cell)
    for row, result in zip(rows, cell.query("generate", rows), strict=True):
        expected = reference_text(reference, row)
        assert (result["text_bytes"], result["finish_reason"]) == (expected.text, expected.reason), row
        np.testing.assert_allclose(result["log_prob"], expected.log_prob, rtol=1e-4, atol=1e-5)


def test_serving_default_matches_generate_without_options(model: ExportedModel, rng: np.random.Generator) -> None:
    rows = [{name: model.row(rng)[name] for name in ("prompt", "length", "temperature", "seed")} for _ in range(16)]
    for result, expected in zip(model.query("serving_default", rows), model.query("generate", rows), strict=True):
        np.testing.assert_allclose(result.pop("log_prob"), expected.pop("log_prob"), rtol=1e-5)
        assert result == expected


def test_info_describes_the_model(model: ExportedModel) -> None:
    info, other_info = (json.loads(row["info"]) for row in model.query("info", [{}, {"ignored": b"\xff"}]))
    assert info == other_info
    stored = json.loads((model.base / "1" / ORIGIN).read_text(encoding="utf-8"))
    assert info == stored
    assert info.keys() == {
        *("format_version", "run", "step", "val_nats", "weights_sha256", "data_sha256", "config", "vocab"),
        *("unit", "bits_per_char", "limits", "versions"),
    }
    assert Vocab.from_json(info["vocab"]) == model.vocab
    assert info["unit"] == model.vocab.unit
    assert info["limits"] == {"length": 200, "prompt": 300, "rows": 64, "pictured": 64}
    np.testing.assert_allclose(info["bits_per_char"], info["val_nats"] / np.log(2))


# The client, with a server.


def test_fake_model_has_the_signatures_of_an_export(tiny: ExportedModel, fake: Path) -> None:
    def types(files: LoadedVersion, name: str) -> list[dict[str, int]]:
        sides = (files.signatures[name].inputs, files.signatures[name].outputs)
        return [{alias: info.dtype for alias, info in side.items()} for side in sides]

    fake_files = LoadedVersion(fake / "1")
    assert {name: types(fake_files, name) for name in INPUTS} == {name: types(tiny.files, name) for name in INPUTS}


@pytest.fixture(scope="module")
def client(model: ExportedModel) -> Iterator[Client]:
    with serving.served(model.base, model.base.name) as server, Client(*server) as client:
        yield client


def sampling(row: Row) -> dict[str, Any]:
    """Return the sampling options of a request as Python numbers."""
    names = ("temperature", "seed", "top_k", "top_p", "repetition_penalty", "stop")
    values = {name: row[name] for name in names if name in row}
    return {name: value if isinstance(value, bytes) else np.asarray(value).item() for name, value in values.items()}


def generated(result: Row) -> Generated:
    text, reason = result["text"].decode(), result["finish_reason"].decode()
    return Generated(text, result["text_bytes"], int(result["n_chars"]), float(result["log_prob"]), reason)


@of_documents
def test_client_matches_the_files(model: ExportedModel, client: Client, rng: np.random.Generator) -> None:
    row = {"prompt": "Zoë".encode(), "length": 30, "seed": 5, "temperature": 0.7, "repetition_penalty": 1.2}
    assert client.generate("Zoë", 30, **sampling(row)) == generated(model.query_row("generate", **row))
    rows = [row, {**row, "length": LIMITS.length + 1}, {**row, "seed": 6, "prompt": b""}]
    actual = client.generate(
        [row["prompt"] for row in rows], [row["length"] for row in rows], **{**sampling(row), "seed": [5, 5, 6]}
    )
    assert actual == [generated(result) for result in model.query("generate", rows)]
    assert [result.error for result in actual] == ["", "length: 0 to 200, got 201", ""]
    with pytest.raises(StageError, match=r"rejects the request: length: 0 to 200, got 201$"):
        client.generate("Zoë", 201)
    text = model.text(rng, 40)
    score, expected = client.score(text, characters=True), model.query_row("score_chars", text=text)
    assert (score.nats, score.n_chars, score.error) == (expected["nats"], expected["n_chars"], "")
    np.testing.assert_array_equal(score.log_probs, expected["log_probs"])
    started = client.start(row["prompt"])
    np.testing.assert_array_equal(started.logits, model.query_row("start", prompt=row["prompt"])["logits"])
    whole, carry, pieces = client.generate("Zoë", 30, **sampling(row)), started.carry, b""
    for length in (3, 0, 20, 7):
        part = client.continue_(carry, "", length, **sampling(row))
        pieces, carry = pieces + part.text_bytes, part.carry
        if part.finish_reason == "stop":
            break
    assert pieces == whole.text_bytes
    neurons, expected = client.neurons("Zoë", 1), model.query_row("neurons", text="Zoë".encode(), layer=1)
    np.testing.assert_array_equal(neurons.h, expected["h"])
    np.testing.assert_array_equal(neurons.c, expected["c"])
    assert client.info()["weights_sha256"] == json.loads(model.query_row("info")["info"])["weights_sha256"]


@pytest.mark.parametrize("model", ["documents", pytest.param("bytes", marks=pytest.mark.slow)], indirect=True)
def test_stream_joins_to_the_text_of_one_call(model: ExportedModel, client: Client, rng: np.random.Generator) -> None:
    stopped = 0
    for _ in range(12):
        row = {**model.row(rng), "temperature": 3.0}
        prompt, length = row["prompt"], int(row["length"])
        ids = model.vocab.encode(client.generate(prompt, length, **sampling({**row, "stop": b""})).text_bytes)
        start = int(rng.integers(0, max(len(ids) - 2, 1)))
        before = model.vocab.encode(prompt)[-1:] if rng.random() < 0.3 else ids[:0]
        row["stop"] = model.vocab.decode([*before, *ids[0 if len(before) else start :][: rng.integers(1, 5)]])
        whole = client.generate(prompt, length, **sampling(row))
        stopped += whole.finish_reason == "stop"
        piece = int(rng.integers(1, 40))
        pieces = list(client.stream_bytes(prompt, length, piece=piece, **sampling(row)))
        assert b"".join(pieces) == whole.text_bytes, row
        assert "".join(client.stream(prompt, length, piece=piece, **sampling(row))) == whole.text
    assert stopped


@of_documents
@pytest.mark.parametrize(("stop", "message"), [("o" * 70, "stop: at most 64 characters"), ("q", "stop: 'q' is not")])
def test_stream_rejects_invalid_stops_like_one_call(client: Client, stop: str, message: str) -> None:
    for call in (client.generate, client.continue_, lambda **settings: list(client.stream(**settings))):
        with pytest.raises(StageError, match=f"rejects the request: {message}"):
            call(length=5, stop=stop)


@of_documents
def test_query_prints_the_clients_results(
    model: ExportedModel, client: Client, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    address = ["--target", client.settings.target, "--model", model.base.name]
    options = ["--prompt", "Zoë", "--length", "40", "--temperature", "0.7", "--seed", "5"]
    query.main(["text", *address, *options], standalone_mode=False)
    expected, score = client.generate("Zoë", 40, temperature=0.7, seed=5), client.score("Zo")
    assert capfdbinary.readouterr() == ("Zoë".encode() + expected.text_bytes + b"\n", b"")
    query.main(["score", *address, "--text", "Zo"], standalone_mode=False)
    line = f"{score.bits_per_char:.3f} bits per {model.vocab.unit}: {score.nats:.2f} nats over 2\n"
    assert capfdbinary.readouterr().out == line.encode()
