"""Final answers: read out of a text, compared, and graded against a label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.answers.equality import Kind, Question, kind_of, kind_of_labels
    from workflow_composer.answers.extraction import Extracted
    from workflow_composer.answers.form import ANY_FORM, AnswerForm
    from workflow_composer.answers.gsm8k import final_answer, is_correct, same_answer
    from workflow_composer.answers.output_form import OutputForm, output_form
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
    "output_form",
    "reader",
    "same_answer",
]

_HOMES = {
    "ANY_FORM": "form",
    "AnswerForm": "form",
    "Kind": "equality",
    "Question": "equality",
    "Extracted": "extraction",
    "OutputForm": "output_form",
    "Reader": "reading",
    "final_answer": "gsm8k",
    "is_correct": "gsm8k",
    "output_form": "output_form",
    "kind_of": "equality",
    "kind_of_labels": "equality",
    "reader": "reading",
    "same_answer": "gsm8k",
}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
