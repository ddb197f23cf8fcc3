"""An answer of a wanted form, from one tier: mended, or asked for again with what is wrong, a few times.

The next tier gets the original question, so that it does not start from a wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from workflow_composer.answers.form import Formed, OutputForm
from workflow_composer.execution.call import Outcome
from workflow_composer.plan import Plan, Tier
from workflow_composer.support.fast_dataclass import changed
from workflow_composer.types import LLMRequest, Message, Sample, Usage, Verdict

MOST_BYTES = 4096
"""Of a refused reply and what is wrong with it, at most so many bytes are sent back; of each, where a check refused it."""
LARGER = 4
"""Factor of the token limit after an answer that was cut off."""
LEAST_LARGER = 1024
UNCHECKED = "it did not pass its check: "
TOO_LONG, WITHHELD = "it was cut off by its length, also with a larger limit", "the server withheld it"


_MOST_FORMED = 256


class FormedPlans:
    """Plans with the form of a request, each made once: thousands of requests have the same plan and the same form."""

    def __init__(self) -> None:
        self._plans: dict[tuple[int, int, int], tuple[Plan, OutputForm, Plan]] = {}
        self._bare: dict[int, tuple[Tier, Tier]] = {}

    def of(self, plan: Plan, request: LLMRequest) -> Plan:
        """Return the plan with the request's form in every tier that has none of its own."""
        form, retries = request.form, request.form_retries
        if form is None:
            return plan
        key = id(plan), id(form), retries
        known = self._plans.get(key)
        if known is None:
            tiers = [tier if tier.form is not None else replace(tier, form=form, retries=retries) for tier in plan.tiers]
            known = plan, form, replace(plan, tiers=tuple(tiers))
            if len(self._plans) >= _MOST_FORMED:
                self._plans.clear()
            self._plans[key] = known  # what the key is made of is kept, so that nothing else gets its id
        return known[2]

    def bare(self, tier: Tier) -> Tier:
        """Return the tier without its form and its vote, for one call."""
        known = self._bare.get(id(tier))
        if known is None:
            if len(self._bare) >= _MOST_FORMED:
                self._bare.clear()
            known = self._bare[id(tier)] = tier, replace(tier, form=None, voting=None)
        return known[1]


def instructed(request: LLMRequest, form: OutputForm) -> LLMRequest:
    """Return the request with the form's instructions at the end of its last message."""
    said = form.instructions()
    if not said and request.relay is None:
        return request
    messages = _with_text(request.messages, said) if said else request.messages
    return changed(request, messages=messages, relay=None)  # an answer of a form must be read here


def _with_text(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    last: Mapping[str, Any] = messages[-1] if messages else {}
    content = last.get("content")
    if last.get("role") != "user" or not isinstance(content, (str, list, tuple)):
        return (*messages, {"role": "user", "content": text})
    if isinstance(content, str):
        return (*messages[:-1], {**last, "content": f"{content}\n\n{text}"})
    return (*messages[:-1], {**last, "content": [*content, {"type": "text", "text": text}]})


class Forming:
    """Judges the replies of one tier by its form and makes the next request to it.

    ``request`` is the next one. `verdict` returns None as long as it is to be sent, then the tier's verdict. ``refusal`` is
    the verdict if it cannot be sent.
    """

    def __init__(self, tier: Tier, request: LLMRequest) -> None:
        assert tier.form is not None  # the caller has checked
        self._form = tier.form
        self._check = request.check
        self._left = tier.retries
        self._asked = instructed(request, tier.form)
        self.request = self._asked
        self.refusal = Verdict(accepted=False)
        self._last: str | None = None
        self._problem = ""
        self._refused: tuple[str, ...] = ()
        self._again = 0
        self._longer = False

    @property
    def asks_for_more(self) -> bool:
        """Whether a larger limit has been asked for, after a reply that was cut off."""
        return self._longer

    async def verdict(self, outcome: Outcome, usage: Usage) -> Verdict | None:
        """Judge a reply by the form, then by the request's check; ``usage`` is that of its call."""
        sample, before = outcome.answer, outcome.verdict
        whole = self._form.read_whole(sample.text) if sample.too_long else None
        if sample.too_long and not self._longer and whole is None:
            self.refusal = self._given_up(before, "it was cut off by its length")
            self._longer, self._again = True, self._again + 1
            self.request = changed(self.request, max_tokens=_larger(self.request, usage))
            return None
        if sample.text == self._last and (whole is not None or not sample.cut_off):
            return self._given_up(before, f"{self._problem}; the same reply came again")
        # An answer rejected by its score is not asked for again: another form does not raise the score.
        is_rejected = not before.accepted and before.confidence is not None
        found = await self._read(sample, is_rejected, whole)
        problem = found.problem
        if problem is None:
            if whole is not None:
                before = changed(before, accepted=True, reason="", unreadable=0)
            return changed(before, value=found.value, mended=found.mended, asked_again=self._again, refused=self._refused)
        self._last, self._problem = sample.text, problem
        self.refusal = self._given_up(before, problem)
        if (sample.cut_off and whole is None) or self._left <= 0 or is_rejected:
            return self.refusal
        self._left, self._again = self._left - 1, self._again + 1
        self.request = self._corrected(sample, problem)
        return None

    async def _read(self, sample: Sample, is_rejected: bool, whole: Formed | None) -> Formed:
        if sample.cut_off and whole is None:
            return Formed(problem=TOO_LONG if sample.too_long else WITHHELD)
        found = whole or self._form.read(sample.text)
        if found.problem is not None or self._check is None or is_rejected:
            return found
        problem = await self._check(self._form.plain(found.value))
        return found if problem is None else Formed(problem=f"{UNCHECKED}{problem}")

    def _corrected(self, sample: Sample, problem: str) -> LLMRequest:
        """Return the question with the refused reply and what is wrong with it, and nothing of earlier tries."""
        is_checked = problem.startswith(UNCHECKED)
        problem = tail_of(problem, MOST_BYTES if is_checked else MOST_BYTES // 4)
        # The output of a test may need all the room there is, and is worth little without the whole of what it tested.
        reply = tail_of(sample.text, MOST_BYTES if is_checked else MOST_BYTES - len(problem.encode()))
        said = f"This answer cannot be used: {problem}. Answer the question again in the form that was asked for."
        own = ({"role": "assistant", "content": reply or "(empty)"}, {"role": "user", "content": said})
        return changed(self.request, messages=(*self._asked.messages, *own))

    def _given_up(self, before: Verdict, problem: str) -> Verdict:
        self._refused = (*self._refused, problem)
        reason = problem if problem.startswith(UNCHECKED) else f"the answer does not have the wanted form: {problem}"
        return replace(
            before,
            accepted=False,
            confidence=None,
            reason=reason,
            unreadable=1,
            asked_again=self._again,
            warning=reason,
            refused=self._refused,
        )


def tail_of(text: str, most: int) -> str:
    """Return the end of a text, of at most so many bytes."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= most else data[-most:].decode("utf-8", "ignore")


def _larger(request: LLMRequest, usage: Usage) -> int:
    return max(LARGER * (request.max_tokens or usage.completion_tokens), LEAST_LARGER)
