import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from pipeline.vocab import Vocab, byte_vocab
from trainers.config import ModelConfig
from trainers.model.char_rnn import CharRNN
from trainers.sampling.rows import REQUEST_TYPES, Generation, Limits, Request
from trainers.sampling.sampler import Sampler

Generate = Callable[..., list[bytes]]


def traced_generate(sampler: Sampler) -> Generate:
    """Return generate(prompts, lengths, temperatures, seeds), traced once."""
    traced = tf.function(
        lambda *columns: sampler.generate(Request(*columns)),
        input_signature=[tf.TensorSpec([None], kind) for kind in REQUEST_TYPES[:4]],
        autograph=False,
    )

    def generate(prompts: list[bytes], lengths: list[int], temperatures: list[float], seeds: list[int]) -> list[bytes]:
        generated = traced(prompts, lengths, temperatures, seeds)
        assert not [reason for reason in generated.finish_reason.numpy() if reason not in (b"length", b"stop")]
        return list(generated.text_bytes.numpy())

    return generate


def request_texts(
    sampler: Sampler, prompts: list[bytes], lengths: list[int], warm: float = 1.0, **options: Any
) -> Generation:
    """Generate texts with seeds 1, 2, ..., as NumPy arrays. options: top_k, top_p, penalty, stop, for all rows."""
    B = len(prompts)
    settings = {"top_k": 0, "top_p": 1.0, "penalty": 1.0, "stop": b"", **options}
    columns = [prompts, lengths, [warm] * B, range(1, B + 1), *([value] * B for value in settings.values())]
    request = Request(*(tf.constant(list(column), kind) for column, kind in zip(columns, REQUEST_TYPES, strict=True)))
    return Generation(*(column.numpy() for column in sampler.generate(request)))


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    """Sampler with random weights, large enough that each character depends on the whole prefix."""
    model = CharRNN(ModelConfig(units=12, layers=2), 256, seed=4)
    model.set_weights([3 * weight for weight in model.get_weights()])
    return Sampler(model, byte_vocab())


@pytest.fixture(scope="module")
def generate(sampler: Sampler) -> Generate:
    return traced_generate(sampler)


@pytest.fixture(scope="module")
def traced(sampler: Sampler) -> Sampler:
    """The same sampler with `generate` traced once; without tracing, each text takes a second."""
    traced = Sampler(sampler.model, sampler.vocab)
    request = Request(*(tf.TensorSpec([None], kind) for kind in REQUEST_TYPES))
    traced.generate = tf.function(sampler.generate, [request], autograph=False)  # type: ignore[method-assign]
    return traced


def spelling_sampler(word: bytes) -> Sampler:
    """Return a sampler that repeats `word` endlessly."""
    return cycling_sampler(Vocab("byte", tuple(word[i : i + 1] for i in range(len(word)))))


def cycling_sampler(vocab: Vocab) -> Sampler:
    """Return a sampler that cycles through the symbols by id.

    Each unit remembers one symbol, and the dense layer predicts the next.
    """
    V = vocab.size
    model = CharRNN(ModelConfig(units=V, layers=1), V)
    gates_i_f_c_o = [np.full((V, V), 20.0), np.full((V, V), -20.0), 20 * np.eye(V), np.full((V, V), 20.0)]
    following = np.roll(np.eye(V), 1, axis=1)
    model.set_weights(
        [np.concatenate(gates_i_f_c_o, 1), np.zeros((V, 4 * V)), np.zeros(4 * V), 50 * following, np.zeros(V)]
    )
    return Sampler(model, vocab)


def test_sampler_spells_the_memorised_word() -> None:
    spell = traced_generate(spelling_sampler(b"unmistakbe\n"))
    assert spell([b"u", b"ista", b""], [10, 4, 11], [1.0, 0.5, 0.0], [1, 2, 3]) == [
        b"nmistakbe\n",
        b"kbe\n",
        b"unmistakbe\n",
    ]


CHARACTERS = tuple(c.encode() for c in "\nabéя中😀")


