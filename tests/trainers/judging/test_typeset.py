import shutil
from pathlib import Path

import pytest

from trainers.judging import typeset

needs_engine = pytest.mark.skipif(not shutil.which(typeset.ENGINE), reason="pdflatex is not on the PATH")

TRAIN = r"""
\newcommand{\twice}{once}
\newcommand{\twice}{twice}
\def\Spec{\mathop{\rm Spec}}
\newtheorem{lemma}{Lemma}
\def\open{
"""
TEXT = r"""end of a proof.

\begin{lemma}
Let $A$ be

a ring. Then $\Spec(A)$.
\end{lemma}
 
$x$ \end{lemma} and

\begin{proof}
cut"""  # noqa: W293
LEMMA = "\\begin{lemma}\nLet $A$ be\n\na ring. Then $\\Spec(A)$.\n\\end{lemma}"
OPEN = "\\begin{lemma}\nnever closed\n\nx"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (TEXT, [LEMMA, "$x$ \\end{lemma} and"]),
        ("a\n\nb\n\nc", ["b"]),
        ("a\n \n\nb\n\t\nc\n\n", ["b", "c"]),
        ("no blank line", []),
        ("\n\n\\\\begin{x}\n\n", ["\\\\begin{x}"]),  # a line break, then the word begin
        ("\n\n\\begin{a}\\\\\\begin{b}\n\n\\end{b}\\end{a}\n\n", ["\\begin{a}\\\\\\begin{b}\n\n\\end{b}\\end{a}"]),
        ("in a proof\n\nmore of it \\end{proof}\n\na\n\n", ["a"]),
        (f"\n\n{OPEN}{LEMMA}\n\na\n\n", [OPEN, LEMMA, "a"]),
        (f"\n\na\n\n{OPEN}", ["a"]),
        ("\n\n\\begin{lemma}\\begin{list}\\end{lemma}\n\na\n\n", ["\\begin{lemma}\\begin{list}\\end{lemma}", "a"]),
        ("", []),
    ],
)
def test_paragraphs(text: str, pieces: list[str]) -> None:
    assert typeset.paragraphs(text, {"lemma", "proof"}) == pieces


@needs_engine
def test_real_engine_judges_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typeset, "LIMITS", "ulimit -t 3; ulimit -f 40000")
    hostile = [
        r"\loop\iftrue\repeat",
        rf"\immediate\write18{{touch {tmp_path}/ran}}",
        rf"\newwrite\f \immediate\openout\f={tmp_path}/written",
        r"\input{/etc/hostname}",
        r"\read16 to \x",
        r"\undefined",
        r"\newwrite\f \immediate\openout\f=../judged.fmt ",
        r"\loop\message{endless}\iftrue\repeat",
        r"\begin{center}\end{center}\end{document} \undefined",
        r"\endinput \undefined",
    ]
    groups = [[TEXT], [f"\n\n{text}\n\n" for text in hostile], ["nothing whole"], ["", "\n\n$\\alpha$ \u00e9\n\n"]]
    assert typeset.accepted(groups, TRAIN) == [
        {"share": 1 / 2, "good": 1, "of": 2},
        {"share": 1 / 10, "good": 1, "of": 10},  # \write18 is accepted, and runs nothing
        {"share": 0.0, "good": 0, "of": 0},
        {"share": 1.0, "good": 1, "of": 1},
    ]
    assert list(tmp_path.iterdir()) == []


def test_without_engine_there_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert typeset.accepted([[TEXT]], TRAIN) is None
    broken = tmp_path / typeset.ENGINE
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert typeset.accepted([[TEXT]], TRAIN) is None
    notes = "".join(capsys.readouterr().err.split())
    assert "pdflatexisnotonthePATH" in notes
    assert "pdflatexcannotload" in notes
