"""RoutingMetric: the record of one request, and its encoding as a line of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

# Formatted by hand, because every request pays for it: 7 microseconds instead of 21 with json.dumps.
_LINE = (
    '{"timestamp":%s,"request_id":%s,"strategy":%s,"router":%s,"task_type":%s,"query_length":%d,"model_used":%s,'
    '"candidate":%s,"tier":%d,"fallback_depth":%d,"escalated":%s,"latency_ms":%.3f,"overhead_ms":%.3f,"prompt_tokens":%d,'
    '"completion_tokens":%d,"cost":%r,"success":%s,"error":%s,"attempts":%d%s%s%s%s%s%s%s%s%s%s}\n'
)


@dataclass(slots=True)  # not frozen: that alone would double the time to make one
class RoutingMetric:
    """The record of one request: the decision, what ran and what it cost. Times in milliseconds, cost in dollars.

    ``timestamp`` is the end of the request, ISO 8601 in UTC. ``query_length`` counts characters. ``tier`` and
    ``fallback_depth`` place the candidate that answered (or failed last) in its plan; both count from 0. ``overhead_ms`` is
    the part of ``latency_ms`` not spent waiting for models. ``cost`` and the tokens include failed attempts and rejected
    tiers. ``error`` is the exception's type, ``fault`` whose fault it is (`execution.fault`). ``prompt`` is None unless
    debugging is on; secrets are removed from it. ``alarm`` says why a certificate was suspended when the request was
    routed. ``context`` lists the templates prepended to the request, each as ``name@version#digest``, separated by spaces.
    ``strongest_cost`` is the cost of the plan's last tier alone, None for a plan with one tier. ``reason`` says why the
    plan was chosen; ``decision`` (only with debugging on) gives all details: plan, what was left out, attempts, error.
    ``cost_known`` is False if the profile has no price for a model that was called, so that ``cost`` is only what is known;
    ``estimated``: a server reported no tokens, or a call was broken off. ``refused_keys`` names the models that were called
    in vain because their servers refused the service's key (401, 403), or it was not set; once for each such call. The line
    of JSON has these three only if they are not the rule.
    """

    timestamp: str
    request_id: str
    strategy: str
    router: str
    task_type: str
    query_length: int
    model_used: str
    candidate: str
    tier: int
    fallback_depth: int
    escalated: bool
    latency_ms: float
    overhead_ms: float
    prompt_tokens: int
    completion_tokens: int
    cost: float
    success: bool
    error: str | None
    attempts: int
    prompt: str | None = None
    alarm: str | None = None
    context: str | None = None
    strongest_cost: float | None = None
    reason: str = ""
    decision: Mapping[str, Any] | None = None
    cost_known: bool = True
    estimated: bool = False
    fault: str | None = None
    refused_keys: Sequence[str] = ()

    def to_json(self) -> bytes:
        """Return one line of JSON with its line end, in ASCII, so that truncation never splits a character."""
        return (
            _LINE
            % (
                _quoted(self.timestamp),
                _quoted(self.request_id),
                _quoted(self.strategy),
                _quoted(self.router),
                _quoted(self.task_type),
                self.query_length,
                _quoted(self.model_used),
                _quoted(self.candidate),
                self.tier,
                self.fallback_depth,
                "true" if self.escalated else "false",
                self.latency_ms,
                self.overhead_ms,
                self.prompt_tokens,
                self.completion_tokens,
                self.cost,
                "true" if self.success else "false",
                "null" if self.error is None else _quoted(self.error),
                self.attempts,
                "" if self.prompt is None else f',"prompt":{_quoted(self.prompt)}',
                "" if self.alarm is None else f',"alarm":{_quoted(self.alarm)}',
                "" if self.context is None else f',"context":{_quoted(self.context)}',
                f',"reason":{_quoted(self.reason)}' if self.reason else "",
                "" if self.strongest_cost is None else f',"strongest_cost":{self.strongest_cost!r}',
                "" if self.cost_known else ',"cost_known":false',
                ',"estimated":true' if self.estimated else "",
                "" if self.fault is None else f',"fault":{_quoted(self.fault)}',
                f',"refused_keys":{dumps(list(self.refused_keys))}' if self.refused_keys else "",
                "" if self.decision is None else f',"decision":{dumps(self.decision)}',
            )
        ).encode("ascii")
