"""Coherence of a text: the shares, 0 to 1, of its parts that follow the rules of C, LaTeX, wiki XML, Python, plays or
names. A text may be cut off anywhere, so brackets that are still open at its end do not count as errors.
"""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict
from xml.etree import ElementTree

import tree_sitter
import tree_sitter_c

Counts = dict[str, tuple[int, int]]  # measure: (correct, total)


class Share(TypedDict):
    """Share of correct parts. good: their number; of: number of all parts; share: good / of."""

    share: float
    good: int
    of: int


SPEAKER = r"[A-Z][A-Za-z' ]+:"

# Patterns that identify a kind, and the matches per 10,000 characters that are enough.
MARKS = {
    "c": (re.compile(r";$|^#(?:include|define)|^\}$", re.MULTILINE), 60),
    "latex": (re.compile(r"\\(?:begin|end|ref|label|section|item)\b"), 10),
    "wiki": (re.compile(r"</?(?:page|text|title|revision)\b|\[\[|\{\{"), 10),
    "python": (re.compile(r"^\s*(?:def|class|if|for|return|import|from)\b.*", re.MULTILINE), 40),
    "play": (re.compile(rf"^{SPEAKER}$", re.MULTILINE), 20),
}

_C = tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))
_PAIRS = {")": "(", "]": "[", "}": "{"}
# Complete comments and literals; their unmatched delimiters; brackets.
_C_TOKEN = re.compile(
    r"(?P<whole>/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+')|(?P<broken>/\*|\*/|[\"'])|(?P<bracket>[][(){}])",
    re.DOTALL,
)
_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]*)(?:\s[^<>]*?)?(/?)>")
_ENVIRONMENT = re.compile(r"(?<!\\)\\(begin|end)\{([^{}\n]*)\}")
_LATEX_BRACE = re.compile(r"\\.|%[^\n]*|([{}])", re.DOTALL)


def kind_of(text: str) -> str:
    """Detect the kind of a text by its most frequent marks: a key of MARKS, or "text"."""
    scores = {kind: 1e4 * len(mark.findall(text)) / max(len(text), 1) / least for kind, (mark, least) in MARKS.items()}
    kind = max(scores, key=lambda name: scores[name])
    return kind if scores[kind] >= 1 else "text"


def coherence(kind: str, texts: Iterable[str], known: frozenset[str]) -> dict[str, Share]:
    """Share of each measure of a kind over all texts. A measure with nothing to judge is left out.

    known: the result of `known_of`.
    """
    good, total = Counter[str](), Counter[str]()
    for text in texts:
        for name, (part, whole) in KINDS[kind](text, known).items():
            good[name] += part
            total[name] += whole
    return {
        name: {"share": good[name] / whole, "good": good[name], "of": whole} for name, whole in total.items() if whole
    }


def known_of(kind: str, train: str) -> frozenset[str]:
    """Lines of train that samples are compared with: the speakers of a play, or the names of a list of names."""
    lines = {"play": SPEAKER, "names": ".+"}.get(kind)
    return frozenset(line for line in train.split("\n") if re.fullmatch(lines, line)) if lines else frozenset()


def c(text: str, _: frozenset[str]) -> Counts:
    """Matched brackets, closed quotes and comments, and functions that tree-sitter's C grammar accepts."""
    tokens = [(match.lastgroup, match.group()) for match in _C_TOKEN.finditer(text)]
    kinds = [kind for kind, _ in tokens]
    whole, broken = kinds.count("whole"), kinds.count("broken")
    if text.rfind("/*") > text.rfind("*/"):
        broken -= 1  # the text was cut off inside a comment
    # A function in kernel style runs from an unindented line to the next line that begins with }.
    functions = re.findall(r"^[A-Za-z][^;{}\n#]*\([^;{}#]*\)\s*\{\n.*?^\}", text, re.MULTILINE | re.DOTALL)
    return {
        "brackets": _matched((token, _PAIRS.get(token)) for kind, token in tokens if kind == "bracket"),
        "quotes_and_comments": (whole, whole + max(broken, 0)),
        "functions_parsed": (sum(map(_accepts, functions)), len(functions)),
    }


