"""Request fields are typed: mypy and pyright reject what `LLMRequest` would not take, and know what a schema gives."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from tests.paths import ROOT
from workflow_composer import LLMRequest, ModelOrchestrator
from workflow_composer.support.typed_fields import (
    BatchFields,
    EmbeddingFields,
    EmbedFields,
    ManyFields,
    OwnFields,
    RequestFields,
    RowFields,
)

PROGRAM = """
from pydantic import BaseModel
from workflow_composer import LLMRequest, ModelOrchestrator, RequestFields

class Gene(BaseModel):
    symbol: str

orchestrator = ModelOrchestrator("development")
orchestrator.generate("q", temperatur=0.2)  # wrong
orchestrator.generate("q", temperature="hot")  # wrong
orchestrator.stream("q", max_token=5)  # wrong
orchestrator.generate_many(["q"], temperatur=0.2)  # wrong
orchestrator.generate_many(["q"], journal=5)  # wrong
orchestrator.run_batch(["q"], journal="j", sytem="x")  # wrong
orchestrator.run_batch(["q"])  # wrong
orchestrator.embed(["q"], dimension=5)  # wrong
orchestrator.plan("q", modle="small")  # wrong
LLMRequest.of("q", temperatur=0.2)  # wrong

async def awaited() -> None:
    await orchestrator.agenerate("q", temperatur=0.2)  # wrong
    async for _ in orchestrator.astream("q", temperatur=0.2):  # wrong
        pass
    await orchestrator.agenerate_many(["q"], temperatur=0.2)  # wrong

orchestrator.generate("q", system="s", temperature=0.2, stop=["a"], tools=[{"type": "function"}], context="c", n=2)
orchestrator.generate([{"role": "user", "content": "q"}], form=["yes", "no"], budget=0.1, seed=None)
orchestrator.stream("q", model="small")
orchestrator.generate_many(["q"], progress=True, concurrency=3, journal="j.jsonl", budget={"run": 1.0}, max_tokens=5)
orchestrator.run_batch(["q"], journal="j.jsonl", system="s", progress=lambda tally: None)
orchestrator.embed(["q"], dimensions=5, model="m")
own: RequestFields = {"temperature": 0.2}
orchestrator.generate("q", **own)

response = orchestrator.generate("q", schema=Gene)
if response.value is not None:
    response.value.symbl  # wrong
    symbol: str = response.value.symbol
rows = orchestrator.generate_many(["q"], schema=list[Gene])
if rows[0].value is not None:
    rows[0].value[0].symbl  # wrong
orchestrator.generate("q", schema=["yes", "no"])
orchestrator.generate("q", schema={"name": "text"})
plain = orchestrator.generate("q").value
"""


def wrong_lines():
    """The lines in which a type checker should find something."""
    return {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")}


def found_by(checker, folder, *options):
    """The lines in which it finds errors; the rest of what it says, if there is anything else."""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", checker, *options, "program.py"]
    environ = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=500, env=environ)
    errors = re.findall(r"program\.py:(\d+)(?::\d+)?(?: -|:) error", done.stdout)
    assert errors, done.stdout + done.stderr
    return {int(number) for number in errors}, done.stdout


@pytest.mark.slow
def test_mypy_rejects_misspelt_and_mistyped_fields(tmp_path):
    """And nothing else, in its strict mode; it names the field that was meant."""
    pytest.importorskip("mypy", reason="mypy is not installed: pip install -e '.[dev]'")
    options = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"))
    found, said = found_by("mypy", tmp_path, *options)
    assert found == wrong_lines(), said
    assert 'did you mean "temperature"' in said


@pytest.mark.slow
def test_pyright_rejects_misspelt_and_mistyped_fields(tmp_path):
    """And nothing else."""
    pytest.importorskip("pyright", reason="pyright is not installed: pip install -e '.[dev]'")
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}"], "pythonVersion": "3.11"}}')
    found, said = found_by("pyright", tmp_path, "--pythonpath", sys.executable)
    assert found == wrong_lines(), said


def test_the_typed_fields_are_those_of_a_request():
    """Each once; a new field of `LLMRequest` belongs here, too."""
    own = {field.name for field in fields(LLMRequest) if field.init} - {"messages"}
    assert set(get_type_hints(OwnFields)) == own
    assert set(RequestFields.__annotations__) == own | {"system"}
    assert set(RowFields.__annotations__) == (own | {"system"}) - {"budget"}
    assert set(EmbeddingFields.__annotations__) <= own


@pytest.mark.parametrize(
    ("method", "typed"),
    [("agenerate_many", ManyFields), ("arun_batch", BatchFields), ("aembed", EmbedFields)],
)
def test_the_typed_options_are_the_methods_own(method, typed):
    """With those of its own parameters that its synchronous form takes together."""
    own = {
        name
        for name, parameter in inspect.signature(getattr(ModelOrchestrator, method)).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "schema"
    }
    assert own <= set(typed.__annotations__)


@pytest.mark.parametrize("name", ["generate", "stream", "embed", "run_batch", "generate_many", "plan"])
def test_a_misspelt_field_is_refused_at_run_time_too(name):
    """Where no type checker is asked."""
    arguments: dict[str, Any] = {"journal": "never.jsonl"} if name == "run_batch" else {}
    with ModelOrchestrator("development", environ={"WORKFLOW_COMPOSER_METRICS": "off"}) as orchestrator:
        method = getattr(orchestrator, name)
        with pytest.raises(TypeError, match="temperatur"):
            list(method(["q"] if name in {"embed", "run_batch", "generate_many"} else "q", temperatur=0.2, **arguments))
