"""What can be said of every character of a text: whether it is in quotes, how deep in brackets, how far along its line.

A label tells where the text stands once the character has been read, since that is when a unit holds what it holds: an
opening quote is inside, a closing one is not. Code is read by Pygments' lexer of its language, so that a quote in a
comment opens nothing.

Legend: N ids, C characters.
"""

import collections
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from pygments.lexer import Lexer
from pygments.lexers import find_lexer_class_for_filename, get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Operator, Punctuation, String, _TokenType
from pygments.util import ClassNotFound

from common.errors import UsageError
from common.types import Array
from pipeline.manifest import Manifest
from pipeline.vocab import Vocab, code_points

Token = tuple[int, _TokenType, str]  # where it begins, what it is, its text

# Named corpora are one file, whose name tells nothing.
CORPORA = {"linux": "c", "latex": "tex", "wikipedia": "xml", "wikipedia-sample": "xml"}
MARKUP = (
    "html",
    "markdown",
    "restructuredtext",
    "tex",
    "text",
    "xml",
)  # text for people: their quotes, not a lexer's strings
PAREN_IF = ("c", "cpp", "csharp", "java", "javascript", "objective-c", "php", "typescript")  # if (condition)
PYTHON = "python"  # if condition:
NEAR = 10  # characters ahead of the end of a line

QUOTED = re.compile(r'"(?:(?!\n\s*\n)[^"])*(?:"|\n|\Z)|“[^”]*?(?:”|\n\s*\n)|«[^»]*?(?:»|\n\s*\n)|``(?s:.*?)\'\'')
BRACKETS = re.compile(r"[()\[\]{}]|\n\s*\n")  # and the end of a paragraph, which closes them all
URL = re.compile(r"(?:https?|ftp)://[^\s\"'<>\[\]{}|]+")
LINK = re.compile(r"\[\[[^\[\]\n]*\]\]")
WORD = re.compile(r"\b[^\W\d_][\w'’]*")
OPENING, CLOSING = "([{", ")]}"


class Label(NamedTuple):
    """What is said of every id: values_N of bool, or float32 where it is a number.

    about: what a unit that tells it follows; essay: which of the essay's units that is, if any.
    """

    about: str
    values_N: Array
    essay: str = ""

    @property
    def numeric(self) -> bool:
        return self.values_N.dtype != bool


class _Read(NamedTuple):
    """What a lexer, or where there is none the text itself, tells."""

    quote_C: Array
    comment_C: Array
    condition_C: Array
    brackets: list[tuple[int, str]]  # places and characters; an empty one closes them all


def language_of(names: Iterable[tuple[str, int]]) -> str:
    """The language, as Pygments calls it, of most of the bytes of files of these names and sizes; "text": of none."""
    sizes: collections.Counter[str] = collections.Counter()
    for name, size in names:
        found = find_lexer_class_for_filename(name)
        sizes[CORPORA.get(name.split("/")[0]) or (found.aliases[0] if found and found.aliases else "text")] += size
    return sizes.most_common(1)[0][0] if sizes else "text"


def language_of_data(manifest: Manifest) -> str:
    """The language of a data set, by the names of its files."""
    return language_of((source.name, source.bytes) for source in manifest.sources)


def known_language(name: str) -> str:
    """The name by which labels go. Raises UsageError for a language that has no lexer."""
    try:
        return get_lexer_by_name(name).aliases[0]
    except ClassNotFound:
        raise UsageError(
            f"--language: Pygments knows no language '{name}' (c, python, tex, xml, text and some 500 more)"
        ) from None


class Piece(NamedTuple):
    """A stretch of a text that is read alone: its characters, how many ids each is, and whether an id that ends a
    document and is no character comes after them."""

    text: str
    lengths_C: Array
    ended: bool


