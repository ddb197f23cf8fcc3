"""Startup proof that a profile with ``allow_cloud: false`` cannot send data out.

The check does not trust the setting but tests it: it attempts connections through the transport of every call, and each must
be refused before a byte is sent. A local resolver prevents DNS queries; a sentinel in place of sockets records every
connection that the policy would have let through.
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
"""Forbidden destinations; the check does not contact them."""
OUT = "8.8.8.8"
_SECONDS = 5.0


async def prove_egress(snapshot: Snapshot, *, collector: str | None = None) -> tuple[str, ...]:
    """Return the refused attempts; empty if the profile allows the cloud. Raises `EgressProofFailed`.

    ``collector``: the URL for traces. Raises `ConfigError` if the profile forbids it.
    """
    check_collector(collector, snapshot.egress)
    if snapshot.config.allow_cloud:
        return ()
    policy, tried, through = snapshot.egress, list[str](), list[str]()
    if policy.allow_cloud:
        through.append("the transport's egress policy allows the cloud")
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
            f"profile {name!r} forbids the cloud, but its egress policy is not enforced: {'; '.join(through)}",
            hint="the service does not start; this is a bug in the program or in a plugin: see `plugins`",
        )
    return tuple(tried)


async def _request(policy: EgressPolicy, url: str, environ: dict[str, str], tried: list[str], through: list[str]) -> None:
    """Attempt an outbound request, directly or through a proxy from the environment."""
    how = f"a request to {url}" + (" through a proxy" if environ else "")

    def resolve(host: str, port: int) -> Iterable[str]:
        through.append(f"{how}: attempted to resolve the host name")
        raise OSError("the check does not resolve names")

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
    except Exception as error:  # noqa: BLE001  # any other error is not a refusal
        through.append(f"{how}: {type(error).__name__} instead of a refusal")
    finally:
        await client.close()


async def _name_turned_out(policy: EgressPolicy, host: str, port: int, tried: list[str], through: list[str]) -> None:
    """Attempt a connection to a local server's name that resolves to a public address."""
    how = f"{host}:{port} resolved to a public address"
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
