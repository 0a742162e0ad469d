"""What records cannot show of a text read from end to end: whole lines, and where rare characters are.

N characters of a range   E ends of lines in it   L the lengths of lines that end there
"""

import dataclasses
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from pipeline.vocab import CODE_POINTS, Codes, code_points

NEWLINE = ord("\n")
PLACES = 3  # of a character in a split: enough to judge it by
CONTEXT = 24  # characters shown on either side of it

# The least length of each bin: 0, 1, 2, 3, 4, 6, 8, 11, ..., two bins to a doubling, to where no line reaches.
LENGTHS = np.unique(np.concatenate([[0], np.round(2 ** (np.arange(96) / 2))])).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Place:
    """An occurrence of a character: its line, from 1, its offset in characters from the beginning of the split, from 0,
    and the text around it, as far as it lies in the same piece."""

    code: int
    line: int
    offset: int
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """A text from end to end; lengths of lines are in characters, without the newline.

    line_lengths: how many lines are LENGTHS[i] or longer and shorter than LENGTHS[i + 1]; longest: the longest;
    mean: the mean length; places: the first PLACES places of each character that was asked for, in their order.
    """

    lines: int
    longest: int
    mean: float
    line_lengths: tuple[int, ...]
    places: tuple[Place, ...]


def survey(texts: Iterable[bytes], wanted: Collection[int]) -> Survey:
    """Reads a text in pieces, cut at characters, and looks for the `wanted` code points. Holds one piece at a time."""
    missing = dict.fromkeys(wanted, PLACES)
    lengths, places = np.zeros(len(LENGTHS), np.int64), []
    lines = longest = characters = begun = 0  # begun: of a line that has not ended yet, the characters so far
    for text in texts:
        codes_N = code_points(text, errors="surrogateescape")
        ends_E = np.flatnonzero(codes_N == NEWLINE)
        for index in _indices(codes_N, missing):
            line = lines + int(np.searchsorted(ends_E, index)) + 1
            before, after = codes_N[max(index - CONTEXT, 0) : index], codes_N[index + 1 : index + 1 + CONTEXT]
            places.append(Place(int(codes_N[index]), line, characters + index, _string(before), _string(after)))
        lengths_L = np.diff(ends_E, prepend=-1 - begun) - 1
        lengths += _in_bins(lengths_L)
        lines, longest = lines + len(ends_E), max(longest, int(lengths_L.max(initial=0)))
        begun = len(codes_N) - 1 - int(ends_E[-1]) if len(ends_E) else begun + len(codes_N)
        characters += len(codes_N)
    ended = lines
    if begun:  # the text does not end with a newline: its last line ends where the text does
        lengths += _in_bins(np.array([begun]))
        lines, longest = lines + 1, max(longest, begun)
    return Survey(lines, longest, (characters - ended) / max(lines, 1), tuple(lengths.tolist()), tuple(places))


def _indices(codes_N: Codes, missing: dict[int, int]) -> list[int]:
    """Where the characters are of which places are missing, in order; these are then missing no more."""
    wanted = np.zeros(CODE_POINTS, bool)
    wanted[list(missing)] = True
    hits = np.flatnonzero(wanted[codes_N]) if missing else np.empty(0, np.intp)
    found: list[int] = []
    for code in np.unique(codes_N[hits]).tolist():
        taken = hits[codes_N[hits] == code][: missing[code]].tolist()
        found += taken
        missing[code] -= len(taken)
        if not missing[code]:
            del missing[code]
    return sorted(found)


def _string(codes: Codes) -> str:
    return "".join(map(chr, codes.tolist()))


def _in_bins(lengths_L: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    bins_L = np.searchsorted(LENGTHS, lengths_L, side="right") - 1
    return np.bincount(bins_L, minlength=len(LENGTHS))