@pytest.mark.parametrize("end", ["newline", "token"])
def test_text_ends_with_its_document(end: str) -> None:
    vocab = Vocab("char", CHARACTERS, end_id=0) if end == "newline" else Vocab("char", (*CHARACTERS[1:], b""), end_id=6)
    spell = traced_generate(cycling_sampler(vocab))
    # Row 2 ends at its length, rows 1 and 3 with the document, at different steps; row 4 requests length 0.
    texts = spell([b"", b"a", "éя".encode(), "я".encode()], [9, 3, 9, 0], [0.0, 1.0, 0.5, 1.0], [1, 2, 3, 4])
    assert [text.decode() for text in texts] == ["abéя中😀", "béя", "中😀", ""]
    assert spell([b"", b"a"], [0, 0], [1.0, 1.0], [1, 1]) == [b"", b""]


def test_sampling_stops_when_all_rows_have_ended() -> None:
    spell = traced_generate(cycling_sampler(Vocab("char", CHARACTERS, end_id=0)))
    started = time.process_time()
    (text,) = spell([b"a"], [1 << 20], [0.0], [1])
    assert text.decode() == "béя中😀"
    assert time.process_time() - started < 10  # the full length takes about a minute


def test_end_of_document_truncates_the_text(sampler: Sampler, generate: Generate) -> None:
    """Compare with the same model without an end symbol, which keeps writing after a newline."""
    prompts, lengths, temperatures, seeds = [b"a", b"", b"abc"] * 20, [60, 20, 300] * 20, [1.0] * 60, list(range(60))
    cut = traced_generate(Sampler(sampler.model, byte_vocab(end="newline")))(prompts, lengths, temperatures, seeds)
    assert cut == [
        text.split(b"\n")[0] for text in generate([b"\n" + prompt for prompt in prompts], lengths, temperatures, seeds)
    ]
    assert len({len(text) for text in cut}) > 10
    assert max(map(len, cut)) > 20


def test_only_the_last_document_of_a_prompt_matters(sampler: Sampler) -> None:
    documents = Sampler(sampler.model, byte_vocab(end="newline"))
    both, last = traced_generate(documents)([b"one\nand two", b"and two"], [40, 40], [0.0, 0.0], [1, 1])
    assert both == last
    _, logits, _ = documents.start(tf.constant([b"one\nand", b"and", b""]))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    assert np.abs(logits[1] - logits[2]).max() > 1e-2


def test_equal_seeds_give_equal_texts(generate: Generate) -> None:
    first, again, other = generate([b"a"] * 3, [60] * 3, [1.0] * 3, [7, 7, 8])
    assert first == again != other
    assert generate([b"a"], [60], [1.0], [7]) == [first]


def test_shorter_text_is_a_prefix_of_longer_text(generate: Generate) -> None:
    long, short = generate([b"a"] * 2, [50, 20], [1.0] * 2, [7, 7])
    assert long[:20] == short
    assert (len(long), len(short)) == (50, 20)


def test_rows_are_independent_of_their_batch(generate: Generate) -> None:
    rows = [
        (b"def f(", 30, 1.0, 1),
        (b"", 7, 0.5, -2),
        (b"x", 41, 0.0, 3),
        (b"a long prompt, much longer", 1, 2.0, 2**40),
    ]
    together = generate(*(list(column) for column in zip(*rows, strict=True)))
    assert together == [generate(*([value] for value in row))[0] for row in rows]
    assert [len(text) for text in together] == [30, 7, 41, 1]


def test_zero_and_tiny_temperatures_are_greedy(sampler: Sampler, generate: Generate) -> None:
    text, expected = b"def ", b""
    for _ in range(20):
        logits, _ = sampler.model(np.frombuffer(text + expected, np.uint8)[None], sampler.model.initial_carry(1))
        expected += bytes([int(np.argmax(logits[0, -1]))])
    assert generate([text] * 2, [20] * 2, [0.0, 1e-4], [1, 2]) == [expected, expected]


def test_prompts_may_contain_any_bytes(generate: Generate) -> None:
    (text,) = generate([b"\x00\xff" + "é\r\n".encode()], [5], [1.0], [1])
    assert len(text) == 5


