"""The base class of routers, and the context that they get.

A router turns a request into a `Plan`; it does not call models. The orchestrator asks the profile's routers in order and
runs the first plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from workflow_composer.errors import (
    CapabilityMissing,
    ConfigError,
    LocalModelUnavailable,
    RoutingError,
    WorkflowComposerError,
)
from workflow_composer.plan import Candidate, Plan, Tier
from workflow_composer.types import LLMRequest, LLMResponse, ResourceStatus

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig


_MOST_PLANS = 1024
"""Limit of cached plans: callers choose task types, so their number is unbounded."""


_LACKS = ": it does not support "
"""Between a candidate's name and what a request needs that it lacks."""


_FIELDS = {"json": "response_format (json)", "vision": "images (vision)"}
"""Capability -> the field of a request that needs it, where the two are called differently."""


def _in_fields(reason: str) -> str:
    name, lacks, needs = reason.partition(_LACKS)
    return name + lacks + ", ".join(_FIELDS.get(need, need) for need in needs.split(", "))


class RouterSettings(BaseModel):
    """Base class of a router's settings in a profile: validated and frozen. A router without settings uses it directly."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _no_router(name: str, settings: Mapping[str, Any]) -> Router:
    raise ConfigError(f"this context cannot create router {name!r}")


@dataclass(frozen=True, slots=True, eq=False)
class RouterContext:
    """What a router may use: the profile, its candidates by name, the resource status, and the executor.

    ``candidates(target)`` returns the models of a role, tier, catalogue model or ``cloud``, best first, and raises
    `RoutingError` for an unknown name. ``report`` shows a sentence to the operator. ``router(name, settings)`` creates
    another registered router, for a router that wraps it, and raises `ConfigError`.
    """

    config: StrategyConfig
    candidates: Callable[[str], tuple[Candidate, ...]]
    resources: Callable[[], ResourceStatus]
    execute: Callable[[Plan, LLMRequest], Awaitable[LLMResponse]]
    report: Callable[[str], None] = lambda text: None
    router: Callable[[str, Mapping[str, Any]], Router] = _no_router


class Router(ABC):
    """Base class of routers. ``Settings`` is the model of a router's keys in a profile.

    Two routers never compare equal, even with equal settings: routers are registered, ordered and retired by identity.
    ``repeatable``: a plan may be reused for a similar request.
    """

    name: ClassVar[str] = ""
    repeatable: ClassVar[bool] = True
    Settings: ClassVar[type[RouterSettings]] = RouterSettings

    def __init__(self, context: RouterContext, settings: Mapping[str, Any] | None = None) -> None:
        self.context = context
        self.settings = self.Settings.model_validate(dict(settings or {}))

    @abstractmethod
    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return the plan, or None to leave the request to the next router. Must be fast and must not call models."""

    async def route(self, request: LLMRequest) -> LLMResponse:
        """Plan and run the request. Raises `RoutingError` if this router has no plan, and the errors of the run."""
        plan = self.plan(request, self.context.resources())
        if plan is None:
            raise RoutingError(f"router {self.name!r} has no plan for task {request.task_type!r}")
        return await self.context.execute(plan, request)

    def answered(self, request: LLMRequest, response: LLMResponse) -> None:  # noqa: B027  # most routers ignore responses
        """Called with every response to a plan of this router, in the event loop that ran it. Exceptions are reported."""

    async def aclose(self) -> None:  # noqa: B027  # most routers have nothing to close
        """Called when the last request has ended, before the backends are closed."""

    # ------------------------------------------------------------------------------------------------- for subclasses

    def target(self, request: LLMRequest) -> str | None:
        """Return the model that the caller named, else the profile's route for the task, else None."""
        return request.model or self.context.config.route_of(request.task_type)

    def usable(
        self, candidates: Iterable[Candidate], request: LLMRequest, resources: ResourceStatus
    ) -> tuple[list[Candidate], list[str]]:
        """Return the usable candidates, without duplicates, and the reasons why the others are excluded.

        The egress check enforces the ban on cloud models; excluding them here as well gives a better error.
        """
        kept: dict[str, Candidate] = {}
        left_out: dict[str, str] = {}
        for candidate in candidates:
            if not candidate.local and not self.context.config.allow_cloud:
                left_out[candidate.name] = f"{candidate.name}: the profile forbids the cloud"
            elif not candidate.local and resources.cloud_apis.get(candidate.name) is False:
                variable = self.context.config.models[candidate.name].api_key_env
                left_out[candidate.name] = f"{candidate.name}: its key is not set ({variable})"
            elif candidate.capabilities and (lacking := request.needs.difference(candidate.capabilities)):
                left_out[candidate.name] = f"{candidate.name}{_LACKS}{', '.join(sorted(lacking))}"
            else:
                kept.setdefault(candidate.name, candidate)
        return list(kept.values()), list(left_out.values())

    def single_tier(self, kept: list[Candidate], left_out: list[str], reason: str) -> Plan:
        """Return a plan of one tier. Raises as `nothing_left` if no candidate is left."""
        if kept:
            return Plan((Tier.of(kept),), self.name, reason, tuple(left_out))
        what = f"{reason}; no model can be used ({'; '.join(left_out) or 'none is configured'})"
        local, far = "route the task to a local model", "set the API key of a cloud model, or route the task elsewhere"
        raise self.nothing_left(what, left_out, local=local, far=far)

    def nothing_left(self, what: str, left_out: Sequence[str], *, local: str, far: str) -> WorkflowComposerError:
        """Return the error for a request that no model can serve; ``local`` and ``far`` are hints.

        `CapabilityMissing` if all candidates lack what the request needs, else `LocalModelUnavailable` where the cloud is
        forbidden, else `RoutingError`.
        """
        if left_out and all(_LACKS in reason for reason in left_out):
            error = CapabilityMissing(what, hint="leave it out of the request, or name a model that supports it")
            error.public = f"no model can be used for this request ({'; '.join(map(_in_fields, left_out))})"
            return error
        if not self.context.config.allow_cloud:
            return LocalModelUnavailable(what, hint=local)
        return RoutingError(what, hint=far)


class KindRouter(Router):
    """A router whose plans depend only on a request's kind, model, task and needs.

    Its plans are cached until the resources change; a plan is immutable, so all such requests can share it.
    """

    def __init__(self, context: RouterContext, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(context, settings)
        self._plans: dict[tuple[object, ...], Plan | None] = {}
        self._planned_for: ResourceStatus | None = None
        self._listed = any(spec.capabilities for spec in context.config.models.values())

    @abstractmethod
    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return the plan for requests of this kind, or None to leave them to the next router."""

    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return the cached plan for such requests, or make it. Raises what `make` raises."""
        if resources is not self._planned_for or len(self._plans) >= _MOST_PLANS:
            self._plans, self._planned_for = {}, resources
        key = (request.kind, request.model, request.task_type, request.needs if self._listed else None)
        if key not in self._plans:
            self._plans[key] = self.make(request, resources)
        return self._plans[key]


def gives_no_logprobs(candidate: Candidate) -> bool:
    """Whether the profile says that the model answers without log-probabilities."""
    return "chat" in candidate.capabilities and "logprobs" not in candidate.capabilities


def described(request: LLMRequest, target: str) -> str:
    """Return why this target was chosen, for a plan's reason."""
    return f"the caller named {target}" if request.model else f"task {request.task_type} is routed to {target}"
