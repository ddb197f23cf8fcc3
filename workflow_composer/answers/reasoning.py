"""Removal of a model's reasoning (``<think>...</think>``) from its text. Pure, linear."""

from __future__ import annotations

import re

_MARK = re.compile(
    r"<(/?)(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning)>|\[(/?)THINK\]|\u25c1(/?)think\u25b7", re.IGNORECASE
)
_CHANNEL = "<|channel|>final<|message|>"
"""Precedes the answer if a server passes gpt-oss's channels through unparsed."""
_EDGES = "<>[]\u25c1\u25b7"


def without_reasoning(text: str) -> str:
    """Return the text without ``<think>...</think>`` and similar blocks.

    A block without a closing tag extends to the end. A closing tag without an opening one ends a block that starts with
    the text: chat templates often write the opening tag themselves.

    >>> without_reasoning("<think>12 + 6</think>18"), without_reasoning("12 + 6</think>18"), without_reasoning("<think>12 +")
    ('18', '18', '')
    """
    if _CHANNEL in text:
        return text.rpartition(_CHANNEL)[2].partition("<|")[0]
    said: list[str] = []
    start: int | None = 0
    for mark in _MARK.finditer(text):
        if mark[1] or mark[2] or mark[3]:
            if start is not None:
                said.clear()
            start = mark.end()
        elif start is not None:
            said.append(text[start : mark.start()])
            start = None
    if start == 0:
        return text
    if start is not None:
        said.append(text[start:])
    return "".join(said)


def says_nothing(text: str) -> bool:
    """Whether the text is blank or only reasoning. Fast for a text that neither starts nor ends with a tag.

    >>> says_nothing(" "), says_nothing("<think>Let me see.</think>"), says_nothing("18")
    (True, True, False)
    """
    if not text or text.isspace():
        return True
    if text.lstrip()[0] not in _EDGES and text.rstrip()[-1] not in _EDGES:
        return False
    return not without_reasoning(text).strip()
