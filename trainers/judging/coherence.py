"""How well a text keeps the rules of its kind: shares from 0 to 1, of what a reader of C, LaTeX, wiki XML, Python or a
play would look for. A text may end anywhere: what is still open at its end is not held against it.
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

Counts = dict[str, tuple[int, int]]  # of each measure: how many are as they should be, of how many


class Share(TypedDict):
    """How many are as they should be, of how many."""

    share: float
    good: int
    of: int


SPEAKER = r"[A-Z][A-Za-z' ]+:"

# What gives a kind away, and how many of it in ten thousand characters are enough.
MARKS = {
    "c": (re.compile(r";$|^#(?:include|define)|^\}$", re.MULTILINE), 60),
    "latex": (re.compile(r"\\(?:begin|end|ref|label|section|item)\b"), 10),
    "wiki": (re.compile(r"</?(?:page|text|title|revision)\b|\[\[|\{\{"), 10),
    "python": (re.compile(r"^\s*(?:def|class|if|for|return|import|from)\b.*", re.MULTILINE), 40),
    "play": (re.compile(rf"^{SPEAKER}$", re.MULTILINE), 20),
}

_C = tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))
_PAIRS = {")": "(", "]": "[", "}": "{"}
# Comments and literals that are whole; those that only begin; brackets.
_C_TOKEN = re.compile(
    r"(?P<whole>/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+')|(?P<broken>/\*|\*/|[\"'])|(?P<bracket>[][(){}])",
    re.DOTALL,
)
_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]*)(?:\s[^<>]*?)?(/?)>")
_ENVIRONMENT = re.compile(r"(?<!\\)\\(begin|end)\{([^{}\n]*)\}")
_LATEX_BRACE = re.compile(r"\\.|%[^\n]*|([{}])", re.DOTALL)


def kind_of(text: str) -> str:
    """The kind of a text, by what there is much of in it: one of MARKS, or "text"."""
    found = {kind: 1e4 * len(mark.findall(text)) / max(len(text), 1) / least for kind, (mark, least) in MARKS.items()}
    kind = max(found, key=lambda name: found[name])
    return kind if found[kind] >= 1 else "text"


def coherence(kind: str, texts: Iterable[str], known: frozenset[str]) -> dict[str, Share]:
    """Of each measure of a kind the share over all texts; none of what there is nothing of. known: of `known_of`."""
    good, total = Counter[str](), Counter[str]()
    for text in texts:
        for name, (part, whole) in KINDS[kind](text, known).items():
            good[name] += part
            total[name] += whole
    return {
        name: {"share": good[name] / whole, "good": good[name], "of": whole} for name, whole in total.items() if whole
    }


def known_of(kind: str, train: str) -> frozenset[str]:
    """What a text of a kind is to know from train: the speakers of plays, the names of a list of names."""
    lines = {"play": SPEAKER, "names": ".+"}.get(kind)
    return frozenset(line for line in train.split("\n") if re.fullmatch(lines, line)) if lines else frozenset()


def c(text: str, _: frozenset[str]) -> Counts:
    """Brackets, quotes and comments, and the functions that tree-sitter's grammar of C accepts."""
    tokens = [(match.lastgroup, match.group()) for match in _C_TOKEN.finditer(text)]
    kinds = [kind for kind, _ in tokens]
    whole, broken = kinds.count("whole"), kinds.count("broken")
    if text.rfind("/*") > text.rfind("*/"):
        broken -= 1  # the text ends in a comment
    # Functions of the kernel's style: from a line that does not begin with space to the next that begins with }.
    functions = re.findall(r"^[A-Za-z][^;{}\n#]*\([^;{}#]*\)\s*\{\n.*?^\}", text, re.MULTILINE | re.DOTALL)
    return {
        "brackets": _matched((token, _PAIRS.get(token)) for kind, token in tokens if kind == "bracket"),
        "quotes_and_comments": (whole, whole + max(broken, 0)),
        "functions_parsed": (sum(_accepts(one) for one in functions), len(functions)),
    }


def _accepts(function: str) -> bool:
    """Whether it is a function of C and nothing but that."""
    root = _C.parse(function.encode()).root_node
    return not root.has_error and [node.type for node in root.children] == ["function_definition"]


def latex(text: str, _: frozenset[str]) -> Counts:
    """Environments that end as they began, braces, and paragraphs in which every $ has its partner."""
    paragraphs = re.split(r"\n\s*\n", re.sub(r"\\.|%[^\n]*", "", text, flags=re.DOTALL))[1:-1]
    with_dollars = [one.count("$") % 2 == 0 for one in paragraphs if "$" in one]
    environments = ((name, name if what == "end" else None) for what, name in _ENVIRONMENT.findall(text))
    braces = (match.group(1) for match in _LATEX_BRACE.finditer(text))
    return {
        "environments": _matched(environments),
        "braces": _matched((brace, _PAIRS.get(brace)) for brace in braces if brace),
        "dollars": (sum(with_dollars), len(with_dollars)),
    }


def wiki(text: str, _: frozenset[str]) -> Counts:
    """Tags that close as they opened, whole pages that an XML parser takes, links and templates that end."""
    tags = [(name, name if close else None) for close, name, empty in _TAG.findall(text) if not empty]
    pages = re.findall(r"<page>.*?</page>", text, re.DOTALL)
    links, templates = re.findall(r"\[\[[^\n]*?(?:\]\]|\[\[|$)", text, re.MULTILINE), re.findall(r"\{\{|\}\}", text)
    return {
        "tags": _matched(iter(tags)),
        "pages_well_formed": (sum(map(_well_formed, pages)), len(pages)),
        "links": (sum(link.endswith("]]") for link in links), len(links)),
        "templates": _matched((one, "{{" if one == "}}" else None) for one in templates),
    }


def _well_formed(page: str) -> bool:
    try:
        ElementTree.fromstring(page)
    except ElementTree.ParseError:
        return False
    return True


def python(text: str, _: frozenset[str]) -> Counts:
    """Statements of the outermost level, from one line that is not indented to the next, that Python's parser takes."""
    blocks = re.split(
        r"^(?=(?:@|def |class |[A-Za-z_]+ ?=|import |from |if |for |while |try:|with ))", text, flags=re.MULTILINE
    )
    blocks = [one for one in blocks[1:-1] if one.strip()]
    long = [one for one in blocks if one.startswith(("def ", "class "))]
    return {
        "statements_parsed": (sum(map(_parses, blocks)), len(blocks)),
        "definitions_parsed": (sum(map(_parses, long)), len(long)),
    }


def _parses(statement: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings
        try:
            ast.parse(statement)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return False
    return True


def play(text: str, known: frozenset[str]) -> Counts:
    """Speeches that begin with a line that names who speaks, and the speakers that train has."""
    speeches = [one.split("\n", 1)[0] for one in re.split(r"\n\n+", text)[1:-1]]
    speakers = [line for line in speeches if re.fullmatch(SPEAKER, line)]
    return {
        "speeches_named": (len(speakers), len(speeches)),
        "speakers_known": (sum(line in known for line in speakers), len(speakers)),
    }


def names(text: str, known: frozenset[str]) -> Counts:
    """Lines that train does not have, and distinct ones."""
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
    """Of tokens, each with what it closes or None where it opens, how many have their partner, and how many there are
    but for those still open at the end."""
    opened: list[str] = []
    matched = total = 0
    for token, closes in tokens:
        if closes is None:
            opened.append(token)
        elif closes in opened:
            while opened.pop() != closes:
                total += 1  # opened, and never closed
            matched, total = matched + 2, total + 2
        else:
            total += 1
    return matched, total