def pieces_of(ids_N: Array, vocab: Vocab) -> list[Piece]:
    """A text as characters; what is not UTF-8 is a character a byte, as errors="surrogateescape" makes it."""
    token = vocab.symbols[-1] == b""
    found = []
    for piece_N in np.split(ids_N, np.flatnonzero(ids_N == vocab.end_id) + 1) if token else [ids_N]:
        data = vocab.decode(piece_N)
        codes_C = code_points(data, "surrogateescape")
        lengths_C = _lengths(codes_C) if vocab.unit == "byte" else np.ones(len(codes_C), np.intp)
        ended = token and len(piece_N) > 0 and bool(piece_N[-1] == vocab.end_id)
        found.append(Piece(data.decode("utf-8", "surrogateescape"), lengths_C, ended))
    return found


def labels_of(ids_N: Array, vocab: Vocab, language: str) -> list[Label]:
    """Every label of a text; all zeros where there is no such thing in it.

    A character of several bytes has its label at each of them; the end of a document is in nothing. language: as
    `known_language` gives it.
    """
    parts: dict[tuple[str, str], list[Array]] = {}
    for text, lengths_C, ended in pieces_of(ids_N, vocab):
        for about, values_C, essay in _labels(text, language):
            parts.setdefault((about, essay), []).append(np.pad(np.repeat(values_C, lengths_C), (0, ended)))
    return [Label(about, np.concatenate(values), essay) for (about, essay), values in parts.items()]


def _lengths(codes_C: Array) -> Array:
    """The bytes of each character in UTF-8; of what "surrogateescape" made of a byte that is none, one."""
    lengths_C = 1 + (codes_C >= 0x80).astype(np.intp) + (codes_C >= 0x800) + (codes_C >= 0x10000)
    return np.where((codes_C >= 0xDC80) & (codes_C <= 0xDCFF), 1, lengths_C)


def _labels(text: str, language: str) -> Iterator[tuple[str, Array, str]]:
    """What a unit may follow, of each character, and which of the essay's units that is."""
    prose, C = language in MARKUP, len(text)
    read = _read_prose(text) if prose else _read_code(text, language)
    if language in MARKUP and language != "text":
        read = read._replace(comment_C=_read_code(text, language).comment_C)
    depth_C, column_C = _depth(read.brackets, C), _column(text)
    left_C = _column(text[::-1])[::-1]
    nothing_C = np.zeros(C, bool)
    yield f"inside {'quotes' if prose else 'a string'}", read.quote_C, "quote"
    yield "position in the line", column_C, "line length"
    yield "inside an if-condition", read.condition_C, "if-statement"
    yield "depth of indentation", _indentation(text), "indentation depth"
    yield "inside a comment", read.comment_C, "comment"
    yield f"inside a comment or a {'quote' if prose else 'string'}", read.comment_C | read.quote_C, ""
    yield "inside brackets", depth_C > 0, ""
    yield "depth of brackets", depth_C, ""
    yield f"the line ends within {NEAR} characters", (left_C < NEAR) & (left_C > 0), ""
    yield "inside a URL", _spans(URL, text, close=0), ""
    yield "inside a wiki link", _spans(LINK, text) if prose else nothing_C, ""
    yield "inside a capitalised word", _capitalised(text), ""


def _spans(pattern: re.Pattern[str], text: str, close: int = 1) -> Array:
    """Where a pattern matches, up to the last `close` characters, which close it."""
    inside_C = np.zeros(len(text), bool)
    for match in pattern.finditer(text):
        inside_C[match.start() : max(match.end() - close, match.start() + 1)] = True
    return inside_C


def _capitalised(text: str) -> Array:
    inside_C = np.zeros(len(text), bool)
    for match in WORD.finditer(text):
        inside_C[match.start() : match.end()] = match[0][0].isupper()
    return inside_C


def _column(text: str) -> Array:
    """How many characters of its line have been read: 0 at a newline."""
    place_C = np.arange(1, len(text) + 1)
    newline_C = np.fromiter((character == "\n" for character in text), bool, len(text))
    return (place_C - np.maximum.accumulate(np.where(newline_C, place_C, 0))).astype(np.float32)


def _indentation(text: str) -> Array:
    """The columns of white space that the line begins with, to 8 a tab; a blank line is as deep as the one before."""
    depths, depth = [], 0
    for line in text.split("\n"):
        words = line.lstrip(" \t")
        if words.strip():
            depth = len(line[: len(line) - len(words)].expandtabs(8))
        depths.append((depth, len(line) + 1))
    return np.repeat(*map(np.array, zip(*depths, strict=True)))[: len(text)].astype(np.float32)


