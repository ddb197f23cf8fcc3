"""The provider router: exactly the named model without fallback, so that failures stay visible."""

from __future__ import annotations

from typing import ClassVar

from workflow_composer.plan import Plan
from workflow_composer.routers.base import KindRouter, described
from workflow_composer.types import LLMRequest, ResourceStatus


class ProviderRouter(KindRouter):
    """One tier with one candidate: the model that the caller named, else the first usable model of the task's route.

    The router has no plan for a task without a route in the profile.
    """

    name: ClassVar[str] = "provider"

    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return the plan with the one model."""
        target = self.target(request)
        if target is None:
            return None
        kept, left_out = self.usable(self.context.candidates(target), request, resources)
        return self.single_tier(kept[:1], left_out, described(request, target))
