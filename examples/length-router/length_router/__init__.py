"""A router that decides by the length of the question."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field

from workflow_composer import LLMRequest, Plan, hookimpl
from workflow_composer.routers import Router, RouterSettings
from workflow_composer.types import ResourceStatus


class LengthSettings(RouterSettings):
    """Settings of `LengthRouter`, checked when the profile is loaded."""

    short: str = Field(description="the model, tier or role for short questions")
    long: str = Field(description="the model, tier or role for long questions")
    characters: int = Field(200, ge=1, description="maximum length of a short question in characters")


class LengthRouter(Router):
    """Plans one tier with one candidate, by the question's length."""

    name: ClassVar[str] = "length"
    Settings: ClassVar[type[RouterSettings]] = LengthSettings

    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Choose the short or the long target; leave requests that name a model to the next router."""
        if request.model is not None:
            return None
        assert isinstance(self.settings, LengthSettings)
        is_long = request.query_length > self.settings.characters
        target = self.settings.long if is_long else self.settings.short
        reason = f"{request.query_length} characters are {'long' if is_long else 'short'}"
        return self.single_tier(*self.usable(self.context.candidates(target)[:1], request, resources), reason)


@hookimpl
def register_routers(register: Callable[..., None]) -> None:
    """Register the router under the name ``length``."""
    register("length", LengthRouter)
