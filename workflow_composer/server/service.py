"""The service's life cycle: one process, or a supervisor with several workers.

This module wires up what `App` needs, once per worker. A single worker listens in this process; several inherit their
listening sockets from a supervisor (`workflow_composer.server.workers.supervisor`), which also broadcasts strategy switches.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import workflow_composer.execution.voting.vote_sampling  # noqa: F401  # now, not within the first request that votes
from workflow_composer.backends.pricing import Price
from workflow_composer.calibration.monitoring.audits import AuditLog, audits_file
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ConfigError
from workflow_composer.metrics.live import LiveMetrics, SharedMetrics
from workflow_composer.metrics.sink import service_sink
from workflow_composer.orchestrator import ModelOrchestrator
from workflow_composer.plugins.host import plugin_host
from workflow_composer.runtime.destinations import tell_where
from workflow_composer.server.admin.dashboard import Dashboard
from workflow_composer.server.admin.health import Observing
from workflow_composer.server.admin.runs import RUNS, WorkflowRuns
from workflow_composer.server.admin.strategy_switcher import (
    Local,
    Plugins,
    Strategies,
    SwitchAudit,
    Switchboard,
    available,
    found_plugins,
    reload,
    watch,
)
from workflow_composer.server.admin.switching import Admin
from workflow_composer.server.api.catalogue import Catalogue
from workflow_composer.server.api.chat import ChatDialect
from workflow_composer.server.api.completion_handler import Accounts, Admission, CompletionHandler
from workflow_composer.server.api.completions import CompletionsDialect
from workflow_composer.server.api.json_wire import Dialect
from workflow_composer.server.api.messages import MessagesDialect
from workflow_composer.server.api.passing import COUNT, PATHS, UPLOADS, Passing
from workflow_composer.server.api.responses import ResponsesDialect
from workflow_composer.server.api.workflow_answers import WorkflowAnswers
from workflow_composer.server.app import App, report_failure
from workflow_composer.server.auth.callers import Callers
from workflow_composer.server.auth.history import FILE_NAME as HISTORY
from workflow_composer.server.auth.history import UsageHistory
from workflow_composer.server.auth.keys import KeyRing, presented
from workflow_composer.server.auth.ledger import Ledger
from workflow_composer.server.batches.handlers import FILES, Uploads, batch_form
from workflow_composer.server.batches.running import Batches
from workflow_composer.server.conversations import Conversations
from workflow_composer.server.exchange import Exchange, Handler
from workflow_composer.server.gate import WebGate, read_origins, read_proxies
from workflow_composer.server.http import HttpServer
from workflow_composer.server.logs import ServiceLog, writing
from workflow_composer.server.openapi import describing
from workflow_composer.server.requests import HttpLimits
from workflow_composer.server.settings import ServerSettings
from workflow_composer.server.tracing import Tracing, collector
from workflow_composer.server.workers.egress_check import prove_egress
from workflow_composer.server.workers.listeners import BACKLOG, announce, close, listen
from workflow_composer.workflows.live_runs import RunBoard, runs_folder

EMBEDDINGS_PATH = "/v1/embeddings"
FILE_PATHS = (FILES, *UPLOADS)
"""Paths that take multipart bodies."""
RELAYED = frozenset({"/v1/chat/completions", "/v1/completions"})
"""API formats that model servers use too, so that their responses can be relayed unchanged."""
ACCEPTING = 0.02
"""Seconds at shutdown in which connections from the backlog are still accepted: the kernel would reset them."""
SAVE_EVERY = 1.0
"""Seconds between two writes of a worker's metrics for the other workers."""


def serve(settings: ServerSettings, environ: Mapping[str, str]) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises `ConfigError`, `EgressProofFailed`, OSError."""
    listening = listen(settings.host, settings.port, settings.workers)
    try:
        if settings.workers > 1:
            from workflow_composer.server.workers.supervisor import supervise

            supervise(settings, listening, environ)
        else:
            run(alone(settings, listening[0], environ))
    finally:
        close(listening)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop if it is installed (not on Windows)."""
    try:
        import uvloop
    except ImportError:  # asyncio's own loop works too, but slower
        asyncio.run(work)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


