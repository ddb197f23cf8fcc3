"""What is loaded, and when: importing the package or asking for help must stay quick, wherever it is installed.

Times depend on the machine; what they come from, the modules, does not. A child Python tells what it has loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.integration.stub_server import StubServer
from tests.unit.metrics.examples import metric

LIST = "; import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
RUN = "from workflow_composer.cli.main import run; run({arguments!r})"

HEAVY = {
    "httptools",
    "httpx2",
    "jinja2",
    "mistralrs",
    "msgspec",
    "numpy",
    "openai",
    "pandas",
    "pluggy",
    "pydantic",
    "ray",
    "requests",
    "rich",
    "structlog",
}
HEAVY |= {"tokenizers", "torch", "transformers", "vllm", "yaml"}


def loaded_by(code):
    """The modules outside the standard library that a fresh Python has loaded after ``code``."""
    done = subprocess.run([sys.executable, "-c", code + LIST], capture_output=True, text=True, check=True)
    return {
        name for name in json.loads(done.stdout.splitlines()[-1]) if name.partition(".")[0] not in sys.stdlib_module_names
    }


@pytest.fixture(scope="module")
def at_start():
    """What Python itself has loaded (path files of the environment)."""
    return loaded_by("pass")


def ours(modules):
    """The package's own modules, without its name."""
    return {name.removeprefix("workflow_composer.") for name in modules if name.startswith("workflow_composer.")}


def foreign(modules):
    """Distributions' top-level modules."""
    return {name.partition(".")[0] for name in modules} - {"workflow_composer"}


def test_importing_the_package_loads_nothing_else(at_start):
    """Not one module of its own or of anyone else's."""
    assert loaded_by("import workflow_composer") - at_start == {"workflow_composer"}


def test_help_loads_the_commands_table_only(at_start):
    """No command, no profile, no plugin machinery; of others only click."""
    found = loaded_by(RUN.format(arguments=["--help"])) - at_start

    assert ours(found) == {"cli", "cli.group", "cli.interrupt", "cli.main", "cli.options", "cli.state", "errors"}
    assert foreign(found) <= {"click", "colorama"}


COMMANDS = ["generate", "record", "calibrate", "certificate", "feedback", "route", "status", "strategies", "plugins"]
COMMANDS += ["metrics", "contexts", "fleet", "var", "ask", "models", "doctor", "workflow"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_that_command_only(at_start, name):
    """And nothing heavy."""
    found = loaded_by(RUN.format(arguments=[name, "--help"])) - at_start
    homes = {
        name: f"cli.{name}.group" if name in {"fleet", "var", "workflow"} else f"cli.commands.{name}" for name in COMMANDS
    }
    assert {command for command in COMMANDS if homes[command] in ours(found)} == {name}
    assert not foreign(found) & HEAVY


def test_metrics_need_no_orchestrator(at_start, tmp_path):
    """They can be read where nothing else is set up."""
    path = tmp_path / "m.jsonl"
    path.write_bytes(metric().to_json())
    found = loaded_by(RUN.format(arguments=["metrics", "--file", str(path)])) - at_start

    assert "orchestrator" not in ours(found)
    assert not foreign(found) & HEAVY


@pytest.mark.parametrize("name", ["LLMRequest", "Plan", "Tier"])
def test_the_values_load_nothing_heavy(at_start, name):
    """A plugin that only makes plans pays for plans only."""
    found = loaded_by(f"from workflow_composer import {name}") - at_start

    values = {"types", "usage", "support", "support.fast_dataclass", "support.lazy_names"}
    assert ours(found) == (values if name == "LLMRequest" else values | {"plan", "answers", "answers.form"})
    assert foreign(found) == set()


def test_the_orchestrator_loads_no_engine(at_start):
    """Engines and tables for the terminal come when they are used."""
    found = loaded_by("from workflow_composer import ModelOrchestrator") - at_start

    assert not foreign(found) & {
        "mistralrs",
        "numpy",
        "pandas",
        "ray",
        "rich",
        "tokenizers",
        "torch",
        "transformers",
        "vllm",
    }


CALLS = {"cli", "orchestrator", "runtime", "plugins", "routers", "execution", "backends", "metrics", "config", "contexts"}
CALLS |= {"markers", "plan", "types", "usage", "answers", "storage", "support", "errors"}
"""The parts that a single call passes through."""


def test_a_single_answer_loads_nothing_that_only_files_votes_and_services_need(tmp_path):
    """Nearly all of its processor time is that of imports: the package's own for a call, and what reads a profile."""
    with StubServer() as server:
        profile = {
            "profile_name": "single",
            "allow_cloud": False,
            "vllm_endpoints": {"small": server.url},
            "task_routing": {"*": "small"},
            "routers": ["cascade", "t4_model"],
            "tiers": {"small": {"model": "small"}},
        }
        (tmp_path / "single.yaml").write_text(json.dumps(profile))
        code = RUN.format(arguments=["-s", str(tmp_path / "single.yaml"), "generate", "hello"]) + LIST
        environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**environ, "XDG_STATE_HOME": str(tmp_path)},
        )
    answer, modules = done.stdout.splitlines()[0], set(json.loads(done.stdout.splitlines()[-1]))
    own = ours(modules)

    assert answer == "an answer"
    assert {name.partition(".")[0] for name in own} <= CALLS
    unneeded = ("answers.", "execution.voting.", "backends.http.proxied", "metrics.summary", "cli.progress", "cli.chat")
    assert {name for name in own if name.startswith(unneeded)} <= {"answers.form"}
    assert foreign(modules) & HEAVY <= {"httptools", "msgspec", "pluggy", "pydantic", "yaml"}
    assert not {"http.client", "urllib.request", "statistics", "readline"} & modules
