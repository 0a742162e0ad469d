"""Labels of every character of a text: whether it is in quotes, how deep in brackets, how far along its line.

A label describes the position after its character, where the unit's activation is taken: an opening quote is inside, a
closing one is not. Code goes through the Pygments lexer of its language, so that a quote in a comment opens no string.

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

Token = tuple[int, _TokenType, str]  # offset, type, text

# Languages of the named corpora, whose files are all called input.txt.
CORPORA = {"linux": "c", "linux-core": "c", "latex": "tex", "wikipedia": "xml", "wikipedia-sample": "xml"}
# Prose, where quotes are quotation marks and not the lexer's strings.
MARKUP = ("html", "markdown", "restructuredtext", "tex", "text", "xml")
PAREN_IF = ("c", "cpp", "csharp", "java", "javascript", "objective-c", "php", "typescript")  # if (condition)
PYTHON = "python"  # if condition:
NEAR = 10  # characters before the end of a line

QUOTED = re.compile(r'"(?:(?!\n\s*\n)[^"])*(?:"|\n|\Z)|“[^”]*?(?:”|\n\s*\n)|«[^»]*?(?:»|\n\s*\n)|``(?s:.*?)\'\'')
BRACKETS = re.compile(r"[()\[\]{}]|\n\s*\n")  # the end of a paragraph closes all brackets
URL = re.compile(r"(?:https?|ftp)://[^\s\"'<>\[\]{}|]+")
LINK = re.compile(r"\[\[[^\[\]\n]*\]\]")
WORD = re.compile(r"\b[^\W\d_][\w'’]*")
OPENING, CLOSING = "([{", ")]}"


class Label(NamedTuple):
    """Values of a label at every id: values_N is bool, or float32 if the label is a number.

    about: description of the label.
    essay: name of the unit in Karpathy's essay that follows this label; empty if there is none.
    """

    about: str
    values_N: Array
    essay: str = ""

    @property
    def numeric(self) -> bool:
        return self.values_N.dtype != bool


class _Parsed(NamedTuple):
    """Features of a text, from a lexer or, in prose, from patterns."""

    quote_C: Array
    comment_C: Array
    condition_C: Array
    brackets: list[tuple[int, str]]  # offsets and characters; "" closes all brackets


def language_of(names: Iterable[tuple[str, int]]) -> str:
    """Pygments' name of the language with the most bytes, given files' names and sizes; "text" if unknown."""
    sizes: collections.Counter[str] = collections.Counter()
    for name, size in names:
        lexer = find_lexer_class_for_filename(name)
        sizes[CORPORA.get(name.split("/")[0]) or (lexer.aliases[0] if lexer and lexer.aliases else "text")] += size
    return sizes.most_common(1)[0][0] if sizes else "text"


def language_of_data(manifest: Manifest) -> str:
    """Language of a data set, by the names of its files."""
    return language_of((source.name, source.bytes) for source in manifest.sources)


def known_language(name: str) -> str:
    """Return the canonical name of a language. Raises UsageError if Pygments has no lexer for it."""
    try:
        return get_lexer_by_name(name).aliases[0]
    except ClassNotFound:
        raise UsageError(
            f"--language: Pygments has no lexer for '{name}'; use c, python, tex, xml, text or any other of its names"
        ) from None


class Document(NamedTuple):
    """Document of a text, or a whole text without documents.

    lengths_C: ids per character.
    ended: whether an end-of-document id, which is no character, follows the text.
    """

    text: str
    lengths_C: Array
    ended: bool


def documents_of(ids_N: Array, vocab: Vocab) -> list[Document]:
    """Decode a text into documents. A byte that is not UTF-8 becomes one character, as with "surrogateescape"."""
    token = vocab.symbols[-1] == b""
    documents = []
    for document_N in np.split(ids_N, np.flatnonzero(ids_N == vocab.end_id) + 1) if token else [ids_N]:
        data = vocab.decode(document_N)
        codes_C = code_points(data, "surrogateescape")
        lengths_C = _lengths(codes_C) if vocab.unit == "byte" else np.ones(len(codes_C), np.intp)
        ended = token and len(document_N) > 0 and bool(document_N[-1] == vocab.end_id)
        documents.append(Document(data.decode("utf-8", "surrogateescape"), lengths_C, ended))
    return documents


def labels_of(ids_N: Array, vocab: Vocab, language: str) -> list[Label]:
    """Compute all labels of a text.

    Each byte of a character gets the character's label; the end-of-document id gets 0.

    language: as returned by `known_language`.
    """
    parts: dict[tuple[str, str], list[Array]] = {}
    for text, lengths_C, ended in documents_of(ids_N, vocab):
        for about, values_C, essay in _labels(text, language):
            parts.setdefault((about, essay), []).append(np.pad(np.repeat(values_C, lengths_C), (0, ended)))
    return [Label(about, np.concatenate(values), essay) for (about, essay), values in parts.items()]


def _lengths(codes_C: Array) -> Array:
    """Count the UTF-8 bytes per character; 1 for a surrogate, which represents an invalid byte."""
    lengths_C = 1 + (codes_C >= 0x80).astype(np.intp) + (codes_C >= 0x800) + (codes_C >= 0x10000)
    return np.where((codes_C >= 0xDC80) & (codes_C <= 0xDCFF), 1, lengths_C)


def _labels(text: str, language: str) -> Iterator[tuple[str, Array, str]]:
    """Yield each label's description, its value at each character, and the name of the essay's unit."""
    prose, C = language in MARKUP, len(text)
    parsed = _parse_prose(text) if prose else _parse_code(text, language)
    if prose and language != "text":
        parsed = parsed._replace(comment_C=_parse_code(text, language).comment_C)
    depth_C, column_C = _depth(parsed.brackets, C), _column(text)
    left_C = _column(text[::-1])[::-1]
    none_C = np.zeros(C, bool)
    yield f"inside {'quotes' if prose else 'a string'}", parsed.quote_C, "quote"
    yield "position in the line", column_C, "line length"
    yield "inside an if-condition", parsed.condition_C, "if-statement"
    yield "depth of indentation", _indentation(text), "indentation depth"
    yield "inside a comment", parsed.comment_C, "comment"
    yield f"inside a comment or a {'quote' if prose else 'string'}", parsed.comment_C | parsed.quote_C, ""
    yield "inside brackets", depth_C > 0, ""
    yield "depth of brackets", depth_C, ""
    yield f"the line ends within {NEAR} characters", (left_C < NEAR) & (left_C > 0), ""
    yield "inside a URL", _spans(URL, text, close=0), ""
    yield "inside a wiki link", _spans(LINK, text) if prose else none_C, ""
    yield "inside a capitalised word", _capitalised(text), ""


def _spans(pattern: re.Pattern[str], text: str, close: int = 1) -> Array:
    """Mark the matches of a pattern, without the `close` characters that end each."""
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
    """Characters of the line up to and including this one; 0 at a newline."""
    position_C = np.arange(1, len(text) + 1)
    newline_C = np.fromiter((character == "\n" for character in text), bool, len(text))
    return (position_C - np.maximum.accumulate(np.where(newline_C, position_C, 0))).astype(np.float32)


def _indentation(text: str) -> Array:
    """Columns of leading white space, with tab stops every 8; a blank line counts as the line before it."""
    depths, depth = [], 0
    for line in text.split("\n"):
        words = line.lstrip(" \t")
        if words.strip():
            depth = len(line[: len(line) - len(words)].expandtabs(8))
        depths.append((depth, len(line) + 1))
    return np.repeat(*map(np.array, zip(*depths, strict=True)))[: len(text)].astype(np.float32)


def _depth(brackets: list[tuple[int, str]], C: int) -> Array:
    """Number of open brackets of any kind; surplus closing brackets are ignored."""
    change_C, depth = np.zeros(C, np.float32), 0
    for start, bracket in brackets:
        after = depth + 1 if bracket and bracket in OPENING else max(depth - 1, 0) if bracket else 0
        change_C[start] += after - depth
        depth = after
    return np.cumsum(change_C, dtype=np.float32)


def _parse_prose(text: str) -> _Parsed:
    none_C = np.zeros(len(text), bool)
    brackets = [(match.start(), match[0].strip()) for match in BRACKETS.finditer(text)]
    return _Parsed(_spans(QUOTED, text), none_C, none_C, brackets)


def _parse_code(text: str, language: str) -> _Parsed:
    tokens = _tokens(text, language)
    quote_C, comment_C = np.zeros((2, len(text)), bool)
    brackets: list[tuple[int, str]] = []
    for start, kind, value in tokens:
        first = start == 0 or text[start - 1] == "\n"
        if kind in String:
            quote_C[start : start + len(value)] = True
        elif kind in Comment and kind not in Comment.Preproc and kind not in Comment.PreprocFile:
            comment_C[start : start + len(value)] = True
        elif kind in Punctuation or kind in Operator:
            brackets += ((start + k, c) for k, c in enumerate(value) if c in OPENING + CLOSING)
            # Two branches of an #if may open a brace that one brace closes: start again from 0.
            if first and value[:1] == "}":
                brackets.append((start, ""))
        elif first and language == PYTHON and (kind in Keyword or kind in Name):
            brackets.append((start, ""))
    # The last character of a string or comment closes it.
    quote_C, comment_C = (mask_C & np.append(mask_C[1:], False) for mask_C in (quote_C, comment_C))
    return _Parsed(quote_C, comment_C, _conditions(tokens, language, len(text)), brackets)


def _tokens(text: str, language: str) -> list[Token]:
    """Tokenize a text that may begin inside a triple-quoted Python string.

    From there, a lexer would swap code and strings. So try each start, and keep the one with the most operators and
    brackets: prose has few.
    """
    lexer = get_lexer_by_name(language)
    prefixes = ("", '"""', "'''") if language == PYTHON else ("",)
    candidates = [_tokens_after(prefix, text, lexer) for prefix in prefixes]
    return max(candidates, key=lambda tokens: sum(kind in Operator or kind in Punctuation for _, kind, _ in tokens))


