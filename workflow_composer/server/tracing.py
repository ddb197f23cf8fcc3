"""OpenTelemetry traces: a span per HTTP request with a child span for the model's work, by the GenAI conventions.

Off unless the environment names a collector, as in any OpenTelemetry program (``OTEL_EXPORTER_OTLP_ENDPOINT`` or
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``); the libraries are loaded only then. A caller's ``traceparent`` is continued. Spans
contain names, counts, times and costs, never text. Under a profile that forbids the cloud, the collector must run on this
machine or on one of the profile's own servers.

Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from workflow_composer.backends.http.egress import EgressPolicy, literal_address
from workflow_composer.errors import ConfigError
from workflow_composer.server.exchange import Exchange, Reply
from workflow_composer.support.installing import install_command
from workflow_composer.types import ANY_TASK

if TYPE_CHECKING:
    from workflow_composer.metrics.record import RoutingMetric

TRACES_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
COLLECTOR_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
_OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
_UNTRACED = frozenset({"/health", "/ready", "/metrics", "/dashboard", "/dashboard/data"})

_operation: ContextVar[str] = ContextVar("operation", default="chat")


def collector(environ: Mapping[str, str]) -> str | None:
    """Return the collector's URL from the environment; None if traces are off."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    return environ.get(TRACES_VARIABLE, "").strip() or environ.get(COLLECTOR_VARIABLE, "").strip() or None


def check_collector(url: str | None, policy: EgressPolicy) -> None:
    """Raise `ConfigError` if the egress policy forbids sending to this collector."""
    if url is None or policy.allow_cloud:
        return
    place = urlsplit(url)
    host, port = place.hostname or "", place.port or (443 if place.scheme == "https" else 80)
    address = literal_address(host)
    if host == "localhost" or (address is not None and address.is_loopback) or policy.is_local(host, port):
        return
    raise ConfigError(
        f"traces would go to {host}, but the profile forbids the cloud",
        hint=f"name a collector on this machine, or unset {TRACES_VARIABLE} and {COLLECTOR_VARIABLE}",
    )


class Tracing:
    """Makes spans; also a metrics sink. Raises `ConfigError` if the libraries are not installed."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        try:
            import requests
            from opentelemetry import context, propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            hint = f"{install_command('serve', 'otel')}; or unset {TRACES_VARIABLE} and {COLLECTOR_VARIABLE}"
            raise ConfigError(f"the environment enables traces, but {error.name} is not installed", hint=hint) from error
        self._trace, self._context, self._extract = trace, context, propagate.extract
        session = requests.Session()
        session.trust_env = False  # a proxy from the environment would be another data recipient
        name = environ.get("OTEL_SERVICE_NAME", "").strip() or "workflow_composer"
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(session=session)))
        self._tracer = self._provider.get_tracer("workflow_composer")

    async def serve(self, exchange: Exchange, answer: Callable[[Exchange], Awaitable[Reply | None]]) -> Reply | None:
        """Answer the request within a span."""
        if exchange.path in _UNTRACED:
            return await answer(exchange)
        kinds = self._trace.SpanKind
        told = {"http.request.method": exchange.method, "url.path": exchange.path[:200], "url.scheme": "http"}
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.path[:200]}",
            context=self._extract(exchange.headers),
            kind=kinds.SERVER,
            attributes=told,
        )
        token = self._context.attach(self._trace.set_span_in_context(span))
        operation = _operation.set(_OPERATIONS.get(exchange.path, "chat"))
        status = 200
        try:
            reply = await answer(exchange)
            status = 200 if reply is None else reply.status
            return reply
        finally:
            _operation.reset(operation)
            self._context.detach(token)
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("workflow_composer.request_id", exchange.request_id)
            if status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
            span.end()

    def write(self, metric: RoutingMetric) -> None:
        """Record the span of a finished request."""
        ends = time.time_ns()
        operation, model = _operation.get(), metric.candidate or "none"
        told: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "workflow_composer",
            "gen_ai.request.model": model,
            "gen_ai.response.model": metric.model_used,
            "gen_ai.response.id": metric.request_id,
            "gen_ai.usage.input_tokens": metric.prompt_tokens,
            "gen_ai.usage.output_tokens": metric.completion_tokens,
            "workflow_composer.config.strategy": metric.strategy,
            "workflow_composer.router": metric.router,
            "workflow_composer.task": "any" if metric.task_type == ANY_TASK else metric.task_type,
            "workflow_composer.tier": metric.tier,
            "workflow_composer.fallback_depth": metric.fallback_depth,
            "workflow_composer.escalated": metric.escalated,
            "workflow_composer.attempts": metric.attempts,
            "workflow_composer.cost": metric.cost,
            "workflow_composer.overhead_ms": metric.overhead_ms,
        }
        if metric.error is not None:
            told["error.type"] = metric.error
        span = self._tracer.start_span(
            f"{operation} {model}",
            kind=self._trace.SpanKind.CLIENT,
            attributes=told,
            start_time=ends - int(metric.latency_ms * 1e6),
        )
        if metric.error is not None:
            span.set_status(self._trace.StatusCode.ERROR, metric.error)
        span.end(ends)

    def close(self) -> None:
        """Flush pending spans, with a short timeout."""
        self._provider.shutdown()
