"""Running commands in this process, over scripted models."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from workflow_composer import ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.cli.main import run
from workflow_composer.cli.state import State
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.host import plugin_host


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class CommandLine:
    """Runs commands over one model, ``small``, that answers by ``script``; ``remote`` takes over where it fails."""

    folder: Path
    capture: Any
    script: tuple[Any, ...] = ()
    remote: tuple[Any, ...] = ("from far away",)
    environ: dict[str, str] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    made: list[FakeBackend] = field(default_factory=list)
    metrics: MemorySink = field(default_factory=MemorySink)
    orchestrators: list[ModelOrchestrator] = field(default_factory=list)
    stdin: Callable[[bytes | None], None] = lambda _: None

    def __call__(self, *arguments: str, stdin: bytes | None = None, real: bool = False) -> Done:
        """Run a command; ``real``: with an orchestrator as the command line itself opens it."""
        self.stdin(stdin)
        state = State(environ=self.environ) if real else State(environ=self.environ, open=self._open)
        code = run(list(arguments), state)
        return Done(code, *self.capture.readouterr())

    def write(self, name: str, *rows: Any) -> str:
        """Write a JSONL file; bytes are written as they are."""
        path = self.folder / name
        path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
        return str(path)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Read a JSONL file."""
        return [json.loads(line) for line in (self.folder / name).read_bytes().splitlines()]

    @hookimpl
    def register_backends(self, register: Any) -> None:
        register("scripted", self._backend)

    def _backend(self, spec: Any, _: Any) -> FakeBackend:
        local = spec.name != "remote"
        backend = FakeBackend(*(self.script if local else self.remote), name=spec.name, local=local)
        self.made.append(backend)
        return backend

    def _open(self, state: State, metrics: Any) -> ModelOrchestrator:
        host = plugin_host(discover=False)
        host.add(self, name="scripted")
        fields = {
            "profile_name": "scripted",
            "models": {
                "small": {"backend": "scripted", "input_price": 1000.0, "output_price": 1000.0},
                "remote": {"backend": "scripted"},
            },
            "task_routing": {"*": "small"},
            "fallback": ["remote"],
            "routers": ["cascading_provider"],
            "retries": {"attempts": 1},
        }
        config = StrategyConfig(**(fields | self.profile))
        self.orchestrators.append(
            ModelOrchestrator(
                config, plugins=host, metrics=metrics or self.metrics, environ=self.environ, log=state.log or sys.stderr
            )
        )
        return self.orchestrators[-1]


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """A command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workflow_composer.support.places.Path.home", lambda: tmp_path / "home")

    def stdin(data: bytes | None) -> None:
        monkeypatch.setattr(sys, "stdin", None if data is None else io.TextIOWrapper(io.BytesIO(data)))

    return CommandLine(tmp_path, capsys, stdin=stdin)
