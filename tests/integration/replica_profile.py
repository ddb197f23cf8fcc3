"""Profiles and registries for tests with several stub servers as the replicas of a role."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.integration.stub_server import MODEL, StubServer
from workflow_composer import ModelOrchestrator
from workflow_composer.backends.replicas.registry import Entry, ServerRegistry
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.metrics.sink import MemorySink

CONTEXT = "The conventions of the house for file formats and tools, which every question stands behind.\n" * 20


def profile(places: Any, folder: Path | None = None, **more: Any) -> StrategyConfig:
    """A local profile with one role, `coder`; one attempt per request unless told otherwise."""
    defaults = {"allow_cloud": False, "task_routing": {"*": "coder"}, "retries": {"attempts": 1}}
    registry = {} if folder is None else {"registry": str(folder)}
    return StrategyConfig(profile_name="p", vllm_endpoints={"coder": places}, **registry, **{**defaults, **more})


def orchestrator(config: StrategyConfig, **more: Any) -> ModelOrchestrator:
    """An orchestrator whose environment names nothing."""
    return ModelOrchestrator(config, metrics=MemorySink(), environ={}, **more)


def entry(server: StubServer, name: str = "coder", **fields: Any) -> Entry:
    """A ready server's entry."""
    defaults = {"role": "coder", "host": server.host, "port": server.port, "model": MODEL, "state": "ready"}
    return Entry(**{"server": name, **defaults, "started": time.time(), "updated": 0.0, **fields})


def publish(folder: Path, server: StubServer, name: str = "coder", **fields: Any) -> Entry:
    """Register a server."""
    return ServerRegistry(folder).publish(entry(server, name, **fields))


def asked(server: StubServer) -> list[str]:
    """The last messages of the chat requests that a server got."""
    requests = [json.loads(r.body) for r in server.requests if r.path.endswith("/chat/completions")]
    return [body["messages"][-1]["content"] for body in requests]
