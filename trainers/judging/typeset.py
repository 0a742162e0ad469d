"""Paragraphs of LaTeX that a real engine accepts: pdflatex, if it is on the PATH."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import console
from trainers.judging.coherence import Share

ENGINE = "pdflatex"
SECONDS = 20  # allowed for a paragraph: TeX is a programming language, and a sample may loop
CLASS = r"""\documentclass{amsart}
\usepackage{amssymb,verbatim}
\IfFileExists{xy.sty}{\usepackage[all]{xy}}{}
"""
_DEFINITION = re.compile(
    r"^\\(?:def|(?:re)?newcommand|newtheorem|newenvironment|DeclareMathOperator)\b[^\n]*$", re.MULTILINE
)
_BOUNDARY = re.compile(r"(?<!\\)\\(begin|end)\{[^{}\n]*\}|\n\s*\n")


def paragraphs(text: str) -> Iterator[str]:
    """Split a text at the blank lines outside environments; the first and the last piece may be cut off, and are
    left out."""
    start, depth = None, 0
    for boundary in _BOUNDARY.finditer(text):
        if boundary[1]:
            depth = max(depth + (1 if boundary[1] == "begin" else -1), 0)
        elif depth == 0:
            if start is not None:
                yield text[start : boundary.start()]
            start = boundary.end()


def accepted(groups: list[list[str]], train: str) -> list[Share] | None:
    """Share of each group's paragraphs that compile without an error; None, with a note, if pdflatex cannot run.

    A paragraph is a document of its own, with the one-line definitions that occur in train: macros and theorems.
    """
    if not shutil.which(ENGINE):
        console.note(f"{ENGINE} is not on the PATH: paragraphs are not compiled (Debian: texlive-latex-base)")
        return None
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(scratch)
        # Loaded once and dumped, the packages cost each paragraph 0.1 s instead of 0.5.
        definitions = (line for line in _DEFINITION.findall(train) if line.count("{") == line.count("}"))
        (folder / "judged.tex").write_text("\n".join([CLASS, *dict.fromkeys(definitions), r"\dump"]), encoding="utf-8")
        if not _run(folder, "-ini", f"&{ENGINE}", "judged.tex"):
            console.note(
                f"{ENGINE} cannot load amsart, amssymb and the definitions of train: paragraphs are not compiled"
            )
            return None

        def compiles(numbered: tuple[int, str]) -> bool:
            name = f"{numbered[0]}.tex"
            document = f"\\begin{{document}}\n{numbered[1]}\n\\end{{document}}\n"
            (folder / name).write_text(document, encoding="utf-8")
            return _run(folder, "-fmt=judged", "-draftmode", "-halt-on-error", name)

        pieces = [[piece for text in texts for piece in paragraphs(text)] for texts in groups]
        results = pool.map(compiles, enumerate(piece for group in pieces for piece in group))
        good = [sum(next(results) for _ in group) for group in pieces]
    return [
        Share(share=right / max(len(group), 1), good=right, of=len(group))
        for right, group in zip(good, pieces, strict=True)
    ]


def _run(folder: Path, *arguments: str) -> bool:
    """Run the engine, which may start no program and write only in the folder."""
    command = [ENGINE, "-no-shell-escape", "-interaction=batchmode", *arguments]
    safe = {**os.environ, "openin_any": "p", "openout_any": "p"}
    try:
        ran = subprocess.run(
            command, cwd=folder, env=safe, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0
