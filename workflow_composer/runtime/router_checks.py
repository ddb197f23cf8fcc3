"""What a plugin's router returns, checked where it enters: an error names the plugin, the router and the value."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from workflow_composer.errors import PluginError, WorkflowComposerError
from workflow_composer.plan import Candidate, Member, Plan, Tier
from workflow_composer.plugins.host import BUILTIN, shown
from workflow_composer.routers.base import Router
from workflow_composer.types import LLMRequest, ResourceStatus


class CheckedRouter:
    """A router as the snapshot asks it. ``plugin`` is the plugin that provides it."""

    def __init__(self, router: Router, plugin: str, known: Container[str]) -> None:
        self._router = router
        self._where = f"router {router.name!r} of plugin {plugin!r}"
        self._known = known

    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return the router's plan. Raises `PluginError` if the router fails or returns anything else."""
        try:
            plan = self._router.plan(request, resources)
        except WorkflowComposerError:
            raise
        except Exception as error:
            raise PluginError(f"plan of {self._where} failed: {type(error).__name__}: {error}") from error
        if plan is not None and (fault := self._fault(plan)):
            raise PluginError(f"plan of {self._where} returned {fault}")
        return plan

    def try_plans(self, tasks: Iterable[str], resources: ResourceStatus) -> None:
        """Ask for the plan of a sample request of each task. Raises `PluginError` as `plan`; a refusal is no fault."""
        for task in tasks:
            try:
                self.plan(LLMRequest.of("What is 30 + 12?", task_type=task), resources)
            except PluginError:
                raise
            except WorkflowComposerError:
                continue

    def _fault(self, plan: object) -> str:
        """Return what is wrong with a value that should be a plan; empty if nothing is."""
        if not isinstance(plan, Plan):
            return f"{shown(plan)}, not a Plan"
        if not isinstance(plan.tiers, tuple) or not plan.tiers:
            return f"a plan whose tiers are {shown(plan.tiers)}, not a tuple with at least one Tier"
        for part, kind in _parts(plan):
            if not isinstance(part, kind):
                return f"a plan with {shown(part)} in the place of a {kind.__name__}"
            if isinstance(part, Candidate) and part.name not in self._known:
                return f"a plan with the candidate {part.name!r}, which is no model of the profile"
        return ""


def _parts(plan: Plan) -> Iterator[tuple[object, type]]:
    """Yield the parts of a plan, each with the type that it should have; of a wrong one, nothing more."""
    for tier in plan.tiers:
        yield tier, Tier
        for member in tier.members:
            yield member, Member
            for candidate in member.candidates:
                yield candidate, Candidate


def asked(router: Router, plugin: str, known: Container[str]) -> Router | CheckedRouter:
    """Return what the snapshot asks: the package's own routers directly, those of plugins through the checks."""
    return router if plugin == BUILTIN else CheckedRouter(router, plugin, known)
