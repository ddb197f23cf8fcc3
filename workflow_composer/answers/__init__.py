"""Final answers: read out of a text, compared, and graded against a label."""

from __future__ import annotations

from workflow_composer.answers.form import AnswerForm
from workflow_composer.answers.gsm8k import final_answer, is_correct, same_answer

__all__ = ["AnswerForm", "final_answer", "is_correct", "same_answer"]
