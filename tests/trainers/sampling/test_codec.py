"""Encoding in graph ops against NumPy's in pipeline.vocab."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import StageError
from pipeline.vocab import Vocab, byte_vocab
from trainers.sampling.codec import Codec

CHARACTERS = tuple(c.encode() for c in "\nabéя中😀")
VOCABS = {
    "bytes": byte_vocab(),
    "few bytes": Vocab("byte", tuple(b"%c" % c for c in b"abc\n")),
    "bytes, ended": byte_vocab(end="token"),
    "characters": Vocab("char", CHARACTERS),
    "characters, ended": Vocab("char", CHARACTERS, end_id=0),
    "unknown": Vocab("char", CHARACTERS, end_id=0, unknown_id=2),
}
TEXT = st.binary(max_size=9) | st.text("\nabéя中😀!\0\ufffd", max_size=9).map(str.encode)
TEXTS = st.lists(TEXT, min_size=1, max_size=5)


SLOW = ("bytes", "characters", "characters, ended")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in VOCABS])
@settings(max_examples=60, deadline=None)
@given(texts=TEXTS)
def test_codec_matches_vocabulary(name: str, texts: list[bytes]) -> None:
    vocab = VOCABS[name]
    codec = Codec(vocab)
    encoded = codec.encode(tf.constant(texts), 9, "prompt")
    begun = codec.begin(encoded, tf.constant([vocab.end_id is not None or not text for text in texts]))
    decoded = codec.decode(*encoded[:2]).numpy()
    for row, text in enumerate(texts):
        problem = encoded.problem_B.numpy()[row].decode()
        try:
            expected, message = vocab.encode(text), ""
        except StageError as error:
            expected, message = vocab.encode(b""), str(error)
        size = len(text) if vocab.unit == "byte" else len(text.decode("utf-8", "replace"))
        if size > 9 or message:
            assert problem.startswith("prompt: must be valid UTF-8" if "is not UTF-8" in message else "prompt: ")
            assert (int(encoded.length_B[row]), decoded[row]) == (0, b"")
            continue
        assert problem == ""
        assert encoded.ids_BxP[row, : encoded.length_B[row]].numpy().tolist() == expected.tolist()
        assert begun.ids_BxP[row, : begun.length_B[row]].numpy().tolist() == vocab.prompt_ids(text).tolist()
        assert decoded[row] == vocab.decode(expected)


@pytest.mark.parametrize("broken", [b"\xff", b"a\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80a"])
def test_invalid_utf_8_is_reported_per_row(broken: bytes) -> None:
    encoded = Codec(VOCABS["characters"]).encode(tf.constant([b"ab", broken, "я".encode()]), 9, "text")
    assert encoded.problem_B.numpy().tolist() == [b"", b"text: must be valid UTF-8", b""]
    assert encoded.length_B.numpy().tolist() == [2, 0, 1]


def test_problems_name_the_invalid_value() -> None:
    encoded = Codec(VOCABS["few bytes"]).encode(tf.constant([b"abd!", b"a" * 5, b"\xff", b""]), 4, "prompt")
    assert encoded.problem_B.numpy().tolist() == [
        b"prompt: byte 100 is not in the model's vocabulary; see info",
        b"prompt: at most 4 bytes are read, got 5 bytes",
        b"prompt: byte 255 is not in the model's vocabulary; see info",
        b"",
    ]
    long = Codec(VOCABS["characters"]).encode(tf.constant(["яяя".encode(), b"a" * 9, b"b" * 2]), 2, "stop")
    assert long.problem_B.numpy().tolist() == [
        b"stop: at most 2 characters are read, got 3",
        b"stop: at most 2 characters are read, got 9 bytes",
        b"",
    ]


def test_byte_order_mark_is_an_ordinary_character() -> None:
    vocab = Vocab("char", (b"a", "\ufeff".encode()))
    ids = Codec(vocab).encode(tf.constant(["\ufeffa".encode()]), 9, "text").ids_BxP
    np.testing.assert_array_equal(ids, [[1, 0]])
