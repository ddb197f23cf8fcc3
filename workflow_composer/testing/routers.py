"""Conformance of routers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.plan import Plan
from workflow_composer.plugins.hookspecs import hookimpl
from workflow_composer.runtime.router_checks import CheckedRouter
from workflow_composer.testing.conformance import NotConforming, only_own_errors, require
from workflow_composer.testing.with_plugin import orchestrator_with
from workflow_composer.types import LLMRequest, ResourceStatus

_NAME = "router_under_test"


def check_router(factory: Any, settings: Mapping[str, Any] | None = None, **profile: Any) -> None:
    """Check a router's factory (usually its class) against the interface. Raises `NotConforming`.

    The router is made from ``settings`` in a profile of `profile_of` with the keys ``profile``, and asked for plans of many
    kinds of requests: long ones, other tasks, with tools, images, a named model, without messages. Checked:

    - it returns a `Plan` over models of the profile, or None, and raises errors of the package only;
    - it calls no model when it plans, and gives plans from several threads at once;
    - a request that names a model gets that model, or no plan;
    - a request runs through its plan to an answer; `aclose` may be called twice.
    """

    class Plugin:
        @hookimpl
        def register_routers(self, register: Any) -> None:
            """Register the router."""
            register(_NAME, factory)

    keys = {"routers": [{_NAME: dict(settings or {})}], **profile}
    with only_own_errors("the factory"), orchestrator_with(Plugin(), **keys) as orchestrator:
        router = next(iter(orchestrator.routers.values()))
        checked = CheckedRouter(router, "under_test", frozenset(orchestrator.config.backend_specs()))
        resources = orchestrator.status(probe=False).resources
        plans = [_plan(checked, what, request, resources) for what, request in _requests()]
        require(any(plan is not None for plan in plans), "it has no plan for any request, in this profile")
        _check_threads(checked, resources)
        calls = sum(len(fake.calls) for fake in orchestrator.fakes.values())
        require(not calls, f"it called models {calls} times while it planned; a router plans, and the executor calls")
        if plans[0] is not None and _models(plans[0]) <= set(orchestrator.fakes):
            require(orchestrator.generate("What is 30 + 12?").text is not None, "its plan gave no answer")
    asyncio.run(router.aclose())  # the orchestrator has closed it once


def _requests() -> Iterator[tuple[str, LLMRequest]]:
    ask = "What is 30 + 12?"
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    pictures = [{"role": "user", "content": [{"type": "text", "text": ask}, image]}]
    yield "a short question", LLMRequest.of(ask)
    yield "a long question", LLMRequest.of(ask * 20_000)
    yield "an empty question", LLMRequest.of("")
    yield "a request without messages", LLMRequest(messages=())
    for task in ("code_generation", "a task that no profile has", "embeddings"):
        yield f"the task {task!r}", LLMRequest.of(ask, task_type=task)
    yield "a request with a tool", LLMRequest.of(ask, tools=(tool,))
    yield "a request with an image", LLMRequest.of(pictures)
    yield "a request with log-probabilities", LLMRequest.of(ask, logprobs=True, top_logprobs=5)
    yield "a request for JSON", LLMRequest.of(ask, response_format={"type": "json_object"})
    yield "a request that names a model", LLMRequest.of(ask, model="large")
    yield "a routing string", LLMRequest.of(ask, model="mv_small_k3_t0.7")
    yield "a request that names an unknown model", LLMRequest.of(ask, model="nobody-knows-it")


def _plan(router: CheckedRouter, what: str, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
    try:
        plan = router.plan(request, resources)
    except WorkflowComposerError as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, WorkflowComposerError):
            raise NotConforming(f"for {what}: {error.message}") from error
        if type(error).__name__ == "PluginError":
            raise NotConforming(f"for {what}: {error.message}") from None
        return None
    if plan is not None and request.model == "large":
        named = _models(plan)
        told = f"for {what} ('large'), its plan has {', '.join(sorted(named))}; return None to leave it to the next router"
        require(named == {"large"}, told)
    return plan


def _models(plan: Plan) -> set[str]:
    return {candidate.name for tier in plan.tiers for member in tier.members for candidate in member.candidates}


def _check_threads(router: CheckedRouter, resources: ResourceStatus) -> None:
    from concurrent.futures import ThreadPoolExecutor

    asked = [request for _, request in _requests()] * 8
    with ThreadPoolExecutor(8) as threads:
        for request, plan in zip(asked, threads.map(lambda one: _quietly(router, one, resources), asked), strict=True):
            require(plan is None or isinstance(plan, Plan), f"in several threads, it returned {plan!r} for {request!r}")


def _quietly(router: CheckedRouter, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
    try:
        return router.plan(request, resources)
    except WorkflowComposerError:
        return None
