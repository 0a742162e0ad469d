import numpy as np
import pytest

from trainers.judging import copied
from trainers.judging.copied import longest, shares


def test_longest_copy_at_each_byte() -> None:
    lengths = longest(b"the cat sat on the mat", [b"a cat sat", b"mat the", b"", b"xyz"])
    assert [text.tolist() for text in lengths] == [
        [1, 8, 7, 6, 5, 4, 3, 2, 1],  # train has "a" but not "a ", then " cat sat"
        [3, 3, 2, 4, 3, 2, 1],  # "at ", "t "; "mat " is no copy, as train ends with "mat"
        [],
        [0, 0, 0],
    ]


def test_longest_matches_brute_force(rng: np.random.Generator) -> None:
    for _ in range(300):
        train = rng.choice([97, 98], rng.integers(1, 40)).astype(np.uint8).tobytes()
        texts = [rng.choice([97, 98, 99], rng.integers(0, 13)).astype(np.uint8).tobytes() for _ in range(4)] + [b"ab"]
        for text, length_N in zip(texts, longest(train, texts), strict=True):
            copies = [[n for n in range(len(text) - k + 1) if text[k : k + n] in train] for k in range(len(text))]
            assert length_N.tolist() == [max(lengths) for lengths in copies], (train, texts)


def test_share_of_copied_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied, "LENGTHS", (2, 3, 5))
    result = shares([np.array([3, 2, 1, 1]), np.array([0, 1])])  # 4 and 2 bytes: 4 stretches of length 2, 2 of length 3
    assert result == {"longest": 3, "copied_2": 2 / 4, "copied_3": 1 / 2}
    assert shares([]) == {"longest": 0}