def test_invalid_rows_report_errors_and_valid_rows_are_unaffected(sampler: Sampler) -> None:
    limited = Sampler(sampler.model, sampler.vocab, Limits(length=30, prompt=9, rows=4))
    valid = request_texts(limited, [b"abc", b"abc"], [30, 0])
    assert (valid.finish_reason.tolist(), valid.n_chars.tolist()) == ([b"length"] * 2, [30, 0])
    mixed = request_texts(limited, [b"abc", b"0123456789", b"x"], [30, 5, 31])
    assert mixed.finish_reason.tolist() == [
        b"length",
        b"error: prompt: at most 9 bytes are read, got 10 bytes",
        b"error: length: 0 to 30, got 31",
    ]
    assert mixed.text_bytes.tolist() == [valid.text_bytes[0], b"", b""]
    assert (mixed.n_chars.tolist(), mixed.log_prob.tolist()[1:]) == ([30, 0, 0], [0, 0])
    too_many = request_texts(limited, [b"a"] * 5, [1] * 5)
    assert too_many.finish_reason.tolist() == [b"error: at most 4 rows per call, got 5"] * 5
    assert request_texts(limited, [], []).text_bytes.tolist() == []
    for settings, message in (
        ({"warm": np.nan}, "temperature: a number, 0 (greedy) or more, got nan"),
        ({"warm": np.inf}, "temperature: a number, 0 (greedy) or more, got inf"),
        ({"warm": -0.5}, "temperature: a number, 0 (greedy) or more, got -0.5"),
        ({"top_k": -1}, "top_k: 0 (all) or more, got -1"),
        ({"top_p": 0.0}, "top_p: more than 0, at most 1 (all), got 0"),
        ({"top_p": np.nan}, "top_p: more than 0, at most 1 (all), got nan"),
        ({"penalty": 0.0}, "repetition_penalty: a number above 0, got 0"),
        ({"stop": b"." * 65}, "stop: at most 64 bytes are read, got 65 bytes"),
    ):
        assert request_texts(limited, [b"abc"], [3], **settings).finish_reason.tolist() == [
            f"error: {message}".encode()
        ]


def test_invalid_limits_raise() -> None:
    with pytest.raises(UsageError, match=r"limits: rows must be 1 to 1,048,576, got 0$"):
        Limits(rows=0)


def test_symbol_outside_the_vocabulary_is_named() -> None:
    spell = cycling_sampler(Vocab("char", CHARACTERS))
    prompts = ["ab!é".encode(), b"\xff", "\U0010fffd".encode(), b"a"]
    assert request_texts(spell, prompts, [2] * 4, 0.0).finish_reason.tolist() == [
        b"error: prompt: '!' is not in the model's vocabulary; see info",
        b"error: prompt: must be valid UTF-8",
        "error: prompt: '\U0010fffd' is not in the model's vocabulary; see info".encode(),
        b"length",
    ]
    assert request_texts(spell, [b"a"], [2], stop=b"q").finish_reason[0].startswith(b"error: stop: 'q' is not")


def test_stop_truncates_the_text_before_it(sampler: Sampler, traced: Sampler) -> None:
    whole = request_texts(traced, [b"def "] * 3, [200] * 3)
    stop = whole.text_bytes[0][60:63]
    cut = request_texts(traced, [b"def "] * 3, [200] * 3, stop=stop)
    for text, actual, reason in zip(whole.text_bytes, cut.text_bytes, cut.finish_reason, strict=True):
        assert (actual, reason) == ((text.split(stop)[0], b"stop") if stop in text else (text, b"length"))
    assert cut.n_chars.tolist() == [len(text) for text in cut.text_bytes]
    # log_prob is the model's probability of the text that is returned, without the stop.
    (log_prob_BxP, _, _) = sampler.score(tf.constant([b"\n" + whole.text_bytes[0]]))
    assert log_prob_BxP.shape == (1, 201)


def test_stop_in_the_prompt_is_ignored() -> None:
    spell = spelling_sampler(b"unmistakbe\n")
    assert request_texts(spell, [b"unmis", b"unmist"], [9, 6], 0.0, stop=b"sta").text_bytes.tolist() == [
        b"takbe\nunm",
        b"akbe\nu",
    ]


