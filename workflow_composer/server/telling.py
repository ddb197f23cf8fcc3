"""The headers by which every answer tells what was decided."""

from __future__ import annotations

import functools
import time

from workflow_composer.responses import UnderWay
from workflow_composer.server.exchange import Exchange, Fields
from workflow_composer.types import LLMRequest, LLMResponse

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
TASK, _REASON, _PATH = PREFIX + "task", PREFIX + "reason", PREFIX + "path"


def of_answer(exchange: Exchange, response: LLMResponse, said: Fields, *, debug: bool) -> Fields:
    """The headers of a whole answer, besides what is ``said`` of its request.

    The overhead is everything but waiting for models, reading the request included.
    """
    waited = response.latency_ms - response.overhead_ms
    overhead = (time.perf_counter() - exchange.started) * 1000.0 - waited
    made = response.decision
    fields = [
        (REQUEST_ID, response.request_id),
        *_decided(made.strategy, made.router, made.candidate, made.tier, made.fallback_depth, len(response.attempts)),
        (OVERHEAD, f"{overhead if overhead > 0.0 else 0.0:.3f}"),
        (COST, f"{response.cost:.9g}"),
        *said,
    ]
    if debug:
        path = "; ".join(f"{one.name}: {one.error_type or 'ok'} {one.latency_ms:.0f} ms" for one in response.attempts)
        fields += ((_REASON, made.reason), (_PATH, path))
    return fields


def of_stream(exchange: Exchange, request: LLMRequest, under_way: UnderWay, said: Fields, *, debug: bool) -> Fields:
    """The headers of a stream, when its first piece comes. Cost and attempts follow behind its end, as trailers."""
    overhead = (under_way.asked_at - exchange.started - under_way.waited) * 1000.0
    made = under_way.decision
    fields = [
        (REQUEST_ID, request.request_id),
        *_decided(made.strategy, made.router, made.candidate, made.tier, made.fallback_depth, under_way.attempts),
        (OVERHEAD, f"{overhead if overhead > 0.0 else 0.0:.3f}"),
        TRAILERS,
        *UNBUFFERED,
        *said,
    ]
    if debug:
        fields.append((_REASON, made.reason))
    return fields


def of_end(response: LLMResponse) -> Fields:
    """The trailers of a stream."""
    return ((COST, f"{response.cost:.9g}"), (ATTEMPTS, str(len(response.attempts))))


@functools.lru_cache(maxsize=1024)
def _decided(strategy: str, router: str, candidate: str, tier: int, depth: int, attempts: int) -> Fields:
    """The headers that tell a decision: nearly all requests for a model share them."""
    return (
        (_STRATEGY, strategy),
        (_ROUTER, router),
        (_MODEL, candidate),
        (_TIER, str(tier)),
        (_DEPTH, str(depth)),
        (ATTEMPTS, str(attempts)),
        (_ESCALATED, "true" if tier else "false"),
    )
