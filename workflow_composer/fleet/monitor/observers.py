"""Queries to servers: one observer per server, concurrent queries, and a synchronous interface."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.connection import Broken
from workflow_composer.backends.http.egress import EgressPolicy, endpoint_of
from workflow_composer.backends.replicas.observer import ServerObserver
from workflow_composer.errors import EgressDenied
from workflow_composer.support.loop_thread import LoopThread

T = TypeVar("T")

_ANYWHERE = tuple(ipaddress.ip_network(network) for network in ("0.0.0.0/0", "::/0"))

_PUNCTUATION = frozenset("/?#@")
"""Characters that would make a URL with this host point elsewhere."""


@asynccontextmanager
async def observing(host: str, port: int, key: str | None = None) -> AsyncIterator[ServerObserver]:
    """Open an observer that can connect to this one server only. Raises `EgressDenied` if ``host`` is not a host name.

    Cluster nodes may have public addresses, so any address is allowed here; no user data is ever sent.
    """
    if not _PUNCTUATION.isdisjoint(host):
        raise EgressDenied("invalid host name", hint="check the host in the registry entry or in the fleet's state file")
    url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
    only = EgressPolicy(allow_cloud=False, local=frozenset({endpoint_of(url)}), networks=_ANYWHERE)
    async with Client(only) as client:
        yield ServerObserver.over(client, url, key)


async def all_at_once(questions: Mapping[str, Coroutine[Any, Any, T]], seconds: float) -> dict[str, T]:
    """Run all queries concurrently and return the results that arrive within ``seconds``; the rest are cancelled.

    A query that raises is missing from the result, like one that is late. Its exception goes to the loop's exception
    handler, because it is a bug of this package; the other results are still returned.
    """
    loop = asyncio.get_running_loop()
    tasks = {name: loop.create_task(question) for name, question in questions.items()}
    if not tasks:
        return {}
    try:
        await asyncio.wait(tasks.values(), timeout=seconds)
        ended = {name: task for name, task in tasks.items() if task.done() and not task.cancelled()}
    finally:
        for task in tasks.values():
            task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    for name, task in ended.items():
        if error := task.exception():
            loop.call_exception_handler({"message": f"the query to {name} failed", "exception": error, "task": task})
    return {name: task.result() for name, task in ended.items() if task.exception() is None}


def answer_to(question: Coroutine[Any, Any, T]) -> T:
    """Run a query and wait for its result, even if the caller's thread already runs an event loop (as in a notebook).

    Signal handlers run in the meantime; an interrupt (Ctrl-C) cancels the query and is raised.
    """
    loop = LoopThread()
    try:
        return loop.run(question)
    finally:
        loop.stop()


class Api:
    """Synchronous queries to one server: health, models, load. Each query opens its own connection.

    No query raises an error or exceeds its timeout (in seconds), whatever listens on the port.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def healthy(self, *, timeout: float = 2.0) -> bool:
        """Whether ``/health`` returns status 200."""
        return answer_to(self._healthy(timeout))

    def models(self, *, timeout: float = 5.0, api_key: str = "") -> list[str] | None:
        """The ids of the served models; None if they are unknown."""
        return answer_to(self._models(timeout, api_key))

    def busy(self, *, timeout: float = 5.0) -> int | None:
        """The number of running and waiting requests; None if it is unknown."""
        return answer_to(self._busy(timeout))

    async def _healthy(self, timeout: float) -> bool:
        try:
            async with observing(self.host, self.port) as server:
                return await server.health(timeout) == 200
        except _SILENT:
            return False

    async def _models(self, timeout: float, key: str) -> list[str] | None:
        try:
            async with observing(self.host, self.port, key) as server:
                found = (await server.models(timeout)).models
        except _SILENT:
            return None
        return None if found is None else [name[:300] for name in found]

    async def _busy(self, timeout: float) -> int | None:
        try:
            async with observing(self.host, self.port) as server:
                return (await server.readings(timeout)).requests
        except _SILENT:
            return None


_SILENT = (OSError, Broken, EgressDenied, ValueError)
"""Errors of a server that does not respond; ValueError: the key is not valid in a header."""
