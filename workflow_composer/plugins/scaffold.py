"""The files of a new plugin: an installable package with one part and a test that passes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from workflow_composer.errors import InputError

Kind = Literal["router", "backend", "policy", "step", "command"]
KINDS: tuple[Kind, ...] = ("router", "backend", "policy", "step", "command")

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "0.1.0"
description = "A {kind} for workflow_composer."
requires-python = ">=3.11"
dependencies = ["workflow-composer"]

[project.entry-points.workflow_composer]
{name} = "{module}"
"""

_README = """\
# {name}

A {kind} for workflow_composer. Its test passes as it stands; install it into the environment of workflow_composer:

```console
python -m pytest
pip install --no-deps .
python -m workflow_composer plugins
```

{use}
"""

_USE: Mapping[Kind, str] = {
    "router": """In a profile:

```yaml
routers:
  - {part}: {{short: small, long: large, characters: 200}}
  - provider
```
""",
    "backend": """In a profile:

```yaml
models:
  mine: {{backend: {part}, base_url: "http://127.0.0.1:8000", model: echo}}
```
""",
    "policy": "`python -m workflow_composer execute --policies {part} ...` plans a data set with it.\n",
    "step": """In a workflow's file:

```yaml
steps:
  words:
    {part}: {{least: 4}}
    with: {{text: abstract}}
```
""",
    "command": "`python -m workflow_composer {name}` runs it.\n",
}

_ROUTER = '''\
"""A router that decides by the length of the question."""

from __future__ import annotations

from pydantic import Field

from workflow_composer import LLMRequest, Plan, hookimpl
from workflow_composer.routers import Router, RouterSettings
from workflow_composer.types import ResourceStatus


class {cls}Settings(RouterSettings):
    """What a profile may set; checked when it loads."""

    short: str = Field("small", description="the model, tier or role for short questions")
    long: str = Field("large", description="the model, tier or role for long questions")
    characters: int = Field(200, ge=1, description="maximum length of a short question in characters")


class {cls}(Router):
    """Sends short questions to one model and long ones to another."""

    name = "{part}"
    Settings = {cls}Settings

    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return a plan, or None to leave the request to the next router. Calls no model."""
        if request.model is not None:  # somebody has decided already
            return None
        is_long = request.query_length > self.settings.characters
        target = self.settings.long if is_long else self.settings.short
        usable = self.usable(self.context.candidates(target)[:1], request, resources)
        return self.single_tier(*usable, f"{{request.query_length}} characters are {{'long' if is_long else 'short'}}")


@hookimpl
def register_routers(register):
    """Offer the router to profiles."""
    register("{part}", {cls})
'''

_ROUTER_TEST = """\
from {module} import {cls}, register_routers
from workflow_composer import hookimpl
from workflow_composer.testing import ask, check_router


class Plugin:
    register_routers = staticmethod(hookimpl(register_routers))


def test_it_keeps_to_the_interface():
    check_router({cls})


def test_long_questions_go_to_the_large_model():
    profile = {{"routers": [{{"{part}": {{"characters": 10}}}}]}}
    assert ask(Plugin(), "short", profile=profile).text == "small answers"
    assert ask(Plugin(), "a much longer question", profile=profile).text == "large answers"
"""

_BACKEND = '''\
"""A backend for a server that answers POST /answer {{"text": ...}} with {{"text": ...}}."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence

from workflow_composer import hookimpl
from workflow_composer.backends import BackendContext, Client
from workflow_composer.errors import InvalidAnswer, ServerUnreachable, Unsupported
from workflow_composer.types import Chunk, Completion, Embeddings, EndpointStatus, ModelCall, Sample, Usage, texts


class {cls}:
    """One model of the server. All bytes go through ``context.egress``, which enforces where the profile lets data go."""

    local = True

    def __init__(self, spec, context: BackendContext) -> None:
        self.name = spec.name
        self._url = f"{{(spec.base_url or '').rstrip('/')}}/answer"
        self._client = Client(context.egress)

    async def complete(self, call: ModelCall) -> Completion:
        """Ask for one answer after the other."""
        samples = tuple([Sample(await self._ask(call), "stop") for _ in range(call.samples)])
        return Completion(samples=samples, usage=Usage(estimated=True), model=self.name)

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """The server cannot stream: its answer is one piece."""
        yield Chunk(text=await self._ask(call), finish_reason="stop", model=self.name)

    async def embed(self, texts: Sequence[str], *, timeout: float, dimensions: int | None = None) -> Embeddings:
        """The server has no embeddings."""
        raise Unsupported(f"{{self.name}} has no embeddings")

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Return whether the server answers."""
        try:
            await self._client.ask(self._url, b'{{"text": ""}}', connect=timeout)
        except Exception as error:
            return EndpointStatus(name=self.name, url=self._url, healthy=False, detail=str(error))
        return EndpointStatus(name=self.name, url=self._url, healthy=True, models=(self.name,))

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def _ask(self, call: ModelCall) -> str:
        text = " ".join(texts(call.request.messages[-1])) if call.request.messages else ""
        try:
            answer = await self._client.ask(self._url, json.dumps({{"text": text}}).encode(), connect=call.timeouts.connect)
        except OSError as error:
            raise ServerUnreachable(f"{{self.name}} cannot be reached: {{error}}") from error
        try:
            return str(json.loads(answer.body)["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidAnswer(f"{{self.name}} answered {{answer.status}}, and no text") from error


@hookimpl
def register_backends(register):
    """Offer the backend to profiles."""
    register("{part}", {cls})
'''

