"""Labels of texts against hand-written ones. Below each character: ^ where a binary label is true, or the last digit of
a numeric label. In the texts, $ is a newline."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UsageError
from pipeline.manifest import Manifest, Source
from pipeline.vocab import Vocab, byte_vocab, char_vocab
from trainers.neurons.labels import Label, known_language, labels_of, language_of, language_of_data

LANGUAGES = st.sampled_from(["text", "c", "python", "tex", "xml"])


def label_of(text: bytes, vocab: Vocab, language: str, about: str) -> Label:
    return next(label for label in labels_of(vocab.encode(text), vocab, language) if label.about == about)


def render(text: str, language: str, about: str) -> str:
    text = text.replace("$", "\n")
    label = label_of(text.encode(), char_vocab(Counter(text)), language, about)
    return "".join(str(int(value) % 10) if label.numeric else ".^"[int(value)] for value in label.values_N)


PROSE = [
    (
        "inside quotes",
        'He said "no" twice',
        "........^^^.......",
    ),
    (
        "inside quotes",  # the end of a paragraph closes quotes
        'a "b c$d" e "f$$g "h" i',
        "..^^^^^^....^^....^^...",
    ),
    (
        "inside quotes",
        "“é” «x» ``so'' it",
        "^^..^^..^^^^^....",
    ),
    (
        "inside brackets",
        "f(a[1]) ) b$(c$$d",
        ".^^^^^......^^...",
    ),
    (
        "depth of brackets",
        "f(a[1]) ) b$(c$$(d",
        "011221000000110011",
    ),
    (
        "inside a URL",
        "see https://a.b/c?d=1 now",
        "....^^^^^^^^^^^^^^^^^....",
    ),
    (
        "inside a wiki link",
        "a [[b|c]] d [e]",
        "..^^^^^^.......",
    ),
    (
        "inside a capitalised word",
        "The cat, Anna's o'Neil 4X É",
        "^^^......^^^^^^...........^",
    ),
    (
        "position in the line",
        "ab$$cd",
        "120012",
    ),
    (
        "the line ends within 10 characters",
        "0123456789abc$d",
        "....^^^^^^^^^.^",
    ),
    (
        "depth of indentation",
        "  a$$,b$c".replace(",", "\t"),
        "222228880",
    ),
    (
        "inside an if-condition",
        "if (a) b",
        "........",
    ),
]
CODE = [
    (
        "c",
        "inside a string",
        'if (a(")")) { /* "x" */ c["\\"/*"] = \'"\'; }',
        "......^^..................^^^^^.....^^....",
    ),
    (
        "c",
        "inside a comment",
        'f("/*"); /* "x" */ g // it\'s$',
        ".........^^^^^^^^....^^^^^^^.",
    ),
    (
        "c",
        "inside a comment",
        "#define a b$#include <c>$d",
        "..........................",
    ),
    (
        "c",
        "inside an if-condition",
        "if (a(b) && ')') c; else if(d) e; f(g)$#if (h)$",
        "...^^^^^^^^^^^^............^^..................",
    ),
    (
        "c",
        "depth of brackets",
        "f(){$#ifdef A$if (x) {$#else$if (y) {$#endif$}$}$g(){",
        "01011111111111111221122222222222332233333333300000101",
    ),
    (
        "python",
        "inside a string",
        'x = \'"\' + """it\'s$"a" #""" # \'b\'$',
        "....^^....^^^^^^^^^^^^^^^........",
    ),
    (
        "python",
        "inside a comment",
        'x = "#" # it\'s "$y',
        "........^^^^^^^...",
    ),
    (
        "python",
        "inside an if-condition",
        'if a[":"] and b:$  x = [y if y else 1 for y in z if y]$elif c: d',
        "..^^^^^^^^^^^^^.............^^^....................^^......^^...",
    ),
    (
        "python",  # starts inside a string
        "inside a string",
        'then, it is."""$x = f(1)$def g(a, b):$  """Do, then so."""$  return 2$',
        "^^^^^^^^^^^^^^..........................^^^^^^^^^^^^^^^^^.............",
    ),
    (
        "xml",
        "inside a comment",
        '<a b="c"><!-- "d" --> "e"',
        ".........^^^^^^^^^^^.....",
    ),
    (
        "tex",
        "inside a comment",
        "a % b$c",
        "..^^^..",
    ),
]


