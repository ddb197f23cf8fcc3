"""Final answers: extracted from a text, compared, and graded against a label."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.answers.form import ANY_FORM, AnswerForm
    from workflow_composer.answers.gsm8k import final_answer, is_correct, same_answer
    from workflow_composer.answers.reading import Reader, reader

__all__ = ["ANY_FORM", "AnswerForm", "Reader", "final_answer", "is_correct", "reader", "same_answer"]

# Plans need only the form, and most requests need nothing from here: the rest is imported on first use (PEP 562).
_HOMES = {
    "ANY_FORM": "form",
    "AnswerForm": "form",
    "Reader": "reading",
    "final_answer": "gsm8k",
    "is_correct": "gsm8k",
    "reader": "reading",
    "same_answer": "gsm8k",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
