"""Which strategy to use where none is named: the environment's, else what this machine can serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from workflow_composer.errors import NoStrategy
from workflow_composer.resources import ResourceDetector, embedded_available
from workflow_composer.strategy import StrategyConfig

STRATEGY_VARIABLE = "BIOPIPELINES_STRATEGY"


async def detect_strategy(
    environ: Mapping[str, str],
    *,
    hybrid: StrategyConfig | None = None,
    embedded: Callable[[], bool] = embedded_available,
) -> str:
    """The name of a shipped profile that can work here; local servers first, since data stays and they are paid for.

    Healthy local servers (those of ``hybrid``, the shipped ``t4_hybrid``): ``t4_hybrid``. A cloud key: ``cloud_only``. The
    embedded engine: ``development``. Otherwise raises `NoStrategy`, which says what to set.
    """
    hybrid = hybrid or StrategyConfig.load("t4_hybrid")
    status = await ResourceDetector(hybrid, environ=environ).detect()
    if any(status.vllm_endpoints.values()):
        return "t4_hybrid"
    cloud = StrategyConfig.load("cloud_only")
    keys = [spec.api_key_env for spec in cloud.models.values() if spec.api_key_env]
    if any(environ.get(key) for key in keys):
        return "cloud_only"
    if embedded():
        return "development"
    places = ", ".join(place for role in hybrid.vllm_endpoints for place in hybrid.servers_of(role))
    raise NoStrategy(
        "no strategy was named and nothing to work with was found: no server answers at "
        f"{places}; none of {', '.join(dict.fromkeys(keys))} is set; the embedded engine is not installed",
        hint=f"name one with --strategy or {STRATEGY_VARIABLE}, start a server, set a key, "
        "or: pip install 'workflow-composer[embedded]'",
    )
