import jinja2
import pytest

from common import pages


def test_missing_template_value_raises() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'report' is undefined"):
        pages.render("pipeline", "report.html.j2", {"escaped": str, "spread": str})
