"""The T4 model router: every task has a local server of its own, and goes nowhere else."""

from __future__ import annotations

from typing import ClassVar

from workflow_composer.routers.base import Router, described
from workflow_composer.types import LLMRequest, Plan, ResourceStatus, Tier


class T4ModelRouter(Router):
    """One tier, one candidate: the server of the role that the task is routed to. Made for a handful of small GPUs.

    It has no plan where the task belongs to no local server. A server that is down is an error, never a detour.
    """

    name: ClassVar[str] = "t4_model"

    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Send the task to its server."""
        target = self.target(request)
        if target is None:
            return None
        candidate = self.context.candidates(target)[0]
        if not candidate.local or candidate.endpoint is None:
            return None
        return Plan((Tier((candidate,)),), self.name, described(request, target))
