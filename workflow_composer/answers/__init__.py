"""Final answers: read out of a text, compared, and graded against a label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.answers.equality import Kind, Question, kind_of, kind_of_labels
    from workflow_composer.answers.extraction import Extracted
    from workflow_composer.answers.form import ANY_FORM, AnswerForm, OutputForm
    from workflow_composer.answers.grading import final_answer, is_correct, same_answer
    from workflow_composer.answers.reading import Reader, reader

__all__ = [
    "ANY_FORM",
    "AnswerForm",
    "Extracted",
    "Kind",
    "OutputForm",
    "Question",
    "Reader",
    "final_answer",
    "is_correct",
    "kind_of",
    "kind_of_labels",
    "reader",
    "same_answer",
]

_HOMES = {
    "ANY_FORM": "form",
    "AnswerForm": "form",
    "Kind": "equality",
    "Question": "equality",
    "Extracted": "extraction",
    "OutputForm": "form",
    "Reader": "reading",
    "final_answer": "grading",
    "is_correct": "grading",
    "kind_of": "equality",
    "kind_of_labels": "equality",
    "reader": "reading",
    "same_answer": "grading",
}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
