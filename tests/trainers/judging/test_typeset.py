import shutil
from pathlib import Path

import pytest

from trainers.judging import typeset

needs_engine = pytest.mark.skipif(not shutil.which(typeset.ENGINE), reason="pdflatex is not on the PATH")

TRAIN = r"""
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
PIECES = ["\\begin{lemma}\nLet $A$ be\n\na ring. Then $\\Spec(A)$.\n\\end{lemma}", "$x$ \\end{lemma} and"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (TEXT, PIECES),
        ("a\n\nb\n\nc", ["b"]),
        ("a\n \n\nb\n\t\nc\n\n", ["b", "c"]),
        ("no blank line", []),
        ("\n\n\\\\begin{x}\n\n", ["\\\\begin{x}"]),
        ("", []),
    ],
)
def test_paragraphs(text: str, pieces: list[str]) -> None:
    assert list(typeset.paragraphs(text)) == pieces


@needs_engine
def test_real_engine_judges_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typeset, "SECONDS", 5)
    hostile = [
        r"\loop\iftrue\repeat",
        rf"\immediate\write18{{touch {tmp_path}/ran}}",
        rf"\newwrite\f \immediate\openout\f={tmp_path}/written",
        r"\input{/etc/hostname}",
        r"\read16 to \x",
        r"\undefined",
    ]
    groups = [[TEXT], [f"\n\n{text}\n\n" for text in hostile], ["nothing whole"], ["", "\n\n$\\alpha$ \u00e9\n\n"]]
    assert typeset.accepted(groups, TRAIN) == [
        {"share": 1 / 2, "good": 1, "of": 2},
        {"share": 1 / 6, "good": 1, "of": 6},  # \write18 is accepted, and runs nothing
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
