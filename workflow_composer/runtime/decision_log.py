"""Records of a request: its metric, its decision log (with debugging on), and notifications to plugins."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO, cast

from workflow_composer.config.redaction import scrub
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import AuthenticationFailed
from workflow_composer.execution.call import Trace
from workflow_composer.execution.fault import fault_of
from workflow_composer.execution.readers import DataReader, may_read
from workflow_composer.metrics.record import RoutingMetric
from workflow_composer.plan import Candidate, Plan
from workflow_composer.plugins.host import PluginRegistry
from workflow_composer.runtime.decision_text import told
from workflow_composer.types import Attempt, LLMRequest, LLMResponse, Verdict, texts

DEBUG_VARIABLE = "BIOPIPELINES_DEBUG_ROUTING"

NO_NAMES: tuple[str, ...] = ()
LOGGER = "workflow_composer"
"""The name of the logger, of structlog and of `logging`."""


def debug_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for full decision logs."""
    return environ.get(DEBUG_VARIABLE, "").strip().lower() in {"1", "true", "yes", "on"}


class LogStream(Protocol):
    """A log's destination: a text stream, or any object with these methods."""

    def write(self, text: str, /) -> object:
        """Write text."""
        ...

    def flush(self) -> object:
        """Flush buffered text."""
        ...

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        ...


class StandardLog:
    """Writes events with their fields by `logging`: as one line, and as the record's attribute ``fields``."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def info(self, event: str, **fields: Any) -> None:
        """Log an event."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log a warning."""
        self._write(logging.WARNING, event, fields)

    def _write(self, level: int, event: str, fields: Mapping[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            from structlog.processors import LogfmtRenderer

            told = LogfmtRenderer(bool_as_flag=False)(None, "", dict(fields))
            self._logger.log(level, "%s", f"{event} {told}".rstrip(), extra={"fields": dict(fields)}, stacklevel=4)


class Narrator:
    """Writes events to ``stream``, else to structlog or to `logging` if the program has configured it, else to stderr."""

    def __init__(self, stream: LogStream | None = None) -> None:
        self._stream = stream
        self._told: set[str] = set()

    def broken_sink(self, error: Exception) -> None:
        """Report that a metric could not be written; once for each type of error."""
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            self.warning(f"cannot write metrics: {kind}: {error}; requests continue without them")

    def broken_plugin(self, plugin: str, reason: str) -> None:
        """Report that a plugin's hook failed; the request continues."""
        self._log().warning("plugin failed", plugin=plugin, reason=reason)

    def warning(self, text: str) -> None:
        """Log a warning."""
        self._log().warning(text)

    def decision(self, metric: RoutingMetric, reason: str | None) -> None:
        """Log the whole decision about one request on one line, whether it was answered or not."""
        told = metric.decision or {}
        cost = f"{metric.cost:.3g}{' (estimated)' * metric.estimated}" if metric.cost_known or metric.cost else "unknown"
        fields = {
            "request_id": metric.request_id,
            "strategy": metric.strategy,
            "task": metric.task_type,
            "router": metric.router or None,
            "plan": told.get("plan"),
            "reason": reason,
            **{name: "; ".join(told.get(name, ())) or None for name in ("left_out", "notes", "attempts", "tiers")},
            "success": metric.success,
            "error": told.get("error"),
            "fault": metric.fault,
            "model": metric.model_used or None,
            "cost": cost,
            "overhead_ms": f"{metric.overhead_ms:.3f}",
        }
        self._log().info("routed", **{name: value for name, value in fields.items() if value is not None})

    def _log(self) -> Any:
        import structlog

        if self._stream is None:
            if structlog.is_configured():
                return structlog.get_logger(LOGGER)
            if (logger := logging.getLogger(LOGGER)).hasHandlers():
                return StandardLog(logger)
        stream = self._stream or sys.stderr
        processors: list[Any] = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False, pad_event_to=0)
            if stream.isatty()
            else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
        ]
        return structlog.wrap_logger(structlog.WriteLogger(cast(TextIO, stream)), processors=processors)


class PluginObserver:
    """Forwards the executor's events to plugins, but for those of private requests."""

    def __init__(self, plugins: PluginRegistry) -> None:
        self._plugins = plugins

    def on_fallback(self, request: LLMRequest, failed: Attempt, candidate: Candidate) -> None:
        """Notify plugins that another candidate is tried."""
        if may_read(DataReader.LISTENER, request):
            self._plugins.notify("on_fallback", request=request, failed=failed, candidate=candidate)

    def on_escalation(self, request: LLMRequest, plan: Plan, tier: int, verdict: Verdict) -> None:
        """Notify plugins that the next tier starts."""
        if may_read(DataReader.LISTENER, request):
            self._plugins.notify("on_escalation", request=request, plan=plan, tier=tier, verdict=verdict)


def metric_of(
    config: StrategyConfig,
    request: LLMRequest,
    trace: Trace,
    seconds: float,
    *,
    plan: Plan | None,
    response: LLMResponse | None,
    error: BaseException | None,
    debug: bool,
    model: str = "",
    strongest_cost: float | None = None,
) -> RoutingMetric:
    """Return the metric of a request, answered or not. With debugging on, it has the prompt's text without keys."""
    if response is not None:
        decision, usage, cost = response.decision, response.usage, response.cost
        candidate, tier, depth, model = decision.candidate, decision.tier, decision.fallback_depth, decision.model
    else:
        usage, cost = trace.total
        last = trace.attempts[-1] if trace.attempts else None
        candidate, tier, depth = (last.name, last.tier, last.candidate) if last else ("", 0, 0)
    attempts = trace.attempts
    if len(attempts) == 1:
        cost_known, estimated = attempts[0].priced, attempts[0].estimated
    else:
        cost_known, estimated = all(one.priced for one in attempts), any(one.estimated for one in attempts)
    overhead, now = seconds - trace.waited, time.time()
    # Positional: twenty keyword arguments would take longer than the rest of this function.
    return RoutingMetric(
        f"{_to_the_second(int(now))}.{int(now % 1.0 * 1000.0):03d}+00:00",  # timestamp
        request.request_id,
        config.profile_name,  # strategy
        plan.router if plan is not None else "",  # router
        request.task_type,
        request.query_length,
        model,  # model_used
        candidate,
        tier,
        depth,  # fallback_depth
        tier > 0,  # escalated
        seconds * 1000.0,  # latency_ms
        overhead * 1000.0 if overhead > 0.0 else 0.0,  # overhead_ms
        usage.prompt_tokens,
        usage.completion_tokens,
        cost,
        error is None,  # success
        None if error is None else type(error).__name__,  # error
        len(trace.attempts),  # attempts
        scrub("\n".join(text for message in request.messages for text in texts(message))) if debug else None,  # prompt
        plan.alarm or None if plan is not None else None,  # alarm
        " ".join(request.context) if request.context else None,  # context
        strongest_cost,
        plan.reason if plan is not None else "",
        told(plan, trace, error) if debug else None,  # decision
        cost_known,
        estimated,
        None if error is None else fault_of(error),
        refused_in(attempts) if error is not None or len(attempts) > 1 else NO_NAMES,
    )


def refused_in(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """Return the models whose servers refused the service's key, once for each attempt."""
    return tuple(one.name for one in attempts if one.error_type == AuthenticationFailed.__name__)


@functools.lru_cache(maxsize=1)
def _to_the_second(now: int) -> str:
    """An epoch second in ISO 8601, UTC, without the zone."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S")