async def alone(settings: ServerSettings, listening: socket.socket, environ: Mapping[str, str]) -> None:
    """Run a single worker, which switches strategies itself."""
    log = ServiceLog()
    with writing(log):
        await _alone(settings, listening, environ, log)


async def _alone(settings: ServerSettings, listening: socket.socket, environ: Mapping[str, str], log: ServiceLog) -> None:
    audit = SwitchAudit(settings.state_directory / "audit.jsonl", report=log.warning)

    def switchboard(orchestrator: ModelOrchestrator) -> Switchboard:
        local = Local(orchestrator, collector=collector(environ))
        plugins = found_plugins(environ, orchestrator.config)
        return Strategies(orchestrator.config, lambda: (local,), audit, environ=environ, plugins=plugins)

    worker = Worker(settings, environ, log, audit, settings.strategy, switchboard)
    async with worker:
        strategies = worker.strategies
        assert isinstance(strategies, Strategies)  # as made above
        told = asyncio.get_running_loop()
        told.add_signal_handler(signal.SIGHUP, lambda: worker.begin(reload(strategies, "SIGHUP", log)))
        if settings.watch:
            worker.begin(watch(strategies, log))
        announce(settings, listening, worker.orchestrator.strategy)
        log.event(
            "unwatched", hint="one worker: nothing replaces it if it hangs; with --workers 2 or more, its supervisor does"
        )
        if not settings.json:
            tell_where(worker.orchestrator.config, environ)
        await worker.work(listening)


def _plugin_failure(log: ServiceLog) -> Callable[[str, str], None]:
    return lambda plugin, reason: log.warning("plugin failed", plugin=plugin, reason=reason)


@dataclass(slots=True)
class Parts:
    """Shared parts of the handlers. ``batches`` is None if the service keeps no files."""

    orchestrator: ModelOrchestrator
    accounts: Accounts
    admission: Admission
    observing: Observing
    metrics: SharedMetrics
    audits: AuditLog
    strategies: Switchboard
    callers: Callers
    batches: Batches | None = None


