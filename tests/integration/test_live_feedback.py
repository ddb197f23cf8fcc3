"""The execution-feedback router live on the embedded fleet: half of the problems certifies it for the other half.

Set WORKFLOW_COMPOSER_FEEDBACK_ROWS to 500 for all of the thousand problems; half of each half will do otherwise.
"""

import json
import os
import random

import pytest

from tests.integration.certified_run import ALPHA, CertifiedRun, error_of_accepted
from workflow_composer.calibration.monitoring.error_monitor import RiskMonitor

pytestmark = [pytest.mark.embedded, pytest.mark.slow]

ROUTE = "execution_feedback"
ROWS = int(os.environ.get("WORKFLOW_COMPOSER_FEEDBACK_ROWS", "250"))
JUDGE = """
import re

def judge(request, response):
    first, second = map(int, re.findall(r"[0-9]+", request.messages[-1]["content"]))
    return response.text.endswith(f"#### {first + second}")
"""
"""What a user's own check may look like: the questions below are sums."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder's run, the certificate, summaries and rows."""
    fleet = ("small", "medium", "large")
    models = {name: {"backend": "embedded", "path": name} for name in fleet}
    tiers = {name: {"model": name, "cost": cost} for name, cost in zip(fleet, (0.02, 0.10, 0.40), strict=True)}
    made = CertifiedRun(tmp_path_factory.mktemp("feedback"), models, tiers, ROWS)
    certificate = made.certify()
    profile = made.profile("certified", certificate="certificate.json", audit={"rate": 0.1, "by": "strongest"})
    summaries, rows = made.execute(profile, ROUTE, "large")
    return made, certificate, summaries, rows


def test_of_the_accepted_answers_no_more_than_alpha_are_wrong(run):
    """The bound is on new problems, which were no part of the calibration."""
    _, certificate, _, rows = run
    accepted, wrong = error_of_accepted(rows[ROUTE])
    assert certificate["alpha"] == ALPHA
    assert accepted > ROWS / 3
    assert wrong <= ALPHA * accepted


def test_it_costs_less_than_always_asking_the_strongest(run):
    _, _, summaries, _ = run
    assert summaries[ROUTE]["cost"] < 0.75 * summaries["large"]["cost"]


def test_what_is_not_accepted_is_the_strongest_tier_s_answer_and_says_so(run):
    _, _, _, rows = run
    exhausted = [row for row in rows[ROUTE] if not row["accepted"]]
    assert exhausted
    assert {row["tier"] for row in exhausted} == {"large"}
    by_large = {row["id"]: row["answer"] for row in rows["large"]}
    assert all(row["answer"] == by_large[row["id"]] for row in exhausted)


def test_audits_by_the_strongest_tier_were_drawn_and_graded_and_raise_no_alarm(run):
    made, *_ = run
    found = made.command(made.folder / "certified.yaml", "feedback", "--status")
    (watched,) = found["certificates"]
    assert 1 <= watched["audits"] <= 40
    assert not watched["alarm"]


def one_step_problems(count):
    """Sums of one step: the fleet has learned problems of two to five, and is sure of wrong answers to shorter ones."""
    chance = random.Random(5)
    for _ in range(count):
        first, second = chance.randint(5, 60), chance.randint(2, 30)
        thing = chance.choice(["apples", "pens", "tubes", "samples"])
        question = f"Clara has {first} {thing}. Then she finds {second} more. How many {thing} are there in the end?"
        yield {"question": question, "answer": f"#### {first + second}"}


def test_questions_of_another_kind_raise_the_alarm_within_the_stated_number_of_audits(run):
    """In mid-run: the audits of the half before count as well. From the alarm on nothing is accepted, and rows say why."""
    made, *_ = run
    (before,) = made.command(made.folder / "certified.yaml", "feedback", "--status")["certificates"]
    (made.folder / "judge.py").write_text(JUDGE)
    (made.folder / "data" / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one_step_problems(120)))
    watched = made.profile("watched", certificate="certificate.json", audit={"rate": 0.5, "by": "python:judge:judge"})
    made.command(watched, "execute", "--routes", ROUTE, "--datasets", "short", "--data-dir", "data")
    lines = (made.folder / "results" / "short" / ROUTE / "results.jsonl").read_text().splitlines()
    (after,) = made.command(watched, "feedback", "--status")["certificates"]
    assert after["alarm"]
    stated = RiskMonitor(ALPHA).audits_to_alarm(0.6, after=before["audits"])
    assert after["alarm_at"] - before["audits"] <= stated
    suspended = [row for row in map(json.loads, lines) if "alarm: " in row["tiers"][-1]["reason"]]
    assert len(suspended) > 20
    assert not any(row["accepted"] for row in suspended)


def test_a_certificate_for_another_temperature_is_refused_by_name(run):
    made, *_ = run
    other = made.profile("warmer", certificate="certificate.json", temperature=0.7)
    error = made.command(other, "route", "hello", code=2)["error"]
    assert error["type"] == "CertificateMismatch"
    assert "tier medium, temperature: 0 in the certificate, 0.7 here" in error["message"]
