"""Scripts that stand for a command speak of themselves."""

import subprocess
import sys

import pytest

from tests.paths import ROOT

SCRIPTS = {"analyze_routing_metrics.py": "metrics", "llm/monitor_vllm_health.py": "fleet monitor"}


def run(script, *options):
    """What it prints, and its exit code."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *options], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("script", "command"), SCRIPTS.items())
def test_help_and_usage_errors_name_the_script_and_not_the_command(script, command):
    name = script.rpartition("/")[2]
    code, text = run(script, "--help")
    assert code == 0
    assert text.startswith(f"Usage: {name} [")
    assert text.count(name) >= 3  # the usage, and the examples
    assert f"workflow-composer {command}" not in text
    code, text = run(script, "--nonsense")
    assert code == 2
    assert text.startswith(f"Usage: {name} [")
