"""The dashboard page: one HTML file with inline style and script, which loads data only from the service.

Its Content-Security-Policy lists the digests of that style and script, so that nothing else runs, whatever the names of
models and tasks contain.
"""

from __future__ import annotations

import functools
import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


@functools.cache
def _part(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def policy() -> str:
    """Return the page's Content-Security-Policy."""
    style, script = (
        f"'sha256-{b64encode(hashlib.sha256(_part(name).encode()).digest()).decode()}'" for name in ("page.css", "page.js")
    )
    rest = "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; style-src {style}; script-src {script}; {rest}"


def page(data: Mapping[str, Any] | None = None) -> str:
    """Return the page: standalone with embedded data, or without data, which it then loads from its service."""
    told = "" if data is None else json.dumps(data).replace("<", "\\u003c")
    meta = "" if data is None else f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
    parts = {"policy": meta, "style": _part("page.css"), "script": _part("page.js"), "data": told}
    text = _part("page.html")
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part, 1)
    return text
