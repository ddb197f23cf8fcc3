"""Answering a row of a data set: the request made from it, and the record made from the response."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflow_composer.answers import Kind, Question, Reader
from workflow_composer.answers.comparison.values import is_slash_form
from workflow_composer.batch.datasets.dataset import Row
from workflow_composer.batch.keeping.places import content_key
from workflow_composer.batch.run.journal import row_key
from workflow_composer.batch.run.records import RowRecord, TierRecord
from workflow_composer.batch.run.runner import Generate
from workflow_composer.errors import InputError
from workflow_composer.markers import is_routing_string
from workflow_composer.support.fast_dataclass import quick
from workflow_composer.types import LLMRequest, LLMResponse, Sample, TierResult

Recorded = Callable[[str, str, int], bool | None]
"""``(model, question, sample index) -> correct``, from a recording; None if the recording has no grade."""


@quick
@dataclass(frozen=True, slots=True)
class Job:
    """A row of a data set and its routing string."""

    row: Row
    route: str

    @property
    def key(self) -> str:
        """The row's key: what its answer depends on, besides the settings of the run, and its label."""
        given = {name: getattr(self.row, name) for name in _CONTENT if getattr(self.row, name)}
        labels = self.row.labels
        return row_key(
            content_key(self.route, given), labels[0] if len(labels) == 1 else json.dumps(labels) if labels else None
        )


_CONTENT = tuple(name for name in Row.__slots__ if name not in {"row", "id", "label", "others", "columns"})
"""Fields of a row on which its answer depends."""


class Answering:
    """Answers jobs by calling ``generate``, and raises what it raises.

    ``reader`` reads and grades final answers; ``recorded`` grades rows without a label. ``fields`` are fields of
    `LLMRequest` for every row, plus ``system``; ``keep_texts`` keeps the samples' texts in the records. ``kind``
    is the kind of the data set's answers, for a label that leaves its own open (`is_slash_form`).
    """

    def __init__(
        self,
        generate: Generate,
        reader: Reader,
        *,
        fields: Mapping[str, Any] | None = None,
        recorded: Recorded | None = None,
        keep_texts: bool = False,
        kind: Kind | None = None,
    ) -> None:
        self._kind = kind
        self._generate = generate
        self._reader = reader
        self._fields = dict(fields or {})
        self._recorded = recorded
        self._keep_texts = keep_texts

    async def __call__(self, job: Job, budget: float | None = None) -> RowRecord:
        """Answer one row for at most ``budget`` dollars; return its record."""
        return await self.record(job, await self._generate(self._request(job, budget)))

    def failed(self, job: Job, error: BaseException, seconds: float) -> RowRecord:
        """Return the record of a failed row, with the cost of its attempts."""
        attempts = getattr(error, "attempts", ())
        return RowRecord(
            row=job.row.row,
            id=job.row.id,
            route=job.route,
            answer=None,
            confidence=None,
            accepted=False,
            tier=0,
            tiers=(),
            correct=None if job.row.label is None and self._recorded is None else False,
            prompt_tokens=sum(attempt.usage.prompt_tokens for attempt in attempts),
            completion_tokens=sum(attempt.usage.completion_tokens for attempt in attempts),
            cost=sum(attempt.cost for attempt in attempts),
            seconds=seconds,
            error=(type(error).__name__, str(error)),
            priced=all(attempt.priced for attempt in attempts),
            key=job.key,
            **self._kept(job),
        )

    def _kept(self, job: Job) -> dict[str, Any]:
        """Return the row's own content for the record, if texts are kept."""
        if not self._keep_texts:
            return {}
        row = job.row
        prompt = row.question if row.messages is None else [dict(message) for message in row.messages]
        label = list(row.labels) if row.others else row.label
        return {"question": prompt, "label": label, "columns": dict(getattr(row, "columns", None) or {})}

    def _request(self, job: Job, budget: float | None) -> LLMRequest:
        # A routing string defines how its tiers sample; a plain model name means one greedy answer.
        own: dict[str, Any] = {} if is_routing_string(job.route) else {"temperature": 0.0}
        given = {name: value for name, value in job.row.own.items() if name != "model"}
        if "temperature" in given and not own.keys() & given.keys():
            raise InputError(
                f"row {job.row.row}: 'temperature' cannot be honoured: the route {job.route} sets it",
                hint="use a plain model name as the route, or rename the column",
            )
        if budget is not None:
            own["budget"] = budget
        return LLMRequest.of(job.row.prompt, **{**self._fields, **own, **given, "model": job.route})

    async def record(self, job: Job, response: LLMResponse) -> RowRecord:
        """Read and grade a response; return the row's record."""
        unpriced = {attempt.tier for attempt in response.attempts if not attempt.priced}
        tiers = [await self._tier(job, tier, priced=tier.tier not in unpriced) for tier in response.tiers]
        decided = next(at for at, tier in enumerate(response.tiers) if tier.tier == response.decision.tier)
        result = response.tiers[decided]
        choice = result.verdict.choice
        read = self._reader.extract_said(result.samples[choice], job.row.label)
        right = tiers[decided].right
        answer = None if read is None else read.answer
        if answer is None and _needs_no_reading(job, result, right):
            answer = result.samples[choice].text.strip()
        return RowRecord(
            row=job.row.row,
            id=job.row.id,
            route=job.route,
            answer=answer,
            confidence=response.confidence,
            accepted=response.accepted and answer is not None,
            tier=decided,
            tiers=tuple(tiers),
            correct=right[choice] if right else None,
            prompt_tokens=response.usage.prompt_tokens,
            completion_tokens=response.usage.completion_tokens,
            cost=response.cost,
            seconds=round(response.latency_ms / 1000.0, 6),
            priced=not unpriced,
            key=job.key,
            read_by=None if read is None else read.how,
            **self._kept(job),
        )

    async def _tier(self, job: Job, tier: TierResult, *, priced: bool) -> TierRecord:
        verdict = tier.verdict
        answers = [self._reader.read_said(sample, job.row.label) for sample in tier.samples]
        right = await self._grades(job, tier, answers)
        return TierRecord(
            name=tier.name,
            model=tier.model,
            samples=len(tier.samples),
            votes=verdict.votes or _counted(answers),
            unreadable=0 if _needs_no_reading(job, tier, right) else answers.count(None),
            confidence=verdict.confidence,
            accepted=verdict.accepted,
            reason=verdict.reason,
            prompt_tokens=tier.usage.prompt_tokens,
            completion_tokens=tier.usage.completion_tokens,
            cost=tier.cost,
            seconds=round(tier.latency_ms / 1000.0, 6),
            right=right,
            texts=tuple(sample.text for sample in tier.samples) if self._keep_texts else (),
            cut_off=sum(sample.cut_off for sample in tier.samples),
            fixed=tier.fixed,
            priced=priced,
            candidate=tier.candidate,
            said=said_of(tier.samples) if self._keep_texts else (),
        )

    async def _grades(self, job: Job, tier: TierResult, answers: list[str | None]) -> tuple[bool, ...]:
        """Whether each sample is correct, by the row's label or else by the recording; empty if unknown."""
        label = job.row.label
        if label is not None:
            question = Question(self._reader, label, kind=self._kind if is_slash_form(label) else None)
            await question.groups([answer for answer in answers if answer is not None])
            right = [await question.is_correct(answer) for answer in answers]
            for other in job.row.others:
                right = [a or b for a, b in zip(right, await _equal(self._reader, tier.samples, other), strict=True)]
            return tuple(right)
        if self._recorded is None:
            return ()
        said = [self._recorded(tier.model, job.row.question, number) for number in range(len(answers))]
        return tuple(bool(right) for right in said) if None not in said else ()


