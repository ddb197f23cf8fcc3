"""Liveness, readiness and Prometheus metrics: ``/health``, ``/ready``, ``/metrics``."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workflow_composer.calibration.monitoring.audits import AuditLog, WatchedCertificate
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.metrics.escalation import EscalationStats
from workflow_composer.metrics.live import SharedMetrics
from workflow_composer.metrics.prometheus import CONTENT_TYPE, Gauge, breaker_gauge, exposition
from workflow_composer.server.api.completion_handler import Admission
from workflow_composer.server.api.json_wire import encode
from workflow_composer.server.auth.callers import Caller, Callers
from workflow_composer.server.auth.keys import presented
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.settings import METRICS_VARIABLE

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator, OrchestratorStatus
    from workflow_composer.routers.base import Router

_FRESH = 2.0
"""Seconds for which a probe's result is cached."""
_SCRAPE_SHARE = 0.1
"""Share of the time that may be spent on scrapes: a page is cached for ten times as long as it took to make."""


class Observing:
    """Handlers for monitoring. ``draining`` is set at shutdown."""

    def __init__(
        self,
        orchestrator: ModelOrchestrator,
        metrics: SharedMetrics,
        admission: Admission,
        *,
        audits: AuditLog,
        callers: Callers | None = None,
        token: str | None = None,
    ) -> None:
        self.draining = False
        self._callers = callers
        self._orchestrator = orchestrator
        self._metrics = metrics
        self._admission = admission
        self._audits = audits
        self._token = token
        self._page = b""
        self._page_ends = float("-inf")
        self._scraping = asyncio.Lock()
        self._status: OrchestratorStatus | None = None
        self._probed_at = float("-inf")
        self._probing = asyncio.Lock()

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        return {("GET", "/health"): self.health, ("GET", "/ready"): self.ready, ("GET", "/metrics"): self.metrics}

    async def health(self, exchange: Exchange) -> Reply:
        """Report that the process is alive."""
        return Reply(200, b'{"status":"ok"}')

    async def ready(self, exchange: Exchange) -> Reply:
        """Report whether any model is available: 200 or 503.

        A stranger learns no more than that, a key which of its models are available, and an operator about the servers.
        """
        found = await self.status()
        able = able_models(found)
        ready = bool(able) and not self.draining
        caller = Caller("anybody") if self._callers is None else self._callers.known(exchange)
        body: dict[str, Any] = {"ready": ready, "draining": self.draining}
        if caller is not None:
            own = None if caller.key is None else caller.models(self._orchestrator.config)
            body |= {"strategy": found.strategy, "models": able if own is None else [name for name in able if name in own]}
        if caller is not None and caller.operator:
            body["servers"] = {name: status.detail for name, status in found.resources.endpoints.items()}
        return Reply(200 if ready else 503, encode(body), headers=() if ready else [("retry-after", "2")])

    async def metrics(self, exchange: Exchange) -> Reply:
        """Return the metrics in Prometheus' text format. Raises `HttpFailure` 401 without their token, if there is one."""
        if self._token is not None:
            given = (presented(exchange.headers) or "").encode("utf-8", "surrogatepass")
            if not hmac.compare_digest(given, self._token.encode("utf-8", "surrogatepass")):
                message = f"the metrics require their token: Authorization: Bearer ${METRICS_VARIABLE}"
                raise HttpFailure(401, message, type="authentication_error", code="invalid_metrics_token")
        async with self._scraping:
            if (began := time.monotonic()) >= self._page_ends:
                gauges = self.gauges()  # the page itself is made in a thread: with a thousand series it takes a second
                self._page = await asyncio.to_thread(lambda: exposition(self._metrics.all(), gauges))
                ended = time.monotonic()
                self._page_ends = ended + (ended - began) / _SCRAPE_SHARE
        return Reply(200, self._page, content_type=CONTENT_TYPE)

    async def status(self) -> OrchestratorStatus:
        """Return the active strategy and reachable models, cached for a few seconds."""
        async with self._probing:
            stale = time.monotonic() - self._probed_at > _FRESH
            if self._status is None or stale or self._status.strategy != self._orchestrator.strategy:
                self._status = await self._orchestrator.astatus(probe=True)
                self._probed_at = time.monotonic()
        return self._status

    def gauges(self) -> list[Gauge]:
        """Return the current gauges of this worker."""
        found = [
            Gauge("requests_in_flight", "Requests in flight.", [({}, self._admission.in_flight)]),
            Gauge("requests_queued", "Requests waiting in the queue.", [({}, self._admission.queued)]),
            Gauge("strategy_active", "The active strategy.", [({"strategy": self._orchestrator.strategy}, 1.0)]),
        ]
        if states := self._orchestrator.breakers():
            found.append(breaker_gauge(states))
        return found + acceptance_gauges(self._orchestrator.routers) + audit_gauges(self._audits)


def able_models(found: OrchestratorStatus) -> list[str]:
    """Return the available models: healthy servers, in-process models, cloud models with an API key."""
    servers = [name for name, status in found.resources.endpoints.items() if status.healthy]
    return [*servers, *found.in_process, *(name for name, ready in found.resources.cloud_apis.items() if ready)]


def acceptance_gauges(routers: Mapping[str, Router]) -> list[Gauge]:
    """Return acceptance, cost and saving of routers that judge responses, since the strategy became active."""
    told = {name: getattr(router, "escalation_stats", None) for name, router in routers.items()}
    counted = {name: stats for name, stats in told.items() if isinstance(stats, EscalationStats)}
    shares = [({"router": name}, stats.accepted / stats.requests) for name, stats in counted.items() if stats.requests]
    saved = [({"router": name}, stats.saved) for name, stats in counted.items()]
    texts = [("accepted_share", "Share of responses accepted by their tier's rule.", shares)]
    texts += [("saved_dollars", "Dollars saved compared to always calling the strongest tier.", saved)]
    return [Gauge(name, text, values) for name, text, values in texts if values]


def watched_certificates(audits: AuditLog) -> dict[str, WatchedCertificate]:
    """Return the audit results by certificate; empty if the audit file is unreadable."""
    try:
        audits.refresh()
    except WorkflowComposerError:  # report the other metrics anyway
        return {}
    found = {certificate: audits.watched(certificate) for certificate in audits.certificates}
    return {certificate: watched for certificate, watched in found.items() if watched is not None}


def audit_gauges(audits: AuditLog) -> list[Gauge]:
    """Return the audit results of certified responses, if any."""
    rows: dict[str, list[tuple[Mapping[str, str], float]]] = {"error": [], "count": [], "alarm": []}
    for certificate, watched in watched_certificates(audits).items():
        labels = {"certificate": certificate[:16]}
        rows["count"].append((labels, watched.monitor.audits))
        rows["alarm"].append((labels, float(watched.alarmed)))
        if (error := watched.monitor.error) is not None:
            rows["error"].append((labels, error))
    texts = {
        "error": ("audited_error", "Share of audited responses that were wrong."),
        "count": ("audited_answers", "Accepted responses that were audited."),
        "alarm": ("certificate_alarm", "Whether a certificate is suspended."),
    }
    return [Gauge(*texts[name], values) for name, values in rows.items() if values]
