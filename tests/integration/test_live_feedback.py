"""The execution-feedback router live on the embedded fleet: half of the problems certifies it, the other half is answered."""

import pytest

from tests.integration.certified_run import ALPHA, CertifiedRun, error_of_accepted

pytestmark = [pytest.mark.embedded, pytest.mark.slow]

ROUTE = "execution_feedback"
ROWS = 500


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder's run, the certificate, summaries and rows."""
    fleet = ("small", "medium", "large")
    models = {name: {"backend": "embedded", "path": name} for name in fleet}
    tiers = {name: {"model": name, "cost": cost} for name, cost in zip(fleet, (0.02, 0.10, 0.40), strict=True)}
    made = CertifiedRun(tmp_path_factory.mktemp("feedback"), models, tiers, ROWS)
    certificate = made.certify()
    profile = made.profile("certified", certificate="certificate.json", audit={"rate": 0.05, "by": "strongest"})
    summaries, rows = made.execute(profile, ROUTE, "large")
    return made, certificate, summaries, rows


def test_of_the_accepted_answers_no_more_than_alpha_are_wrong(run):
    """The bound is on new problems, which were no part of the calibration."""
    _, certificate, _, rows = run
    accepted, wrong = error_of_accepted(rows[ROUTE])
    assert certificate["alpha"] == ALPHA
    assert accepted > ROWS / 2
    assert 0 < wrong <= ALPHA * accepted


def test_it_costs_less_than_always_asking_the_strongest(run):
    _, _, summaries, _ = run
    assert summaries[ROUTE]["cost"] < 0.75 * summaries["large"]["cost"]


def test_what_is_not_accepted_is_the_strongest_tier_s_answer_and_says_so(run):
    _, _, _, rows = run
    exhausted = [row for row in rows[ROUTE] if not row["accepted"]]
    assert exhausted
    assert {row["tiers"][row["tier"]]["name"] for row in exhausted} == {"large"}
    by_large = {row["id"]: row["answer"] for row in rows["large"]}
    assert all(row["answer"] == by_large[row["id"]] for row in exhausted)


def test_audits_by_the_strongest_tier_were_drawn_and_graded_and_raise_no_alarm(run):
    made, certificate, _, _ = run
    found = made.command(made.folder / "certified.yaml", "feedback", "--status")
    (watched,) = found["certificates"]
    assert 5 <= watched["audits"] <= 60
    assert not watched["alarm"]


def test_a_certificate_for_another_temperature_is_refused_by_name(run):
    made, *_ = run
    other = made.profile("warmer", certificate="certificate.json", temperature=0.7)
    error = made.command(other, "route", "hello", code=2)["error"]
    assert error["type"] == "CertificateMismatch"
    assert "tier medium, temperature: 0 in the certificate, 0.7 here" in error["message"]
