"""How the fleet asks servers: one observer for each, all of them at once, and answers for callers that wait."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from workflow_composer.backends.egress import EgressPolicy, endpoint_of
from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.connection import Broken
from workflow_composer.backends.observer import Observer
from workflow_composer.errors import EgressDenied
from workflow_composer.runner import LoopThread

T = TypeVar("T")

_ANYWHERE = tuple(ipaddress.ip_network(network) for network in ("0.0.0.0/0", "::/0"))

_PUNCTUATION = frozenset("/?#@")
"""What would make an address of it that leads elsewhere."""


@asynccontextmanager
async def observing(host: str, port: int, key: str | None = None) -> AsyncIterator[Observer]:
    """An observer of one server, which reaches that server and no other. Raises `EgressDenied` where ``host`` is no name.

    Nodes of a cluster may have public addresses, so wherever this server is, it may be asked; nobody's data is ever sent.
    """
    if not _PUNCTUATION.isdisjoint(host):
        raise EgressDenied("not a host's name", hint="the registry, or the fleet's state, names it as a server's")
    url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
    only = EgressPolicy(allow_cloud=False, local=frozenset({endpoint_of(url)}), networks=_ANYWHERE)
    async with Client(only) as client:
        yield Observer.over(client, url, key)


async def all_at_once(questions: Mapping[str, Coroutine[Any, Any, T]], seconds: float) -> dict[str, T]:
    """Ask everything at once, and return the answers that came within ``seconds``; the rest is given up.

    A question that fails is missing like one that is late, and the loop's exception handler tells why: it is a fault of
    ours, and the others' answers still count.
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
            loop.call_exception_handler({"message": f"{name} could not be asked", "exception": error, "task": task})
    return {name: task.result() for name, task in ended.items() if task.exception() is None}


def answer_to(question: Coroutine[Any, Any, T]) -> T:
    """Ask, and wait for the answer, wherever the caller stands: a notebook's cell has an event loop of its own.

    A signal's handler runs meanwhile; an interrupt (Ctrl-C) ends the question and is raised.
    """
    loop = LoopThread()
    try:
        return loop.run(question)
    finally:
        loop.stop()


class Api:
    """One server's own account of itself, for callers that wait. Every question is a connection of its own.

    Whatever listens on its port, no question raises an error or takes longer than its limit in seconds.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def healthy(self, *, timeout: float = 2.0) -> bool:
        """Whether ``/health`` says 200."""
        return answer_to(self._healthy(timeout))

    def models(self, *, timeout: float = 5.0, api_key: str = "") -> list[str] | None:
        """The ids that it serves; None where it does not say."""
        return answer_to(self._models(timeout, api_key))

    def busy(self, *, timeout: float = 5.0) -> int | None:
        """How many requests run or wait; None where it does not say."""
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
"""What comes of a server that does not answer; ValueError: a key that no header can carry."""
