"""Rows answered as lines: the request that a row becomes, and the line that is made of the response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflow_composer.answers import reader
from workflow_composer.batch.run.answer_file import AnswerLine
from workflow_composer.batch.run.rows import InputRow
from workflow_composer.batch.run.runner import Generate
from workflow_composer.types import LLMRequest, LLMResponse, Sample
from workflow_composer.values import changed


class LineAnswers:
    """Answers rows with whatever answers requests, and raises what that raises.

    ``fields`` are those of `LLMRequest` for all rows, and ``system``; a row's own task type, model and context go before
    them, the fields of a row that is a request itself do not.
    """

    def __init__(self, generate: Generate, fields: Mapping[str, Any]) -> None:
        self._generate = generate
        self._fields = dict(fields)

    async def __call__(self, row: InputRow, budget: float | None) -> AnswerLine:
        """The line of one row, which may cost ``budget`` dollars."""
        fields, prompt = self._of(row, budget), row.prompt
        if isinstance(prompt, LLMRequest) and (system := fields.pop("system", None)) is not None:
            prompt = changed(prompt, messages=({"role": "system", "content": system}, *prompt.messages))
        response = await self._generate(prompt, **fields)
        logprobs = bool(fields.get("logprobs") or (isinstance(prompt, LLMRequest) and prompt.logprobs))
        return AnswerLine({**_head(row), **await _answered(response, row.label, logprobs=logprobs)})

    def failed(self, row: InputRow, error: BaseException, seconds: float) -> AnswerLine:
        """The line of a row that has failed, with the cost of its attempts."""
        found = {
            "error": {"type": type(error).__name__, "message": str(error)},
            "cost": sum(attempt.cost for attempt in getattr(error, "attempts", ())),
            "latency_ms": round(seconds * 1000.0, 3),
        }
        return AnswerLine(_head(row) | found)

    def _of(self, row: InputRow, budget: float | None) -> dict[str, Any]:
        own = {"task_type": row.task_type, "model": row.model, "context": row.context, "budget": budget}
        if budget is not None and isinstance(row.prompt, LLMRequest) and row.prompt.budget is not None:
            own["budget"] = min(budget, row.prompt.budget)
        return self._fields | {name: value for name, value in own.items() if value is not None}


def _head(row: InputRow) -> dict[str, Any]:
    return {"index": row.index, "key": row.key, "id": row.id}


async def _answered(response: LLMResponse, label: str | None, *, logprobs: bool) -> dict[str, Any]:
    decision, usage = response.decision, response.usage
    found = {
        "text": response.text,
        "model": decision.model,
        "candidate": decision.candidate,
        "tier": decision.tier,
        "fallback_depth": decision.fallback_depth,
        "cost": response.cost,
        "tokens": {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
        "latency_ms": round(response.latency_ms, 3),
        "confidence": response.confidence,
    }
    if label is not None:
        found |= await graded(response.samples[0], label)
    if response.tool_calls:
        found["tool_calls"] = [dict(call) for call in response.tool_calls]
    if logprobs:
        found["logprobs"] = logprobs_of(response)
    return found


async def graded(sample: Sample, label: str) -> dict[str, Any]:
    """What was read in an answer, why it ended, and whether it is right."""
    answer = reader().read_said(sample, label)
    right = await reader().grade(answer, label)
    return {"answer": answer, "finish_reason": sample.finish_reason, "correct": right}


def logprobs_of(response: LLMResponse) -> list[list[Any]] | None:
    """[token, log-probability] of the answer; None where the model gave none."""
    found = response.samples[0].logprobs if response.samples else None
    return None if found is None else [[token.token, token.logprob] for token in found]
