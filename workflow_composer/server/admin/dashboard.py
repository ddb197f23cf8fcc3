"""The dashboard: a page and the endpoint of its data.

The page contains no data and needs no authentication. The data require the admin token or an API key, if the service does. A
key sees what it has used itself; operators see everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workflow_composer.calibration.monitoring.audits import AuditLog
from workflow_composer.fleet.held import Reservations
from workflow_composer.metrics.figures import figures
from workflow_composer.metrics.live import SharedMetrics
from workflow_composer.metrics.page import page, policy
from workflow_composer.server.admin.health import Observing, able_models, watched_certificates
from workflow_composer.server.api.completion_handler import Accounts
from workflow_composer.server.api.json_wire import encode
from workflow_composer.server.auth.account import Account
from workflow_composer.server.auth.callers import Callers
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.workflows.live_runs import RunBoard

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator, OrchestratorStatus

_HEADERS = (("cache-control", "no-store"), ("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"))

_DAYS = 30
_MOST_ROWS = 50
_MOST_RUNS = 20


class Dashboard:
    """Handlers of the page and its data. ``profiles`` names the strategies available for a switch."""

    def __init__(
        self,
        orchestrator: ModelOrchestrator,
        accounts: Accounts,
        metrics: SharedMetrics,
        observing: Observing,
        audits: AuditLog,
        callers: Callers,
        profiles: Callable[[], list[str]],
        environ: Mapping[str, str],
        board: RunBoard,
    ) -> None:
        self._orchestrator = orchestrator
        self._accounts = accounts
        self._metrics = metrics
        self._observing = observing
        self._audits = audits
        self._callers = callers
        self._profiles = profiles
        self._reservations = Reservations(environ)
        self._board = board

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        return {("GET", "/dashboard"): self.page, ("GET", "/dashboard/data"): self.data}

    async def page(self, exchange: Exchange) -> Reply:
        """Return the page."""
        rules = ("content-security-policy", policy() + "; frame-ancestors 'none'")
        return Reply(200, page().encode(), content_type="text/html; charset=utf-8", headers=(*_HEADERS, rules))

    async def data(self, exchange: Exchange) -> Reply:
        """Return the page's data. Raises `HttpFailure` if the caller is not authorized."""
        caller = self._callers.of(exchange)
        found = await self._observing.status()
        flows = {"flows": await asyncio.to_thread(self._board.runs, _MOST_RUNS, caller.owns)}
        if caller.key is not None and not caller.operator:
            own = self._own(caller.key, found) | {"usage": await self._usage(caller.key)} | flows
            return Reply(200, encode(own), headers=_HEADERS)
        switchable = self._callers.switching
        shown = await self._figures()
        body = {
            "live": True,
            "title": found.strategy,
            "strategy": found.strategy,
            "ready": bool(able_models(found)),
            "draining": self._observing.draining,
            "switchable": switchable,
            "profiles": self._profiles() if switchable else [],
            "servers": self._servers(found, shown["refused_keys"]),
            "certificates": self._certificates(),
            "figures": shown,
            "usage": await self._usage(None),
            "reservation": await self._reserved(shown["since"], shown["until"]),
        }
        return Reply(200, encode(body | flows), headers=_HEADERS)

    async def _figures(self) -> dict[str, Any]:
        """Return the figures of all workers; the last decisions say whose key asked."""
        found = figures(self._metrics.all())
        if not self._callers.keyless:
            names = await asyncio.to_thread(self._callers.owners, [one["request_id"] for one in found["recent"]])
            found["recent"] = [{**one, "key": names.get(one["request_id"])} for one in found["recent"]]
        return found

    async def _reserved(self, since: float, until: float) -> dict[str, Any] | None:
        """Return what own GPUs have cost since the service started, busy or idle."""
        found = await asyncio.to_thread(self._reservations.of, self._orchestrator.config, since, until)
        return None if found is None else found.to_dict()

    async def _usage(self, key: Key | None) -> list[dict[str, Any]]:
        """Return what a key, or every key, has used in the last days, by user; the most expensive first."""
        history = self._accounts.history
        if history is None:
            return []
        rows = await asyncio.to_thread(history.since, _DAYS, None if key is None else key.id)
        rows.sort(key=lambda row: (-row.cost, -row.requests))
        names = ("key", "name", "user", "team", "requests", "cost")
        return [
            {name: getattr(row, name) for name in names} | {"tokens": row.prompt_tokens + row.completion_tokens}
            for row in rows[:_MOST_ROWS]
        ]

    def _own(self, key: Key, found: OrchestratorStatus) -> dict[str, Any]:
        """Return what a key may see: whether the service is ready, and what the key itself has used."""
        ledger = self._accounts.ledger
        used = Account() if ledger is None else ledger.account(key, ledger.clock())
        budgets = [{"period": period, "dollars": most, "spent": used.spent_in(period)} for period, most in key.limits]
        account = {
            "id": key.id,
            "name": key.name,
            "requests": used.requests,
            "tokens": used.tokens,
            "spent": used.spent_in_all,
            "budgets": budgets,
        }
        return {
            "live": True,
            "title": found.strategy,
            "strategy": found.strategy,
            "ready": bool(able_models(found)),
            "draining": self._observing.draining,
            "switchable": False,
            "profiles": [],
            "servers": [],
            "certificates": [],
            "account": account,
        }

    def _servers(self, found: OrchestratorStatus, refused: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
        """Return servers, in-process models, and cloud models, with their circuit breakers and refusals of the key."""
        breakers = self._orchestrator.breakers()
        states = {name: (status.healthy, status.detail) for name, status in found.resources.endpoints.items()}
        states.update(dict.fromkeys(found.in_process, (True, "in this process")))
        clouds = found.resources.cloud_apis.items()
        states.update({name: (ready, "cloud" if ready else "cloud; API key not set") for name, ready in clouds})
        return [
            {"name": name, "healthy": healthy, "detail": detail, "breaker": breakers.get(name)}
            | _refusals(refused.get(name))
            for name, (healthy, detail) in states.items()
        ]

    def _certificates(self) -> list[dict[str, Any]]:
        """Return the certificates in use and the audit results of the responses accepted under them."""
        routers = self._orchestrator.routers.items()
        in_force = [(name, router, one) for name, router in routers if (one := getattr(router, "certificate", None))]
        watched = watched_certificates(self._audits) if in_force else {}
        found = []
        for name, router, certificate in in_force:
            audited = watched.get(certificate.digest)
            audits = 0 if audited is None else audited.monitor.audits
            found.append(
                {
                    "router": name,
                    "certificate": certificate.digest[:16],
                    "statement": certificate.statement,
                    "audits": audits,
                    "error": None if audited is None else audited.monitor.error,
                    "alarm": getattr(router, "alarm", ""),
                }
            )
        return found


def _refusals(found: Sequence[float] | None) -> dict[str, Any]:
    """Return how often a model's server has refused the service's key since the start, and when it last did."""
    if found is None:
        return {"refused_keys": 0, "refused_key_at": None}
    return {"refused_keys": found[0], "refused_key_at": found[1]}
