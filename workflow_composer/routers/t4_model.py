"""The T4 model router: every task has a local server of its own, and goes nowhere else."""

from __future__ import annotations

from typing import ClassVar

from workflow_composer.plan import Plan
from workflow_composer.routers.base import KindRouter, described
from workflow_composer.types import LLMRequest, ResourceStatus


class T4ModelRouter(KindRouter):
    """One tier, one candidate: the server of the role that the task is routed to. Made for a handful of small GPUs.

    It has no plan where the task belongs to no local server. A server that is down is an error, never a detour.
    """

    name: ClassVar[str] = "t4_model"

    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Send the task to its server."""
        target = self.target(request)
        if target is None:
            return None
        servers = [found for found in self.context.candidates(target)[:1] if found.local and found.endpoint is not None]
        if not servers:
            return None
        return self.single_tier(*self.usable(servers, request, resources), described(request, target))
