"""AnswerForm: how to extract the final answer from a text, and when two answers are equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workflow_composer.support.fast_dataclass import quick

Comparison = Literal["auto", "number", "text", "math"]


@quick
@dataclass(frozen=True, slots=True)
class AnswerForm:
    r"""How answers are extracted and compared.

    ``extract`` lists extraction methods, tried in order until one finds an answer: ``hashes`` (``#### 18``), ``boxed``
    (``\boxed{18}``), ``phrase`` ("the answer is 18"), ``json:FIELD`` (a field of a JSON object), ``line`` (the last line),
    ``whole`` (the whole text), ``python:MODULE:FUNCTION`` (your own function from text to answer or None), or ``auto``:
    hashes, boxed, phrase, and if it is the last method, also the last number or all of a short text. ``compare`` is
    ``number``, ``text``, ``math`` (mathematical equality, by math-verify) or ``auto``: the cheapest that can decide. A
    comparison takes at most ``limit`` seconds of CPU time.
    """

    extract: tuple[str, ...] = ("auto",)
    compare: Comparison = "auto"
    limit: float = 2.0


ANY_FORM = AnswerForm()