def _accepts(function: str) -> bool:
    """Check that the text is exactly one C function."""
    root = _C.parse(function.encode()).root_node
    return not root.has_error and [node.type for node in root.children] == ["function_definition"]


def latex(text: str, _: frozenset[str]) -> Counts:
    """Matched environments and braces, and paragraphs with an even number of $."""
    paragraphs = re.split(r"\n\s*\n", re.sub(r"\\.|%[^\n]*", "", text, flags=re.DOTALL))[1:-1]
    with_dollars = [paragraph.count("$") % 2 == 0 for paragraph in paragraphs if "$" in paragraph]
    environments = ((name, name if command == "end" else None) for command, name in _ENVIRONMENT.findall(text))
    braces = (match.group(1) for match in _LATEX_BRACE.finditer(text))
    return {
        "environments": _matched(environments),
        "braces": _matched((brace, _PAIRS.get(brace)) for brace in braces if brace),
        "dollars": (sum(with_dollars), len(with_dollars)),
    }


def wiki(text: str, _: frozenset[str]) -> Counts:
    """Matched tags, pages that are well-formed XML, and closed links and templates."""
    tags = [(name, name if close else None) for close, name, empty in _TAG.findall(text) if not empty]
    pages = re.findall(r"<page>.*?</page>", text, re.DOTALL)
    links, templates = re.findall(r"\[\[[^\n]*?(?:\]\]|\[\[|$)", text, re.MULTILINE), re.findall(r"\{\{|\}\}", text)
    return {
        "tags": _matched(iter(tags)),
        "pages_well_formed": (sum(map(_well_formed, pages)), len(pages)),
        "links": (sum(link.endswith("]]") for link in links), len(links)),
        "templates": _matched((brace, "{{" if brace == "}}" else None) for brace in templates),
    }


def _well_formed(page: str) -> bool:
    try:
        ElementTree.fromstring(page)
    except ElementTree.ParseError:
        return False
    return True


def python(text: str, _: frozenset[str]) -> Counts:
    """Top-level statements, each from one unindented line to the next, that Python's parser accepts."""
    blocks = re.split(
        r"^(?=(?:@|def |class |[A-Za-z_]+ ?=|import |from |if |for |while |try:|with ))", text, flags=re.MULTILINE
    )
    blocks = [block for block in blocks[1:-1] if block.strip()]  # the first and the last may be cut off
    definitions = [block for block in blocks if block.startswith(("def ", "class "))]
    return {
        "statements_parsed": (sum(map(_parses, blocks)), len(blocks)),
        "definitions_parsed": (sum(map(_parses, definitions)), len(definitions)),
    }


def _parses(statement: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in strings
        try:
            ast.parse(statement)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return False
    return True


def play(text: str, known: frozenset[str]) -> Counts:
    """Speeches that begin with the speaker's name, and speakers that occur in train."""
    first_lines = [speech.split("\n", 1)[0] for speech in re.split(r"\n\n+", text)[1:-1]]
    speakers = [line for line in first_lines if re.fullmatch(SPEAKER, line)]
    return {
        "speeches_named": (len(speakers), len(first_lines)),
        "speakers_known": (sum(line in known for line in speakers), len(speakers)),
    }


def names(text: str, known: frozenset[str]) -> Counts:
    """Lines that do not occur in train, and distinct lines."""
    lines = [line for line in text.split("\n") if line]
    return {"new": (sum(line not in known for line in lines), len(lines)), "distinct": (len(set(lines)), len(lines))}


KINDS: dict[str, Callable[[str, frozenset[str]], Counts]] = {
    "c": c,
    "latex": latex,
    "wiki": wiki,
    "python": python,
    "play": play,
    "names": names,
    "text": lambda text, known: {},
}


def _matched(tokens: Iterator[tuple[str, str | None]]) -> tuple[int, int]:
    """Count matched tokens, and all tokens but those still open at the end.

    tokens: each with the token that it closes, or None if it opens one.
    """
    opened: list[str] = []
    matched = total = 0
    for token, closes in tokens:
        if closes is None:
            opened.append(token)
        elif closes in opened:
            while opened.pop() != closes:
                total += 1  # opened but never closed
            matched, total = matched + 2, total + 2
        else:
            total += 1
    return matched, total
