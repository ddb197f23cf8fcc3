"""One active strategy: everything that serves requests under one profile, built completely before it is published.

A snapshot is immutable except for its request count and its resource status. It is retired when another one replaces it, and
closes its backends when its last request ends.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from workflow_composer.backends.base import Backend, BackendContext
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.backends.pricing import GpuMeter, ModelNames, Price
from workflow_composer.config.strategy import ModelSpec, StrategyConfig
from workflow_composer.contexts.applying import Contexts
from workflow_composer.errors import (
    ConfigError,
    ContextError,
    ModelNotAllowed,
    PluginError,
    ProfileError,
    RoutingError,
    WorkflowComposerError,
    nearest,
)
from workflow_composer.execution.breaker import CircuitBreaker
from workflow_composer.execution.call import Endpoint, not_own
from workflow_composer.execution.executor import PlanExecutor
from workflow_composer.execution.member_run import CallObserver, RetryPolicy
from workflow_composer.markers import is_routing_string
from workflow_composer.plan import Candidate, Plan, Tier
from workflow_composer.plugins.host import BUILTIN, PluginRegistry, Provided, shown
from workflow_composer.routers.base import KindRouter, Router, RouterContext
from workflow_composer.runtime.backend_checks import checked
from workflow_composer.runtime.router_checks import CheckedRouter, asked
from workflow_composer.types import EndpointStatus, LLMRequest, LLMResponse, ResourceStatus, Timeouts

if TYPE_CHECKING:
    from workflow_composer.workflows.serving import ServedWorkflow

_MOST_PLANS = 1024
"""Maximum number of cached plans; callers may name any number of models."""

Execute = Callable[["Snapshot", Plan, LLMRequest], Awaitable[LLMResponse]]


class Snapshot:
    """The profile, endpoints, executor and routers of one strategy. Use it between `acquire` and `release`.

    ``plugins`` is the generation of plugins that it uses; ``offered`` is the host's, without the profile's own files.
    ``with_plugins``: to publish it is to publish that generation.
    """

    def __init__(
        self,
        config: StrategyConfig,
        egress: EgressPolicy,
        endpoints: Mapping[str, Endpoint],
        executor: PlanExecutor,
        resources: ResourceStatus,
        contexts: Contexts,
        plugins: PluginRegistry,
    ) -> None:
        self.config = config
        self.plugins = self.offered = plugins
        self.with_plugins = False
        self.egress = egress
        self.endpoints = endpoints
        self.executor = executor
        self.routers: tuple[Router, ...] = ()
        self.asked: tuple[Router | CheckedRouter, ...] = ()
        self.plans_by_kind = False
        self.listeners: Mapping[str, Router] = {}
        self.workflows: Mapping[str, ServedWorkflow] = {}
        self.resources = resources
        self.contexts = contexts
        self._candidates: dict[str, tuple[Candidate, ...]] = {}
        self._planned: tuple[ResourceStatus, dict[tuple[str, str | None, str], Plan]] = (resources, {})
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False
        self._refuses = False
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    # ----------------------------------------------------------------------------------------------------- routing

    def candidates(self, target: str) -> tuple[Candidate, ...]:
        """Return the candidates for a target, best first. Raises `RoutingError` for an unknown name."""
        found = self._candidates.get(target)
        if found is None:
            try:
                specs = self.config.resolve(target)
            except RoutingError as error:
                if is_routing_string(target):
                    listed = any(router.name == "cascade" for router in self.routers)
                    why = "cascade must stand before its other routers" if listed else "cascade is not in it"
                    error.public = f"no router of this profile takes routing strings such as {target!r} ({why})"
                raise
            found = self._candidates[target] = tuple(self.endpoints[spec.name].candidate for spec in specs)
        return found

    def plan(self, request: LLMRequest) -> Plan:
        """Return the plan of the first router that has one. Raises `RoutingError` if none has.

        With ``plans_by_kind``, plans are cached by kind, model and task while the resources are unchanged.
        """
        resources, plans = self._planned
        if resources is not self.resources or len(plans) >= _MOST_PLANS:
            resources, plans = self._planned = (self.resources, {})
        kind = (request.kind, request.model, request.task_type)
        plan = plans.get(kind)
        if plan is None:
            plan = self._first_plan(request, resources)
            if self.plans_by_kind:
                plans[kind] = plan
        if request.allowed is not None:
            plan = within(plan, request.allowed)
        return own_only(plan) if request.private else plan

    def embedding(self) -> Candidate:
        """Return the model of the profile's embedding role. Raises `RoutingError` if there is none."""
        if "embeddings" not in self.config.task_routing:
            where = f"profile {self.config.profile_name!r}"
            hint = "add a model with embeddings, and the task to task_routing: {embeddings: NAME}"
            raise RoutingError(f"{where} has no model for the task 'embeddings', by which votes are grouped", hint=hint)
        plan = self.plan(LLMRequest(messages=(), kind="embeddings", task_type="embeddings"))
        return plan.tiers[0].members[0].candidates[0]

    def _first_plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan:
        for router in self.asked:
            plan = router.plan(request, resources)
            if plan is not None:
                return plan
        raise self._no_plan(request)

    def strongest_cost(self, plan: Plan, response: LLMResponse | None) -> float | None:
        """Return the cost in dollars of this answer from the plan's last tier alone.

        Exact if that tier gave the answer; otherwise an estimate for one answer with the same prompt and token count. None
        without an answer, or if the price is per GPU time and no time has been measured yet.
        """
        if response is None:
            return None
        last, number = len(plan.tiers) - 1, response.decision.tier
        from workflow_composer.metrics.escalation import Kept

        kept = Kept.of(response, next(tier for tier in response.tiers if tier.tier == number))
        if number == last:
            return kept.cost
        dollars = 0.0
        for member in plan.tiers[last].members:
            endpoint = self.endpoints[member.candidates[0].name]
            seconds = endpoint.forecast.gpu_seconds(kept.one.completion_tokens) if endpoint.price.gpu_hour else 0.0
            if seconds is None:
                return None
            dollars += endpoint.price.cost(kept.one, seconds)
        return dollars

    async def cloud_health(self, limit: float) -> dict[str, EndpointStatus]:
        """Ask every cloud model's server whether it takes the key, within ``limit`` seconds; sends no prompt."""
        clouds = {name: one.backend for name, one in self.endpoints.items() if not one.backend.local}
        if not self.config.allow_cloud:
            return {}
        answers = await asyncio.gather(*(backend.health(timeout=limit) for backend in clouds.values()))
        return dict(zip(clouds, answers, strict=True))

    def _no_plan(self, request: LLMRequest) -> RoutingError:
        where = f"strategy {self.config.profile_name!r}"
        names = ", ".join(router.name for router in self.routers)
        if request.model is not None:
            error = RoutingError(f"no router of {where} ({names}) has a plan for model {request.model!r}")
            error.public = f"there is no model {request.model!r}"
            return error
        known, task = sorted(self.config.task_routing), request.task_type
        near = nearest(task, known)
        message = f"no router of {where} ({names}) has a plan for task {task!r}"
        error = RoutingError(message, hint=near or f"tasks: {', '.join(known) or 'none'}")
        error.public = f"no model is set for the task {task!r}" + (f"; {near}" if near else "")
        return error

    def try_plugins(self) -> None:
        """Ask the routers of plugins for plans of sample requests. Raises `PluginError`."""
        tasks = sorted(self.config.task_routing) or ["general"]
        for router in self.asked:
            if isinstance(router, CheckedRouter):
                router.try_plans(tasks, self.resources)

    # ---------------------------------------------------------------------------------------------------- life and end

    def acquire(self) -> Snapshot | None:
        """Count a new request; return None if the snapshot takes no more, so that the caller reads the new one."""
        with self._lock:
            if self._refuses:
                return None
            self._users += 1
            return self

    async def release(self) -> None:
        """End a request; the last one of a retired snapshot closes it."""
        with self._lock:
            self._users -= 1
            unused = self._retired and not self._users
        if unused and self.listeners:
            # Routers with listeners may have audits in progress, which must not delay an answer.
            self._closing = asyncio.get_running_loop().create_task(self._close())
        elif unused:
            await self._close()

    async def retire(self) -> None:
        """Close the snapshot as soon as no request uses it."""
        with self._lock:
            self._retired = True
            unused = not self._users
        if unused:
            await self._close()

    def refuse(self) -> None:
        """Take no new requests; those in progress go on."""
        with self._lock:
            self._refuses = True

    def forked(self) -> bool:
        """Take no requests in a forked child, where connections and counts are the parent's; return whether it took any."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        took, self._refuses, self._closed = not self._refuses, True, True
        return took

    async def _close(self) -> None:
        with self._lock:
            if self._users or self._closed:
                return
            self._refuses = self._closed = True
        for router in self.routers:
            await router.aclose()
        for endpoint in self.endpoints.values():
            await endpoint.backend.close()


def within(plan: Plan, allowed: frozenset[str]) -> Plan:
    """Return the plan without the candidates that are not allowed. Raises `ModelNotAllowed` if a member has no other."""
    return _kept(plan, lambda candidate: candidate.name in allowed, ModelNotAllowed)


def own_only(plan: Plan) -> Plan:
    """Return the plan without the candidates that are not on one's own machines.

    Raises `EgressDenied` if a member has no other.
    """
    return _kept(plan, lambda candidate: candidate.local, not_own)


def _kept(plan: Plan, keep: Callable[[Candidate], bool], refusal: Callable[[str], Exception]) -> Plan:
    return replace(plan, tiers=tuple(_tier_kept(tier, keep, refusal) for tier in plan.tiers))


def _tier_kept(tier: Tier, keep: Callable[[Candidate], bool], refusal: Callable[[str], Exception]) -> Tier:
    members = []
    for member in tier.members:
        kept = tuple(candidate for candidate in member.candidates if keep(candidate))
        if not kept:
            raise refusal(member.candidates[0].name)
        members.append(member if len(kept) == len(member.candidates) else replace(member, candidates=kept))
    unknown = None if tier.when_unknown is None else _tier_kept(tier.when_unknown, keep, refusal)
    return replace(tier, members=tuple(members), when_unknown=unknown)


def build(
    config: StrategyConfig,
    registry: PluginRegistry,
    environ: Mapping[str, str],
    *,
    execute: Execute,
    resources: ResourceStatus,
    observer: CallObserver | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Snapshot:
    """Build a snapshot from a profile, without I/O. Raises `ConfigError` if the profile names something unknown."""
    for note in config.notes:
        report(note)
    egress = EgressPolicy.of(config)
    endpoints = _endpoints(config, registry, BackendContext(config, egress, environ, report))
    executor = PlanExecutor(
        endpoints,
        retry=RetryPolicy(config.retries.attempts, config.retries.base_delay, config.retries.max_delay),
        timeouts=Timeouts(config.timeouts.connect, config.timeouts.first_token, config.timeouts.total),
        observer=observer,
        local_only=not config.allow_cloud,
        fallback_on_auth=config.fallback_on_auth,
        embedding=lambda: snapshot.embedding(),  # noqa: PLW0108  # made below
    )
    snapshot = Snapshot(config, egress, endpoints, executor, resources, contexts_of(config, environ), registry)
    context = RouterContext(
        config,
        snapshot.candidates,
        lambda: snapshot.resources,
        lambda plan, request: execute(snapshot, plan, request),
        report,
    )
    snapshot.routers = tuple(_router(config, registry, index, context) for index in range(len(config.routers)))
    origins = (registry.routers[spec.name].plugin for spec in config.routers)
    snapshot.asked = tuple(map(asked, snapshot.routers, origins, repeat(endpoints)))
    if config.workflows:
        from workflow_composer.workflows.serving import served_workflows

        snapshot.workflows = served_workflows(config, registry.step_kinds)
    # Requirements of requests matter only if models list their capabilities.
    listed = any(spec.capabilities for spec in config.models.values())
    snapshot.plans_by_kind = not listed and all(type(router).plan is KindRouter.plan for router in snapshot.routers)
    listening = [router for router in snapshot.routers if type(router).answered is not Router.answered]
    snapshot.listeners = {router.name: router for router in listening}
    return snapshot


def contexts_of(config: StrategyConfig, environ: Mapping[str, str]) -> Contexts:
    """Return the contexts of a profile. Raises `ProfileError` if one is missing or faulty."""
    try:
        return Contexts.of(config.task_contexts, base=config.directory, environ=environ)
    except ContextError as error:
        where = config.where("task_contexts", error.task or "")
        raise ProfileError([f"{where}: {error.message}"], hint=error.hint) from None


def _endpoints(config: StrategyConfig, registry: PluginRegistry, context: BackendContext) -> dict[str, Endpoint]:
    made: dict[str, Endpoint] = {}
    # Models on one server share its circuit breaker and its GPU.
    breakers: dict[str, CircuitBreaker] = {}
    meters: dict[str, GpuMeter] = {}
    for name, spec in config.backend_specs().items():
        provided = _provided(registry.backends, spec.backend, config, ("models", name, "backend"), "backend")
        try:
            backend = checked(provided.value(spec, context), spec.backend, provided.plugin)
        except WorkflowComposerError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{config.where('models', name)}: backend {spec.backend!r} of plugin {provided.plugin!r} failed to start: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not backend.local and not config.allow_cloud:
            where = config.where("models", name)
            raise ProfileError(
                [f"{where}: backend {spec.backend!r} sends data to the cloud, but the profile has allow_cloud: false"]
            )
        candidate = Candidate(name, backend.local, spec.context_length, spec.endpoint, tuple(spec.capabilities))
        names = _names(spec, backend, config, context.report)
        own_meter: GpuMeter | None = getattr(backend, "meter", None)
        if own_meter is not None:
            breaker = CircuitBreaker(name, failures=math.inf)
            made[name] = Endpoint(candidate, backend, Price.of(spec), breaker, own_meter, names=names)
            continue
        server = _server(spec)
        breaker = breakers.setdefault(
            server, CircuitBreaker(name, failures=config.circuit_breaker.failures, cooldown=config.circuit_breaker.cooldown)
        )
        meter = meters.setdefault(server, GpuMeter())
        made[name] = Endpoint(candidate, backend, Price.of(spec), breaker, meter, names=names)
    return made


def _names(spec: ModelSpec, backend: Backend, config: StrategyConfig, report: Callable[[str], None]) -> ModelNames:
    """Return the names by which a model may answer; only servers with OpenAI's API say which model answered."""
    asked = spec.model if getattr(backend, "tells_sending", False) else None
    others = [other for other in config.models.values() if other.name != spec.name and other.model is not None]
    # Another model of the same server or provider comes first.
    others.sort(key=lambda other: (other.base_url != spec.base_url, other.endpoint != spec.endpoint))
    prices = [(other.model or other.name, Price.of(other)) for other in others]
    return ModelNames(asked, spec.aliases, prices, name=spec.name, report=report)


