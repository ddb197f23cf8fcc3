"""The profile of an ``execute``: the active one with the votes as the options say, or one made for a recording."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow_composer.errors import InputError
from workflow_composer.names import nearest
from workflow_composer.strategy import StrategyConfig, TierSpec

CASCADE = "cascade"


def with_votes(config: StrategyConfig, votes: Mapping[str, Any]) -> StrategyConfig:
    """The profile with the cascade router before all others, its settings overridden by ``votes``."""
    routers = [_named(router) for router in config.to_dict()["routers"]]
    own = next((settings for name, settings in routers if name == CASCADE), {})
    others = [{name: settings} for name, settings in routers if name != CASCADE]
    return config.replaced(routers=[{CASCADE: {**own, **votes}}, *others])


def of_recording(path: Path, models: tuple[str, ...], config: StrategyConfig | None) -> StrategyConfig:
    """A profile in which recorded answers stand in for the models.

    Tiers and prices are those of ``config``, as far as its models were recorded (under the tier's name, or the model's);
    without it every recorded model is a tier, in the order of the file. Raises `InputError` where ``config`` has no tier
    that was recorded.
    """
    tiers: dict[str, Any] = {}
    catalogue: dict[str, Any] = {name: _replayed(path, name) for name in models}
    for name, spec in (config.tiers if config else {}).items():
        assert config is not None
        recorded = next((known for known in (name, spec.model, _model_of(config, spec)) if known in catalogue), None)
        if recorded is None:
            continue
        target = config.resolve(name)[0]
        catalogue[recorded] |= {"input_price": target.input_price, "output_price": target.output_price}
        data = spec.model_dump(exclude={"model", "cost"}, exclude_none=True)
        tiers[name] = {**data, "model": recorded}
    if config is not None and config.tiers and not tiers:
        near = nearest(next(iter(config.tiers)), list(models))
        raise InputError(
            f"{path} has no answers of any tier of {config.profile_name!r}; it has: {', '.join(models)}", hint=near
        )
    if not tiers:
        tiers = {name: {"model": name} for name in models}
    settings = next((spec.settings for spec in config.routers if spec.name == CASCADE), {}) if config else {}
    return StrategyConfig(
        profile_name=f"{config.profile_name}-replayed" if config else "replayed",
        allow_cloud=False,
        models=catalogue,
        tiers=tiers,
        routers=[{CASCADE: dict(settings)}, "provider"],
    )


def _replayed(path: Path, model: str) -> dict[str, Any]:
    return {"backend": "replay", "path": str(path.resolve()), "model": model}


def _model_of(config: StrategyConfig, spec: TierSpec) -> str | None:
    return config.resolve(spec.model)[0].model


def _named(router: Any) -> tuple[str, dict[str, Any]]:
    return (router, {}) if isinstance(router, str) else next(iter(router.items()))
