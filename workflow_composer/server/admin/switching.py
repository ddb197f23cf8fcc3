"""The admin API for strategy switches: ``/admin/strategy`` and its subpaths. Requires the admin token."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from workflow_composer.errors import ConfigError
from workflow_composer.server.admin.strategy_switcher import SwitchAudit, Switchboard, plain
from workflow_composer.server.api import field_checks
from workflow_composer.server.api.completion_handler import presented
from workflow_composer.server.api.forms import Field, Form
from workflow_composer.server.api.json_wire import encode
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.server.failures import PERMISSION, HttpFailure
from workflow_composer.server.settings import ADMIN_VARIABLE

_REFUSALS_PER_MINUTE = 30
"""Wrong tokens per address before further requests get 429, even with the right token."""
_MOST_ADDRESSES = 4096

_NO_PROFILE = "must be the name of a profile"
SWITCH = Form(
    {
        "strategy": Field(field_checks.filled(_NO_PROFILE), required=_NO_PROFILE, note="The name of a profile"),
        "why": Field(field_checks.text, note="For the audit log"),
        "dry_run": Field(field_checks.flag, note="Only report what a switch would change"),
    },
    closed="is not a field of this API",
    example={"strategy": "t4_local_only", "why": "the budget is spent", "dry_run": True},
)
ROLLBACK = Form(
    {"version": Field(field_checks.whole(least=1), note="Default: the previous version")},
    closed="is not a field of this API",
    example={"version": 3},
)


class Admin:
    """Handlers of the admin API."""

    def __init__(self, strategies: Switchboard, audit: SwitchAudit, token: str | None) -> None:
        self._strategies = strategies
        self._audit = audit
        self._token = token
        self._refused: dict[str, list[float]] = {}

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        return {
            ("GET", "/admin/strategy"): self.show,
            ("PUT", "/admin/strategy"): self.switch,
            ("GET", "/admin/strategy/versions"): self.versions,
            ("POST", "/admin/strategy/rollback"): self.rollback,
        }

    async def show(self, exchange: Exchange) -> Reply:
        """Return the active strategy; with ``?preview=NAME``, what a switch to that profile would change."""
        self.check(exchange)
        asked = parse_qs(exchange.query).get("preview")
        if asked:
            return Reply(200, encode(await self._preview(asked[0])))
        return Reply(200, encode(plain((await self._strategies.versions())[-1])))

    async def switch(self, exchange: Exchange) -> Reply:
        """Switch the strategy, or with ``dry_run`` (in query or body) report what a switch would change."""
        who = self.check(exchange)
        _, own, _, _ = SWITCH.read(exchange.body)
        source, why = own["strategy"], own.get("why", "")
        if own.get("dry_run") or parse_qs(exchange.query).get("dry_run", ["false"])[0].lower() in {"1", "true", "yes"}:
            return Reply(200, encode(await self._preview(source)))
        try:
            return Reply(200, encode(plain(await self._strategies.switch(source, who=who, why=why))))
        except ConfigError as error:
            raise _refusal(error) from None

    async def versions(self, exchange: Exchange) -> Reply:
        """Return all versions, the active one last."""
        self.check(exchange)
        found = await self._strategies.versions()
        return Reply(200, encode({"active": found[-1].number, "versions": [plain(one) for one in found]}))

    async def rollback(self, exchange: Exchange) -> Reply:
        """Roll back to a version (``{"version": 3}``), or to the previous one."""
        who = self.check(exchange)
        _, own, _, _ = ROLLBACK.read(exchange.body or b"{}")
        try:
            return Reply(200, encode(plain(await self._strategies.rollback(own.get("version"), who=who))))
        except ConfigError as error:
            raise _refusal(error) from None

    async def _preview(self, source: str) -> Mapping[str, Any]:
        try:
            return {"dry_run": True, **await self._strategies.preview(source)}
        except ConfigError as error:
            raise _refusal(error) from None

    def check(self, exchange: Exchange) -> str:
        """Return the caller's name. Raises `HttpFailure` if the token is missing or wrong; compares in constant time."""
        who = f"admin from {exchange.client or 'here'}"
        if self._token is None:
            message = f"the admin API is off; set {ADMIN_VARIABLE} and restart the service"
            raise HttpFailure(403, message, type=PERMISSION, code="admin_disabled")
        now = time.monotonic()
        refused = [at for at in self._refused.get(exchange.client, ()) if now - at < 60.0]
        if len(refused) >= _REFUSALS_PER_MINUTE:
            raise HttpFailure(429, "too many wrong tokens", type="rate_limit_error", retry_after=60.0 - (now - refused[0]))
        given = exchange.headers.get("x-admin-token") or presented(exchange.headers) or ""
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._token.encode()):
            if len(self._refused) >= _MOST_ADDRESSES:
                self._refused.pop(next(iter(self._refused)))
            self._refused[exchange.client] = [*refused, now]
            self._audit.write("admin", who=who, outcome="refused: wrong token", path=exchange.path)
            raise HttpFailure(
                401, "the admin token is missing or wrong", type="authentication_error", code="invalid_admin_token"
            )
        return who


def _refusal(error: ConfigError) -> HttpFailure:
    return HttpFailure(400, str(error), code="strategy_refused", param="strategy")
