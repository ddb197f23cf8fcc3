"""The Python that has the clients which people use, and the service as a process for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.service import Service
from tests.paths import ROOT

VARIABLE = "WORKFLOW_COMPOSER_CLIENTS_PYTHON"
"""A Python that has openai, anthropic, langchain-openai, litellm, llm and schemathesis."""


def clients_python() -> str | None:
    """The interpreter with the clients, where one is named and there."""
    path = os.environ.get(VARIABLE)
    return path if path and Path(path).exists() else None


@contextmanager
def serving(
    folder: Path,
    strategy: str,
    *options: str,
    limits: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str]]:
    """The service with keys; its URL, and a key with these limits (options of `keys new`)."""
    keys = folder / "keys.json"
    program = [sys.executable, "-m", "workflow_composer"]
    made = subprocess.run(
        [*program, "keys", "new", "test", "--file", keys, *limits], capture_output=True, text=True, check=True, cwd=ROOT
    )
    with Service(strategy, "--keys", str(keys), *options, folder=folder, environ=environ) as service:
        yield service.url, made.stdout.strip()


def call(client: str, url: str, key: str, model: str, vectors: str) -> dict[str, Any]:
    """What a client's calls gave."""
    script = str(ROOT / "tests" / "integration" / "client_calls.py")
    command = [clients_python() or "python", script, client, url, key, model, vectors]
    plain = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=plain, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def llm_command(folder: Path, url: str, key: str, model: str, *arguments: str) -> str:
    """What simonw's `llm` prints, given the service as one more model."""
    listed = f"- model_id: served\n  model_name: {model}\n  api_base: {url}/v1\n  api_key_name: served\n"
    (folder / "extra-openai-models.yaml").write_text(listed)
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "LLM_USER_PATH": str(folder)}
    command = [str(Path(clients_python() or "python").parent / "llm"), "-m", "served", "--key", key, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environ, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def curl(url: str, key: str, body: Mapping[str, Any], *options: str) -> tuple[dict[str, str], str]:
    """What curl gets: headers and body."""
    program = shutil.which("curl")
    assert program is not None
    headers = ("-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json")
    command = [program, "-sS", "-i", "-N", f"{url}/v1/chat/completions", *headers, "-d", json.dumps(body), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    head, _, rest = done.stdout.partition("\n\n" if "\r\n\r\n" not in done.stdout else "\r\n\r\n")
    pairs = (line.partition(": ") for line in head.splitlines()[1:])
    return {name.lower(): value for name, _, value in pairs}, rest
