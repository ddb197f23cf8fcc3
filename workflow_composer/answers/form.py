"""AnswerForm: how the final answer stands in a text, and when two answers are the same. Data; the code is beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workflow_composer.values import quick

Comparison = Literal["auto", "number", "text", "math"]


@quick
@dataclass(frozen=True, slots=True)
class AnswerForm:
    r"""How answers are read and compared.

    ``extract`` names ways to find the final answer, tried in order until one finds it: ``hashes`` (``#### 18``), ``boxed``
    (``\boxed{18}``), ``phrase`` ("the answer is 18"), ``json:FIELD`` (a field of a JSON object), ``line`` (the last line),
    ``whole`` (all of the text), ``python:MODULE:FUNCTION`` (a function of your own, from text to answer or None), or
    ``auto``: hashes, boxed, phrase; where it comes last, also the last number or all of a short text. ``compare`` is
    ``number``, ``text``, ``math`` (mathematical equality, by math-verify) or ``auto``: the cheapest that can tell. No
    comparison takes more than ``limit`` seconds of processor time.
    """

    extract: tuple[str, ...] = ("auto",)
    compare: Comparison = "auto"
    limit: float = 2.0


ANY_FORM = AnswerForm()