class Worker:
    """One worker process: an orchestrator, its handlers, and their server. An async context manager."""

    def __init__(
        self,
        settings: ServerSettings,
        environ: Mapping[str, str],
        log: ServiceLog,
        audit: SwitchAudit,
        strategy: str | StrategyConfig | None,
        switchboard: Callable[[ModelOrchestrator], Switchboard],
        *,
        number: int | None = None,
        plugins: Plugins | None = None,
    ) -> None:
        self._settings = settings
        self._is_first = not number
        self._log = log
        live = LiveMetrics()
        accounts = _accounts(settings, log)
        self._collector = collector(environ)
        self._tracing = None if self._collector is None else Tracing(environ)
        sinks = (accounts, live, *(() if self._tracing is None else (self._tracing,)))
        host = None if plugins is None else plugin_host(sources=plugins, on_broken=_plugin_failure(log))
        self.orchestrator = ModelOrchestrator(strategy, plugins=host, metrics=sinks, environ=environ)
        self._lines = service_sink(environ, log.warning, self.orchestrator.config.logs)
        self.orchestrator.add_metrics(self._lines)
        live.tasks = lambda: self.orchestrator.config.task_routing
        self.strategies = switchboard(self.orchestrator)
        self._accounts = accounts
        admission = Admission(settings.concurrency, settings.queue, settings.queue_seconds)
        self._metrics = SharedMetrics(live, None if number is None else settings.state_directory, number or 0)
        audits = AuditLog(audits_file(environ))
        callers = callers_of(settings, accounts, audit)
        token = settings.metrics_token
        self._observing = Observing(self.orchestrator, self._metrics, admission, audits=audits, callers=callers, token=token)
        parts = Parts(
            self.orchestrator, accounts, admission, self._observing, self._metrics, audits, self.strategies, callers
        )
        app = app_of(parts, settings, environ, log)
        self._batches = parts.batches
        serve = app.serve if self._tracing is None else functools.partial(self._tracing.serve, answer=app.serve)
        self._server = HttpServer(serve, app.refuse, HttpLimits(body=settings.max_body), admit=app.admit)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stop = asyncio.Event()
        self._told = ""

    async def __aenter__(self) -> Worker:
        snapshot = self.orchestrator.prepare_strategy(self.orchestrator.config)
        try:
            await prove_egress(snapshot, collector=self._collector)
        finally:
            await snapshot.retire()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._log.event("started", strategy=self.orchestrator.strategy, keys=self._accounts.keys is not None)
        self._warn_of_prices()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.orchestrator.aclose()
        try:
            await self._save_history(at_once=True)
        except OSError as error:
            self._tell(f"cannot save who used what: {error.strerror}")
        if self._accounts.ledger is not None:
            self._accounts.ledger.close()

    def _warn_of_prices(self) -> None:
        """Say which models no budget limits, because their prices are unknown."""
        ring = self._accounts.keys
        if self._is_first and ring is not None and ring.any_budget:
            specs = self.orchestrator.config.backend_specs()
            models = sorted(name for name, spec in specs.items() if not Price.of(spec).known)
            if models:
                self._log.warning("budgets of keys do not limit models without prices in the profile", models=models)

    def begin(self, work: Any) -> None:
        """Start a background task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Stop after running requests are answered."""
        self._stop.set()

    async def work(self, listening: socket.socket) -> None:
        """Serve until stopped, then drain."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self._server.protocol, sock=listening, backlog=BACKLOG)
        self.begin(self._save())
        running = None if self._batches is None else loop.create_task(self._batches.work())
        await self._stop.wait()
        self._observing.draining = True
        if running is not None:  # their lines go on at the next start
            running.cancel()
            await asyncio.wait([running])
        await asyncio.sleep(ACCEPTING)
        listener.close()
        lost = await self._server.drain(self._settings.drain_seconds)
        self._metrics.save()
        self._log.event("stopped", cut_off=lost)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY)
            for save in (self._metrics.asave, self._flush_lines, self._write_ledger, self._save_history):
                try:
                    await save()
                except Exception as error:  # noqa: BLE001  # the next round retries
                    self._tell(f"cannot save the service's metrics: {type(error).__name__}: {error}")

    def _tell(self, trouble: str) -> None:
        if trouble != self._told:
            self._told = trouble
            self._log.warning(trouble)

    async def _flush_lines(self) -> None:
        self._lines.flush()

    async def _write_ledger(self) -> None:
        if self._accounts.ledger is not None:
            self._accounts.ledger.write(time.time())

    async def _save_history(self, *, at_once: bool = False) -> None:
        history = self._accounts.history
        if history is not None and (rows := history.take(at_once=at_once)):
            try:
                await asyncio.to_thread(history.save, rows)
            except BaseException:
                history.take_back(rows)
                raise


def _accounts(settings: ServerSettings, log: ServiceLog) -> Accounts:
    if settings.keys_file is None:
        return Accounts(most_calls=settings.most_calls)
    ring = KeyRing(settings.keys_file, report=log.warning)
    try:
        ledger = Ledger(settings.state_directory / "ledger.bin", report=log.warning)
        history = UsageHistory(settings.state_directory / HISTORY)
        return Accounts(ring, ledger, history=history, most_calls=settings.most_calls)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the ledger of keys: {error}", hint="set another state directory") from None


def callers_of(settings: ServerSettings, accounts: Accounts, audit: SwitchAudit) -> Callers:
    """Return who may do what; refused tokens go to the audit log."""

    def told(who: str, outcome: str, path: str) -> None:
        audit.write("admin", who=who, outcome=outcome, path=path)

    return Callers(accounts.keys, settings.admin_token, read_proxies(settings.trusted_proxies), told)


def _answering(
    parts: Parts,
    settings: ServerSettings,
    log: ServiceLog,
    board: RunBoard,
    dialects: Mapping[str, Dialect],
    accounts: Accounts,
) -> dict[str, Handler]:
    """Return the handlers of models by path, for requests of these accounts."""
    made = CompletionHandler(
        parts.orchestrator,
        accounts,
        parts.admission,
        debug=settings.debug,
        log=log if settings.debug else None,
        report=(report := lambda request_id, error: report_failure(log.warning, request_id, error, 200)),
        flows=WorkflowAnswers(parts.orchestrator, accounts, report, board),
    )
    vectors = Catalogue(parts.orchestrator, accounts, parts.admission, parts.audits, parts.callers).embeddings
    forms = {path: made.handler(dialect, relays=path in RELAYED) for path, dialect in dialects.items()}
    return {**forms, EMBEDDINGS_PATH: vectors}


def app_of(
    parts: Parts,
    settings: ServerSettings,
    environ: Mapping[str, str],
    log: ServiceLog,
) -> App:
    """Return the application with its table of handlers; what runs batches is in ``parts`` from then on."""
    board = RunBoard(settings.state_directory / "workflow-runs", runs_folder(environ))
    chat = ChatDialect()
    dialects: dict[str, Dialect] = {
        "/v1/chat/completions": chat,
        "/v1/completions": CompletionsDialect(),
        "/v1/responses": ResponsesDialect(Conversations() if settings.workers == 1 else None),
        "/v1/messages": MessagesDialect(),
    }

    answering = functools.partial(_answering, parts, settings, log, board, dict(dialects))
    endpoints = answering(parts.accounts)
    routes: dict[tuple[str, str], Handler] = {("POST", path): one for path, one in endpoints.items()}
    admin = Admin(parts.strategies, parts.callers)
    dashboard = Dashboard(
        parts.orchestrator,
        parts.accounts,
        parts.metrics,
        parts.observing,
        parts.audits,
        parts.callers,
        lambda: available(parts.orchestrator.config, environ),
        environ,
        board,
    )
    catalogue = Catalogue(parts.orchestrator, parts.accounts, parts.admission, parts.audits, parts.callers)
    passing = Passing(parts.orchestrator, parts.accounts, parts.admission)
    if settings.keep_files:
        place, days, places = settings.state_directory / "batches", settings.keep_files, settings.concurrency
        parts.batches = Batches(place, parts.accounts, answering, dialects, chat, log.warning, days=days, places=places)
    uploads = Uploads(parts.accounts, parts.batches, batch_form([*endpoints]))
    flows = WorkflowRuns(board, parts.callers)
    for group in (catalogue, passing, parts.observing, admin, dashboard, flows, uploads):
        routes.update(group.routes())
    routes["GET", "/openapi.json"] = describing(settings.most_calls)
    keyless = parts.callers.keyless
    pages = WebGate(read_origins(settings.cors, keyless=keyless), keyless, FILE_PATHS)

    def gate(exchange: Exchange) -> None:
        """Check a key before the body is read; the handler checks it again, and counts the request."""
        if exchange.path.startswith("/admin/"):
            parts.callers.operator(exchange)
        elif exchange.path == "/v1/feedback" or exchange.path.startswith(RUNS):  # for operators, too
            parts.callers.of(exchange)
        elif (exchange.path.startswith("/v1/") or exchange.path in PATHS) and parts.accounts.keys is not None:
            parts.accounts.keys.identify(presented(exchange.headers))

    dialects[COUNT] = dialects["/v1/messages"]  # whose errors it has
    access = log.event if settings.access_log else None
    return App(routes, dialects, chat, log.warning, access=access, gate=gate, pages=pages, longest=settings.max_body)
