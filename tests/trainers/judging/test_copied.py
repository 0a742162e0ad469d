import numpy as np
import pytest

from trainers.judging import copied
from trainers.judging.copied import longest, shares


def test_each_byte_knows_the_longest_copy_that_begins_with_it() -> None:
    found = longest(b"the cat sat on the mat", [b"a cat sat", b"mat the", b"", b"xyz"])
    assert [one.tolist() for one in found] == [
        [1, 8, 7, 6, 5, 4, 3, 2, 1],  # "a" is in it, "a " is not; " cat sat"
        [3, 3, 2, 4, 3, 2, 1],  # "at ", "t "; train ends with "mat": "mat " is no copy
        [],
        [0, 0, 0],
    ]


def test_as_a_search_for_every_stretch_finds_it(rng: np.random.Generator) -> None:
    for _ in range(300):
        train = rng.choice([97, 98], rng.integers(1, 40)).astype(np.uint8).tobytes()
        texts = [rng.choice([97, 98, 99], rng.integers(0, 13)).astype(np.uint8).tobytes() for _ in range(4)] + [b"ab"]
        for text, found in zip(texts, longest(train, texts), strict=True):
            whole = [[n for n in range(len(text) - k + 1) if text[k : k + n] in train] for k in range(len(text))]
            assert found.tolist() == [max(lengths) for lengths in whole], (train, texts)


def test_shares_are_of_all_stretches_of_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied, "LENGTHS", (2, 3, 5))
    found = shares([np.array([3, 2, 1, 1]), np.array([0, 1])])  # of 4 and 2 bytes: 4 stretches of two, 2 of three
    assert found == {"longest": 3, "copied_2": 2 / 4, "copied_3": 1 / 2}
    assert shares([]) == {"longest": 0}
