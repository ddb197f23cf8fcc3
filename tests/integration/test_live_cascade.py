"""A cascade over the embedded fleet, live, beside every tier alone: what it prints, and what the report says."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.paths import CHECKPOINTS

ROUTE = "mv_cascade_small_k8_t0.7_medium_k8_t0.7_large_k1_t0.0"
ROWS = 60
ALONE = ["small", "medium", "large", "mv_small_k8_t0.7", "mv_medium_k8_t0.7", "mv_large_k8_t0.7"]

pytestmark = [pytest.mark.embedded, pytest.mark.slow]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The folder, the summaries by strategy, and the report."""
    folder = tmp_path_factory.mktemp("live")
    command = [sys.executable, "-m", "workflow_composer", "-s", "development", "--json", "execute", "--routes", ROUTE]
    command += ["--baselines", "--datasets", "problems", "--data-dir", str(CHECKPOINTS), "--limit", str(ROWS)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = {run["policy"]: run for run in json.loads(done.stdout)}
    return folder / "results" / "problems", runs, done.stderr


def test_every_row_of_every_run_is_answered_and_graded(executed):
    _, runs, _ = executed
    assert list(runs) == [ROUTE, *ALONE]
    assert all((run["rows"], run["errors"], run["graded"]) == (ROWS, 0, ROWS) for run in runs.values())


def test_the_cascade_is_better_than_its_cheapest_tier_and_dearer(executed):
    _, runs, _ = executed
    assert runs["small"]["accuracy"] + 0.15 < runs[ROUTE]["accuracy"] <= 1.0
    assert runs["small"]["cost"] < runs[ROUTE]["cost"]
    assert set(runs[ROUTE]["shares"]) == {"small", "medium", "large"}


def test_results_hold_votes_tokens_cost_and_time_of_every_tier(executed):
    folder, runs, _ = executed
    table = pq.read_table(folder / ROUTE / "results.parquet").to_pylist()
    lines = [json.loads(line) for line in (folder / ROUTE / "results.jsonl").read_text().splitlines()]
    assert [row["row"] for row in table] == [row["row"] for row in lines] == list(range(ROWS))
    escalated = next(row for row in table if len(row["tiers"]) == 3)
    first = escalated["tiers"][0]
    assert first["name"] == "small"
    assert not first["accepted"]
    assert sum(vote["count"] for vote in first["votes"]) + first["unreadable"] == first["samples"]
    assert min(first["cost"], first["seconds"], first["completion_tokens"]) > 0
    assert sum(row["cost"] for row in table) == pytest.approx(runs[ROUTE]["cost"])


def test_the_report_sets_the_cascade_beside_every_tier_alone(executed):
    folder, runs, _ = executed
    markdown, html = ((folder / name).read_text() for name in ("report.md", "report.html"))
    markdown = markdown.replace("\\", "")  # names are escaped there
    for name, run in runs.items():
        assert name in markdown
        assert name in html
        assert f"{run['accuracy']:.1%}" in markdown or f"{run['accuracy']:.3f}" in markdown
    assert "<svg" in html
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert "https://" not in html
