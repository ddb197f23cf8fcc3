"""What a sample votes for: a final answer, a tool call, a JSON value, a value of a form, or a free text by its meaning.

The request (its tools, response format and form) decides the kind, so that every sample of a vote is read the same way.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from workflow_composer.answers import Question, Reader, reader
from workflow_composer.answers.form import Check, Formed, OutputForm, Patience
from workflow_composer.answers.json_text import blocks, canonical, json_values
from workflow_composer.answers.reasoning import without_reasoning
from workflow_composer.errors import AllCandidatesFailed, ConfigError, ModelError
from workflow_composer.plan import Voting
from workflow_composer.types import LLMRequest, Sample

Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
"""Returns a vector for each text."""

SHORT = 6
"""Words; a longer text from which no final answer can be read is free text."""
_SHORT_CHARACTERS = 60
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+(?=\S)")
_MOST_WORDS_AFTER = 12

_UNKNOWN = "\0"
PASSED = "(passes the check)"
BY_EMBEDDING = "free text cannot be compared as an answer; --vote-by embedding groups it by meaning (see docs/voting.md)"


class VoteKind(ABC):
    """Reads what samples vote for and groups equal votes."""

    unknown = ""
    """Why the groups are unknown, if they are."""
    judges = False
    """Whether samples must be judged before they are read."""

    @abstractmethod
    def read(self, sample: Sample) -> str | None:
        """Return what the sample votes for, as text; None: nothing that can be read."""

    async def judge(self, sample: Sample) -> None:
        """Do what `read` needs and must wait for."""
        return

    @abstractmethod
    async def groups(self, votes: Sequence[str]) -> list[int]:
        """Return the number of the group of each vote, in the order of first appearance."""

    def is_free_text(self, sample: Sample) -> bool:
        """Whether a sample that votes for nothing is nevertheless an answer: a free text."""
        return False


class AnswerVotes(VoteKind):
    """Final answers, extracted and compared as the reader does; a JSON object or list of a text is compared by value."""

    def __init__(self, answers: Reader, ends: float = math.inf) -> None:
        self._reader = answers
        self._ends = ends
        self._takes_json = answers.form.extract[-1] == "auto"
        self._exact: set[str] = set()
        self._known: dict[tuple[str, str | None], str | None] = {}
        self._patience: Patience | None = None

    def read(self, sample: Sample) -> str | None:
        """Return the final answer; the same text is read once only."""
        text, reason = sample.text, sample.finish_reason
        found = self._known.get((text, reason), _UNKNOWN)
        if found is _UNKNOWN:
            found = self._known[text, reason] = self._answer(sample)
        return found

    def _answer(self, sample: Sample) -> str | None:
        """Read a text; its last number is an answer only if the text ends with it."""
        text = sample.text
        is_json = self._takes_json and ("{" in text or "[" in text) and not sample.cut_off
        if is_json and (value := _json_of(text)) is not None:
            self._exact.add(value)
            return value
        found = self._reader.extract_said(sample)
        if found is None or (found.how == "last_number" and not _ends_with(text, found.answer) and is_free_text(sample)):
            return None
        return found.answer

    async def groups(self, votes: Sequence[str]) -> list[int]:
        """Group JSON by value and other answers as the reader compares them, within the time of the vote and the request."""
        if self._patience is None:
            self._patience = Patience.of(self._reader.form, self._ends)
        question = Question(self._reader, patience=self._patience)
        if not self._exact:
            return await question.groups(votes)
        others = [vote for vote in dict.fromkeys(votes) if vote not in self._exact]
        numbers = dict(zip(others, await question.groups(others), strict=True)) if others else {}
        return _numbered([numbers.get(vote, vote) for vote in votes])

    def is_free_text(self, sample: Sample) -> bool:
        """Whether the text is complete and long."""
        return is_free_text(sample)


class FormVotes(VoteKind):
    """Values of a form; free text of a form is normalised.

    What a ``check`` refuses is no vote. Long texts that pass it, such as code, are one vote: on the check they agree.
    """

    def __init__(self, form: OutputForm, check: Check | None = None) -> None:
        self.form = form
        self.judges = check is not None
        self._check = check
        self._passed: dict[str, bool] = {}

    def formed(self, sample: Sample) -> Formed | None:
        """Read a sample; None: it was cut off within its answer, or withheld."""
        if sample.cut_off:
            return self.form.read_whole(sample.text) if sample.too_long else None
        return self.form.read(sample.text)

    async def judge(self, sample: Sample) -> None:
        """Check an answer that has the form; the same text is checked once only."""
        if self._check is None or sample.text in self._passed:
            return
        found = self.formed(sample)
        if found is not None and found.problem is None:
            self._passed[sample.text] = await self._check(self.form.plain(found.value)) is None

    def read(self, sample: Sample) -> str | None:
        """Return the value as text, the same for all its writings."""
        found = self.formed(sample) if self._passed.get(sample.text, True) else None
        if found is None or found.problem is not None:
            return None
        if self.form.is_text and is_free_text(sample):
            return None if self._check is None else PASSED
        if self.form.is_text and isinstance(found.value, str):
            return " ".join(found.value.split())
        return found.value if isinstance(found.value, str) else self.form.key(found.value)

    async def groups(self, votes: Sequence[str]) -> list[int]:
        """Group equal values."""
        if not self.form.is_text:
            return _numbered(votes)
        return _numbered([vote.casefold().rstrip(".") for vote in votes])

    def is_free_text(self, sample: Sample) -> bool:
        """Whether the form is text, and this one long."""
        return self.form.is_text and self._check is None and is_free_text(sample)


class JsonVotes(VoteKind):
    """JSON values: the order of keys and the writing of numbers do not matter."""

    def read(self, sample: Sample) -> str | None:
        """Return the JSON value in one writing."""
        if sample.cut_off:
            return None
        found = json_values(without_reasoning(sample.text))
        keys = {canonical(one.value) for one in found}
        return keys.pop() if len(keys) == 1 else None

    async def groups(self, votes: Sequence[str]) -> list[int]:
        """Group equal values."""
        return _numbered(votes)


class ToolVotes(VoteKind):
    """Tool calls, by name and canonical arguments, whatever their order; a sample without a call votes by its text."""

    def __init__(self, tools: Sequence[Mapping[str, Any]], texts: VoteKind) -> None:
        self._names = {str((tool.get("function") or tool).get("name")) for tool in tools}
        self._texts = texts
        self.judges = texts.judges
        self._calls: set[str] = set()

    async def judge(self, sample: Sample) -> None:
        """Judge a sample without a call."""
        if not sample.tool_calls:
            await self._texts.judge(sample)

    def read(self, sample: Sample) -> str | None:
        """Return the calls in one writing; None for arguments that are no JSON, and for a tool that was not offered."""
        if not sample.tool_calls:
            return self._texts.read(sample)
        if sample.cut_off:
            return None
        calls = [self._call(call) for call in sample.tool_calls]
        if None in calls:
            return None
        vote = " ".join(sorted(call for call in calls if call is not None))
        self._calls.add(vote)
        return vote

    def _call(self, call: Mapping[str, Any]) -> str | None:
        function = call.get("function") or call.get("custom") or {}
        name, given = function.get("name"), function.get("arguments", function.get("input"))
        if name not in self._names:
            return None
        if "custom" in call and "function" not in call:
            return f"{name}({json.dumps(given)})"
        try:
            arguments = given if isinstance(given, Mapping) else json.loads(given or "{}")
        except (ValueError, RecursionError):
            return None
        return f"{name}({canonical(arguments)})" if isinstance(arguments, Mapping) else None

    async def groups(self, votes: Sequence[str]) -> list[int]:
        """Group equal calls; other votes as their texts."""
        others = [vote for vote in dict.fromkeys(votes) if vote not in self._calls]
        numbers = dict(zip(others, await self._texts.groups(others), strict=True)) if others else {}
        return _numbered([numbers.get(vote, vote) for vote in votes])

    def is_free_text(self, sample: Sample) -> bool:
        """Whether the sample has no call, and its text is free text."""
        return not sample.tool_calls and self._texts.is_free_text(sample)


class EmbeddingVotes(VoteKind):
    """Texts by meaning: two texts of at least this cosine similarity, directly or through others, are one answer."""

    def __init__(self, embed: Embed, similarity: float) -> None:
        self._embed = embed
        self._similarity = similarity
        self._vectors: dict[str, list[float]] = {}

    def read(self, sample: Sample) -> str | None:
        """Return the whole text, without reasoning."""
        text = without_reasoning(sample.text).strip()
        return text if any(map(str.isalnum, text)) and not sample.cut_off else None

    async def groups(self, votes: Sequence[str]) -> list[int]:
        """Group by single linkage, which does not depend on the order of the samples."""
        texts = list(dict.fromkeys(votes))
        new = [text for text in texts if text not in self._vectors]
        if new:
            try:
                self._vectors.update(zip(new, map(_unit, await self._embed(new)), strict=True))
            except (ModelError, AllCandidatesFailed) as error:
                self.unknown = f"the answers could not be grouped by embedding: {error}"
                return list(range(len(votes)))
        group = list(range(len(texts)))
        for at in range(len(texts)):
            for other in range(at):
                if group[at] != group[other] and self._alike(texts[at], texts[other]):
                    old, kept = group[at], group[other]
                    group = [kept if each == old else each for each in group]
        numbers = dict(zip(texts, group, strict=True))
        return _numbered([numbers[vote] for vote in votes])

    def _alike(self, a: str, b: str) -> bool:
        similarity = math.fsum(x * y for x, y in zip(self._vectors[a], self._vectors[b], strict=True))
        return similarity >= self._similarity - _ROUNDING


_ROUNDING = 1e-6


def vote_kind(
    voting: Voting,
    request: LLMRequest,
    form: OutputForm | None = None,
    embed: Embed | None = None,
    *,
    ends: float = math.inf,
) -> VoteKind:
    """Return how the samples of this request vote. ``embed`` is needed if free texts are grouped by meaning.

    ``ends`` is when the request's time is up (`time.perf_counter`): no comparison of its answers takes longer.
    """
    kind: VoteKind
    if form is not None and (embed is None or not form.is_text or request.check is not None):
        kind = FormVotes(form, request.check)
    elif embed is not None:
        kind = EmbeddingVotes(embed, voting.similarity)
    else:
        kind = _declared(request) or AnswerVotes(reader(voting.form), ends)
    return ToolVotes(request.tools, kind) if request.tools else kind


def _declared(request: LLMRequest) -> VoteKind | None:
    """Return the kind of the answer that the request asks the server for: JSON, or one of some words."""
    wanted, extra = request.response_format, request.extra
    if wanted is None and not extra:
        return None
    kind = (wanted or {}).get("type")
    given = extra.get("structured_outputs")
    nested: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    words = extra.get("guided_choice") or nested.get("choice")
    if isinstance(words, (list, tuple)) and all(isinstance(word, str) for word in words):
        form = _choices(tuple(words))
        return None if form is None else FormVotes(form)
    is_json = kind in ("json_object", "json_schema") or extra.get("format") is not None
    return JsonVotes() if is_json or extra.get("guided_json") or nested.get("json") else None


@lru_cache(maxsize=64)
def _choices(words: tuple[str, ...]) -> OutputForm | None:
    from workflow_composer.answers.output_form import output_form

    try:
        return output_form(list(words))
    except ConfigError:
        return None


def is_free_text(sample: Sample) -> bool:
    """Whether a sample is a complete text of more than a few words."""
    if sample.cut_off or sample.tool_calls:
        return False
    text = without_reasoning(sample.text).strip()
    return any(map(str.isalnum, text)) and (len(text) > _SHORT_CHARACTERS or len(text.split()) > SHORT)


def _ends_with(text: str, number: str) -> bool:
    """Whether the last sentence says the number, near its end, as an answer to a question does and an essay does not.

    True for 1,137 of GPT-4's 1,147 recorded answers to GSM8K whose last number is read (docs/voting.md).
    """
    _, said, rest = _SENTENCE.split(text.strip())[-1].rpartition(number)
    return bool(said) and len(rest.split()) <= _MOST_WORDS_AFTER and not text.rstrip().endswith("```")


def _json_of(text: str) -> str | None:
    """Return the object or list that a text is, without or within fences; lists of numbers are left to the reader."""
    text = without_reasoning(text).strip()
    if not text.startswith(("{", "[", "```")):
        return None
    fenced = blocks(text)
    inner = (fenced[0] if len(fenced) == 1 and text.endswith("```") else text).strip()
    if not inner.startswith(("{", "[")) or not inner.endswith(("}", "]")):
        return None
    found = json_values(inner)
    value = found[0].value if len(found) == 1 else None
    if isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(one, (int, float)) for one in value)):
        return canonical(value)
    return None


def _numbered(keys: Sequence[object]) -> list[int]:
    numbers: dict[object, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(math.fsum(part * part for part in vector))
    return [part / length for part in vector] if length else list(vector)
