"""The request dispatcher: maps method and path to a handler, and errors to responses. Start reading here.

    connection --bytes--> http.py --Exchange--> App.serve --> a handler of the table --Reply--> http.py --bytes--> connection

Handlers raise exceptions; only this module turns them into error responses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.server.api.completion_handler import REQUEST_ID
from workflow_composer.server.api.json_wire import Dialect
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.server.failures import (
    LONGEST_MESSAGE,
    RETRY_SOON,
    HttpFailure,
    failure_of,
    headers_of,
    is_for_the_log,
)
from workflow_composer.server.gate import WebGate
from workflow_composer.server.requests import unpacked
from workflow_composer.types import new_request_id

Routes = Mapping[tuple[str, str], Handler]
Report = Callable[..., None]
"""Callback for the log: takes an event name and its fields."""


def report_failure(report: Report, request_id: str, error: BaseException, status: int) -> None:
    """Log a failed request for the operator: with hosts and files, of which the client is not told.

    The text of a foreign exception may repeat what was sent, so only its type is logged.
    """
    detail = {"detail": str(error)[:LONGEST_MESSAGE]} if isinstance(error, WorkflowComposerError) else {}
    report("request failed", request_id=request_id, status=status, error=type(error).__name__, **detail)


def _is_open(path: str) -> bool:
    return path.endswith("/") or "*" in path


class App:
    """Dispatches exchanges to a table of handlers. ``gate`` raises if a request's headers suffice to refuse it.

    The path of a route that ends with a slash is the start of paths, one with a star their start and end; the longest
    counts. ``longest`` is the most bytes of a body, unpacked.
    """

    def __init__(
        self,
        routes: Routes,
        dialects: Mapping[str, Dialect],
        usual: Dialect,
        report: Report,
        *,
        access: Report | None = None,
        gate: Callable[[Exchange], object] | None = None,
        pages: WebGate | None = None,
        longest: int = 32 * 2**20,
    ) -> None:
        self._gate = gate
        self._access = access
        self._pages = pages or WebGate()
        self._longest = longest
        self._routes = {place: handler for place, handler in routes.items() if not _is_open(place[1])}
        self._below = {place: handler for place, handler in routes.items() if _is_open(place[1])}
        open_ones = sorted({path for _, path in self._below}, key=len, reverse=True)
        self._starts = [(path, *path.partition("*")[::2]) for path in open_ones]
        self._dialects = dialects
        self._usual = usual
        self._report = report
        self._paths: dict[str, list[str]] = {}
        for method, path in routes:
            self._paths.setdefault(path, []).append(method)

    async def serve(self, exchange: Exchange) -> Reply | None:
        """Return the response, also for errors. Raises only CancelledError."""
        exchange.request_id = new_request_id()
        method = "GET" if exchange.method == "HEAD" else exchange.method  # the sender leaves the body out
        handler = self._routes.get((method, exchange.path)) or self._beneath(method, exchange.path)
        reply: Reply | None
        try:
            if self._pages.keyless or "origin" in exchange.headers:
                exchange.shared = self._pages.check(exchange.method, exchange.path, exchange.headers)
            if "content-encoding" in exchange.headers and exchange.body:
                exchange.body = await unpacked(exchange.body, exchange.headers["content-encoding"], self._longest)
            reply = self._other(exchange) if handler is None else await handler(exchange)
        except Exception as error:  # noqa: BLE001  # any fault of a handler becomes an error response
            reply = self._failed(exchange, error)
        if exchange.shared and reply is not None:
            reply.headers = [*reply.headers, *exchange.shared]
        if self._access is not None:
            self._note(self._access, exchange, reply)
        return reply

    def _start_of(self, path: str) -> str:
        """Return the route that is the start of a path (and its end); empty if there is none."""
        found = (route for route, start, end in self._starts if path.startswith(start) and path.endswith(end))
        return next(found, "")

    def _beneath(self, method: str, path: str) -> Handler | None:
        return self._below.get((method, self._start_of(path)))

    def _note(self, access: Report, exchange: Exchange, reply: Reply | None) -> None:
        access(
            "request",
            request_id=exchange.request_id,
            client=exchange.client,
            method=exchange.method,
            path=exchange.path[:200],
            status=200 if reply is None else reply.status,
            ms=round((time.perf_counter() - exchange.started) * 1000.0, 1),
        )

    def admit(self, exchange: Exchange) -> Reply | None:
        """Return the reply to a request that is refused by its headers, before its body is read; None if it may go on."""
        exchange.request_id = new_request_id()
        reply = None
        try:
            method = "GET" if exchange.method == "HEAD" else exchange.method
            exchange.shared = self._pages.check(exchange.method, exchange.path, exchange.headers)
            if (method, exchange.path) not in self._routes and self._beneath(method, exchange.path) is None:
                reply = self._other(exchange)
            elif self._gate is not None:
                self._gate(exchange)
        except Exception as error:  # noqa: BLE001  # as in `serve`
            reply = self._failed(exchange, error)
        if reply is not None:
            reply.headers = [*reply.headers, *exchange.shared]
        return reply

    def refuse(self, status: int, reason: str) -> Reply:
        """Return the reply to a malformed request."""
        wait = RETRY_SOON if status == 503 else None
        return self._reply(self._usual, HttpFailure(status, reason, retry_after=wait), new_request_id())

    def _other(self, exchange: Exchange) -> Reply:
        """Raise 404 for an unknown path, 405 with the allowed methods for a known one; answer OPTIONS."""
        methods = self._paths.get(exchange.path) or self._paths.get(self._start_of(exchange.path))
        if methods is None and exchange.path != "*":
            near = exchange.path.rstrip("/")
            hint = f"did you mean {near}?" if near in self._paths else "see /openapi.json"
            raise HttpFailure(404, f"unknown path {exchange.path[:100]!r}; {hint}", code="not_found")
        known = methods or [method for method, _ in self._routes]
        allowed = ("allow", ", ".join(sorted({*known, "OPTIONS", *(["HEAD"] if "GET" in known else [])})))
        if exchange.method == "OPTIONS":
            return Reply(204, headers=[allowed])
        failure = HttpFailure(405, f"method {exchange.method} is not allowed; use {allowed[1]}", code="method_not_allowed")
        reply = self._reply(self._usual, failure, exchange.request_id)
        reply.headers = [*reply.headers, allowed]
        return reply

    def _failed(self, exchange: Exchange, error: Exception) -> Reply | None:
        failure = failure_of(error)
        if is_for_the_log(error, failure):
            report_failure(self._report, exchange.request_id, error, failure.status)
        if exchange.opened:  # too late for a status
            exchange.close_stream()
            return None
        return self._reply(self._dialects.get(exchange.path, self._usual), failure, exchange.request_id)

    def _reply(self, dialect: Dialect, failure: HttpFailure, request_id: str) -> Reply:
        headers = [(REQUEST_ID, request_id), *headers_of(failure)]
        return Reply(failure.status, dialect.failure(failure), headers=headers)
