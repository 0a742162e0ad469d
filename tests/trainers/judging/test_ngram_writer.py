"""N-gram that generates text, compared with the n-gram that scores."""

import numpy as np
import pytest

from trainers.judging.ngram import probabilities
from trainers.judging.ngram_writer import NGramWriter


@pytest.mark.parametrize("end_id", [None, 2])
@pytest.mark.parametrize(
    ("size", "length", "order"), [(3, 300, 1), (4, 60, 2), (5, 900, 5), (256, 3000, 7), (300, 900, 3)]
)
def test_probabilities_match_the_scoring_ngram(
    rng: np.random.Generator, size: int, length: int, order: int, end_id: int | None
) -> None:
    train = rng.integers(0, size, length).astype(np.min_scalar_type(size - 1))
    train = np.where(rng.random(length) < 0.5, np.roll(train, 7), train)  # with repetitions
    text = rng.integers(0, size, 60)
    writer = NGramWriter(train, size, order, end_id)
    after = [writer.probabilities(writer._context(text[:k].tolist())) for k in range(1, len(text))]
    np.testing.assert_allclose(np.sum(after, axis=1), 1, rtol=1e-12)
    *_, (expected,) = probabilities(train, [text.astype(train.dtype)], size, end_id, order)
    np.testing.assert_allclose([p_V[symbol] for p_V, symbol in zip(after, text[1:], strict=True)], expected, rtol=1e-12)


def test_symbols_are_drawn_with_their_probabilities(rng: np.random.Generator) -> None:
    train = rng.choice(4, 500, p=[0.5, 0.3, 0.2, 0.0]).astype(np.uint8)
    writer = NGramWriter(train, 4, 3)
    drawn = [writer.write([0, 1], 1, seed)[0] for seed in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, writer.probabilities((0, 1)), atol=0.03)


def test_text_ends_with_its_document() -> None:
    names = np.frombuffer(b"Ann\nBob\nCy\n" * 9, np.uint8)
    writer = NGramWriter(names, 256, 12, end_id=10)
    texts = [bytes(writer.write([10], 30, seed)) for seed in range(200)]
    assert {b"Ann\n", b"Bob\n", b"Cy\n"} < set(texts)
    assert all(len(text) == 30 or text.endswith(b"\n") for text in texts)
    assert not any(b"\n" in text[:-1] for text in texts)
    assert bytes(writer.write([10], 2, 1)) == texts[1][:2]