_BACKEND_TEST = """\
from {module} import {cls}
from workflow_composer import StrategyConfig
from workflow_composer.backends import BackendContext, EgressPolicy
from workflow_composer.testing import RecordedServer, check_backend


def test_it_keeps_to_the_interface():
    with RecordedServer({{"/answer": {{"text": "42"}}}}) as server:

        def make():
            models = {{"mine": {{"backend": "vllm", "base_url": server.url, "model": "echo"}}}}
            config = StrategyConfig(profile_name="test", allow_cloud=False, models=models)
            return {cls}(config.models["mine"], BackendContext(config, EgressPolicy.of(config), {{}}))

        check_backend(make)
        assert server.received[0].json() == {{"text": "What is 30 + 12?"}}
"""

_POLICY = '''\
"""A batch policy: short questions to the cheapest tier, long ones to the strongest."""

from __future__ import annotations

from workflow_composer import hookimpl


class {cls}:
    """Plans whole columns at once, and calls no model."""

    def routes(self, questions, context):
        """Return one routing string per question, in order."""
        cheapest, strongest = context.tiers[0].name, context.tiers[-1].name
        return [cheapest if length < 200 else strongest for length in questions.lengths]


@hookimpl
def register_batch_strategies(register):
    """Offer the policy to ``execute --policies``."""
    register("{part}", {cls})
'''

_POLICY_TEST = """\
from {module} import {cls}
from workflow_composer.testing import check_policy


def test_it_keeps_to_the_interface():
    check_policy({cls})
"""

_STEP = '''\
"""A kind of workflow step that lists the long words of a text."""

from __future__ import annotations

from workflow_composer import hookimpl


def {module}(settings: dict, text: str) -> list[str]:
    """Return the words of at least so many letters. Each call has a process of its own, and no network."""
    return [word for word in text.split() if len(word) >= settings["least"]]


def check(settings: dict, given: tuple[str, ...]) -> dict[str, str] | None:
    """Say what is wrong with a step of a file, by the keys of its settings; None: nothing."""
    least = settings.get("least") if isinstance(settings, dict) else None
    if isinstance(least, bool) or not isinstance(least, int) or least < 1:
        return {{"least": f"found {{least!r}}; allowed: a whole number of at least 1"}}
    return None


@hookimpl
def register_steps(register):
    """Offer the kind of step to workflows."""
    register("{part}", {module}, check=check, answer=["text"])
'''

_STEP_TEST = """\
from {module} import register_steps
from workflow_composer import hookimpl
from workflow_composer.testing import check_step, orchestrator_with
from workflow_composer.workflows.building import WorkflowBuilder


class Plugin:
    register_steps = staticmethod(hookimpl(register_steps))


def test_it_keeps_to_the_interface():
    assert check_step(Plugin(), "{part}", {{"least": 4}}, text="the whole genome") == ["whole", "genome"]


def test_a_workflow_has_such_a_step():
    flow = WorkflowBuilder("words", inputs={{"abstract": "text"}})
    flow.step("words", "{part}", {{"least": 4}}, given={{"text": "abstract"}})
    flow.output(words="words")
    with orchestrator_with(Plugin()) as orchestrator:
        done = orchestrator.run_workflow(flow, [{{"abstract": "the whole genome"}}])
    assert [row["words"] for row in done] == [["whole", "genome"]]
"""

_COMMAND = '''\
"""A command that says how many models the active profile has."""

from __future__ import annotations

import click

from workflow_composer import hookimpl


@click.command("{name}")
@click.option("-s", "--strategy", default="development", show_default=True, help="The profile.")
def command(strategy):
    """Count the models of a profile."""
    from workflow_composer import StrategyConfig

    click.echo(f"{{len(StrategyConfig.load(strategy).models)}} models")


@hookimpl
def register_commands(register):
    """Offer the command to the command line."""
    register(command)
'''

_COMMAND_TEST = """\
from click.testing import CliRunner

from {module} import command


def test_it_counts_models():
    done = CliRunner().invoke(command, ["-s", "development"])
    assert (done.exit_code, done.output) == (0, "3 models\\n")
"""

_PARTS: Mapping[Kind, tuple[str, str]] = {
    "router": (_ROUTER, _ROUTER_TEST),
    "backend": (_BACKEND, _BACKEND_TEST),
    "policy": (_POLICY, _POLICY_TEST),
    "step": (_STEP, _STEP_TEST),
    "command": (_COMMAND, _COMMAND_TEST),
}


def files_of(name: str, kind: Kind) -> dict[str, str]:
    """Return the texts of a new plugin by path, relative to its folder ``name``. Raises `InputError` for a bad name.

    >>> sorted(files_of("my-router", "router"))
    ['README.md', 'my_router/__init__.py', 'pyproject.toml', 'tests/test_my_router.py']
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of a package", hint="use small letters, digits and hyphens: my-router")
    module = name.replace("-", "_")
    words = {"name": name, "kind": kind, "module": module, "part": module}
    words["cls"] = "".join(part.capitalize() for part in name.split("-"))
    code, test = _PARTS[kind]
    return {
        "pyproject.toml": _PYPROJECT.format(**words),
        "README.md": _README.format(**words, use=_USE[kind].format(**words)).rstrip() + "\n",
        f"{module}/__init__.py": code.format(**words),
        f"tests/test_{module}.py": test.format(**words),
    }


def write_files(name: str, kind: Kind, folder: Path) -> list[Path]:
    """Write a new plugin into ``folder / name`` and return its files. Raises `InputError` if something is there already."""
    home, texts = folder / name, files_of(name, kind)
    if home.exists():
        raise InputError(f"{home} exists", hint="choose another name, or remove it")
    written = []
    for place, text in texts.items():
        path = home / place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written
