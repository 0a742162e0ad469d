"""Reports: self-contained HTML pages, rendered from a package's templates and those in this folder."""

from collections.abc import Callable
from typing import Any

import jinja2


def render(package: str, template: str, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Render a package's template, which extends page.html.j2. Raises jinja2.UndefinedError for a missing value."""
    loaders = [jinja2.PackageLoader(name, ".") for name in (package, "common")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number} | (filters or {})
    return environment.get_template(template).render(**values)


def number(value: float) -> str:
    """Format a number: integers in full, others to four significant digits.

    >>> [number(value) for value in (0, 12345, 4096.0, 0.123456, 1234.56, 0.00001234)]
    ['0', '12,345', '4,096', '0.1235', '1,235', '1.234e-05']
    """
    if value == round(value):
        return f"{round(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
