"""Coherence measures on texts small enough to count by hand."""

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


def shares(measures: dict[str, Share]) -> dict[str, float]:
    return {name: measure["share"] for name, measure in measures.items()}


@pytest.mark.parametrize(
    ("kind", "text", "train", "expected"),
    [
        # 12 matched: ( ) of add, its { }, ( [ ] ), ( ) of wrong, its { }. The last ( and { are unclosed.
        # 4 closed (two comments, two literals) and one open quote.
        ("c", C, "", {"brackets": 1.0, "quotes_and_comments": 4 / 5, "functions_parsed": 1 / 2}),
        ("c", "f(]) /* open", "", {"brackets": 2 / 3}),
        ("c", '*/ " (', "", {"quotes_and_comments": 0.0}),
        # 6 matched: align, proof and lemma, but not \end{theorem}. 9 pairs of braces and a lone }. The first and last
        # paragraph may be cut off; of the other two with dollars, one has an even number.
        ("latex", LATEX, "", {"environments": 6 / 7, "braces": 18 / 19, "dollars": 1 / 2}),
        # Page A closes page, title and text. Page B leaves title open, and its </text> matches no tag.
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
def test_measures_match_hand_counts(kind: str, text: str, train: str, expected: dict[str, float]) -> None:
    assert shares(coherence(kind, [text], known_of(kind, train))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("c", C), ("latex", LATEX), ("wiki", WIKI), ("python", PYTHON), ("play", PLAY), ("text", "It was a day.\n" * 9)],
)
def test_kind_of(kind: str, text: str) -> None:
    assert kind_of(text) == kind


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.text(alphabet="ab\n\\{}()[]\"'<>/$*:#% \0é", max_size=80))
def test_measures_accept_any_text(kind: str, text: str) -> None:
    assert all(0 <= share <= 1 for share in shares(coherence(kind, [text], known_of(kind, text))).values())


def test_shares_pool_all_texts() -> None:
    measures = coherence("c", ["()", "(]]]", "", "no bracket"], frozenset())
    assert measures == {"brackets": {"share": 2 / 5, "good": 2, "of": 5}}
