"""The cascading provider router: the local server first, then each cloud model that the profile allows."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from workflow_composer.plan import Plan
from workflow_composer.routers.base import KindRouter, RouterSettings, described
from workflow_composer.types import LLMRequest, ResourceStatus


class CascadingProviderSettings(RouterSettings):
    """Settings of `CascadingProviderRouter`."""

    max_fallbacks: int | None = Field(None, ge=0, description="maximum number of the profile's fallbacks to use")


class CascadingProviderRouter(KindRouter):
    """One tier whose candidates are the task's own models, then the profile's ``fallback`` in order.

    If the caller names a model, it is the only candidate, because a fallback would be a different model. With
    ``allow_cloud: false``, cloud models are never candidates; if none is left, planning raises `LocalModelUnavailable`.
    """

    name: ClassVar[str] = "cascading_provider"
    Settings: ClassVar[type[RouterSettings]] = CascadingProviderSettings

    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return the plan over the task's models and the fallbacks."""
        target = self.target(request)
        if target is None:
            return None
        candidates = list(self.context.candidates(target))
        reason = described(request, target)
        if request.model is None:
            assert isinstance(self.settings, CascadingProviderSettings)
            fallback = self.context.config.fallback[: self.settings.max_fallbacks]
            for name in fallback:
                candidates += self.context.candidates(name)
            reason += f"; fallback: {', '.join(fallback)}" if fallback else ""
        return self.single_tier(*self.usable(candidates, request, resources), reason)
