"""Each measure on a text whose figures can be counted by hand."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from trainers.judging.coherence import KINDS, Share, coherence, kind_of, known_of

C = """#include <a.h>
/* a comment with a " and a { in it */
static int add(int a, int b)
{
\treturn (a + b[0]); // it's fine
}
int wrong(int a)
{
\tint x = = a;
}
char *s = "a \\" quote", c = '"';
char t = "open;
if (x {
"""
LATEX = r"""\begin{proof} Let $x$ be {a}. % a comment with $ and {
\begin{align} a \end{align}

A price of \$5, and $y$ and \{.

One $ alone } here.

\end{proof} \begin{lemma} \end{theorem} and \end{lemma} \begin{proof}
"""
WIKI = """<page><title>A</title><text xml:space="preserve">[[a|b]] {{c}} [[open</text></page>
<page><title>B<br/></text></page>
<page><title>C {{
"""
PYTHON = """pass
import os
def f(x):
    return x +
class A:
    def g(self):
        pass
x = [1, 2]
def h():
"""
PLAY = """ing on.

HAMLET:
To be.

Nobody:
Or not.

So says a line.

KING LEAR:
end"""


def shares(found: dict[str, Share]) -> dict[str, float]:
    return {name: one["share"] for name, one in found.items()}


@pytest.mark.parametrize(
    ("kind", "text", "train", "expected"),
    [
        # ( and ) of add, { and }, ( and [ and ] and ), ( and ) of wrong and its { and }: 12, the last ( and { are open
        # 4 that are whole (two comments, two literals), and the quote that opens
        ("c", C, "", {"brackets": 1.0, "quotes_and_comments": 4 / 5, "functions_parsed": 1 / 2}),
        ("c", "f(]) /* open", "", {"brackets": 2 / 3}),
        ("c", '*/ " (', "", {"quotes_and_comments": 0.0}),
        # align and proof and lemma: 6 that match, and \end{theorem}; 9 pairs of braces, and } alone; the first and the
        # last paragraph may be cut, one of the two others that have a dollar is even
        ("latex", LATEX, "", {"environments": 6 / 7, "braces": 18 / 19, "dollars": 1 / 2}),
        # of A: page, title, text close; of B: page closes over its title, </text> closes nothing
        (
            "wiki",
            WIKI,
            "",
            {"tags": 8 / 10, "pages_well_formed": 1 / 2, "links": 1 / 2, "templates": 1.0},
        ),
        ("python", PYTHON, "", {"statements_parsed": 3 / 4, "definitions_parsed": 1 / 2}),
        ("play", PLAY, "KING:\nx\n\nHAMLET:\ny", {"speeches_named": 2 / 3, "speakers_known": 1 / 2}),
        ("names", "Ann\nBob\n\nBob\nCy", "Bob\nDee\nAnna", {"new": 2 / 4, "distinct": 3 / 4}),
        ("text", "Anything.", "", {}),
        *((kind, "", "", {}) for kind in KINDS),
    ],
)
def test_known_figures(kind: str, text: str, train: str, expected: dict[str, float]) -> None:
    assert shares(coherence(kind, [text], known_of(kind, train))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("c", C), ("latex", LATEX), ("wiki", WIKI), ("python", PYTHON), ("play", PLAY), ("text", "It was a day.\n" * 9)],
)
def test_a_kind_is_known_by_its_marks(kind: str, text: str) -> None:
    assert kind_of(text) == kind


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.text(alphabet="ab\n\\{}()[]\"'<>/$*:#% \0é", max_size=80))
def test_no_text_stops_a_measure(kind: str, text: str) -> None:
    assert all(0 <= share <= 1 for share in shares(coherence(kind, [text], known_of(kind, text))).values())


def test_shares_are_over_all_texts() -> None:
    found = coherence("c", ["()", "(]]]", "", "no bracket"], frozenset())
    assert found == {"brackets": {"share": 2 / 5, "good": 2, "of": 5}}
