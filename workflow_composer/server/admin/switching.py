"""The admin API for switches of strategies and plugins: ``/admin/strategy``, ``/admin/plugins`` and their subpaths.

It requires the admin token, or a key with the right ``admin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from workflow_composer.errors import ConfigError, PluginError
from workflow_composer.server.admin.strategy_switcher import Switchboard, plain
from workflow_composer.server.api import field_checks
from workflow_composer.server.api.forms import Field, Form
from workflow_composer.server.api.json_wire import encode
from workflow_composer.server.auth.callers import Callers
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.server.failures import HttpFailure

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
RELOAD = Form(
    {
        "why": Field(field_checks.text, note="For the audit log"),
        "dry_run": Field(field_checks.flag, note="Load and check the plugins in every worker, but do not use them"),
    },
    closed="is not a field of this API",
    example={"why": "my-router 2.0", "dry_run": True},
)


class Admin:
    """Handlers of the admin API."""

    def __init__(self, strategies: Switchboard, callers: Callers) -> None:
        self._strategies = strategies
        self._callers = callers

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        return {
            ("GET", "/admin/strategy"): self.show,
            ("PUT", "/admin/strategy"): self.switch,
            ("GET", "/admin/strategy/versions"): self.versions,
            ("POST", "/admin/strategy/rollback"): self.rollback,
            ("POST", "/admin/plugins/reload"): self.reload_plugins,
            ("POST", "/admin/plugins/rollback"): self.roll_back_plugins,
        }

    async def show(self, exchange: Exchange) -> Reply:
        """Return the active strategy; with ``?preview=NAME``, what a switch to that profile would change."""
        self._callers.operator(exchange)
        asked = parse_qs(exchange.query).get("preview")
        if asked:
            return Reply(200, encode(await self._preview(asked[0])))
        return Reply(200, encode(plain((await self._strategies.versions())[-1])))

    async def switch(self, exchange: Exchange) -> Reply:
        """Switch the strategy, or with ``dry_run`` (in query or body) report what a switch would change."""
        who = self._callers.operator(exchange)
        _, own, _, _ = SWITCH.read(exchange.body)
        source, why = own["strategy"], own.get("why", "")
        if own.get("dry_run") or parse_qs(exchange.query).get("dry_run", ["false"])[0].lower() in {"1", "true", "yes"}:
            return Reply(200, encode(await self._preview(source)))
        try:
            return Reply(200, encode(plain(await self._strategies.switch(source, who=who, why=why))))
        except (ConfigError, PluginError) as error:
            raise _refusal(error) from None

    async def versions(self, exchange: Exchange) -> Reply:
        """Return all versions, the active one last."""
        self._callers.operator(exchange)
        found = await self._strategies.versions()
        return Reply(200, encode({"active": found[-1].number, "versions": [plain(one) for one in found]}))

    async def rollback(self, exchange: Exchange) -> Reply:
        """Roll back to a version (``{"version": 3}``), or to the previous one."""
        who = self._callers.operator(exchange)
        _, own, _, _ = ROLLBACK.read(exchange.body or b"{}")
        try:
            return Reply(200, encode(plain(await self._strategies.rollback(own.get("version"), who=who))))
        except (ConfigError, PluginError) as error:
            raise _refusal(error) from None

    async def reload_plugins(self, exchange: Exchange) -> Reply:
        """Load new and changed plugins in all workers or in none; with ``dry_run``, only check that this would succeed."""
        return await self._plugins(exchange, back=False)

    async def roll_back_plugins(self, exchange: Exchange) -> Reply:
        """Return to the plugins before the last change, whatever is installed now."""
        return await self._plugins(exchange, back=True)

    async def _plugins(self, exchange: Exchange, *, back: bool) -> Reply:
        who = self._callers.operator(exchange)
        _, own, _, _ = RELOAD.read(exchange.body or b"{}")
        try:
            found = await self._strategies.reload_plugins(
                who=who, why=own.get("why", ""), dry_run=bool(own.get("dry_run")), back=back
            )
        except (ConfigError, PluginError) as error:
            raise HttpFailure(400, str(error), code="plugins_refused") from None
        return Reply(200, encode(found))

    async def _preview(self, source: str) -> Mapping[str, Any]:
        try:
            return {"dry_run": True, **await self._strategies.preview(source)}
        except (ConfigError, PluginError) as error:
            raise _refusal(error) from None


def _refusal(error: ConfigError | PluginError) -> HttpFailure:
    return HttpFailure(400, str(error), code="strategy_refused", param="strategy")
