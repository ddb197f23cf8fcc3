"""The frame of the suite of clients: who they are, their snippets in docs/clients.md, and the table written there.

A client is run as its section of docs/clients.md says: each file of the section is written (``~`` is a new home, any other
path a new folder), then the commands of its console block run in that folder, with nothing changed but the address of the
service and the key. Whatever else is named in the environment is not the client's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import VARIABLE, clients_python, serving
from tests.integration.unmodified.standin import TEXT, ModelServer, Script, plain, schema_of
from tests.paths import ROOT

PAGE = ROOT / "docs" / "clients.md"
ADDRESS, KEY = "http://localhost:8080", "wfc-..."
"""What stands for the service's address and for the key in the snippets."""

WRITE = "WORKFLOW_COMPOSER_WRITE_CLIENTS"
"""Set in the environment: the suite writes the rows of docs/clients.md instead of comparing them."""

OPENED, CLOSED = "<!-- clients: written by the suite -->", "<!-- clients: end -->"
FILE = re.compile(r"^`([^`\n]+)`:\n\n?```\w*\n(.*?)^```$", re.S | re.M)
COMMANDS = re.compile(r"^```console\n(.*?)^```$", re.S | re.M)
KNOWN_NAMES = ("gpt-5.5", "gpt-6-sol")
"""Names by which Codex sends other forms: a custom tool for patches; tools in the conversation, in namespaces."""

PATIENCE = 600.0
"""Seconds that a client may take; most take a few, those that load a tokenizer and torch up to a minute."""


@dataclass(frozen=True)
class Client:
    """One client: its heading in docs/clients.md, the folder of its environment, and its package.

    An environment is a folder beside the one of ``WORKFLOW_COMPOSER_CLIENTS_PYTHON``: a Python's (``bin``) or npm's
    (``node_modules``). Several clients may share one.
    """

    name: str
    environment: str
    package: str

    @property
    def home(self) -> Path | None:
        """Its environment; None if it is not installed."""
        python = clients_python()
        home = Path(python).absolute().parents[2] / self.environment if python else None
        return home if home and self.version_in(home) else None

    def version_in(self, home: Path) -> str | None:
        """The installed version; None if there is none."""
        manifest = home / "node_modules" / self.package / "package.json"
        if manifest.is_file():
            return json.loads(manifest.read_text())["version"]
        wanted = re.sub(r"[-_.]+", "-", self.package).lower()
        for found in home.glob("lib/python3*/site-packages/*.dist-info"):
            name, _, version = found.name.removesuffix(".dist-info").rpartition("-")
            if re.sub(r"[-_.]+", "-", name).lower() == wanted:
                return version
        return None

    @property
    def programs(self) -> str:
        """The folders of its programs, for ``PATH``."""
        assert self.home is not None
        return f"{self.home / 'bin'}:{self.home / 'node_modules' / '.bin'}"


CODEX = Client("Codex CLI", "codex", "@openai/codex")
OPENCODE = Client("opencode", "opencode", "opencode-ai")
CLAUDE = Client("Claude Code", "claude", "@anthropic-ai/claude-code")
AIDER = Client("aider", "aider", "aider-chat")
LLM = Client("llm", "main", "llm")

CODING = (CODEX, OPENCODE, CLAUDE, AIDER, LLM)
"""Programs that edit files and run commands, and simonw's command."""

OPENAI = Client("OpenAI's client", "main", "openai")
ANTHROPIC = Client("Anthropic's client", "main", "anthropic")
LITELLM = Client("LiteLLM", "main", "litellm")
LANGCHAIN = Client("LangChain", "main", "langchain-openai")
PYDANTIC_AI = Client("Pydantic AI", "main", "pydantic-ai-slim")
AGENTS = Client("OpenAI Agents", "main", "openai-agents")
INSTRUCTOR = Client("instructor", "evaluation", "instructor")
LLAMA_INDEX = Client("LlamaIndex", "frameworks", "llama-index-llms-openai-like")
DSPY = Client("DSPy", "frameworks", "dspy")
CREWAI = Client("CrewAI", "frameworks", "crewai")
SEMANTIC_KERNEL = Client("Semantic Kernel", "frameworks", "semantic-kernel")
INSPECT = Client("Inspect", "main", "inspect-ai")
LM_EVAL = Client("lm-eval", "evaluation", "lm-eval")
GUIDELLM = Client("GuideLLM", "evaluation", "guidellm")

