"""Grading of answers to grade-school problems (GSM8K): extraction and comparison of final answers. Pure.

The data set marks the result with ``####``; models trained on it also write a last line ``A: 18``.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_MARK = "####"
_LAST_LINE = re.compile(r"A:[ \t]*(.+)")
_IGNORED = str.maketrans("", "", ",$%")


def final_answer(text: str) -> str | None:
    r"""Return what follows the last ``####`` on its line, else the content of a last line ``A: ...``, else None.

    >>> final_answer("16 - 7 = 9, and 9 * 2 = 18.\n#### 18")
    '18'
    >>> final_answer("She makes 9 * 2 = 18.\nA: 18\n")
    '18'
    >>> final_answer("I do not know.") is None
    True
    """
    _, mark, behind = text.rpartition(_MARK)
    if mark:
        line = behind.lstrip(" \t").partition("\n")[0]
        return line.strip() or None
    match = _LAST_LINE.fullmatch(text.strip().rpartition("\n")[2].strip())
    return match[1] if match else None


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two final answers are equal: as numbers if both are numbers, else as text without regard to case.

    Commas, dollar and percent signs and trailing dots are ignored. None (no answer) equals nothing.

    >>> same_answer("$1,450,000.", "1450000.0")
    True
    >>> same_answer("18", None)
    False
    """
    if a is None or b is None:
        return False
    one, other = _bare(a), _bare(b)
    number, other_number = _number(one), _number(other)
    if number is not None and other_number is not None:
        return number == other_number
    return one != "" and one == other


def is_correct(text: str, label: str) -> bool:
    r"""Whether the final answer of a model's text equals that of the label, a bare answer or a solution that ends with one.

    If no final answer is marked, the whole text is compared.

    >>> is_correct("12 + 7 = 19. #### 19", "19"), is_correct("19", "12 + 7 = 19\n#### 19"), is_correct("19 or 20", "19")
    (True, True, False)
    """
    return same_answer(final_answer(text) or text, final_answer(label) or label)


def _bare(text: str) -> str:
    return " ".join(text.translate(_IGNORED).casefold().split()).rstrip(". ")


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
