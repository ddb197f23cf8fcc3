"""Run by `test_from_the_plan` in a network of its own: the blocks of its page, with servers at the plan's ports.

Prints a report as JSON. Usage: python -m tests.integration.plan_network DIRECTORY (as root, in fresh namespaces).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.fake_vllm import make_fake_vllm
from tests.integration.stub_server import Reply, Request, StubServer
from tests.integration.test_readme import matches
from tests.paths import ROOT

MODELS = {
    8001: "Qwen/Qwen2.5-7B-Instruct-AWQ",
    8002: "Qwen/Qwen2.5-Coder-7B-Instruct-AWQ",
    8003: "Qwen/Qwen2.5-Math-7B-Instruct",
    8004: "BAAI/bge-m3",
}


class Server(StubServer):
    """A server as the fleet starts them: healthy, with its model under both names, for chats and completions."""

    def _reply(self, request: Request) -> Reply:
        if request.path == "/health":
            return Reply()
        if request.path.endswith("/v1/completions"):
            if request.json["model"] not in self.models:
                return Reply.error(404, "no such model")
            return Reply.of({"object": "text_completion", "model": request.json["model"], "choices": [{"text": " there"}]})
        return super()._reply(request)


def steps(page: str) -> list[tuple[str, str, str]]:
    """The blocks in their order: kind, command and what it should print."""
    found = []
    for kind, text in re.findall(r"^```(console|python)\n(.*?)^```$", page, re.S | re.M):
        if kind == "python":
            found.append((kind, text, "..."))
            continue
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, expected = part.partition("\n")
            while command.endswith("\\"):
                line, _, expected = expected.partition("\n")
                command = command[:-1] + line.strip()
            found.append((kind, command, expected.strip("\n")))
    return found


def environment(folder: Path) -> dict[str, str]:
    """The variables of a person who has nothing set; a `sbatch` that checks its script, and a vLLM that can be found."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text('#!/bin/bash\nbash -n "$1" && [ -n "$2" ] && echo "Submitted batch job 4711"\n')
    (tools / "sbatch").chmod(0o755)
    vllm = make_fake_vllm(folder / "vllm")
    return {
        "PATH": f"{tools}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(folder),
        "PYTHONPATH": f"{ROOT}:{vllm}",
        "WORKFLOW_COMPOSER_PYTHON": sys.executable,
        "WORKFLOW_COMPOSER_VLLM_PYTHON": sys.executable,
        "PYTEST_ADDOPTS": "--collect-only -q -p no:cacheprovider",
        "TERM": "dumb",
    }


def run(kind: str, command: str, expected: str, environ: dict[str, str]) -> dict[str, Any]:
    """Run a block; ``trouble`` says what is not as the page has it."""
    words = [sys.executable, "-c", command] if kind == "python" else ["bash", "-c", command]
    done = subprocess.run(
        words, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600
    )
    trouble = ""
    if done.returncode:
        trouble = f"exit code {done.returncode}: {done.stderr[-2000:]}"
    elif not matches(expected, done.stdout):
        trouble = f"expected {expected!r}, printed {done.stdout[-2000:]!r}"
    return {"kind": kind, "command": command, "printed": done.stdout, "trouble": trouble}


def main(folder: Path) -> None:
    """Start the servers, run every block, print the report."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    environ = environment(folder)
    with contextlib.ExitStack() as stack:
        for port, model in MODELS.items():
            server = stack.enter_context(Server(port=port))
            server.models = [model, model.rpartition("/")[2]]
        page = (ROOT / "docs" / "from-the-plan.md").read_text(encoding="utf-8")
        report = [run(*step, environ) for step in steps(page)]
    print(json.dumps(report))


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]))