SCRIPTED = (
    *(OPENAI, ANTHROPIC, LITELLM, LANGCHAIN, PYDANTIC_AI, AGENTS, INSTRUCTOR, LLAMA_INDEX, DSPY, CREWAI, SEMANTIC_KERNEL),
)
"""Libraries whose snippet is a Python program that prints what it got, line by line."""

LIBRARIES = (*SCRIPTED, INSPECT, LM_EVAL, GUIDELLM)
"""Libraries for Python, and what evaluates models with them."""

CLIENTS = (*CODING, *LIBRARIES)


def here(client: Client) -> Client:
    """Skip the test where the client is not installed."""
    if client.home is None:
        pytest.skip(f"{client.package} is not installed beside the clients of {VARIABLE}")
    return client


def section(name: str, page: str | None = None) -> str:
    """The text below a heading of docs/clients.md."""
    text = PAGE.read_text() if page is None else page
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    assert found is not None, f"docs/clients.md has no section {name}"
    return found[1]


def files_of(text: str) -> dict[str, str]:
    """The files of a section: path -> what they hold."""
    return {path: body for path, body in FILE.findall(text) if not path.startswith("$")}


def commands_of(text: str) -> str:
    """The commands of a section, as one script; lines without ``$`` continue the command or are its output."""
    lines, going = [], False
    for line in "".join(COMMANDS.findall(text)).splitlines():
        if line.startswith("$ ") or going:
            lines.append(line.removeprefix("$ "))
            going = line.endswith("\\")
    return "\n".join(lines)


@dataclass(frozen=True)
class Printed:
    """What the commands of a section printed, and the folder that they ran in."""

    out: str
    err: str
    code: int
    folder: Path

    def said(self, what: str) -> str:
        """What stands behind ``what:`` at the beginning of a line, or behind a box that was drawn there."""
        found = re.search(rf"(?:^|╯){re.escape(what)}: (.*)$", self.out, re.M)
        assert found is not None, f"the snippet printed no line '{what}: ...'\n{self.out[-2000:]}\n{self.err[-3000:]}"
        return found[1]


