import doctest

import jinja2
import pytest

from common import pages


def test_doctest() -> None:
    assert doctest.testmod(pages).failed == 0


def test_what_a_template_names_and_nobody_gives_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'report' is undefined"):
        pages.render("pipeline", "report.html.j2", {"visible": str, "spread": str})