def test_stop_of_several_characters_takes_precedence_over_document_end() -> None:
    spell = cycling_sampler(Vocab("char", CHARACTERS, end_id=0))
    assert request_texts(spell, [b""], [9], 0.0, stop="я中".encode()).text_bytes.tolist() == ["abé".encode()]
    ended = request_texts(spell, [b"", b""], [9, 9], 0.0, stop="中😀\n".encode())
    assert ended.text_bytes.tolist() == ["abéя".encode()] * 2
    assert ended.finish_reason.tolist() == [b"stop"] * 2


def test_log_prob_matches_score(sampler: Sampler, traced: Sampler) -> None:
    generated = request_texts(traced, [b""] * 3, [50, 1, 0], 0.7)
    log_prob_BxP, count_B, problem_B = sampler.score(tf.constant(generated.text_bytes))
    assert (count_B.numpy().tolist(), problem_B.numpy().tolist()) == ([50, 1, 0], [b""] * 3)
    np.testing.assert_allclose(np.sum(log_prob_BxP, 1), generated.log_prob, rtol=1e-5)
    ids = np.frombuffer(b"\n" + generated.text_bytes[0], np.uint8)[None]
    logits, _ = sampler.model(ids, sampler.model.initial_carry(1))
    expected = tf.math.log_softmax(logits[0, :-1]).numpy()[np.arange(50), ids[0, 1:]]
    np.testing.assert_allclose(log_prob_BxP[0], expected, atol=1e-5)


def test_resumed_generation_gives_the_same_text(sampler: Sampler, traced: Sampler) -> None:
    resume = tf.function(sampler.resume, autograph=False)
    stop = request_texts(traced, [b"def "], [120]).text_bytes[0][90:95]
    for options in ({}, {"stop": stop}, {"penalty": 1.3, "top_k": 20, "top_p": 0.9}):
        whole = request_texts(traced, [b"def "], [120], **options)
        carry, prompt, text, log_prob = b"", b"def ", b"", 0.0
        for length in (1, 2, 17, 0, 73, 27):
            settings = {"top_k": 0, "top_p": 1.0, "penalty": 1.0, "stop": b"", **options}
            columns = [[x] for x in (prompt, length, 1.0, 1, *settings.values())]
            request = Request(*(tf.constant(column, kind) for column, kind in zip(columns, REQUEST_TYPES, strict=True)))
            generated, carry_B = resume(tf.constant([carry]), request)
            (carry,), prompt = carry_B.numpy(), b""
            text += generated.text_bytes.numpy()[0]
            log_prob += float(generated.log_prob[0])
            if generated.finish_reason.numpy()[0] == b"stop":
                text = text[: len(text) - int(generated.n_back[0])]
                break
        assert text == whole.text_bytes[0]
        if "stop" not in options:
            np.testing.assert_allclose(log_prob, whole.log_prob[0], rtol=1e-5)
    assert whole.text_bytes[0] != request_texts(traced, [b"def "], [120]).text_bytes[0], "options change the text"


def test_neurons_returns_states_of_a_layer(sampler: Sampler) -> None:
    text = b"for i in range(3):"
    (h_BxPxH, c_BxPxH), count_B, problem_B = sampler.neurons(tf.constant([text, b"ab", text]), tf.constant([1, 0, 2]))
    assert count_B.numpy().tolist() == [18, 2, 0]
    assert problem_B.numpy().tolist() == [b"", b"", b"error: layer: 0 to 1, got 2"]
    carry, ids = sampler.model.initial_carry(1), np.frombuffer(b"\n" + text, np.uint8)
    for t, index in enumerate(ids):
        _, carry = sampler.model(np.array([[index]]), carry)
        if t:
            np.testing.assert_allclose(h_BxPxH[0, t - 1], carry[0, 1, 0], atol=1e-5)
            np.testing.assert_allclose(c_BxPxH[0, t - 1], carry[0, 1, 1], atol=1e-5)
    assert np.abs(h_BxPxH[1, :2]).min() > 0
    assert not np.any(h_BxPxH[1, 2:])
    assert not np.any(h_BxPxH[2])
