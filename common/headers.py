"""HTTP headers of the page of `export web`, for every server of it."""

import re
from pathlib import Path

POLICY = re.compile(r'http-equiv="Content-Security-Policy"[^"]*"([^"]*)"')


def page_headers(folder: Path) -> dict[str, str]:
    """Headers of every file of a page. They repeat its policy, whose <meta> does not apply to its workers."""
    declared = POLICY.search((folder / "index.html").read_text(encoding="utf-8"))
    policy = " ".join(declared[1].split()) if declared else "default-src 'self'"
    return {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
