"""The cascading provider router: the local server first, then each cloud model that the profile allows."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from workflow_composer.plan import Plan
from workflow_composer.routers.base import KindRouter, RouterSettings, described
from workflow_composer.types import LLMRequest, ResourceStatus


class CascadingProviderSettings(RouterSettings):
    """Settings of `CascadingProviderRouter`."""

    max_fallbacks: int | None = Field(None, ge=0, description="how many of the profile's fallbacks to use at the most")


class CascadingProviderRouter(KindRouter):
    """One tier whose candidates are the task's own models, then the profile's ``fallback`` in order.

    A model that the caller named is the only candidate: a fallback would answer with another one than was asked for. With
    ``allow_cloud: false`` cloud models are no candidates, whatever fails; where nothing else is left, that is
    `LocalModelUnavailable`.
    """

    name: ClassVar[str] = "cascading_provider"
    Settings: ClassVar[type[RouterSettings]] = CascadingProviderSettings

    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Line up the task's models and the fallbacks."""
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
