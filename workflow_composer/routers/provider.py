"""The provider router: exactly the model that was named, so that a failure is seen and not papered over."""

from __future__ import annotations

from typing import ClassVar

from workflow_composer.plan import Plan
from workflow_composer.routers.base import KindRouter, described
from workflow_composer.types import LLMRequest, ResourceStatus


class ProviderRouter(KindRouter):
    """One tier, one candidate: the model that the caller named, else the first usable one the task is routed to.

    It has no plan for a task that the profile routes nowhere.
    """

    name: ClassVar[str] = "provider"

    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Name the one model."""
        target = self.target(request)
        if target is None:
            return None
        kept, left_out = self.usable(self.context.candidates(target), request, resources)
        return self.single_tier(kept[:1], left_out, described(request, target))
