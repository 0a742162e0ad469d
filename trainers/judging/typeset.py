"""Paragraphs of LaTeX that a real engine accepts: pdflatex, if it is on the PATH."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import console
from trainers.judging.coherence import Share

ENGINE = "pdflatex"
# TeX is a programming language, and a sample may loop: seconds of CPU, and blocks of 512 bytes per file.
LIMITS = "ulimit -t 20; ulimit -f 40000"
CLASS = r"""\documentclass{amsart}
\usepackage{amssymb,verbatim}
\IfFileExists{xy.sty}{\usepackage[all]{xy}}{}
\AtEndDocument{\ifdefined\readtotheend\else\errmessage{the paragraph ended the document}\fi}
"""
_DEFINITION = re.compile(
    r"^\\(?:def|(?:re)?newcommand|newtheorem|newenvironment|DeclareMathOperator)\b[^\n]*$", re.MULTILINE
)
_THEOREM = re.compile(r"\\newtheorem\*?\{([^{}]*)\}")
_BOUNDARY = re.compile(r"(?<!\\)(?:\\\\)*\\(begin|end)\{([^{}\n]*)\}|\n\s*\n")


def available() -> bool:
    """Check whether the engine is on the PATH."""
    return shutil.which(ENGINE) is not None


def paragraphs(text: str, theorems: Collection[str]) -> list[str]:
    """Return the pieces between blank lines outside environments, without the first and the last, which may be cut off.

    theorems: environments that never occur in another one. Where one begins, those still open were not closed, and
    their piece ends.
    """
    pieces: list[str] = []
    opened: list[str] = []
    start, begun = None, False
    for boundary in _BOUNDARY.finditer(text):
        command, name = boundary.groups()
        if command == "begin":
            if opened and name in theorems:
                if start is not None:
                    pieces.append(text[start : boundary.start()])
                start = boundary.start()
                opened.clear()
            opened.append(name)
            begun = True
        elif command and name in opened:
            while opened.pop() != name:
                pass
        elif command and not begun:  # the text was cut off inside an environment
            pieces.clear()
            start = None
        elif not command and not opened:
            if start is not None:
                pieces.append(text[start : boundary.start()])
            start = boundary.end()
    return pieces


def accepted(groups: list[list[str]], train: str) -> list[Share] | None:
    """Share of each group's paragraphs that compile without an error; None, with a note, if the engine cannot run.

    Each paragraph is compiled as its own document, after the one-line definitions found in train.
    """
    if not available():
        console.note(f"{ENGINE} is not on the PATH: paragraphs are not compiled (Debian: texlive-latex-base)")
        return None
    definitions = dict.fromkeys(line for line in _DEFINITION.findall(train) if line.count("{") == line.count("}"))
    theorems = {"proof", *_THEOREM.findall("\n".join(definitions))}
    pieces = [[piece for text in texts for piece in paragraphs(text, theorems)] for texts in groups]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # Loaded once and dumped, the packages cost each paragraph 0.1 s instead of 0.5.
        dumped = Path(scratch, "judged.fmt")
        _run(Path(scratch), "judged", "\n".join([CLASS, *definitions, r"\dump"]), "-ini", f"&{ENGINE}")
        if not dumped.is_file():
            console.note(f"{ENGINE} cannot load amsart and amssymb: paragraphs are not compiled")
            return None

        def compiles(numbered: tuple[int, str]) -> bool:
            folder = Path(scratch, str(numbered[0]))
            folder.mkdir()
            document = f"\\begin{{document}}\n{numbered[1]}\n\\gdef\\readtotheend{{}}\\end{{document}}\n"
            return _run(folder, "piece", document, f"-fmt={dumped}", "-draftmode", "-halt-on-error")

        results = pool.map(compiles, enumerate(piece for group in pieces for piece in group))
        good = [sum(next(results) for _ in group) for group in pieces]
    return [
        Share(share=right / max(len(group), 1), good=right, of=len(group))
        for right, group in zip(good, pieces, strict=True)
    ]


def _run(folder: Path, name: str, document: str, *arguments: str) -> bool:
    """Run the engine on a document without shell access, writing only to the folder."""
    (folder / f"{name}.tex").write_text(document, encoding="utf-8")
    command = [ENGINE, "-no-shell-escape", "-interaction=batchmode", *arguments, f"{name}.tex"]
    safe = {**os.environ, "openin_any": "p", "openout_any": "p", "MKTEXTFM": "0", "MKTEXPK": "0"}
    limited = ["sh", "-c", f'{LIMITS}; exec "$@"', "sh", *command]
    code = subprocess.call(
        limited, cwd=folder, env=safe, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return code == 0
