"""Proof at the start that a profile with ``allow_cloud: false`` can send nothing out.

Not that the setting is there, but that it works: connections are really tried, through the same transport as every call, and
each must be refused before a byte has left. Names are resolved by a resolver of the check's own, so that even the questions
stay here; a sentinel in the place of sockets notes whatever would have gone through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from workflow_composer.backends.http.client import Client, Origin
from workflow_composer.backends.http.egress import EgressPolicy, admitted_addresses
from workflow_composer.backends.http.proxied import proxy_for
from workflow_composer.errors import EgressDenied, EgressProofFailed
from workflow_composer.runtime.snapshot import Snapshot
from workflow_composer.server.tracing import check_collector

PUBLIC = (
    "https://api.openai.com/v1",
    "https://api.anthropic.com/v1",
    "http://8.8.8.8/v1",
    "http://[2001:4860:4860::8888]/v1",
)
"""Where data must not go; none of them is contacted."""
OUT = "8.8.8.8"
_SECONDS = 5.0


async def prove_egress(snapshot: Snapshot, *, collector: str | None = None) -> tuple[str, ...]:
    """What was tried and refused; empty where the profile allows the cloud. Raises `EgressProofFailed`.

    ``collector``: where traces go. Raises `ConfigError` where the profile forbids to send anything there.
    """
    check_collector(collector, snapshot.egress)
    if snapshot.config.allow_cloud:
        return ()
    policy, tried, through = snapshot.egress, list[str](), list[str]()
    if policy.allow_cloud:
        through.append("the policy of the transport allows the cloud")
    for url in PUBLIC:
        await _request(policy, url, {}, tried, through)
        await _request(
            policy, url, {"https_proxy": f"http://{OUT}:3128", "http_proxy": f"http://{OUT}:3128"}, tried, through
        )
    for host, port in list(policy.local)[:8]:
        await _name_turned_out(policy, host, port, tried, through)
    for name, endpoint in snapshot.endpoints.items():
        if not endpoint.backend.local:
            through.append(f"the backend of {name} sends data out")
    if through:
        name = snapshot.config.profile_name
        raise EgressProofFailed(
            f"profile {name!r} forbids the cloud, and its egress rule does not hold: {'; '.join(through)}",
            hint="nothing is served; this is a fault of the program or of a plugin: see `plugins`",
        )
    return tuple(tried)


async def _request(policy: EgressPolicy, url: str, environ: dict[str, str], tried: list[str], through: list[str]) -> None:
    """A request out, directly or by a proxy of the environment."""
    how = f"a request to {url}" + (" by a proxy" if environ else "")

    def resolve(host: str, port: int) -> Iterable[str]:
        through.append(f"{how}: its name was to be resolved")
        raise OSError("not resolved by the check")

    client = Client(policy, resolve=resolve)
    try:
        if proxy_for(Origin.of(url), policy, environ) is not None:
            through.append(how)
            return
        async with asyncio.timeout(_SECONDS):
            await client.ask(url)
        through.append(how)
    except EgressDenied:
        tried.append(how)
    except Exception as error:  # noqa: BLE001  # whatever else it was, it was no refusal
        through.append(f"{how}: {type(error).__name__} instead of a refusal")
    finally:
        await client.close()


async def _name_turned_out(policy: EgressPolicy, host: str, port: int, tried: list[str], through: list[str]) -> None:
    """A local server's name that leads out into the world, as a name service might let it."""
    how = f"{host}:{port} with a public address"
    if _is_address(host):
        return
    try:
        found: Any = await admitted_addresses(policy, host, port, resolve=lambda *_: [OUT])
        through.append(f"{how}: {found}")
    except EgressDenied:
        tried.append(how)


def _is_address(host: str) -> bool:
    from workflow_composer.backends.http.egress import literal_address

    return literal_address(host) is not None
