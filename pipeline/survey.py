"""Survey a whole text for features that records cannot show: whole lines, and positions of rare characters.

N characters of a range   E ends of lines in it   L the lengths of lines that end there
"""

import dataclasses
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from pipeline.vocab import CODE_POINTS, Codes, code_points

NEWLINE = ord("\n")
PLACES = 3  # positions kept per character and split
CONTEXT = 24  # characters shown on either side

# Lower bounds of the length bins: 0, 1, 2, 3, 4, 6, 8, 11, ..., two bins per doubling, beyond any line.
LENGTHS = np.unique(np.concatenate([[0], np.round(2 ** (np.arange(96) / 2))])).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Place:
    """Occurrence of a character: line (from 1), offset in the split in characters (from 0), and the surrounding text
    within the same piece."""

    code: int
    line: int
    offset: int
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """Lines and places of a whole text. Lengths are in characters, without the newline.

    line_lengths: number of lines of length LENGTHS[i] up to, but not including, LENGTHS[i + 1]; longest, mean: of all
    lines; places: the first PLACES occurrences of each requested character, in order.
    """

    lines: int
    longest: int
    mean: float
    line_lengths: tuple[int, ...]
    places: tuple[Place, ...]


def survey(texts: Iterable[bytes], codes: Collection[int]) -> Survey:
    """Survey a text in pieces cut between characters, locating the code points `codes`. Holds one piece at a time."""
    missing = dict.fromkeys(codes, PLACES)
    lengths, places = np.zeros(len(LENGTHS), np.int64), []
    lines = longest = characters = begun = 0  # begun: characters of the unfinished line
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
    if begun:  # the last line has no newline
        lengths += _in_bins(np.array([begun]))
        lines, longest = lines + 1, max(longest, begun)
    return Survey(lines, longest, (characters - ended) / max(lines, 1), tuple(lengths.tolist()), tuple(places))


def _indices(codes_N: Codes, missing: dict[int, int]) -> list[int]:
    """Sorted indices of the characters whose places are still missing; updates `missing`."""
    is_missing = np.zeros(CODE_POINTS, bool)
    is_missing[list(missing)] = True
    hits = np.flatnonzero(is_missing[codes_N]) if missing else np.empty(0, np.intp)
    indices: list[int] = []
    for code in np.unique(codes_N[hits]).tolist():
        taken = hits[codes_N[hits] == code][: missing[code]].tolist()
        indices += taken
        missing[code] -= len(taken)
        if not missing[code]:
            del missing[code]
    return sorted(indices)


def _string(codes: Codes) -> str:
    return "".join(map(chr, codes.tolist()))


def _in_bins(lengths_L: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    bins_L = np.searchsorted(LENGTHS, lengths_L, side="right") - 1
    return np.bincount(bins_L, minlength=len(LENGTHS))
