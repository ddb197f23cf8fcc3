"""What a question has got while it has no answer: replies of models, and what checks said of answers.

A question may take many calls: votes, tiers, tries after a refused reply, a judge. When a run is killed within it, what has
come is in the journal, and the next run asks for the rest only. Once the question has an answer, none of it is used again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from workflow_composer.types import Completion, Sample, TokenLogprob, Usage
from workflow_composer.workflows.keeping.answers import StepQuestion
from workflow_composer.workflows.keeping.journal import JournalEntry, WorkflowJournal
from workflow_composer.workflows.keeping.keys import digest_of_data

if TYPE_CHECKING:
    from workflow_composer.types import Attempt, ModelCall

_DIGITS = 16
_Place = tuple[int, int, str]


@dataclass(slots=True)
class Used:
    """Calls, dollars, seconds and tokens (of prompts, of answers) of a part of a question; ``judged``: a judge's calls."""

    calls: int = 0
    judged: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: Mapping[str, Any]) -> None:
        """Add what an entry says."""
        for name in _USED:
            setattr(self, name, getattr(self, name) + (other.get(name) or 0))


_USED = tuple(one.name for one in fields(Used))


class QuestionProgress:
    """The `KeptReplies` of a question's requests, and what checks said of its answers.

    ``kept`` are entries of earlier tries at the same question, the oldest first. ``told`` hears what each new entry has
    used. A reply is written once something else must be waited for: the answer itself is kept by others.
    """

    def __init__(
        self,
        journal: WorkflowJournal,
        question: StepQuestion,
        kept: Iterable[JournalEntry] = (),
        told: Callable[[Used], None] = lambda used: None,
    ) -> None:
        self.kept, self.written = Used(), Used()
        self._journal, self._question, self._told = journal, question, told
        self._number = 0
        self._replies: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        self._verdicts: dict[str, Mapping[str, Any]] = {}
        self._new: list[tuple[_Place, ModelCall, Completion, Attempt]] = []
        for entry in kept:
            self._take(entry.fields)

    def _take(self, entry: Mapping[str, Any]) -> None:
        self._number += 1
        if "checked" in entry:
            self._verdicts[entry["checked"]] = entry
        else:
            self._replies.setdefault(tuple(entry["at"]), []).append(entry)

    # ------------------------------------------------------------------------------------------------------------ replies

    def find(self, place: _Place, asked: ModelCall) -> Completion | None:
        """Return the kept samples of a call, each at most once; None: it must be made."""
        if self._new:
            self.write()
        if not self._replies:
            return None
        sent, found = _sent(asked), []
        for number in range(asked.first_sample, asked.first_sample + asked.samples):
            same = self._replies.get((*place, number))
            if same and same[0]["sent"] == sent:
                found.append(same.pop(0))
        if not found:
            return None
        used = Used()
        for entry in found:
            used.add(entry["used"])
            self.kept.add(entry["used"])
        samples = tuple(_sample_of(entry["sample"]) for entry in found)
        usage = Usage(prompt_tokens=used.prompt_tokens, completion_tokens=used.completion_tokens)
        return Completion(samples=samples, usage=usage, model=found[-1]["model"], cost=0.0)

    def add(self, place: _Place, asked: ModelCall, done: Completion, used: Attempt, *, vote: bool) -> None:
        """Take what a call has brought; votes are written at once."""
        self._new.append((place, asked, done, used))
        if vote:
            self.write()

    def write(self) -> None:
        """Write the replies that are not in the journal yet. Raises `WorkflowComposerError` if the disk is full."""
        new, self._new = self._new, []
        for place, asked, done, attempt in new:
            said = [
                {"at": [*place, number], "sent": _sent(asked), "model": done.model, "sample": _packed(sample)}
                for number, sample in enumerate(done.samples, asked.first_sample)
            ]
            self._append(_used_by(attempt), said)

    def _append(self, used: Mapping[str, Any], said: Sequence[Mapping[str, Any]]) -> None:
        """Write entries of one call; the first has what it has used."""
        entries: list[tuple[str, float, Mapping[str, Any]]] = []
        for one in said:
            self._number += 1
            own = {} if entries else used
            entries.append((f"{self._question.place}~{self._number}", own.get("cost", 0.0), {"used": own, **one}))
        self._journal.append_replies(self._question, entries)
        more = Used()
        more.add(used)
        self.written.add(used)
        self._told(more)

    # ------------------------------------------------------------------------------------------------------------- checks

    async def checked(
        self, value: Any, check: Callable[[Any], Awaitable[str | None]], used: Callable[[], tuple[int, float]]
    ) -> str | None:
        """Return what a check says of an answer (None: it passes), or has said of it before.

        ``used`` returns how many calls the check has made and how many dollars they cost, all its calls together.
        """
        self.write()
        digest = digest_of_data(value, _DIGITS)
        kept = self._verdicts.get(digest)
        if kept is not None:
            self.kept.add(kept["used"])
            problem: str | None = kept["problem"]
            return problem
        calls, cost = used()
        problem = await check(value)
        calls, cost = used()[0] - calls, used()[1] - cost
        self._append({"judged": calls, "cost": cost} if calls else {}, [{"checked": digest, "problem": problem}])
        return problem

    # -------------------------------------------------------------------------------------------------------------- facts

    def whole(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the facts of an answer or a failure with what earlier tries at the question have used."""
        kept = self.kept
        if kept == _NOTHING:
            return facts
        found = dict(facts)
        found["calls"] = (found.get("calls") or 0) + kept.calls
        found["cost"] = (found.get("cost") or 0.0) + kept.cost
        found["seconds"] = round((found.get("seconds") or 0.0) + kept.seconds, 3)
        prompt, completion = found.get("tokens") or (0, 0)
        found["tokens"] = [prompt + kept.prompt_tokens, completion + kept.completion_tokens]
        if kept.judged:
            found["judged"] = (found.get("judged") or 0) + kept.judged
        return found

    def rest(self, facts: Mapping[str, Any]) -> tuple[int, float, float]:
        """Return the calls, dollars and seconds, of those in ``whole`` facts, that no entry of a reply or check has."""
        parts = self.kept, self.written
        calls = (facts.get("calls") or 0) - sum(one.calls for one in parts)
        cost = (facts.get("cost") or 0.0) - sum(one.cost for one in parts)
        seconds = (facts.get("seconds") or 0.0) - sum(one.seconds for one in parts)
        return max(0, calls), max(0.0, cost), max(0.0, seconds)


_NOTHING = Used()


def _sent(asked: ModelCall) -> str:
    """Return a digest of what was sent: another try may ask otherwise, and a reply is no answer to that."""
    request = asked.request
    return digest_of_data([request.messages, request.max_tokens, asked.temperature], _DIGITS)


def _used_by(attempt: Attempt) -> dict[str, Any]:
    usage = attempt.usage
    return {
        "calls": 1,
        "cost": attempt.cost,
        "seconds": round(attempt.latency_ms / 1000.0, 3),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def _packed(sample: Sample) -> dict[str, Any]:
    """Return a sample as JSON data, without what is as usual."""
    found: dict[str, Any] = {"text": sample.text}
    for name in ("finish_reason", "reasoning", "stop"):
        if value := getattr(sample, name):
            found[name] = value
    if sample.score is not None:
        found["score"] = sample.score
    if sample.tool_calls:
        found["tool_calls"] = [dict(call) for call in sample.tool_calls]
    if sample.logprobs is not None:
        found["logprobs"] = [[one.token, one.logprob, one.top, one.bytes] for one in sample.logprobs]
    return found


def _sample_of(data: Mapping[str, Any]) -> Sample:
    """Return the sample of `_packed`."""
    found = dict(data)
    if "tool_calls" in found:
        found["tool_calls"] = tuple(found["tool_calls"])
    if "logprobs" in found:
        found["logprobs"] = tuple(
            TokenLogprob(token, logprob, tuple(map(tuple, top)), tuple((text, tuple(of)) for text, of in data))
            for token, logprob, top, data in found["logprobs"]
        )
    return Sample(**found)