def _server(spec: ModelSpec) -> str:
    return spec.base_url or f"{spec.backend}:{spec.path or spec.name}"


def _router(config: StrategyConfig, registry: PluginRegistry, index: int, context: RouterContext) -> Router:
    spec = config.routers[index]

    def inner(name: str, settings: Mapping[str, Any]) -> Router:
        return _made(config, registry, name, settings, context, ("routers", index, spec.name, "settings"))

    return _made(
        config, registry, spec.name, spec.settings, replace(context, router=inner), ("routers", index), (spec.name,)
    )


def _made(
    config: StrategyConfig,
    registry: PluginRegistry,
    name: str,
    settings: Mapping[str, Any],
    context: RouterContext,
    place: tuple[str | int, ...],
    below: tuple[str, ...] = (),
) -> Router:
    """Make a router. ``place`` is its key in the profile; its settings are at ``place`` and ``below``."""
    provided = _provided(registry.routers, name, config, place, "router")
    try:
        router = provided.value(context, settings)
    except ValidationError as error:
        raise ProfileError(
            [
                f"{config.where(*place, *below, *fault['loc'])}: {fault['msg']}"
                f"{_did_you_mean(provided, fault['loc'], fault['type'])}"
                for fault in error.errors(include_url=False, include_input=False)
            ]
        ) from None
    except WorkflowComposerError:
        raise
    except Exception as error:
        if provided.plugin == BUILTIN:
            raise
        where = f"router {name!r} of plugin {provided.plugin!r}"
        raise PluginError(f"{where} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(router, Router):
        raise ConfigError(f"router {name!r} of plugin {provided.plugin!r} is {shown(router)}, not a Router")
    return router


def _did_you_mean(provided: Provided, place: tuple[int | str, ...], kind: str) -> str:
    settings: Any = getattr(provided.value, "Settings", None)
    if kind != "extra_forbidden" or settings is None or not place:
        return ""
    keys = sorted(settings.model_fields)
    return f"; allowed: {', '.join(keys) or 'no settings'}{nearest(str(place[-1]), keys, prefix='; ')}"


def _provided(
    offered: Mapping[str, Provided], name: str, config: StrategyConfig, key: tuple[str | int, ...], kind: str
) -> Provided:
    if name in offered:
        return offered[name]
    raise ProfileError(
        [
            f"{config.where(*key)}: unknown {kind} {name!r}; available: {', '.join(sorted(offered))}"
            f"{nearest(name, offered, prefix='; ')}"
        ],
        hint="a plugin may be missing or blocked; run `plugins` to check",
    )
