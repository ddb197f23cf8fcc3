"""Where the prompts of a profile go, in one line for a person at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from workflow_composer.config.profile_models import registered_role
from workflow_composer.config.strategy import ModelSpec, StrategyConfig

_MOST = 6
"""Most servers that the line names."""


def where_prompts_go(config: StrategyConfig, environ: Mapping[str, str]) -> str:
    """Say where prompts go under a profile: which of one's own servers, and which clouds whose keys are set.

    >>> where_prompts_go(StrategyConfig(profile_name="mine", vllm_endpoints={"a": "http://gpu01:8001/v1"}), {})
    'mine: prompts go to gpu01:8001'
    """
    name, own = config.profile_name, _listed(_own(config))
    if not config.allow_cloud:
        return f"{name}: prompts stay on your own machines" + (f": {own}" if own else "")
    cloud = [spec for spec in config.models.values() if not spec.local]
    ready = [spec for spec in cloud if not spec.api_key_env or environ.get(spec.api_key_env)]
    if ready:
        return f"{name}: prompts may go to the cloud: {_listed(map(_place, ready))}" + (f"; also to {own}" if own else "")
    return f"{name}: prompts go to {own or 'no server'}" + ("; the cloud's keys are not set" if cloud else "")


def tell_where(config: StrategyConfig, environ: Mapping[str, str]) -> None:
    """Print that line to standard error if it is a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(where_prompts_go(config, environ), file=sys.stderr, flush=True)


def _own(config: StrategyConfig) -> Iterable[str]:
    for role in config.vllm_endpoints:
        for place in config.servers_of(role):
            yield urlsplit(place).netloc.rpartition("@")[2] if registered_role(place) is None else f"servers of {place}"
    yield from (_place(spec) for spec in config.models.values() if spec.local and spec.endpoint is None)


def _place(spec: ModelSpec) -> str:
    """Return host and port of a model's server; for a backend without one, what it is."""
    if spec.base_url:
        return urlsplit(spec.base_url).netloc.rpartition("@")[2]
    return "this process" if spec.local else f"{spec.name} ({spec.backend})"


def _listed(places: Iterable[str]) -> str:
    found = list(dict.fromkeys(places))
    return ", ".join(found[:_MOST]) + (f" and {len(found) - _MOST} more" if len(found) > _MOST else "")
