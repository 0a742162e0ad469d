import time
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from export.lite_runner import choose as numpy_choose
from pipeline.vocab import Vocab, byte_vocab
from trainers.config import ModelConfig
from trainers.generate import Sampler, choose
from trainers.model import CharRNN

Generate = Callable[..., list[bytes]]


def call(sampler: Sampler) -> Generate:
    """generate(prompts, lengths, temperatures, seeds), traced once."""
    traced = tf.function(
        sampler.generate,
        input_signature=[tf.TensorSpec([None], dtype) for dtype in (tf.string, tf.int32, tf.float32, tf.int64)],
    )

    def generate(prompts: list[bytes], lengths: list[int], temperatures: list[float], seeds: list[int]) -> list[bytes]:
        return list(traced(prompts, lengths, temperatures, seeds).numpy())

    return generate


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    """Random weights, large enough that the text depends on all that came before."""
    model = CharRNN(ModelConfig(units=12, layers=2), 256, seed=4)
    model.set_weights([3 * weight for weight in model.get_weights()])
    return Sampler(model, byte_vocab())


@pytest.fixture(scope="module")
def generate(sampler: Sampler) -> Generate:
    return call(sampler)


def speller(word: bytes) -> Sampler:
    """A model that spells `word` round and round."""
    return follower(Vocab("byte", tuple(word[i : i + 1] for i in range(len(word)))))


def follower(vocab: Vocab) -> Sampler:
    """A model that writes the symbols in the order of their ids, round and round: each unit remembers one of them, the
    dense layer names the next."""
    V = vocab.size
    model = CharRNN(ModelConfig(units=V, layers=1), V)
    gates_i_f_c_o = [np.full((V, V), 20.0), np.full((V, V), -20.0), 20 * np.eye(V), np.full((V, V), 20.0)]
    following = np.roll(np.eye(V), 1, axis=1)
    model.set_weights(
        [np.concatenate(gates_i_f_c_o, 1), np.zeros((V, 4 * V)), np.zeros(4 * V), 50 * following, np.zeros(V)]
    )
    return Sampler(model, vocab)


def test_it_spells_the_word_that_its_model_knows() -> None:
    spell = call(speller(b"unmistakbe\n"))
    assert spell([b"u", b"ista", b""], [10, 4, 11], [1.0, 0.5, 0.0], [1, 2, 3]) == [
        b"nmistakbe\n",
        b"kbe\n",
        b"unmistakbe\n",
    ]


CHARACTERS = tuple(c.encode() for c in "\nabéя中😀")


@pytest.mark.parametrize("end", ["newline", "token"])
def test_a_text_ends_with_its_document(end: str) -> None:
    vocab = Vocab("char", CHARACTERS, end_id=0) if end == "newline" else Vocab("char", (*CHARACTERS[1:], b""), end_id=6)
    spell = call(follower(vocab))
    # One row is cut by its length, the others end with the document, at different steps; the last asks for nothing.
    texts = spell([b"", b"a", "éя".encode(), "я".encode()], [9, 3, 9, 0], [0.0, 1.0, 0.5, 1.0], [1, 2, 3, 4])
    assert [text.decode() for text in texts] == ["abéя中😀", "béя", "中😀", ""]
    assert spell([b"", b"a"], [0, 0], [1.0, 1.0], [1, 1]) == [b"", b""]


def test_sampling_stops_when_every_row_has_ended() -> None:
    spell = call(follower(Vocab("char", CHARACTERS, end_id=0)))
    started = time.monotonic()
    (text,) = spell([b"a"], [1 << 20], [0.0], [1])
    assert text.decode() == "béя中😀"
    assert time.monotonic() - started < 10  # the whole length takes a minute or so


def test_the_end_of_a_document_only_cuts(sampler: Sampler, generate: Generate) -> None:
    """The same model without an end writes the same after a newline, and goes on."""
    prompts, lengths, warm, seeds = [b"a", b"", b"abc"] * 20, [60, 20, 300] * 20, [1.0] * 60, list(range(60))
    cut = call(Sampler(sampler.model, byte_vocab(end="newline")))(prompts, lengths, warm, seeds)
    assert cut == [
        text.split(b"\n")[0] for text in generate([b"\n" + prompt for prompt in prompts], lengths, warm, seeds)
    ]
    assert len({len(text) for text in cut}) > 10
    assert max(map(len, cut)) > 20


def test_a_prompt_of_two_documents_is_read_as_its_last(sampler: Sampler) -> None:
    documents = Sampler(sampler.model, byte_vocab(end="newline"))
    both, last = call(documents)([b"one\nand two", b"and two"], [40, 40], [0.0, 0.0], [1, 1])
    assert both == last
    logits, lengths = documents.logits(tf.constant([b"one\nand", b"and", b""]))
    assert lengths.numpy().tolist() == [8, 4, 1]
    np.testing.assert_allclose(logits[0, 4:], logits[1, :4], atol=1e-5)


def test_characters_are_counted_and_found_by_their_code_points() -> None:
    sampler = follower(Vocab("char", CHARACTERS))
    assert sampler.encode(tf.constant(["яa😀".encode(), b"", "é".encode()]))[0].numpy().tolist() == [
        [4, 1, 6],
        [0, 0, 0],
        [3, 0, 0],
    ]
    assert call(sampler)(["я".encode(), b""], [3, 8], [0.0, 0.0], [1, 1]) == ["中😀\n".encode(), "abéя中😀\na".encode()]
    logits, lengths = sampler.logits(tf.constant(["яa😀".encode(), b""]))
    assert lengths.numpy().tolist() == [3, 1]
    assert np.argmax(logits[0], -1).tolist() == [5, 2, 0]


