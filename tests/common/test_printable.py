from common import printable


def test_visible_hides_bidi_controls_only() -> None:
    controls = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    text = f"a{controls}b\u200d\u05d0\n"
    assert printable.visible(text, keep="\n") == f"a{12 * chr(0xFFFD)}b\u200d\u05d0\n"
