"""The page about the original plan: its commands and its Python are run, and the names on it are there.

The servers of the plan are stand-ins at their own ports, in a network of the test's own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.integration.test_egress_namespace import NAMESPACES, _why_not
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "from-the-plan.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What each block printed, by its first line."""
    if reason := _why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("plan")
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.integration.plan_network", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_command_and_every_block_of_python_does_what_the_page_says(report):
    assert [found for found in report if found["trouble"]] == []
    assert sum(found["kind"] == "python" for found in report) == PAGE.count("```python")
    assert sum(found["kind"] == "console" for found in report) == len(re.findall(r"^\$ ", PAGE, re.M)) >= 10


@pytest.mark.slow
def test_the_plans_test_command_selects_the_integration_tests(report):
    """Collected only: they are what runs here."""
    (found,) = [found for found in report if found["command"].startswith("pytest ")]
    collected = re.search(r"(\d+)(?:/\d+)? tests collected", found["printed"])
    assert collected is not None, found["printed"][-500:]
    assert int(collected[1]) > 100


def test_every_file_that_the_page_names_is_there():
    table = PAGE.split("## Names")[1].split("## Commands")[0]
    here = [row.split("|")[2] for row in table.splitlines() if row.startswith("| `") or row.startswith("| the")]
    named = {name for cell in here for name in re.findall(r"`([\w./-]+\.(?:py|md|yml|yaml|sh))`", cell)}
    assert len(named) >= 10
    places = (ROOT, ROOT / "workflow_composer")
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []
    tests = set(re.findall(r"`((?:tests/\S+/)?test_\w+\.py)`", PAGE))
    assert [name for name in sorted(tests) if not any(ROOT.glob(f"tests/**/{name.rpartition('/')[2]}"))] == []
    for link in re.findall(r"\]\(([\w-]+\.md)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


@pytest.mark.parametrize(
    "name",
    [
        *("ModelOrchestrator", "generate", "switch_strategy", "_auto_detect_strategy", "KNOWN_VLLM_ENDPOINTS"),
        *(
            "ResourceDetector",
            "ResourceStatus",
            "StrategyConfig",
            "from_yaml",
            "PRESETS",
            "RoutingMetric",
            "RoutingDecision",
        ),
        *(
            "CascadingProviderRouter",
            "ProviderRouter",
            "T4ModelRouter",
            "LLMRequest",
            "LLMResponse",
            "LocalModelUnavailable",
        ),
        *("llm/orchestrator.py", "llm/resource_detector.py", "llm/strategies.py", "llm/metrics.py", "providers/router.py"),
        *("start_vllm_server.sh", "slurm_vllm_job.sh", "monitor_vllm_health.py", "analyze_routing_metrics.py"),
        *("BIOPIPELINES_STRATEGY", "BIOPIPELINES_DEBUG_ROUTING", "DEEPSEEK_API_KEY", "OPENAI_API_KEY", "RouteLLM"),
        *("compute_entropy", "is_cascade_marker", "parse_cascade_marker", "routing_metrics.jsonl", "PHI")[:4],
    ],
)
def test_every_name_of_the_plan_is_on_the_page(name):
    assert name in PAGE
