"""The adaptive router: spares an expensive router most of its work, within a bound on how often it is asked.

Three paths, as for the tokens of a model (`workflow_composer.moe.core`): a table of known kinds of requests, the decision
made lately for the same request, or asking the router that it wraps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from workflow_composer.errors import ConfigError
from workflow_composer.moe.core import Path, ThreePaths
from workflow_composer.routers.adaptive_table import ShapeTable, key_of, read_shapes, shape_of
from workflow_composer.routers.base import Router, RouterContext, RouterSettings, described
from workflow_composer.types import LLMRequest, LLMResponse, Plan, ResourceStatus


class AdaptiveSettings(RouterSettings):
    """Settings of `AdaptiveRouter`."""

    router: str = Field(description="the router that is wrapped: one that is expensive to ask; its name")
    settings: Mapping[str, Any] = Field(default={}, description="the wrapped router's own settings")
    share: float = Field(
        0.15,
        ge=0,
        le=1,
        description="of the first n requests, at most `share` * (n + 1) + `start` are asked about, for every n",
    )
    start: int = Field(20, ge=0, description="how many may be asked about on top of that")
    ttl: float = Field(300.0, gt=0, description="seconds that a decision is used again for the same request")
    size: int = Field(1000, ge=1, description="decisions, and kinds of requests, that are remembered")
    digits_alike: bool = Field(False, description="whether requests that differ in their numbers only count as the same")
    least: int = Field(10, ge=1, description="decisions about one kind of request before it is known")
    agreement: float = Field(0.95, gt=0.5, le=1, description="share of these that must be the same")
    table_ttl: float = Field(3600.0, gt=0, description="seconds after which a known kind must be learned anew")
    shapes: str | None = Field(
        None, description="file of kinds that are known from the start: JSON lines of `shape` and `target`"
    )


class AdaptiveRouter(Router):
    """Plans as the router that it wraps would, mostly without asking it. Thread-safe.

    A plan's reason begins with the path that was taken: ``table``, ``cache``, ``asked`` or ``forced`` (the bound was
    reached, and the next best guess was used: what such requests usually get, else where the profile routes the task). What
    is remembered is plans and hashes, never texts. All of it is forgotten where the strategy changes, because each strategy
    has a router of its own, and where what is known of servers and keys changes.
    """

    name: ClassVar[str] = "adaptive"
    Settings: ClassVar[type[RouterSettings]] = AdaptiveSettings

    def __init__(self, context: RouterContext, settings: object = None) -> None:
        super().__init__(context, settings)  # type: ignore[arg-type]  # whatever it is, the model checks it
        assert isinstance(self.settings, AdaptiveSettings)
        chosen = self._chosen = self.settings
        if chosen.router == self.name:
            raise ConfigError("an adaptive router wraps another kind of router, not itself")
        self.inner = context.router(chosen.router, chosen.settings)
        if not self.inner.repeatable:
            raise ConfigError(
                f"plans of router {chosen.router!r} are good for one moment only and must not be used again",
                hint="wrap another router",
            )
        self._paths = ThreePaths(share=chosen.share, extra=chosen.start, entries=chosen.size, ttl=chosen.ttl)
        self._table = ShapeTable(least=chosen.least, agreement=chosen.agreement, ttl=chosen.table_ttl, size=chosen.size)
        self._given = read_shapes(context.config.directory / chosen.shapes) if chosen.shapes else {}
        for target in self._given.values():
            context.candidates(target)
        self._decided: list[Plan | None] = [None] * chosen.size
        self._made_for: object = None
        self._clock = time.monotonic
        self._lock = threading.Lock()

    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """The wrapped router's plan, or what it would probably be; None where it has none. Raises what it raises."""
        shape, now = shape_of(request), self._clock()
        keys = np.array([key_of(request, digits_alike=self._chosen.digits_alike)], np.uint64)
        with self._lock, self._paths.lock:
            self._forget_others(resources)
            known, plan = self._known(shape, request, resources, now)
            choice = self._paths.choose(1, np.arange(0 if known else 1), keys[:0] if known else keys)
            path = Path(int(choice.paths[0]))
            if path is Path.CACHED:
                plan = self._decided[int(choice.slots[0])]
            elif path is Path.FORCED:
                plan = self._table.usual(shape, now)
        if path is Path.LEARNED:
            plan = self.inner.plan(request, resources)
            self._keep(keys, shape, plan, resources, now)
        elif path is Path.FORCED and plan is None:
            plan = self._as_routed(request, resources)
        return None if plan is None else replace(plan, router=self.name, reason=f"{_WORDS[path]}: {plan.reason}")

    def counts(self) -> dict[str, float]:
        """Requests by path, shares, and the worst prefix's share of asking; see `ThreePaths.counts`."""
        return self._paths.counts()

    def answered(self, request: LLMRequest, response: LLMResponse) -> None:
        """Let the wrapped router know."""
        self.inner.answered(request, response)

    async def aclose(self) -> None:
        """Close the wrapped router."""
        await self.inner.aclose()

    # ------------------------------------------------------------------------------------------------------ the parts

    def _known(self, shape: str, request: LLMRequest, resources: ResourceStatus, now: float) -> tuple[bool, Plan | None]:
        if (target := self._given.get(shape)) is not None:
            kept, left_out = self.usable(self.context.candidates(target), request, resources)
            if kept:
                return True, self.single_tier(kept, left_out, f"such requests go to {target}")
        return self._table.known(shape, now)

    def _keep(self, keys: Any, shape: str, plan: Plan | None, resources: ResourceStatus, now: float) -> None:
        with self._lock, self._paths.lock:
            if self._made_for != _what_counts(resources):
                return
            slot = int(self._paths.store(keys)[0])
            self._decided[slot] = plan
            self._table.learn(shape, plan, now)

    def _as_routed(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        target = self.target(request)
        if target is None:
            return None
        return self.single_tier(
            *self.usable(self.context.candidates(target), request, resources), described(request, target)
        )

    def _forget_others(self, resources: ResourceStatus) -> None:
        """Plans were made for the servers and keys that there were."""
        now = _what_counts(resources)
        if now != self._made_for:
            self._paths.cache.clear()
            self._table.clear()
            self._made_for = now


_WORDS = {Path.FAST: "table", Path.CACHED: "cache", Path.LEARNED: "asked", Path.FORCED: "forced"}


def _what_counts(resources: ResourceStatus) -> tuple[object, ...]:
    """What of the resources a router may have looked at; not when it was probed, and how quickly it answered."""
    return (
        tuple((name, status.healthy, status.models) for name, status in resources.endpoints.items()),
        tuple(resources.cloud_apis.items()),
        resources.slurm_available,
        resources.embedded_available,
    )