def _needs_no_reading(job: Job, tier: TierResult, right: tuple[bool, ...]) -> bool:
    """Whether the recording has graded a single answer, such as a program: all of it is the answer, and no vote reads it."""
    return bool(right) and job.row.label is None and len(tier.samples) == 1


async def _equal(reader: Reader, samples: Sequence[Sample], label: str) -> list[bool]:
    """Whether each sample's answer equals a label."""
    answers = [reader.read_said(sample, label) for sample in samples]
    question = Question(reader, label)
    await question.groups([answer for answer in answers if answer is not None])
    return [await question.is_correct(answer) for answer in answers]


def said_of(samples: Sequence[Sample]) -> tuple[dict[str, Any], ...]:
    """Return for each sample what its text does not hold, as far as a later reading needs it; empty if there is nothing.

    Keys: ``finish_reason``, unless it is ``stop``; ``tool_calls``; ``reasoning``; ``score``; ``logprob``, the mean
    log-probability of its tokens.
    """
    found = tuple(map(_said, samples))
    return found if any(found) else ()


def _said(sample: Sample) -> dict[str, Any]:
    given: dict[str, Any] = {
        "finish_reason": None if sample.finish_reason == "stop" else sample.finish_reason,
        "tool_calls": [dict(call) for call in sample.tool_calls] or None,
        "reasoning": sample.reasoning or None,
        "score": sample.score,
    }
    if sample.logprobs:
        given["logprob"] = sum(token.logprob for token in sample.logprobs) / len(sample.logprobs)
    return {name: value for name, value in given.items() if value is not None}


def _counted(answers: list[str | None]) -> tuple[tuple[str, int], ...]:
    """Return the vote counts of a tier that did not vote, by its answers as written."""
    read = [answer for answer in answers if answer is not None]
    return tuple((answer, read.count(answer)) for answer in dict.fromkeys(read))
