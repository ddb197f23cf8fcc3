"""The headers by which every answer tells what was decided."""

from __future__ import annotations

import time

from workflow_composer.responses import UnderWay
from workflow_composer.server.exchange import Exchange, Fields
from workflow_composer.types import LLMRequest, LLMResponse, RoutingDecision

PREFIX = "x-workflow-composer-"
REQUEST_ID = PREFIX + "request-id"
COST = PREFIX + "cost"
ATTEMPTS = PREFIX + "attempts"
OVERHEAD = PREFIX + "overhead-ms"
WARNING = PREFIX + "warning"
TRAILERS = ("trailer", f"{COST}, {ATTEMPTS}")
UNBUFFERED = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
"""What keeps a proxy from gathering a stream's pieces: nginx does so unless the answer says no."""

_STRATEGY, _ROUTER, _MODEL = PREFIX + "strategy", PREFIX + "router", PREFIX + "model"
_TIER, _DEPTH, _ESCALATED = PREFIX + "tier", PREFIX + "fallback-depth", PREFIX + "escalated"
_TASK, _REASON, _PATH = PREFIX + "task", PREFIX + "reason", PREFIX + "path"


class Told:
    """What is known of a request besides its decision: a predicted task, warnings, whether to tell everything."""

    __slots__ = ("debug", "task", "warnings")

    def __init__(self, *, task: str = "", warnings: tuple[str, ...] = (), debug: bool = False) -> None:
        self.task = task
        self.warnings = warnings
        self.debug = debug


def of_answer(exchange: Exchange, response: LLMResponse, told: Told) -> Fields:
    """The headers of a whole answer. The overhead is everything but waiting for models, reading the request included."""
    waited = response.latency_ms - response.overhead_ms
    overhead = (time.perf_counter() - exchange.started) * 1000.0 - waited
    attempts = len(response.attempts)
    fields = _of(response.request_id, response.decision, attempts, overhead)
    fields.append((COST, f"{response.cost:.9g}"))
    if told.debug:
        path = "; ".join(f"{one.name}: {one.error_type or 'ok'} {one.latency_ms:.0f} ms" for one in response.attempts)
        fields += ((_REASON, response.decision.reason), (_PATH, path))
    return _with(fields, told)


def of_stream(exchange: Exchange, request: LLMRequest, under_way: UnderWay, told: Told) -> Fields:
    """The headers of a stream, when its first piece comes. Cost and attempts follow behind its end, as trailers."""
    overhead = (under_way.asked_at - exchange.started - under_way.waited) * 1000.0
    decision = under_way.decision
    fields = _of(request.request_id, decision, under_way.attempts, overhead)
    fields += (TRAILERS, *UNBUFFERED)
    if told.debug:
        fields.append((_REASON, decision.reason))
    return _with(fields, told)


def of_end(response: LLMResponse) -> Fields:
    """The trailers of a stream."""
    return ((COST, f"{response.cost:.9g}"), (ATTEMPTS, str(len(response.attempts))))


def _of(request_id: str, decision: RoutingDecision, attempts: int, overhead: float) -> list[tuple[str, str]]:
    return [
        (REQUEST_ID, request_id),
        (_STRATEGY, decision.strategy),
        (_ROUTER, decision.router),
        (_MODEL, decision.candidate),
        (_TIER, str(decision.tier)),
        (_DEPTH, str(decision.fallback_depth)),
        (ATTEMPTS, str(attempts)),
        (_ESCALATED, "true" if decision.tier else "false"),
        (OVERHEAD, f"{max(0.0, overhead):.3f}"),
    ]


def _with(fields: list[tuple[str, str]], told: Told) -> Fields:
    if told.task:
        fields.append((_TASK, told.task))
    fields.extend((WARNING, warning) for warning in told.warnings)
    return fields
