"""Whether models answer: each of one's own machines gets one question, of which the answer is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.runtime.doctor.finding import Finding, Subject, place_of

QUESTION = "What is 2 + 2? Answer with the number only."
_RIGHT = re.compile(r"(?i)(?<![\d.,])4(?![\d]|[.,]\d)|\bfour\b")
MOST_TOKENS = 1024
"""Tokens of an answer: a model that thinks first needs some hundreds."""
SECONDS = 120.0
"""Time limit of an answer; a server may load the model first."""


def questions(config: StrategyConfig, failing: set[str]) -> Iterator[tuple[str, Callable[[Any], list[Finding]]]]:
    """Yield each own model that is not known to fail, and what asks it through an orchestrator and judges the answer."""
    subject = Subject(config, {})
    for name, spec in config.backend_specs().items():
        if spec.local and spec.backend != "replay" and name not in failing:
            yield name, partial(_vectors if not subject.chats(name) else _answer, subject, name)


def _answer(subject: Subject, name: str, orchestrator: Any) -> list[Finding]:
    where = place_of(subject.config, subject.config.backend_specs()[name])
    try:
        response = orchestrator.generate(
            QUESTION, model=name, max_tokens=MOST_TOKENS, temperature=0.0, timeout=SECONDS, context=()
        )
    except WorkflowComposerError as error:
        return [_failed(name, where, error)]
    text = response.text.strip()
    if not text:
        problem = f"{name} gives no answer within {MOST_TOKENS} tokens: it only thinks, or its chat template is missing"
        remedy = "switch thinking off on the server, give requests more max_tokens, or choose another model"
        return [Finding("error", "no-answer", where, problem, remedy, (name,))]
    if not _RIGHT.search(text):
        problem = f"{name} was asked what 2 + 2 is, and says {text[:60]!r}"
        remedy = "check the model, its chat template and its quantization; a base model needs an instruction-tuned sibling"
        return [Finding("warning", "wrong-answer", where, problem, remedy)]
    return []


def _vectors(subject: Subject, name: str, orchestrator: Any) -> list[Finding]:
    try:
        orchestrator.embed([QUESTION], model=name, timeout=SECONDS)
    except WorkflowComposerError as error:
        return [_failed(name, place_of(subject.config, subject.config.backend_specs()[name]), error)]
    return []


def _failed(name: str, where: str, error: WorkflowComposerError) -> Finding:
    remedy = error.hint or "see the server's log"
    return Finding("error", "no-answer", where, f"{name} does not answer: {error.message}", remedy, (name,))