@dataclass(frozen=True)
class Stage:
    """The service in front of the stand-in, and a key."""

    server: ModelServer
    url: str
    key: str
    folder: Path

    def run(
        self, client: Client, *, files: Mapping[str, str | bytes] | None = None, model: str = "auto", **environ: str
    ) -> Printed:
        """Do what the client's section says, in a new folder that has ``files``; ``model`` where it says auto."""
        text = section(client.name).replace('"auto"', f'"{model}"')
        home, work = self.folder / "home", self.folder / "work"
        written: dict[str, str | bytes] = {**(files or {}), **files_of(text)}
        for path, body in written.items():
            file = home / path[2:] if path.startswith("~/") else work / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body if isinstance(body, bytes) else self.filled(body).encode())
        work.mkdir(exist_ok=True)
        away = "http://127.0.0.1:9"  # nobody listens there: what a client tells others about itself ends here
        plain_environ = {
            "PATH": f"{client.programs}:{os.environ['PATH']}",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "HTTP_PROXY": away,
            "HTTPS_PROXY": away,
            "NO_PROXY": "127.0.0.1,localhost",
            **environ,
        }
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", self.filled(commands_of(text))],
            cwd=work,
            env=plain_environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Printed(done.stdout, done.stderr, done.returncode, work)

    def filled(self, text: str) -> str:
        """A snippet with the address and the key."""
        return text.replace(ADDRESS, self.url).replace(KEY, self.key)

    def follows(self, *turns: Any, otherwise: str = TEXT, thoughts: str = "") -> None:
        """Let the model do this, turn by turn, with `Script`'s options."""
        self.server.follows = Script(turns, otherwise, thoughts)

    def proven(self) -> set[str]:
        """What the stand-in saw of what a client can do: chats, streams, results of tools, forms of answers."""
        chats = self.server.seen.chats
        tests = {
            "chat": any(not chat.get("stream") for chat in chats),
            "stream": any(chat.get("stream") for chat in chats),
            "tool": any(message["role"] == "tool" for chat in chats for message in chat["messages"]),
            "structured output": any(schema_of(chat) is not None for chat in chats),
        }
        return {name for name, holds in tests.items() if holds}

    def answered(self) -> list[tuple[dict[str, Any], str]]:
        """The arguments of each call and what its tool returned, in the conversation that got farthest."""
        longest = max(self.server.seen.chats, key=lambda chat: len(chat["messages"]))["messages"]
        calls = {call["id"]: call["function"] for message in longest for call in message.get("tool_calls") or ()}
        tools = [message for message in longest if message["role"] == "tool"]
        return [(json.loads(calls[one["tool_call_id"]]["arguments"]), plain(one)) for one in tools]

    def results(self) -> list[str]:
        """What tools returned in that conversation."""
        return [text for _, text in self.answered()]


def profile(server: ModelServer) -> dict[str, Any]:
    """What the suite serves: `small` for chats, `embed` for vectors, votes of `small`, and names that clients know."""
    model = {"backend": "vllm", "base_url": server.url}
    chats = {name: {**model, "model": "served"} for name in ("small", *KNOWN_NAMES)}
    return {
        "profile_name": "ours",
        "allow_cloud": False,
        "models": {**chats, "embed": {**model, "model": "embedded"}},
        "task_routing": {"*": "small"},
        "routers": ["cascade", "cascading_provider"],
    }


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """The service over the stand-in; afterwards nothing may have been refused."""
    with ModelServer(models=("served", "embedded")) as server:
        (folder / "ours.yaml").write_text(json.dumps(profile(server)))
        with serving(folder, str(folder / "ours.yaml")) as (url, key):
            yield Stage(server, url, key, folder)
        assert not server.seen.refused, server.seen.refused


def row(client: Client, finishes: Sequence[str]) -> str:
    """A client's row of the table."""
    assert client.home is not None
    anchor = re.sub(r"[^\w -]", "", client.name).lower().replace(" ", "-")
    version = client.version_in(client.home)
    return f"| [{client.name}](#{anchor}) | {client.package} {version} | {', '.join(finishes)} |"


def rows(page: str) -> dict[str, str]:
    """The rows of the table: client -> row."""
    table = page.split(OPENED, 1)[1].split(CLOSED, 1)[0]
    return {found[1]: found[0] for found in re.finditer(r"^\| \[([^\]]+)\]\(.*$", table, re.M)}


def entered(client: Client, *finishes: str) -> None:
    """Compare the client's row of docs/clients.md with what it has finished, or write it."""
    made = row(client, finishes)
    page = PAGE.read_text()
    if not os.environ.get(WRITE):
        assert rows(page).get(client.name) == made, f"docs/clients.md: run the suite with {WRITE}=1"
        return
    found = {**rows(page), client.name: made}
    lines = "\n".join(found[one.name] for one in CLIENTS if one.name in found)
    before, after = page.split(OPENED, 1)[0], page.split(CLOSED, 1)[1]
    table = f"\n\n| client | version | finishes |\n|---|---|---|\n{lines}\n\n"
    PAGE.write_text(f"{before}{OPENED}{table}{CLOSED}{after}")