def test_characters_where_the_number_of_rows_is_known_ahead() -> None:
    for end_id in (None, 0):
        sampler = follower(Vocab("char", CHARACTERS, end_id))
        inputs = (tf.constant(["я".encode()]), tf.constant([2]), tf.constant([0.0]), tf.constant([1], tf.int64))
        assert tf.function(sampler.generate)(*inputs).numpy().tolist() == ["中😀".encode()]


def test_what_is_unknown_has_an_id_or_is_refused_by_name() -> None:
    unknown = follower(Vocab("char", CHARACTERS, unknown_id=2))
    for text in ("a!é\U0010fffd", "", "\u4e2c"):  # below, between and above what it knows
        assert unknown.encode(tf.constant([text.encode()]))[0].numpy()[0].tolist() == (
            unknown.vocab.encode(text.encode()).tolist() or [0]
        )
    spell = call(follower(Vocab("char", CHARACTERS)))
    for text in ("ab!é", "\U0010fffd", "\x00"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="a character is outside the vocabulary"):
            spell([b"a", text.encode()], [1, 1], [1.0, 1.0], [1, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="!"):
        spell([b"ab!"], [1], [1.0], [1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid formatting on input string"):
        spell([b"\xff"], [1], [1.0], [1])


def test_the_same_seed_writes_the_same_text(generate: Generate) -> None:
    first, again, other = generate([b"a"] * 3, [60] * 3, [1.0] * 3, [7, 7, 8])
    assert first == again != other
    assert generate([b"a"], [60], [1.0], [7]) == [first]


def test_a_longer_text_begins_with_the_shorter(generate: Generate) -> None:
    long, short = generate([b"a"] * 2, [50, 20], [1.0] * 2, [7, 7])
    assert long[:20] == short
    assert (len(long), len(short)) == (50, 20)


def test_a_row_does_not_depend_on_the_rows_beside_it(generate: Generate) -> None:
    rows = [
        (b"def f(", 30, 1.0, 1),
        (b"", 7, 0.5, -2),
        (b"x", 41, 0.0, 3),
        (b"a long prompt, much longer", 1, 2.0, 2**40),
    ]
    together = generate(*(list(column) for column in zip(*rows, strict=True)))
    assert together == [generate(*([value] for value in row))[0] for row in rows]
    assert [len(text) for text in together] == [30, 7, 41, 1]


def test_temperature_zero_and_nearly_zero_are_greedy(sampler: Sampler, generate: Generate) -> None:
    text, expected = b"def ", b""
    for _ in range(20):
        logits, _ = sampler.model(np.frombuffer(text + expected, np.uint8)[None], sampler.model.initial_carry(1))
        expected += bytes([int(np.argmax(logits[0, -1]))])
    assert generate([text] * 2, [20] * 2, [0.0, 1e-4], [1, 2]) == [expected, expected]


def test_temperatures_without_meaning_have_one(generate: Generate) -> None:
    greedy, nan, negative, infinite = generate([b"ab"] * 4, [20] * 4, [0.0, np.nan, -1.0, np.inf], [1] * 4)
    assert greedy == nan == negative
    assert len(set(infinite)) > 10, "all characters alike"


def test_lengths_of_nothing(generate: Generate) -> None:
    assert generate([b"abc", b"a"], [0, -5], [1.0, 1.0], [1, 1]) == [b"", b""]


def test_bytes_of_every_kind_are_prompts(generate: Generate) -> None:
    (text,) = generate([b"\x00\xff" + "é\r\n".encode()], [5], [1.0], [1])
    assert len(text) == 5


def test_a_byte_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="holds a byte that is outside the model"):
        call(speller(b"abc\n"))([b"abd"], [1], [1.0], [1])


def test_choose_draws_in_proportion_to_the_softmax(rng: np.random.Generator) -> None:
    logits = rng.normal(size=6).astype(np.float32)
    n = 20_000
    uniform = ((np.arange(n) + 0.5) / n).astype(np.float32)
    for temperature in (0.5, 1.0, 2.0):
        drawn = choose(tf.tile(logits[None], [n, 1]), tf.fill([n], temperature), uniform)
        p = np.exp(logits / temperature)
        np.testing.assert_allclose(np.bincount(drawn, minlength=6) / n, p / p.sum(), atol=2e-3)


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-23])
@pytest.mark.parametrize("temperature", [0.0, 1e-3, 0.7, 100.0])
def test_choose_takes_where_the_uniform_falls(rng: np.random.Generator, temperature: float, uniform: float) -> None:
    logits = (10 * rng.normal(size=(50, 9))).astype(np.float32)
    drawn = choose(logits, tf.fill([50], temperature), tf.fill([50], uniform)).numpy()
    for row, got in zip(logits, drawn, strict=True):
        for one in (int(got), numpy_choose(row, temperature, uniform)):
            scaled = row.astype(np.float64) / max(temperature, 1e-3)
            p = np.exp(scaled - scaled.max())
            above = np.cumsum(p / p.sum())
            if temperature == 0:
                assert one == np.argmax(row)
            else:
                assert above[one] - p[one] / p.sum() - 1e-5 <= uniform <= above[one] + 1e-5


def test_logits_are_the_windows(sampler: Sampler) -> None:
    texts = [b"for i in range(3):", b"x"]
    logits, lengths = sampler.logits(tf.constant(texts))
    assert lengths.numpy().tolist() == [18, 1]
    for row, text in zip(logits, texts, strict=True):
        expected, _ = sampler.model(np.frombuffer(text, np.uint8)[None], sampler.model.initial_carry(1))
        np.testing.assert_allclose(row[: len(text)], expected[0], atol=1e-5)
