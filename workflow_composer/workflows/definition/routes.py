"""Which models a step may ask, by a profile: for the checks of a file, before anything is called."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from workflow_composer.config.checks import CASCADE_TARGET
from workflow_composer.errors import MarkerError, RoutingError
from workflow_composer.markers import is_routing_string, parse_route

if TYPE_CHECKING:
    from workflow_composer.config.profile_models import ModelSpec
    from workflow_composer.config.strategy import StrategyConfig


def targets_of(config: StrategyConfig, target: str) -> tuple[str, ...]:
    """Return the roles, tiers and models that a target means. Raises `MarkerError` for a malformed routing string."""
    if target == CASCADE_TARGET:
        return tuple(config.tiers)
    if not is_routing_string(target):
        return (target,)
    known = {*config.tiers, *config.models, *config.vllm_endpoints}
    tiers = parse_route(target).tiers
    return tuple(tier.name if tier.name in known else tier.members[0].candidates[0].name for tier in tiers)


def models_of(config: StrategyConfig, target: str) -> tuple[ModelSpec, ...]:
    """Return the models of a target. Raises `MarkerError`, and `RoutingError` for an unknown name."""
    found = [spec for name in targets_of(config, target) for spec in config.resolve(name)]
    return tuple({spec.name: spec for spec in found}.values())


def models_for(config: StrategyConfig, model: str | None, task: str | None) -> tuple[ModelSpec, ...]:
    """Return the models that a request with this ``model``, else of this task, may reach, fallbacks included.

    Names that are unknown are left out; a check of their own reports them.
    """
    targets = [model] if model is not None else [config.route_of(task or "*"), *config.fallback]
    found: dict[str, ModelSpec] = {}
    for target in targets:
        if target is not None:
            with suppress(RoutingError, MarkerError):
                found |= {spec.name: spec for spec in models_of(config, target)}
    return tuple(found.values())
