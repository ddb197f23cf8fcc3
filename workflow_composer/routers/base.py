"""What every router is, and what it may use.

A router turns a request into a `Plan`; it decides and does no I/O to models. The orchestrator asks the profile's routers in
order and takes the first plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from workflow_composer.errors import ConfigError, LocalModelUnavailable, RoutingError
from workflow_composer.plan import Candidate, Plan, Tier
from workflow_composer.types import LLMRequest, LLMResponse, ResourceStatus

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig


_MOST_PLANS = 1024
"""Task types come from outside; what is remembered about them has a limit."""


class RouterSettings(BaseModel):
    """Base of a router's settings in a profile: declared once, checked, frozen. A router without any uses this one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _no_router(name: str, settings: Mapping[str, Any]) -> Router:
    raise ConfigError(f"there is nobody here who could make router {name!r}")


@dataclass(frozen=True, slots=True, eq=False)
class RouterContext:
    """What a router may use: the profile, its candidates by name, what is known of the resources, and the executor.

    ``candidates(target)`` gives the models that a role, tier, catalogue model or ``cloud`` stands for, best first, and
    raises `RoutingError` for an unknown name. ``report`` tells a person of what a router has noticed, in a sentence.
    ``router(name, settings)`` makes another registered router, for one that wraps it; raises `ConfigError`.
    """

    config: StrategyConfig
    candidates: Callable[[str], tuple[Candidate, ...]]
    resources: Callable[[], ResourceStatus]
    execute: Callable[[Plan, LLMRequest], Awaitable[LLMResponse]]
    report: Callable[[str], None] = lambda text: None
    router: Callable[[str, Mapping[str, Any]], Router] = _no_router


class Router(ABC):
    """Base class of routers. ``Settings`` is the model of its keys in a profile.

    Two routers never compare equal, also where their settings do: each is registered, ordered and retired by identity.
    ``repeatable``: a plan may be used again for a request like the one that it was made for.
    """

    name: ClassVar[str] = ""
    repeatable: ClassVar[bool] = True
    Settings: ClassVar[type[RouterSettings]] = RouterSettings

    def __init__(self, context: RouterContext, settings: Mapping[str, Any] | None = None) -> None:
        self.context = context
        self.settings = self.Settings.model_validate(dict(settings or {}))

    @abstractmethod
    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """The plan for this request, or None to leave it to the next router. Quick; no I/O to models."""

    async def route(self, request: LLMRequest) -> LLMResponse:
        """Plan and run. Raises `RoutingError` where this router has no plan, and what running raises."""
        plan = self.plan(request, self.context.resources())
        if plan is None:
            raise RoutingError(f"router {self.name!r} has no plan for task {request.task_type!r}")
        return await self.context.execute(plan, request)

    def answered(self, request: LLMRequest, response: LLMResponse) -> None:  # noqa: B027  # most routers need not know
        """Told of every response to a plan of this router, in the event loop that ran it. An exception is reported."""

    async def aclose(self) -> None:  # noqa: B027  # most routers have nothing to end
        """Called when the last request has ended, before the backends are closed."""

    # ------------------------------------------------------------------------------------------ for routers to build on

    def target(self, request: LLMRequest) -> str | None:
        """What the caller named, else where the profile sends the task; None where it sends it nowhere."""
        return request.model or self.context.config.route_of(request.task_type)

    def usable(
        self, candidates: Iterable[Candidate], request: LLMRequest, resources: ResourceStatus
    ) -> tuple[list[Candidate], list[str]]:
        """Candidates that may and can be asked, each once; and why the others may not or cannot.

        Governance is enforced where bytes leave; leaving cloud models out here as well gives a better error.
        """
        kept: dict[str, Candidate] = {}
        left_out: dict[str, str] = {}
        for candidate in candidates:
            if not candidate.local and not self.context.config.allow_cloud:
                left_out[candidate.name] = f"{candidate.name}: the profile forbids the cloud"
            elif not candidate.local and resources.cloud_apis.get(candidate.name) is False:
                left_out[candidate.name] = f"{candidate.name}: its key is not set"
            elif candidate.capabilities and (lacking := request.needs.difference(candidate.capabilities)):
                left_out[candidate.name] = f"{candidate.name}: its capabilities lack {', '.join(sorted(lacking))}"
            else:
                kept.setdefault(candidate.name, candidate)
        return list(kept.values()), list(left_out.values())

    def single_tier(self, kept: list[Candidate], left_out: list[str], reason: str) -> Plan:
        """A plan of one tier; raises where nothing is left to ask."""
        if kept:
            return Plan((Tier.of(kept),), self.name, reason, tuple(left_out))
        what = f"{reason}; nothing is left to ask ({'; '.join(left_out) or 'no model is configured'})"
        if not self.context.config.allow_cloud:
            raise LocalModelUnavailable(what, hint="route the task to a local model")
        raise RoutingError(what, hint="set the key of a cloud model, or route the task elsewhere")


class KindRouter(Router):
    """A router whose plans depend on nothing of a request but its kind, model, task and needs.

    Plans are immutable, so one serves all such requests; it is made again when the resources change.
    """

    def __init__(self, context: RouterContext, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(context, settings)
        self._plans: dict[tuple[object, ...], Plan | None] = {}
        self._planned_for: ResourceStatus | None = None
        self._listed = any(spec.capabilities for spec in context.config.models.values())

    @abstractmethod
    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Make the plan for requests of this kind, or None to leave them to the next router."""

    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """The plan that was made for such requests. Raises what `make` raises."""
        if resources is not self._planned_for or len(self._plans) >= _MOST_PLANS:
            self._plans, self._planned_for = {}, resources
        key = (request.kind, request.model, request.task_type, request.needs if self._listed else None)
        if key not in self._plans:
            self._plans[key] = self.make(request, resources)
        return self._plans[key]


def described(request: LLMRequest, target: str) -> str:
    """Why this target: for a plan's reason."""
    return f"the caller named {target}" if request.model else f"task {request.task_type} is routed to {target}"
