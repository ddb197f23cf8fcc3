"""Handlers of ``/v1/models``, ``/v1/usage``, ``/v1/embeddings`` and ``/v1/feedback`` (grades of responses)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workflow_composer.calibration.monitoring.audits import AuditLog
from workflow_composer.errors import InputError
from workflow_composer.server.api import field_checks
from workflow_composer.server.api.completion_handler import (
    PREFIX,
    REQUEST_ID,
    WARNING,
    Accounts,
    Admission,
    Visit,
    cost_of,
)
from workflow_composer.server.api.embeddings import read_embeddings, written_embeddings
from workflow_composer.server.api.forms import AUTO, TASK, WORKFLOW, Field, Form, carried_of
from workflow_composer.server.api.json_wire import encode
from workflow_composer.server.auth.account import unavailable
from workflow_composer.server.auth.allowance import usage_of
from workflow_composer.server.auth.callers import Callers, namable, reachable
from workflow_composer.server.auth.keys import FEEDBACK as FEEDBACK_RIGHT
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.server.failures import PERMISSION, HttpFailure
from workflow_composer.support.large_json import LARGE, apart
from workflow_composer.types import ANY_TASK

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.server.auth.keys import Key

MODEL = "/v1/models/"
"""Start of the path of one model."""
EMBEDDINGS = "embeddings"
"""The task of a request for vectors that names none."""

_NO_ID = "must be the x-workflow-composer-request-id of a response"
FEEDBACK = Form(
    {
        "id": Field(field_checks.printable(_NO_ID, least=1, most=200), required=_NO_ID),
        "correct": Field(field_checks.flag, required="must be true or false"),
        "by": Field(
            field_checks.printable("must be a string of at most 200 printable characters", most=200),
            note="Who grades; default: the key's name",
        ),
    },
    closed="is not a field of this API",
    example={"id": "req-6b1f0c5ad2e94c3f8f0a1b2c", "correct": True},
)


class Catalogue:
    """Handlers of the endpoints other than text generation."""

    def __init__(
        self,
        orchestrator: ModelOrchestrator,
        accounts: Accounts,
        admission: Admission,
        audits: AuditLog,
        callers: Callers | None = None,
    ) -> None:
        self._orchestrator = orchestrator
        self._accounts = accounts
        self._admission = admission
        self._audits = audits
        self._callers = callers or Callers(accounts.keys)
        self._since = int(time.time())

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        return {
            ("GET", "/v1/models"): self.models,
            ("GET", MODEL): self.model,
            ("GET", "/v1/usage"): self.usage,
            ("POST", "/v1/embeddings"): self.embeddings,
            ("POST", "/v1/feedback"): self.feedback,
            ("GET", "/v1/feedback"): self.pending,
        }

    async def models(self, exchange: Exchange) -> Reply:
        """List the values of ``model`` that the caller may name: ``auto``, tasks, tiers, models and workflows."""
        return Reply(200, encode({"object": "list", "data": self._rows(self._accounts.enter(exchange))}))

    async def model(self, exchange: Exchange) -> Reply:
        """Return one entry of the list, by the name at the path's end."""
        name = exchange.path.removeprefix(MODEL)
        for row in self._rows(self._accounts.enter(exchange)):
            if row["id"] == name:
                return Reply(200, encode(row))
        message = f"there is no model {name[:100]!r} that may be named here"
        raise HttpFailure(404, message, code="model_not_found", param="model")

    async def usage(self, exchange: Exchange) -> Reply:
        """Return what the caller's key has used, and what is left. Raises `HttpFailure` 404 if the service has no keys."""
        key, ledger = self._accounts.enter(exchange), self._accounts.ledger
        if key is None or ledger is None:
            raise HttpFailure(404, "the service keeps no accounts: it runs without --keys", code="no_accounts")
        now = ledger.clock()
        try:
            account = ledger.account(key, now)
        except OSError:
            raise unavailable() from None
        return Reply(200, encode(usage_of(key, account, now)), headers=[("cache-control", "no-store")])

    def _rows(self, key: Key | None) -> list[dict[str, Any]]:
        config = self._orchestrator.config
        tasks = [f"{TASK}{task}" for task in config.task_routing if task != ANY_TASK]
        flows = [f"{WORKFLOW}{name}" for name in self._orchestrator.workflows]
        names = list(dict.fromkeys([AUTO, *tasks, *config.tiers, *config.backend_specs(), *flows]))
        if key is not None and key.models:
            names = namable(key, config, names)
        owned = f"workflow_composer:{config.profile_name}"
        return [{"id": name, "object": "model", "created": self._since, "owned_by": owned} for name in names]

    async def embeddings(self, exchange: Exchange) -> Reply:
        """Return embeddings from the plan's first model, without fallback to another one."""
        async with Visit(self._accounts, self._admission, exchange) as visit:
            if len(exchange.body) <= LARGE:
                asked = read_embeddings(exchange.body, exchange.headers)
            else:
                asked = await apart(read_embeddings, exchange.body, exchange.headers)
            visit.name_user(asked.labels)
            strategy = self._orchestrator.strategy
            allowed: frozenset[str] | None = None
            if (key := visit.key) is not None:
                key.check(strategy)
                named = {"task_type": EMBEDDINGS, **asked.address}
                allowed = reachable(key, self._orchestrator.config, named.get("model"), named["task_type"])
            own = None if key is None else key.most_calls
            most_calls = self._accounts.most_calls if own is None else own
            found = await self._orchestrator.aembed(
                asked.texts,
                dimensions=asked.dimensions,
                request_id=exchange.request_id,
                allowed=allowed,
                purse=visit.purse,
                most_calls=most_calls,
                extra=asked.extra,
                headers=carried_of(exchange.headers, self._orchestrator.forwarded),
                **asked.address,
            )
        headers = [
            (REQUEST_ID, exchange.request_id),
            (PREFIX + "strategy", strategy),
            (PREFIX + "model", found.candidate),
            *cost_of(found),
            *((WARNING, warning) for warning in asked.warnings),
        ]
        return Reply(200, written_embeddings(asked, found), headers=headers)

    async def feedback(self, exchange: Exchange) -> Reply:
        """Grade a response: ``{"id": ..., "correct": true}``. Counts as evidence if an audit sampled the response.

        A key needs the right to grade, and grades answers to its own requests only; an operator grades any.
        """
        caller = self._callers.of(exchange)
        caller.require(FEEDBACK_RIGHT)
        _, own, _, _ = FEEDBACK.read(exchange.body)
        identity, correct = own["id"], own["correct"]
        if not caller.owns(identity):
            message = "this request was not made with this API key, which grades answers to its own requests only"
            raise HttpFailure(403, message, type=PERMISSION, code="not_own_request", param="id")
        by = own.get("by") or caller.name
        key = "" if caller.key is None else caller.key.id
        found = await asyncio.to_thread(self._graded, identity, correct, by, key)  # the file's lock may block
        return Reply(200, encode({"id": identity, "correct": correct, **found}))

    async def pending(self, exchange: Exchange) -> Reply:
        """List the answers that were sampled for an audit and have no grade yet, oldest first; a key sees its own."""
        caller = self._callers.of(exchange)
        caller.require(FEEDBACK_RIGHT)
        found = await asyncio.to_thread(self._audits.pending)
        names = ("id", "at", "group", "tier", "score", "certificate")
        rows = [{name: getattr(audit, name) for name in names} for audit in found if caller.owns(audit.id)]
        return Reply(200, encode({"object": "list", "data": rows}))

    def _graded(self, identity: str, correct: bool, by: str, key: str) -> dict[str, Any]:
        try:
            audit = self._audits.grade(identity, correct, by, key=key)
        except InputError as error:
            try:
                self._audits.report(identity, correct, by, key=key)
            except InputError:  # it was sampled, so it already has the other grade
                raise HttpFailure(409, error.message, code="already_graded") from None
            return {
                "audited": False,
                "note": "recorded; this response was not sampled for an audit, so it does not count in the test",
            }
        return {"audited": True, "certificate": audit.certificate, "stratum": audit.stratum}
