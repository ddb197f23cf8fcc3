"""The shipped checkpoints say the same in mistral.rs, vLLM and transformers.

Set WORKFLOW_COMPOSER_AGREEMENT_PROBLEMS to compare more of the thousand problems than the first 200.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.vllm_server import VARIABLE, vllm_python
from tests.paths import CHECKPOINTS
from workflow_composer.backends.embedded.backend import EmbeddedBackend
from workflow_composer.config.strategy import ModelSpec
from workflow_composer.types import LLMRequest, ModelCall

COUNT = int(os.environ.get("WORKFLOW_COMPOSER_AGREEMENT_PROBLEMS", "200"))
CHILD = Path(__file__).parent / "engine_answers.py"

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.embedded,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"set {VARIABLE} to a Python that has vLLM"),
    pytest.mark.skipif(importlib.util.find_spec("mistralrs") is None, reason="pip install '.[embedded]'"),
]


async def embedded_answers(model):
    """Greedy texts of the engine in this process."""
    lines = (CHECKPOINTS / "problems.jsonl").read_text().splitlines()[:COUNT]
    backend = EmbeddedBackend(ModelSpec(name=model, backend="embedded", path=model), None)
    calls = [ModelCall(LLMRequest.of(json.loads(line)["question"], max_tokens=120)) for line in lines]
    completions = await asyncio.gather(*map(backend.complete, calls))
    await backend.close()
    return [completion.samples[0].text for completion in completions]


def other_answers(engine, model, output):
    """Greedy texts of another engine, in its own Python."""
    arguments = [engine, CHECKPOINTS / model, CHECKPOINTS / "problems.jsonl", COUNT, output]
    command = [vllm_python(), str(CHILD), *map(str, arguments)]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd=output.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
@pytest.mark.parametrize("model", ["small", "medium", "large"])
async def test_greedy_answers_agree(model, engine, tmp_path):
    """At least 99 of 100 greedy answers are the same, character for character."""
    own = await embedded_answers(model)
    other = await asyncio.to_thread(other_answers, engine, model, tmp_path / "answers.json")
    assert len(own) == len(other) == COUNT
    different = [(a, b) for a, b in zip(own, other, strict=True) if a.strip() != b.strip()]
    print(f"{model}: {engine} agrees on {COUNT - len(different)} of {COUNT}")
    assert len(different) <= COUNT // 100, different[:3]
