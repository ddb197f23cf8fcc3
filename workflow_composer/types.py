"""The values passed between layers.

Read from top to bottom, this file follows one request: a caller makes an `LLMRequest`; a router turns it and the
`ResourceStatus` into a `Plan` (`plan.py`); the executor makes one `ModelCall` per attempt; a backend returns a `Completion`;
and the caller gets an `LLMResponse`. All are immutable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, Unpack

from workflow_composer.support.fast_dataclass import quick
from workflow_composer.usage import MOST_TOKENS, NO_USAGE, Delivered, Relay, RelaySource, Sending, Usage

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from workflow_composer.answers.form import Check, OutputForm
    from workflow_composer.support.typed_fields import OwnFields

    V_co = TypeVar("V_co", default=Any, covariant=True)
else:
    from typing import TypeVar

    V_co = TypeVar("V_co", covariant=True)

__all__ = [
    "ANY_TASK",
    "EMPTY",
    "MOST_TOKENS",
    "NO_USAGE",
    "TIMER_EARLY",
    "Attempt",
    "Chunk",
    "Completion",
    "Delivered",
    "Embeddings",
    "EndpointStatus",
    "Fault",
    "LLMRequest",
    "LLMResponse",
    "Message",
    "ModelCall",
    "Relay",
    "RelaySource",
    "ResourceStatus",
    "RoutingDecision",
    "Sample",
    "Sending",
    "TierResult",
    "Timeouts",
    "TokenLogprob",
    "Usage",
    "Verdict",
    "new_request_id",
    "texts",
]


EMPTY: Mapping[str, Any] = MappingProxyType({})
ANY_TASK = "*"


def new_request_id() -> str:
    """Return a new identifier, unique across processes."""
    return "req-" + os.urandom(12).hex()


# --------------------------------------------------------------------------------------------------------- the request


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class LLMRequest:
    """A caller's request, times in seconds. A ``completion`` continues the text of its only message; ``other`` is passed on.

    ``task_type`` selects the route in the profile. ``model`` names a role, tier, catalogue model or routing string instead
    and leaves the router no choice. ``budget`` limits the cost in dollars: a tier is skipped if its expected cost exceeds
    what is left. ``most_calls`` limits its calls to models, each sample counted as one: a plan with more samples is
    refused, and retries, redraws and fallbacks end at the limit with `TooManyCalls` (None: no limit). ``context`` names
    templates to prepend (docs/contexts.md; None: the task's own; empty: none). ``n`` answers are in `LLMResponse.samples`.

    ``form`` is what the answer must be: the executor tells the model (`OutputForm.instructions`) and reads the answer as
    `LLMResponse.value`; an answer of another form goes back to the tier's model with what is wrong, at most ``form_retries``
    times, before the next tier is asked. ``check`` judges an answer that has the form; what it says goes back as well, a
    sample of a vote that it refuses is no vote. ``vote_by`` says how the votes of this request are grouped (None: as in the
    profile). ``purse`` (a `Reservation`) is part of a budget that other requests share; the executor reserves the cost.
    ``replies`` (`KeptReplies`) are those of an earlier try that was interrupted, which are not asked for again.

    With ``relay`` the caller gets the answer's raw bytes if possible. Other fields that are not None reach the model or
    raise `Unsupported`; ``extra`` holds fields that only some servers support. ``query_length`` is the number of characters
    of text in all messages, ``bulk`` with images too. ``allowed``: the only models it calls. ``private``: as with no cloud.
    ``headers`` go to the server. ``adapts``: some messages (developers', reasoning) are of a kind not every server knows.
    ``left_out``, if it is a list, gets what was not sent of optional fields, because a model's server does not take it.
    """

    messages: tuple[Message, ...]
    kind: Literal["chat", "completion", "embeddings", "other"] = "chat"
    task_type: str = ANY_TASK
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    form: OutputForm | None = None
    form_retries: int = 2
    check: Check | None = field(default=None, compare=False, repr=False)
    vote_by: Literal["answer", "embedding"] | None = None
    n: int = 1
    extra: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    timeout: float | None = None
    budget: float | None = None
    allowed: frozenset[str] | None = None
    private: bool = False
    most_calls: int | None = None
    context: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    relay: Relay | None = field(default=None, compare=False)
    purse: Any = field(default=None, compare=False, repr=False)
    replies: Any = field(default=None, compare=False, repr=False)
    request_id: str = field(default_factory=new_request_id)
    headers: Mapping[str, str] | None = None
    left_out: list[str] | None = field(default=None, compare=False, repr=False)
    query_length: int = field(init=False, compare=False, repr=False)
    adapts: bool = field(init=False, compare=False, repr=False)
    bulk: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        length = more = 0
        adapts = False
        for message in self.messages:
            content = message.get("content")
            if message.get("role") == "developer" or "reasoning_content" in message:
                adapts = True
            if isinstance(content, str):
                length += len(content)
            else:
                length += (found := sum(map(len, texts(message))))
                more += _characters(content) - found
        object.__setattr__(self, "query_length", length)  # the class is frozen
        object.__setattr__(self, "bulk", length + more)
        object.__setattr__(self, "adapts", adapts)

    def __repr__(self) -> str:
        said = [f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr and not self._is_default(one)]
        return f"LLMRequest({', '.join(said)})"

    def _is_default(self, one: Field[Any]) -> bool:
        value = getattr(self, one.name)
        return one.name == "request_id" or value == (EMPTY if one.default_factory is not MISSING else one.default)

    @classmethod
    def of(cls, prompt: str | Sequence[Message], *, system: str | None = None, **own: Unpack[OwnFields]) -> LLMRequest:
        """Make a request from a question or a list of messages; ``system`` is prepended.

        Raises TypeError if ``prompt`` is neither.
        """
        asked = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        if not isinstance(asked, Sequence) or not all(isinstance(message, Mapping) for message in asked):
            raise _no_prompt(prompt)
        messages = tuple(asked)
        if system is not None:
            messages = ({"role": "system", "content": system}, *messages)
        return cls(messages=messages, **own)  # type: ignore[arg-type]  # lists are as good as tuples

    @property
    def needs(self) -> frozenset[str]:
        """The capabilities that a model needs to answer, as named in a profile's ``capabilities``."""
        wanted = {
            "tools": self.tools is not None,
            "json": self.response_format is not None,
            "logprobs": self.logprobs or self.top_logprobs is not None,
            "vision": any(_shows_images(message) for message in self.messages),
        }
        if self.kind == "other":
            return frozenset()
        kind = "embeddings" if self.kind == "embeddings" else "chat"
        return frozenset([kind, *(name for name, is_wanted in wanted.items() if is_wanted)])


def _no_prompt(prompt: object) -> TypeError:
    wrong = next((one for one in prompt if not isinstance(one, Mapping)), None) if isinstance(prompt, Sequence) else prompt
    found = f"{'a list with ' * isinstance(prompt, Sequence)}{type(wrong).__name__}"
    example = '[{"role": "user", "content": "What is 2 + 2?"}]'
    return TypeError(f"a prompt must be a string or a list of messages such as {example}, not {found}")


def shortened(text: str, most: int = 200) -> str:
    """Return a text of at most ``most`` characters, for people; the end is left out."""
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def texts(message: Message) -> tuple[str, ...]:
    """Return the text parts of a message, whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, (list, tuple)):
        return ()
    return tuple(part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def _characters(value: Any) -> int:
    """Return the number of characters of all texts in a value of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 0


def _shows_images(message: Message) -> bool:
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return False
    return any(isinstance(part, Mapping) and str(part.get("type", "")).startswith("image") for part in content)


# ------------------------------------------------------------------------------------------------------------ the call


TIMER_EARLY = 0.1
"""Seconds by which a timer of a busy event loop may fire early: a loop reads the time once per iteration."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to connect, to the first token (of a stream), and in total for one call."""

    connect: float = 2.0
    first_token: float = 60.0
    total: float = 300.0


@quick
@dataclass(frozen=True, slots=True)
class ModelCall:
    """A call to a backend: one request, with the number of samples, the temperature and the time limits.

    ``first_sample`` is the index of the first sample if earlier calls drew others for the same request, so that a seed gives
    different samples and a recording the next ones. ``sending`` is where a backend may report how far the call has got.
    """

    request: LLMRequest
    samples: int = 1
    temperature: float | None = None
    timeouts: Timeouts = Timeouts()
    first_sample: int = 0
    sending: Sending | None = field(default=None, compare=False, repr=False)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A backend's result: ``samples`` answers by ``model`` (the name that the server reports).

    ``cost`` is in dollars; None: it is computed from the usage and the profile's prices. ``failovers`` are earlier failed
    attempts at other servers of the model, named by their addresses.
    """

    samples: tuple[Sample, ...]
    usage: Usage
    model: str
    cost: float | None = None
    failovers: tuple[Attempt, ...] = ()


@quick
@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer. The last one of a stream may carry only ``usage``; ``failovers`` as in `Completion`."""

    text: str = ""
    finish_reason: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    usage: Usage | None = None
    model: str | None = None
    failovers: tuple[Attempt, ...] = ()
    reasoning: str = ""
    stop: str = ""

    @property
    def carries_content(self) -> bool:
        """Whether it has content for the client."""
        return bool(self.text or self.tool_calls or self.finish_reason or self.reasoning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """One vector per input text, in order. ``cost`` in dollars, as in `LLMResponse`."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    usage: Usage = NO_USAGE
    candidate: str = ""
    cost: float = 0.0
    failovers: tuple[Attempt, ...] = ()
    cost_known: bool = True
    cost_estimated: bool = False


# ---------------------------------------------------------------------------------------------------------- the answer


@quick
@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a tier's answer is taken. ``confidence`` is None where nothing is known: unknown is not confident.

    ``choice`` is the position of the sample that is the answer. Where there was a vote, ``votes`` are the answers and how
    many samples gave each, the leader first; ``unreadable`` samples voted for nothing, or are no answer (cut off by their
    length, or empty). ``straight_up``: the answer is so doubtful that the last tier is asked next, and none between. With a
    form, ``value`` is the answer as read by it, ``mended`` says what was mended without a call, ``asked_again`` counts the
    calls after replies that were refused, and ``refused`` says why each was. ``warning`` is for the caller.
    """

    accepted: bool
    confidence: float | None = None
    reason: str = ""
    choice: int = 0
    votes: tuple[tuple[str, int], ...] = ()
    unreadable: int = 0
    straight_up: bool = False
    value: Any = None
    mended: tuple[str, ...] = ()
    asked_again: int = 0
    warning: str = ""
    refused: tuple[str, ...] = ()


Fault = Literal["caller", "server", "ours"]  # `workflow_composer.execution.fault` says what each means


@quick
@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to a candidate: its tier and its place in it (both from 0), its result and its cost in dollars.

    ``priced`` is False if the profile has no price: the cost is then unknown, and ``cost`` is only what is known of it.
    ``estimated``: the tokens, or the price of the model that answered, are not known exactly. ``fault`` says whose fault a
    failure is; None: the call did not fail.
    """

    tier: int
    candidate: int
    name: str
    local: bool
    latency_ms: float
    usage: Usage = NO_USAGE
    cost: float = 0.0
    error: str | None = None
    error_type: str | None = None
    priced: bool = True
    fault: Fault | None = None
    estimated: bool = False


@quick
@dataclass(frozen=True, slots=True)
class TierResult:
    """The result of one tier: its samples in order of arrival, and the verdict on them. ``tier`` counts from 0.

    Empty samples: no candidate answered. ``usage``, ``cost`` (dollars) and ``latency_ms`` include failed attempts.
    ``fixed``: the number of samples was decided before the first one was drawn, and all were; a vote that may end early, or
    go on, makes the number depend on the answers.
    """

    tier: int
    name: str
    candidate: str
    model: str
    samples: tuple[Sample, ...]
    verdict: Verdict
    usage: Usage
    cost: float
    latency_ms: float
    fixed: bool = False


@quick
@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The decision and what ran. ``fallback_depth`` counts candidates that failed within the deciding tier;
    ``tier`` counts escalations: 0 is the first.
    """

    strategy: str
    router: str
    candidate: str
    model: str
    local: bool
    tier: int
    fallback_depth: int
    task_type: str
    reason: str

    @property
    def escalated(self) -> bool:
        """Whether an earlier tier's answer was not accepted."""
        return self.tier > 0


@quick
@dataclass(frozen=True, slots=True)
class LLMResponse(Generic[V_co]):
    """The answer, and how it was reached. ``cost`` (dollars) includes failed attempts and rejected tiers.

    ``confidence`` is None if unknown. ``accepted`` is False if the answer was returned although its tier's rule did not
    accept it. ``samples`` are those of the deciding tier, the answer first. ``climbed`` is the result of `tiers`, empty for
    a single tier without a vote. ``value`` is the answer as read by the request's form; None without a form, and if the
    answer does not have it. ``warning`` says what the caller should know about the answer.
    """

    text: str
    decision: RoutingDecision
    samples: tuple[Sample, ...]
    usage: Usage
    cost: float
    attempts: tuple[Attempt, ...]
    request_id: str
    latency_ms: float
    overhead_ms: float
    confidence: float | None = None
    accepted: bool = True
    climbed: tuple[TierResult, ...] = ()
    value: V_co | None = None
    warning: str = ""

    def __repr__(self) -> str:
        rest = "".join(f", {name}={getattr(self, name)!r}" for name in ("value", "warning") if getattr(self, name))
        doubt = "" if self.accepted else ", accepted=False"
        cost = self.cost if self.cost_known else None
        return f"LLMResponse({shortened(self.text)!r}, model={self.model!r}, cost={cost}{doubt}{rest})"

    @property
    def tiers(self) -> tuple[TierResult, ...]:
        """All tiers that ran, with every sample, including those of rejected tiers."""
        if self.climbed:
            return self.climbed
        made, verdict = self.decision, Verdict(self.accepted, self.confidence)
        whole = (self.samples, verdict, self.usage, self.cost, self.latency_ms)
        return (TierResult(made.tier, made.candidate, made.candidate, made.model, *whole, fixed=True),)

    @property
    def cost_known(self) -> bool:
        """Whether every attempt has a price; if not, ``cost`` is a lower bound."""
        return all(attempt.priced for attempt in self.attempts)

    @property
    def cost_estimated(self) -> bool:
        """Whether the cost of an attempt is estimated: its server reported no tokens, or it was broken off."""
        return any(attempt.estimated for attempt in self.attempts)

    @property
    def asked_again(self) -> int:
        """Calls after replies that did not have the wanted form, in all tiers."""
        return sum(tier.verdict.asked_again for tier in self.climbed)

    @property
    def mended(self) -> tuple[str, ...]:
        """What was mended, without a call, to read the answer in the wanted form."""
        return next((tier.verdict.mended for tier in self.climbed if tier.tier == self.decision.tier), ())

    @property
    def model(self) -> str:
        """The model that gave the answer."""
        return self.decision.model

    @property
    def tool_calls(self) -> tuple[Mapping[str, Any], ...]:
        """Tool calls of the answer, in OpenAI's form."""
        return self.samples[0].tool_calls if self.samples else ()


# ------------------------------------------------------------------------------------------------------------------ sample
#
# What a model reads and writes: a message, and one answer with what is known of its tokens.


Message = Mapping[str, Any]
"""One chat message in OpenAI's form: ``{"role": "user", "content": "..."}``."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token, its log-probability (nats), and the most likely alternatives, best first.

    ``bytes`` are those of the token, then of alternatives, whose text does not say them: each with the text.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    bytes: tuple[tuple[str, tuple[int, ...]], ...] = ()


_TOO_LONG = frozenset({"length", "max_tokens", "model_length"})
_CUT_OFF = _TOO_LONG | {"content_filter"}


def is_cut_off(finish_reason: str | None) -> bool:
    """Whether an answer with this finish reason was cut off by a limit on its length or by a filter."""
    return finish_reason in _CUT_OFF


@quick
@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. ``logprobs`` is None where the backend returned none.

    ``score`` is what a gate, a reward model or a judge thinks of it, where the backend has one; more is better.
    ``reasoning`` is what the model thought before, where its server tells that apart; it is no part of the answer.
    ``stop`` is the stop sequence that ended it, where its server says so.
    """

    text: str
    finish_reason: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    score: float | None = None
    reasoning: str = ""
    stop: str = ""

    def __repr__(self) -> str:
        said = [f"{one.name}={getattr(self, one.name)!r}" for one in fields(self)[1:] if getattr(self, one.name)]
        said = [f"logprobs=<{len(self.logprobs or ())} tokens>" if one.startswith("logprobs=") else one for one in said]
        return f"Sample({', '.join([repr(shortened(self.text)), *said])})"

    @property
    def cut_off(self) -> bool:
        """Whether a limit on its length or a filter ended it, and not the model."""
        return is_cut_off(self.finish_reason)

    @property
    def too_long(self) -> bool:
        """Whether a limit on its length ended it, so that a larger one may help."""
        return self.finish_reason in _TOO_LONG


# --------------------------------------------------------------------------------------------------------- resource status
#
# Available resources: results of probes, keys and engines.


_NONE: Mapping[str, bool] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """Result of a probe of one local server, or of all ``replicas`` of a role. ``detail`` always explains it in words."""

    name: str
    url: str
    healthy: bool
    models: tuple[str, ...] = ()
    latency_ms: float | None = None
    detail: str = ""
    replicas: tuple[EndpointStatus, ...] = ()


_NO_ENDPOINTS: Mapping[str, EndpointStatus] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """Available resources. ``probed_at`` is None if nothing was probed yet and the endpoints are unknown.

    ``cloud_apis``: whether each cloud model's key is set. ``clouds``: what the cloud servers answered, if they were asked.
    ``slurm_detail`` says why SLURM is not available although its commands are installed.
    """

    endpoints: Mapping[str, EndpointStatus] = field(default_factory=lambda: _NO_ENDPOINTS)
    cloud_apis: Mapping[str, bool] = field(default_factory=lambda: _NONE)
    slurm_available: bool = False
    embedded_available: bool = False
    probed_at: float | None = None
    clouds: Mapping[str, EndpointStatus] = field(default_factory=lambda: _NO_ENDPOINTS)
    slurm_detail: str = ""

    @property
    def vllm_endpoints(self) -> Mapping[str, bool]:
        """Endpoint name -> healthy."""
        return {name: status.healthy for name, status in self.endpoints.items()}

    @property
    def age(self) -> float | None:
        """Seconds since the probe."""
        return None if self.probed_at is None else time.time() - self.probed_at