@pytest.mark.parametrize(("about", "text", "expected"), PROSE)
def test_prose_labels(about: str, text: str, expected: str) -> None:
    assert render(text, "text", about) == expected


@pytest.mark.parametrize(("language", "about", "text", "expected"), CODE)
def test_code_labels(language: str, about: str, text: str, expected: str) -> None:
    assert render(text, language, about) == expected


def test_all_bytes_of_a_character_share_its_label() -> None:
    text, about = "“né” \U0001f431.".encode(), "inside quotes"
    label = label_of(text + b"\xe9\x80(", byte_vocab(), "text", about)
    assert label.values_N.tolist() == [True] * 6 + [False] * (3 + 1 + 4 + 1 + 3)
    depth = label_of(b"\xc3(\xa9)", byte_vocab(), "text", "depth of brackets")
    assert depth.values_N.tolist() == [0, 1, 1, 0]


def test_documents_are_labelled_separately() -> None:
    vocab = byte_vocab("token")
    ids_N = np.concatenate([vocab.encode(b'a "b'), [256, 256], vocab.encode(b'c "d"')])
    label = next(label for label in labels_of(ids_N, vocab, "text") if label.about == "inside quotes")
    assert "".join(".^"[int(value)] for value in label.values_N) == "..^.....^^."


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=80), LANGUAGES, st.sampled_from([None, "token"]))
def test_labels_accept_any_bytes(text: bytes, language: str, end: str | None) -> None:
    vocab = byte_vocab(end)  # type: ignore[arg-type]
    ids_N = vocab.encode(text).astype(np.int64)
    if end:
        ids_N = np.append(np.where(ids_N == 0, 256, ids_N), 256)
    labels = labels_of(ids_N, vocab, language)
    assert [len(label.values_N) for label in labels] == [len(ids_N)] * 12
    assert len({label.about for label in labels}) == 12
    assert {label.values_N.dtype.name for label in labels} == {"bool", "float32"}


@settings(max_examples=40, deadline=None)
@given(st.text("ab\"'#/*\n\t ()[]{}:é\\", min_size=1, max_size=60), LANGUAGES)
def test_bytes_and_characters_have_the_same_labels(text: str, language: str) -> None:
    for of_bytes, of_characters in zip(
        labels_of(byte_vocab().encode(text.encode()), byte_vocab(), language),
        labels_of((vocab := char_vocab(Counter(text))).encode(text.encode()), vocab, language),
        strict=True,
    ):
        first = [index for index, byte in enumerate(text.encode()) if byte & 0xC0 != 0x80]
        assert of_bytes.about == of_characters.about
        np.testing.assert_array_equal(of_bytes.values_N[first], of_characters.values_N)


def test_language_is_chosen_by_bytes() -> None:
    assert language_of([("a.py", 10), ("b/c.c", 5), ("README", 3), ("d.py", 1)]) == "python"
    assert language_of([("a.py", 10), ("README", 11)]) == "text"
    assert [language_of([(f"{name}/input.txt", 1)]) for name in ("linux-core", "wikipedia-sample", "warpeace")] == [
        "c",
        "xml",
        "text",
    ]
    assert language_of([]) == "text"
    manifest = Manifest((Source("x/a.h", 3, ""), Source("x/b.tex", 2, "")), {}, byte_vocab(), {}, {})
    assert language_of_data(manifest) == "c"


def test_known_language_resolves_aliases() -> None:
    assert [known_language(name) for name in ("py3", "C", "latex", "text")] == ["python", "c", "tex", "text"]
    with pytest.raises(UsageError, match=r"^--language: Pygments has no lexer for 'klingon'"):
        known_language("klingon")