def _depth(brackets: list[tuple[int, str]], C: int) -> Array:
    """How many brackets are open. One too many that is closed opens nothing, of whichever kind they are."""
    change_C, depth = np.zeros(C, np.float32), 0
    for place, bracket in brackets:
        after = depth + 1 if bracket and bracket in OPENING else max(depth - 1, 0) if bracket else 0
        change_C[place] += after - depth
        depth = after
    return np.cumsum(change_C, dtype=np.float32)


def _read_prose(text: str) -> _Read:
    nothing_C = np.zeros(len(text), bool)
    brackets = [(match.start(), match[0].strip()) for match in BRACKETS.finditer(text)]
    return _Read(_spans(QUOTED, text), nothing_C, nothing_C, brackets)


def _read_code(text: str, language: str) -> _Read:
    tokens = _tokens(text, language)
    quote_C, comment_C = np.zeros((2, len(text)), bool)
    brackets: list[tuple[int, str]] = []
    for place, kind, value in tokens:
        first = place == 0 or text[place - 1] == "\n"
        if kind in String:
            quote_C[place : place + len(value)] = True
        elif kind in Comment and kind not in Comment.Preproc and kind not in Comment.PreprocFile:
            comment_C[place : place + len(value)] = True
        elif kind in Punctuation or kind in Operator:
            brackets += ((place + k, c) for k, c in enumerate(value) if c in OPENING + CLOSING)
            # Where #if has two openings for one closing, the count would be off to the end of the text.
            if first and value[:1] == "}":
                brackets.append((place, ""))
        elif first and language == PYTHON and (kind in Keyword or kind in Name):
            brackets.append((place, ""))
    # The last character of a run is what closes it.
    quote_C, comment_C = (mask_C & np.append(mask_C[1:], False) for mask_C in (quote_C, comment_C))
    return _Read(quote_C, comment_C, _conditions(tokens, language, len(text)), brackets)


def _tokens(text: str, language: str) -> list[Token]:
    """A lexer's tokens. A text that is cut out of another may begin inside a string of several lines, and then a lexer
    takes all code for strings, and the words in them for code: of Python's ways to begin, the one is taken that finds
    most operators and brackets, of which prose has few."""
    lexer = get_lexer_by_name(language)
    ways = [_after(opened, text, lexer) for opened in (("", '"""', "'''") if language == PYTHON else ("",))]
    return max(ways, key=lambda tokens: sum(kind in Operator or kind in Punctuation for _, kind, _ in tokens))


def _after(opened: str, text: str, lexer: Lexer) -> list[Token]:
    """The tokens of a text that begins behind some other."""
    past = len(opened)
    found = lexer.get_tokens_unprocessed(opened + text)
    cut = ((max(place - past, 0), kind, value[max(past - place, 0) :]) for place, kind, value in found)
    return [token for token in cut if token[2]]


def _conditions(tokens: list[Token], language: str, C: int) -> Array:
    """Which characters are of the condition of an if: in C and its like what is between its brackets, in Python all up
    to the colon, to `else`, or to where the brackets around it close."""
    inside_C = np.zeros(C, bool)
    if language not in (*PAREN_IF, PYTHON):
        return inside_C
    wanted, began, depth = False, -1, 0  # an if has been read; its condition begins there; brackets open since
    for place, kind, value in tokens:
        if kind in Keyword and value in ("if", "elif"):
            wanted, began, depth = language != PYTHON, place + len(value) if language == PYTHON else -1, 0
        elif wanted and kind in Punctuation and value == "(":
            wanted, began, depth = False, place, 1
        elif began >= 0:
            if kind in Punctuation:
                depth += sum((c in OPENING) - (c in CLOSING) for c in value)
            ends = depth < (language != PYTHON)
            if language == PYTHON and depth == 0:
                ends = value in (":", "else") or (kind not in String and "\n" in value)
            if ends or depth < 0:
                inside_C[began:place] = True
                began = -1
    return inside_C
