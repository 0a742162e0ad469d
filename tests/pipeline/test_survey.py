import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.survey import CONTEXT, LENGTHS, PLACES, Place, Survey, survey


def test_line_length_bins() -> None:
    assert LENGTHS[:12].tolist() == [0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45]
    assert np.all(np.diff(LENGTHS) > 0)


def test_survey_of_a_small_text() -> None:
    text = ["one\n\ntw", "o é\r\nth", "r€e"]
    result = survey([part.encode() for part in text], [ord("é"), ord("h"), ord("!")])
    bins = {low: n for low, n in zip(LENGTHS.tolist(), result.line_lengths, strict=True) if n}
    assert bins == {0: 1, 3: 1, 4: 1, 6: 1}  # lines of 0, 3, 5 and 6 characters
    assert result == Survey(
        lines=4,
        longest=6,
        mean=14 / 4,
        line_lengths=result.line_lengths,
        places=(Place(ord("é"), 3, 9, "o ", "\r\nth"), Place(ord("h"), 4, 13, "o é\r\nt", "")),
    )


def test_survey_of_empty_text() -> None:
    empty = Survey(lines=0, longest=0, mean=0, line_lengths=(0,) * len(LENGTHS), places=())
    assert survey([], [1]) == survey([b""], []) == empty


def test_only_the_first_places_are_kept() -> None:
    result = survey([b"xx.", b"", b"xx\nx"], [ord("x")])
    assert [(place.line, place.offset) for place in result.places] == [(1, 0), (1, 1), (1, 3)]
    assert len(result.places) == PLACES


@given(st.lists(st.text(alphabet="ab\né", max_size=60), max_size=8))
def test_survey_matches_reference(parts: list[str]) -> None:
    text = "".join(parts)
    result = survey([part.encode() for part in parts], [ord("é"), ord("b")])
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    bins = [sum(low <= len(line) < high for line in lines) for low, high in itertools.pairwise(LENGTHS)]
    assert result.line_lengths == (*bins, 0)
    assert (result.lines, result.longest) == (len(lines), max(map(len, lines), default=0))
    assert result.mean == (sum(map(len, lines)) / len(lines) if lines else 0)
    expected, counts, part_starts = [], {"é": 0, "b": 0}, np.cumsum([0, *map(len, parts)])
    for offset, character in enumerate(text):
        if character in counts and counts[character] < PLACES:
            counts[character] += 1
            part = int(np.searchsorted(part_starts, offset, side="right")) - 1
            position = offset - int(part_starts[part])
            before, after = (
                parts[part][max(position - CONTEXT, 0) : position],
                parts[part][position + 1 : position + 1 + CONTEXT],
            )
            expected.append(Place(ord(character), text[:offset].count("\n") + 1, offset, before, after))
    assert list(result.places) == expected
