"""The T4 model router: each task has its own local server and no fallback."""

from __future__ import annotations

from typing import ClassVar

from workflow_composer.plan import Plan
from workflow_composer.routers.base import KindRouter, described
from workflow_composer.types import LLMRequest, ResourceStatus


class T4ModelRouter(KindRouter):
    """One tier with one candidate: the server of the task's role. Intended for a few small GPUs.

    The router has no plan for a task without a local server. A server that is down is an error; no other model is called.
    """

    name: ClassVar[str] = "t4_model"

    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return the plan with the task's server."""
        target = self.target(request)
        if target is None:
            return None
        servers = [found for found in self.context.candidates(target)[:1] if found.local and found.endpoint is not None]
        if not servers:
            return None
        return self.single_tier(*self.usable(servers, request, resources), described(request, target))
