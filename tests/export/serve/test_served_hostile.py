"""Row isolation: results and errors of a row do not depend on the other rows of its batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_models
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_models import ExportedModel, Row, ServedModel, random_model

from export.serve.signatures import INPUTS
from pipeline.vocab import Vocab, byte_vocab
from trainers.sampling import draw

NAN, INF, LEAST, MOST = float("nan"), float("inf"), -(2**31), 2**31 - 1
INVALID_UTF_8 = [  # overlong forms, a surrogate, above U+10FFFF, truncated, starting within a character
    b"\xc0\x80",
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"Zo\xc3",
    b"\x80Zo",
    b"\xff",
    b"\xf0\x9f\x98",
]
SETTINGS: list[tuple[Row, str]] = [
    *(({"length": n}, f"length: 0 to 200, got {n}") for n in (-1, 201, LEAST, MOST)),
    *(
        ({"temperature": x}, f"temperature: a number, 0 (greedy) or more, got {shown}")
        for x, shown in ((NAN, "nan"), (INF, "inf"), (-INF, "-inf"), (-0.5, "-0.5"))
    ),
    *(({"top_k": n}, f"top_k: 0 (all) or more, got {n}") for n in (-1, LEAST)),
    *(
        ({"top_p": x}, f"top_p: more than 0, at most 1 (all), got {shown}")
        for x, shown in ((0.0, "0"), (-0.5, "-0.5"), (NAN, "nan"), (1.5, "1.5"), (INF, "inf"))
    ),
    *(
        ({"repetition_penalty": x}, f"repetition_penalty: a number above 0, got {shown}")
        for x, shown in ((0.0, "0"), (-2.0, "-2"), (NAN, "nan"), (INF, "inf"))
    ),
]
UNITS = {"byte": "bytes", "char": "characters"}
CARRY_ERROR = "carry_bytes: not a carry of this model; pass one that start or continue returned"
HEAD = 68  # 32-bit words of a carry before its states: mark (2), count (2), characters (64)


@pytest.fixture(scope="module")
def both(run: Path, documents_run: Path) -> dict[str, ExportedModel]:
    return {"bytes": served_models.exported(run), "documents": served_models.exported(documents_run)}


@pytest.fixture(scope="module", params=["bytes", "documents"])
def model(request: pytest.FixtureRequest, both: dict[str, ExportedModel]) -> ExportedModel:
    """Model of bytes without documents; model of characters with documents and an id for unknown characters."""
    return both[request.param]


def texts_too_long(unit: str, name: str, most: int) -> list[tuple[Row, str]]:
    """Return texts that are too long by one character, and too many bytes to decode, with their errors."""
    long = [b"x" * (most + 1), b"\xff" * (1 << 20)]
    got = [f"{len(text)} bytes" for text in long]
    if unit == "char":
        long += ["あ".encode() * (most + 1), "😀".encode() * (most + 1)]
        got = [f"{most + 1}", got[1], f"{most + 1}", f"{4 * (most + 1)} bytes"]
    rule = f"{name}: at most {most} {UNITS[unit]} are read, got"
    return [({name: text}, f"{rule} {size}") for text, size in zip(long, got, strict=True)]


def invalid_utf_8(name: str) -> list[tuple[Row, str]]:
    return [({name: text}, f"{name}: must be valid UTF-8") for text in INVALID_UTF_8]


def invalid_requests(unit: str) -> list[tuple[Row, str]]:
    """Return requests that `generate` rejects, with their errors."""
    bad = [*SETTINGS, *texts_too_long(unit, "prompt", 300)]
    if unit == "byte":
        return [*bad, ({"stop": b"." * 65}, "stop: at most 64 bytes are read, got 65 bytes")]
    bad += [({"stop": "я".encode() * 65}, "stop: at most 64 characters are read, got 65")]
    bad += [({"stop": b"Zoq"}, "stop: 'q' is not in the model's vocabulary; see info")]
    return [*bad, *invalid_utf_8("prompt"), *invalid_utf_8("stop")]


def invalid_carries(model: ExportedModel, other: ExportedModel) -> list[bytes]:
    """Return invalid carries: junk, modified carries and one of another model; most have the right size."""
    carry = model.query_row("continue", prompt=model.text(np.random.default_rng(1), 9), length=9)["carry_bytes"]
    assert len(carry) == len(other.query_row("start")["carry_bytes"])

    def changed(word: int, value: Any) -> bytes:
        words = np.frombuffer(carry, np.asarray(value).dtype).copy()
        words[word * 4 // words.itemsize] = value
        return words.tobytes()

    states = [np.float32(x) for x in (NAN, INF, -INF, 3e38, -3e38)]
    ids = [np.int32(x) for x in (model.vocab.size, -2 - model.vocab.size, LEAST, MOST)]
    return [
        *(
            b"junk",
            b"\0",
            carry[:-1],
            carry[1:],
            carry + b"\0",
            bytes(len(carry)),
            other.query_row("start")["carry_bytes"],
        ),
        *(changed(HEAD, state) for state in states),
        *(changed(len(carry) // 4 - 1, state) for state in states[:3]),
        *(changed(4, id_) for id_ in ids),
        *(changed(2, np.int64(count)) for count in (-1, 2**62, -(2**63))),
        changed(0, np.int32(1)),
    ]


def assert_empty(signature: str, row: Row) -> None:
    """Assert that a row with an error has empty texts and zero numbers."""
    for name in row.keys() - {"error", "finish_reason"}:
        value = row[name]
        assert value == b"" if isinstance(value, bytes) else not np.any(value), (signature, name, value)


def same(result: Row, expected: Row) -> bool:
    """Compare two results. Sums may differ in the last digits, as their order depends on the batch."""
    sums = result.keys() & {"log_prob", "nats", "bits_per_char"}
    sums_match = all(np.allclose(result[name], expected[name], rtol=1e-5, atol=1e-6) for name in sums)
    exact = {name for name in result if isinstance(result[name], bytes)} | result.keys() & {"n_chars", "n_back"}
    return sums_match and all(np.array_equal(result[name], expected[name]) for name in exact)


# Answers.


@pytest.mark.parametrize("count", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_row_gets_the_same_result_alone_and_in_a_batch(
    model: ExportedModel, rng: np.random.Generator, count: int
) -> None:
    rows = [model.row(rng) for _ in range(count)]
    alone = [model.query("generate", [row])[0] for row in rows]
    bad = [{**model.row(rng), **change} for change, _ in invalid_requests(model.vocab.unit)]
    candidates = [*enumerate(rows), *((None, bad[i]) for i in rng.integers(0, len(bad), 24))]
    for batch in np.array_split(rng.permutation(len(candidates)), -(-len(candidates) // 32)):
        answers = model.query("generate", [candidates[i][1] for i in batch])
        for (index, row), result in zip((candidates[i] for i in batch), answers, strict=True):
            if index is None:
                assert result["finish_reason"].startswith(b"error: ")
            else:
                assert same(result, alone[index]), row
    assert len({result["text"] for result in alone}) > count / 20, "texts must vary"


WIDE = Vocab("char", tuple(chr(code).encode() for code in range(0x400, 0x400 + 400)))
FEW = Vocab("char", tuple(chr(code).encode() for code in range(97, 110)))
# Odd sizes leave remainders after the CPU's vector instructions.
MODELS: dict[str, tuple[Vocab, dict[str, Any]]] = {
    "gru": (FEW, {"cell": "gru", "units": 13}),
    "norms": (FEW, {"units": 13, "layer_norm": True, "embedding": 5}),
    "400 characters": (WIDE, {"units": 9, "layers": 1}),
    "300 units": (byte_vocab(), {"units": 300, "layers": 1}),
    "520 units": (FEW, {"units": 520, "layers": 1}),
}


SLOW = ("norms", "400 characters", "300 units", "520 units")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MODELS])
def test_carries_and_texts_are_bit_identical_in_any_batch(name: str, rng: np.random.Generator) -> None:
    vocab, config = MODELS[name]
    model = random_model(vocab, **config)
    rows = [{**model.row(rng, longest=40), "stop": b""} for _ in range(32)]
    together = model.query("continue", rows)
    for index in rng.integers(0, 32, 6):
        others = [rows[i] for i in rng.permutation(32)[: rng.integers(1, 31)]]
        assert same(model.query_row("continue", **rows[index]), together[index]), rows[index]
        assert same(model.query("continue", [*others, rows[index]])[-1], together[index]), rows[index]
    assert len({result["text"] for result in together}) > 10, "texts must vary"


@pytest.mark.parametrize(("vocab", "rows"), [(FEW, 16_000), (WIDE, 1000)], ids=["13 characters", "400 characters"])
def test_draw_on_an_edge_is_the_same_in_any_batch(vocab: Vocab, rows: int, rng: np.random.Generator) -> None:
    """Use random numbers exactly on the edge between two characters, which occur in about one draw in a million."""
    V = vocab.size + -vocab.size % draw.AT_ONCE
    scaled = np.full((rows, V), draw.NEVER, np.float32)
    scaled[:, : vocab.size] = rng.normal(size=(rows, vocab.size))
    sums = np.cumsum(np.exp(scaled - scaled.max(1, keepdims=True)), 1)
    edges = sums[np.arange(rows), rng.integers(0, vocab.size - 1, rows)] / sums[:, -1]
    specs = [tf.TensorSpec([None, V]), tf.TensorSpec([None, 1])]
    choose = tf.function(lambda *given: draw.choose(*given, draw.cumulation(V)), input_signature=specs)
    # In one batch, and in groups of the sizes that a stepper pads to (`padded_rows`).
    ends = np.cumsum(rng.choice([4, 12, 16, 24], rows // 4))
    ends = ends[ends < rows]
    groups = np.split(np.arange(rows), [*ends, *range(ends[-1] + 4, rows, 4)])
    apart = np.concatenate([choose(scaled[group], edges[group, None]) for group in groups])
    np.testing.assert_array_equal(apart, choose(scaled, edges[:, None]))


def test_sharpness_is_the_same_in_any_batch(rng: np.random.Generator) -> None:
    temperatures = rng.uniform(0.3, 2, 600).astype(np.float32)
    sharpness = tf.function(draw.sharpness, input_signature=[tf.TensorSpec([None])])
    np.testing.assert_array_equal(
        np.concatenate([sharpness(group) for group in np.split(temperatures, 200)]), sharpness(temperatures)
    )


def test_scores_and_activations_do_not_depend_on_other_rows(model: ExportedModel, rng: np.random.Generator) -> None:
    texts = [{"text": model.text(rng, 60), "layer": rng.integers(0, 2)} for _ in range(32)]
    for signature in ("score_chars", "neurons"):
        together = model.query(signature, texts)
        for row, result in zip(texts, together, strict=True):
            alone, n = model.query_row(signature, **row), result["n_chars"]
            for output in result.keys() & {"log_probs", "h", "c"}:
                np.testing.assert_allclose(alone[output][:n], result[output][:n], rtol=1e-5, atol=1e-6)
                assert not np.any(result[output][n:])
            assert same(alone, result)


# Errors.


@pytest.mark.parametrize("signature", ["generate", "continue"])
def test_invalid_rows_report_errors_and_valid_rows_are_unaffected(
    model: ExportedModel, both: dict[str, ExportedModel], signature: str, rng: np.random.Generator
) -> None:
    bad = invalid_requests(model.vocab.unit)
    if signature == "continue":
        (other,) = (each for each in both.values() if each is not model)
        bad += [({"carry_bytes": carry}, CARRY_ERROR) for carry in invalid_carries(model, other)]
    good = [model.row(rng, longest=40) for _ in range(16)]
    expected = model.query(signature, good)
    for group in (bad[start : start + 40] for start in range(0, len(bad), 40)):
        mixed = [(i, row, "") for i, row in enumerate(good)]
        mixed += [(None, {**good[0], **change}, message) for change, message in group]
        mixed = [mixed[i] for i in rng.permutation(len(mixed))]
        answers = model.query(signature, [row for _, row, _ in mixed])
        for (index, _, message), result in zip(mixed, answers, strict=True):
            if index is None:
                assert result["finish_reason"].decode() == f"error: {message}"
                assert_empty(signature, result)
            else:
                assert same(result, expected[index])


def test_first_of_several_errors_is_reported(model: ExportedModel) -> None:
    changes: list[tuple[Row, str]] = [
        ({"carry_bytes": b"junk"}, CARRY_ERROR),
        ({"length": -1}, "length: "),
        ({"temperature": NAN}, "temperature: "),
        ({"top_k": -1}, "top_k: "),
        ({"top_p": NAN}, "top_p: "),
        ({"repetition_penalty": NAN}, "repetition_penalty: "),
        ({"stop": b"\xff" * 300}, "stop: "),
        ({"prompt": b"\xff" * 3000}, "prompt: "),
    ]
    rows = [dict(item for change, _ in changes[first:] for item in change.items()) for first in range(len(changes))]
    for result, (_, message) in zip(model.query("continue", rows), changes, strict=True):
        assert result["finish_reason"].decode().startswith(f"error: {message}")
        assert_empty("continue", result)


@pytest.mark.parametrize("signature", ["score", "score_chars", "neurons", "start"])
def test_invalid_texts_report_errors_and_valid_rows_are_unaffected(model: ExportedModel, signature: str) -> None:
    name, most = ("prompt", 300) if signature == "start" else ("text", 64 if signature == "neurons" else 300)
    unit = model.vocab.unit
    bad = texts_too_long(unit, name, most)
    bad += invalid_utf_8(name) if unit == "char" else []
    if signature == "neurons":
        bad += [({"layer": n, name: b"Zo"}, f"layer: 0 to 1, got {n}") for n in (-1, 2, LEAST, MOST)]
        bad += [({"layer": 2, name: b"\xff" * 3000}, "layer: 0 to 1, got 2")]
    good = [{name: "Zoë".encode()}, {name: b""}, {name: "あ\nЗ".encode()}]
    expected = model.query(signature, good)
    answers = model.query(signature, [good[0], *(row for row, _ in bad), *good[1:]])
    for result, expected_result in zip([answers[0], *answers[-2:]], expected, strict=True):
        for output, value in expected_result.items():
            if isinstance(value, np.ndarray):  # padded to the longest row of the batch
                np.testing.assert_allclose(result[output][: len(value)], value, rtol=1e-5, atol=1e-6)
                assert not np.any(result[output][len(value) :])
        assert same(result, expected_result)
    for result, (_, message) in zip(answers[1:-2], bad, strict=True):
        assert result["error"].decode() == f"error: {message}"
        assert_empty(signature, result)


def test_errors_name_the_unknown_character() -> None:
    characters, three_bytes = random_model(FEW, units=4), random_model(Vocab("byte", (b"\n", b"a", b"b")), units=4)
    rows = [{"text": text} for text in ("ab!é".encode(), b"a\xff", "\U0010fffd".encode(), b"", b"abc\x00", b"ab")]
    assert [result["error"].decode() for result in characters.query("score", rows)] == [
        "error: text: '!' is not in the model's vocabulary; see info",
        "error: text: must be valid UTF-8",
        "error: text: '\U0010fffd' is not in the model's vocabulary; see info",
        "",
        "error: text: '\0' is not in the model's vocabulary; see info",
        "",
    ]
    rows = [{"text": text} for text in (b"abc", b"", b"\n\xff\x00", b"ab\n")]
    assert [result["error"].decode() for result in three_bytes.query("score", rows)] == [
        "error: text: byte 99 is not in the model's vocabulary; see info",
        "",
        "error: text: byte 255 is not in the model's vocabulary; see info",
        "",
    ]


@pytest.mark.parametrize("signature", INPUTS)
def test_empty_calls_and_calls_with_too_many_rows(model: ExportedModel, signature: str) -> None:
    assert model.query(signature, []) == []
    (full,) = {
        result.get("error", result.get("finish_reason")) for result in model.query(signature, [{"length": 1}] * 64)
    }
    assert full in (None, b"", b"length", b"stop")
    for rows in (65, 500):
        answers = model.query(signature, [{}] * rows)
        if signature == "info":  # has no output for an error
            assert [result["info"] == b"" for result in answers] == [False] * 64 + [True] * (rows - 64)
            continue
        for result in answers:
            assert (
                result.get("error", result.get("finish_reason")).decode()
                == f"error: at most 64 rows per call, got {rows}"
            )
            assert_empty(signature, result)


@pytest.mark.parametrize("signature", [name for name in INPUTS if len(INPUTS[name]) > 1])
def test_columns_of_different_lengths_raise(model: ExportedModel, signature: str) -> None:
    for name in INPUTS[signature]:
        for rows in (0, 1, 3):
            columns = served_models.columns(signature, [{}] * 2)
            columns[name] = served_models.columns(signature, [{}] * rows)[name]
            with pytest.raises(tf.errors.InvalidArgumentError):
                model.run(signature, columns)


def test_extreme_settings_are_valid(model: ExportedModel) -> None:
    """Use settings whose products overflow float32: an infinity would fail the whole call."""
    tiny, huge = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    prompt_of_all = (
        model.vocab.decode(range(model.vocab.size))[-200:] if model.vocab.unit == "byte" else "ZАЗnaëаĐnоr".encode()
    )
    rows = [
        {
            "prompt": prompt,
            "repetition_penalty": penalty,
            "temperature": temperature,
            "top_k": k,
            "top_p": p,
            "length": 40,
        }
        for prompt in (prompt_of_all, b"")
        for penalty in (2 * tiny, 1e-20, 1.0, 1e20, huge)
        for temperature in (0.0, tiny, 1e-3, huge)
        for k, p in ((0, 1.0), (MOST, 1e-30), (1, 1.0))
    ]
    plain, seeds = {"length": 40, "prompt": b"Zo"}, [0, -1, 2**63 - 1, -(2**63)]
    rows += [{**plain, "seed": seed} for seed in seeds]
    expected = model.query_row("generate", **plain)
    for group in (rows[start : start + 63] for start in range(0, len(rows), 63)):
        *answers, plain_result = model.query("generate", [*group, plain])
        assert same(plain_result, expected)
        for row, result in zip(group, answers, strict=True):
            assert_valid("generate", row, result)
            assert result["finish_reason"] in (b"length", b"stop"), row


# Random requests.

INT32 = st.integers(0, 40) | st.integers(LEAST, MOST)
POSITIVE = st.floats(0, 4, width=32) | st.floats(width=32)
BYTES = st.text("Zoëあ\nq", max_size=12).map(str.encode) | st.binary(max_size=40)
BYTES |= st.integers(290, 310).map(b"a".__mul__)
VALUES = {
    "prompt": BYTES,
    "text": BYTES,
    "stop": st.just(b"") | st.text("Zoë\n", max_size=3).map(str.encode) | BYTES,
    "ignored": BYTES,
    "length": INT32,
    "top_k": INT32,
    "layer": st.integers(0, 1) | INT32,
    "temperature": POSITIVE,
    "top_p": st.floats(0, 1, width=32) | POSITIVE,
    "repetition_penalty": POSITIVE,
    "seed": st.integers(-(2**63), 2**63 - 1),
}


def carries(model: ServedModel) -> st.SearchStrategy[bytes]:
    """Generate valid carries, carries with four bytes replaced, and random bytes."""
    real = [result["carry_bytes"] for result in model.query("start", [{}, {"prompt": b"Zo"}, {"prompt": b"a" * 99}])]
    patched = st.builds(
        lambda carry, word, put: carry[: 4 * word] + put + carry[4 * word + 4 :],
        st.sampled_from(real),
        st.integers(0, len(real[0]) // 4 - 1),
        st.binary(min_size=4, max_size=4) | st.integers(-300, 300).map(lambda n: np.int32(n).tobytes()),
    )
    return st.just(b"") | st.sampled_from(real) | patched | st.binary(max_size=20)


def assert_valid(signature: str, row: Row, result: Row) -> None:
    """Assert that a result is valid for a client."""
    problem = result.get("error", result.get("finish_reason", b"")).decode()
    if problem.startswith("error: "):
        assert_empty(signature, result)
        return
    numbers = [result[name] for name in result if not isinstance(result[name], bytes)]
    assert all(np.isfinite(number).all() for number in numbers)
    if "finish_reason" in result:
        length = row.get("length", served_models.DEFAULTS["length"])
        assert problem in ("length", "stop")
        assert result["text"].decode() == result["text_bytes"].decode(errors="replace")
        assert 0 <= result["n_chars"] <= length
        assert result["n_chars"] == length or problem == "stop"
        assert result["log_prob"] <= 0
        assert result.get("n_back", 0) >= 0
    else:
        assert problem == ""
    if "nats" in result:
        assert result["nats"] >= 0
        assert np.all(result.get("log_probs", 0) <= 0)


def check_random_requests(model: ExportedModel, signature: str, examples: int) -> None:
    values = {**VALUES, "carry_bytes": carries(model)}
    row = st.fixed_dictionaries({name: values[name] for name in INPUTS[signature]})

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(rows=st.lists(row, max_size=5))
    def check(rows: list[Row]) -> None:
        answers = model.query(signature, rows)  # raises an error that would fail the call on a server
        for result, request in zip(answers, rows, strict=True):
            assert_valid(signature, request, result)
        returned = [result["carry_bytes"] for result in answers if result.get("carry_bytes")]
        for result in model.query("continue", [{"carry_bytes": carry, "length": 1} for carry in returned]):
            assert result["finish_reason"] in (b"length", b"stop"), "the model must accept its own carry"

    check()


@pytest.mark.parametrize("signature", INPUTS)
def test_random_requests_are_answered(model: ExportedModel, signature: str) -> None:
    check_random_requests(model, signature, 10)


@pytest.mark.slow
@pytest.mark.parametrize("signature", INPUTS)
def test_many_random_requests_are_answered(model: ExportedModel, signature: str) -> None:
    check_random_requests(model, signature, 1500)
