"""Text made safe to print: on a terminal, in an error, in a table and in a grid of characters."""

import re
import textwrap
import unicodedata

REPLACEMENT = "\ufffd"
# Unicode's Bidi_Control: these reorder the text that follows them.
DIRECTIONS = {*map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))}
QUOTED = re.compile(r"""(?<!\w)(['"]).*?\1(?!\w)""")  # an apostrophe opens no quote
GLYPHS = {"\n": "↵", "\r": "←", "\t": "⇥", " ": "␣", "": "∎"}


def visible(text: str, keep: str = "") -> str:
    r"""Replace characters that could control a terminal or reorder a line, and surrogates, with U+FFFD, except `keep`.

    >>> visible("a\x1b[31m\n", keep="\n")
    'a�[31m\n'
    """
    hidden = {c for c in set(text) - set(keep) if unicodedata.category(c) in ("Cc", "Cs")} | DIRECTIONS
    return "".join(REPLACEMENT if c in hidden else c for c in text)


def one_line(text: str) -> str:
    r"""Join the lines of a message, and make it `visible`.

    >>> one_line("bad\n  token \x1b[31m")
    'bad token �[31m'
    """
    return visible(" ".join(text.split()))


def brief(text: str, most: int = 200) -> str:
    """Shorten a text that an error quotes.

    >>> brief("abcdef", most=3)
    'abc…'
    """
    return text if len(text) <= most else f"{text[:most]}…"


def error_line(message: str) -> str:
    """Make an error `one_line`, with no value longer than 200 characters, and no more than 2,000 in all.

    >>> error_line(f"unknown name '{'a b ' * 99}'\\nchoose another")[-39:]
    'a b a b a b a b a b a b… choose another'
    """
    line = QUOTED.sub(lambda quote: brief(quote[0]), one_line(message))
    return brief(" ".join(map(brief, line.split(" "))), most=2000)


def wrapped(text: str) -> str:
    """Wrap a paragraph of Markdown in lines of at most 100 characters."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def check_name(name: str) -> None:
    r"""Raise ValueError unless `name` can name a file and be printed unchanged.

    >>> check_name("../train")
    Traceback (most recent call last):
    ValueError: a name has no path separators and no control characters, got '../train'
    """
    if name in ("", ".", "..") or "/" in name or visible(name) != name:
        raise ValueError(f"a name has no path separators and no control characters, got {brief(ascii(name), 100)}")


def symbol_name(symbol: bytes, unit: str) -> str:
    r"""Name of a vocabulary's symbol in a table, as Python escapes it; b"" is the end of a document.

    >>> [symbol_name(symbol, "byte") for symbol in (b" ", b"\n", b"\xff")], symbol_name("é".encode(), "char")
    (['space', '\\n', '\\xff'], 'é')
    """
    if symbol in (b"", b" "):
        return "space" if symbol else "end"
    return repr(symbol)[2:-1] if unit == "byte" else repr(symbol.decode())[1:-1]


def glyph(character: str) -> str:
    r"""Visible form, one column wide, of a character in a grid where lines must not break; "" is the end of a document.

    >>> [glyph(c) for c in ("a", " ", "\n", "", "\x1b", "\udcff")]
    ['a', '␣', '↵', '∎', '�', '�']
    """
    return GLYPHS.get(character, character if character.isprintable() else REPLACEMENT)
