"""How busy a vLLM server is, by its own metrics: everybody's requests, not only those of this process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from workflow_composer.backends.http.connection import Bounds
from workflow_composer.backends.probe import Ask

METRICS = Bounds(answer=1 << 20, decoded=1 << 22)
"""Of a page of metrics; vLLM's have about 60,000 bytes."""
SECONDS = 1.0
"""Time that they may take."""

_COUNTS = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")  # the name since 0.10, and the one before


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """Requests that are generated for or wait, and the share of the cache that they fill; None: the server does not say."""

    requests: float | None = None
    cache: float | None = None


def parse(text: str) -> ServerLoad:
    """Read Prometheus's text form; the engines of a server are added up, and the fullest cache counts.

    >>> parse('vllm:num_requests_running{engine="0"} 3.0')
    ServerLoad(requests=3.0, cache=None)
    """
    requests: float | None = None
    cache: float | None = None
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name not in _COUNTS and name not in _CACHE:
            continue
        try:
            value = float(line.rpartition(" ")[2])
        except ValueError:
            continue
        if not 0.0 <= value < 1e6:  # a NaN is not, either
            continue
        if name in _COUNTS:
            requests = (requests or 0.0) + value
        else:
            cache = max(cache or 0.0, value)
    return ServerLoad(requests, cache)


def metrics_url(api: str) -> str:
    """Where a server with this API address (up to ``/v1``) shows its metrics."""
    return api.rstrip("/").removesuffix("/v1") + "/metrics"


async def read_load(ask: Ask, api: str) -> ServerLoad:
    """Ask a server. A server without such metrics has an empty load; raises TimeoutError, OSError and `Broken`."""
    async with asyncio.timeout(SECONDS):
        answer = await ask(metrics_url(api))
    return parse(answer.body.decode("utf-8", "replace")) if answer.status == 200 else ServerLoad()