def _tokens_after(prefix: str, text: str, lexer: Lexer) -> list[Token]:
    """Tokenize a text as if it followed a prefix."""
    skip = len(prefix)
    tokens = lexer.get_tokens_unprocessed(prefix + text)
    cut = ((max(start - skip, 0), kind, value[max(skip - start, 0) :]) for start, kind, value in tokens)
    return [token for token in cut if token[2]]


def _conditions(tokens: list[Token], language: str, C: int) -> Array:
    """Mark the conditions of if statements.

    In C-like languages, a condition is the text between its parentheses. In Python, it ends at the colon, at `else`, or
    where the brackets around it close.
    """
    inside_C = np.zeros(C, bool)
    if language not in (*PAREN_IF, PYTHON):
        return inside_C
    # An `if` still without its parenthesis; start of the condition; open brackets.
    pending, began, depth = False, -1, 0
    for start, kind, value in tokens:
        if kind in Keyword and value in ("if", "elif"):
            pending, began, depth = language != PYTHON, start + len(value) if language == PYTHON else -1, 0
        elif pending and kind in Punctuation and value == "(":
            pending, began, depth = False, start, 1
        elif began >= 0:
            if kind in Punctuation:
                depth += sum((c in OPENING) - (c in CLOSING) for c in value)
            ends = depth < (language != PYTHON)
            if language == PYTHON and depth == 0:
                ends = value in (":", "else") or (kind not in String and "\n" in value)
            if ends or depth < 0:
                inside_C[began:start] = True
                began = -1
    return inside_C
