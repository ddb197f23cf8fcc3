"""From graded requests to a certificate: the parts, the guarantee's form, and making it again."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.calibration.worlds import cascade, shuffled, taken
from workflow_composer.calibration.certify.assessment import assess, calibrating_rows, tier_scores
from workflow_composer.calibration.certify.calibrate import calibrate, split, verify
from workflow_composer.calibration.certify.cascade_risk import climb
from workflow_composer.calibration.certify.certificate import Certificate, ModelIdentity, RequestForm
from workflow_composer.calibration.certify.group import visits
from workflow_composer.calibration.certify.risk import upper_bound
from workflow_composer.errors import ConfigError, InfeasibleTarget, InputError


@pytest.fixture(scope="module")
def table():
    return cascade()


@pytest.fixture(scope="module")
def made(table):
    return calibrate(table)


# -------------------------------------------------------------------------------------------------------------- the split


def test_the_order_of_the_file_decides_nothing(table, made):
    again = calibrate(shuffled(table))
    assert replace(again, created=made.created) == made


def test_every_row_is_in_one_part_and_the_seed_says_which(table):
    (part,) = split(table, group_by=None, fit_share=0.3, seed=0).values()
    assert sorted([*part.fitting, *part.calibrating]) == list(range(len(table)))
    assert len(part.fitting) == 270
    (other,) = split(table, group_by=None, fit_share=0.3, seed=1).values()
    assert set(part.fitting) != set(other.fitting)


@pytest.mark.parametrize(("rows", "fitting"), [(2, 1), (3, 1), (60, 30), (110, 50), (1000, 300)])
def test_the_fitting_part_has_enough_to_learn_from(rows, fitting):
    (part,) = split(cascade(rows, signals=False), group_by=None, fit_share=0.3, seed=0).values()
    assert (len(part.fitting), len(part.calibrating)) == (fitting, rows - fitting)


def test_what_is_tested_was_fixed_without_the_rows_that_test_it(table, made):
    """Other labels in the calibrating part change neither scores nor anything that could be a threshold."""
    (part,) = split(table, group_by=None, fit_share=0.3, seed=0).values()
    labels = table.correct.copy()
    labels[part.calibrating] = np.random.default_rng(0).random((len(part.calibrating), 3)) < 0.97
    other = calibrate(replace(table, correct=labels))
    assert other.tiers == made.tiers
    assert other.groups["*"].tiers[0] != made.groups["*"].tiers[0]


def test_thresholds_lie_at_held_out_scores_not_at_those_the_regression_has_learned_by_heart(table, made):
    (part,) = split(table, group_by=None, fit_share=0.3, seed=0).values()
    scores = tier_scores(made, table)
    found = [(at, tier.threshold) for at, tier in enumerate(made.groups["*"].tiers) if tier.threshold is not None]
    assert found
    assert all(not np.isin(threshold, scores[part.fitting, at]) for at, threshold in found)


# ----------------------------------------------------------------------------------------------------------- the numbers


def test_the_counts_are_what_the_thresholds_do_to_the_calibrating_rows(table, made):
    group, rows = made.groups["*"], calibrating_rows(made, table)["*"]
    scores, correct = tier_scores(made, table)[rows], table.correct[rows]
    deciding, accepted = climb(scores, [tier.threshold for tier in group.tiers])
    assert group.rows == len(rows) == made.data.calibrated
    for at, tier in enumerate(group.tiers):
        taken_here = accepted & (deciding == at)
        assert tier.accepted == taken_here.sum()
        assert tier.wrong == (~correct[taken_here, at]).sum()
        reached = deciding >= at
        assert tier.reached == reached.sum()
        assert tier.base_error == pytest.approx(np.mean(~correct[reached, at]))
        assert tier.accepted == 0 or tier.bound <= made.alpha
    assert group.returned_wrong == (~correct[np.arange(len(rows)), deciding]).sum()
    by_tier = [accepted & (deciding == at) for at in (0, 1)]
    errs = [upper_bound((~correct[rows, -1]).sum(), rows.sum(), group.last_level) for rows in by_tier if rows.any()]
    assert group.last_wrong == max(errs)
    assert 0 < group.last_level < made.delta
    assert group.accepted > 100


def test_given_scores_are_used_as_they_are():
    table = cascade(signals=False)
    made = calibrate(table)
    assert all(tier.score is None for tier in made.tiers)
    assert made.groups["*"].accepted > 100
    tripled = replace(table, tiers=tuple(replace(tier, given=tier.given * 3 - 1) for tier in table.tiers))
    found = [tier.threshold for tier in calibrate(tripled).groups["*"].tiers]
    expected = [None if tier.threshold is None else tier.threshold * 3 - 1 for tier in made.groups["*"].tiers]
    assert found == [None if e is None else pytest.approx(e) for e in expected]


def test_a_useless_score_is_accepted_nowhere_unless_the_tier_is_good_enough():
    table = cascade(signals=False)
    noise = [replace(tier, given=np.random.default_rng(at).random(len(table))) for at, tier in enumerate(table.tiers)]
    found = calibrate(replace(table, tiers=tuple(noise))).groups["*"]
    assert found.accepted == 0
    assert all(tier.reason for tier in found.tiers)


def test_unknown_scores_are_never_accepted():
    table = cascade(signals=False)
    given = table.tiers[0].given.copy()
    given[table.correct[:, 0]] = math.nan
    blind = replace(table, tiers=(replace(table.tiers[0], given=given), *table.tiers[1:]))
    assert calibrate(blind).groups["*"].tiers[0].accepted == 0
    nothing = replace(table, tiers=tuple(replace(tier, given=np.full(len(table), math.nan)) for tier in table.tiers))
    found = calibrate(nothing).groups["*"]
    assert found.accepted == 0
    assert "known" in found.tiers[0].reason


def test_shuffled_labels_change_what_is_accepted(table, made):
    order = np.random.default_rng(0).permutation(len(table))
    assert calibrate(replace(table, correct=table.correct[order])).groups["*"].accepted < made.groups["*"].accepted


def test_a_certificate_survives_its_file(made, tmp_path):
    made.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == made


def test_models_and_request_are_written_down(table):
    identities = [ModelIdentity(tier.name, "m", "vllm", "raw", 5, 0.0) for tier in table.tiers]
    made = calibrate(table, identities=identities, request=RequestForm(max_tokens=64))
    assert [tier.identity for tier in made.tiers] == identities
    assert made.request.max_tokens == 64
    assert (made.data.digest, made.data.rows, made.data.fitted) == (table.digest, 900, 270)


# --------------------------------------------------------------------------------------------------------------- groups


def test_groups_share_delta_and_each_gets_its_own_thresholds():
    table = cascade(1500, groups=("law", "math"))
    made = calibrate(table, group_by="group")
    assert set(made.groups) == {"law", "math"}
    levels = [group.tiers[0].level for group in made.groups.values()]
    assert levels == pytest.approx([calibrate(table).groups["*"].tiers[0].level / 2] * 2)
    assert all(group.accepted for group in made.groups.values())
    assert sum(group.rows for group in made.groups.values()) == made.data.calibrated


def test_a_group_with_too_few_rows_is_told_how_many_more_it_needs_and_spoils_no_other():
    table = cascade(1500)
    groups = ("rare",) * 8 + ("single",) + ("*",) * (len(table) - 9)
    made = calibrate(replace(table, groups=groups), group_by="group")
    assert made.groups["*"].accepted
    for name in ("rare", "single"):
        assert made.groups[name].accepted == 0
        assert made.groups[name].tiers[0].labels_needed > 50
        assert "too few labels" in made.groups[name].tiers[0].reason


def test_a_task_never_starts_below_its_floor():
    table = cascade(1500, groups=("law", "math"))
    made = calibrate(table, group_by="group", task_floors={"law": "medium", "math": 0})
    assert [made.groups[name].first for name in ("law", "math")] == [1, 0]
    assert len(made.groups["law"].tiers) == 2
    assert made.groups["law"].tiers[0].reached == made.groups["law"].rows
    assert verify(made, table) == []


def test_the_floor_for_all_tasks_needs_no_groups(table):
    assert calibrate(table, task_floors={"*": "large"}).groups["*"].first == 2


# ------------------------------------------------------------------------------------------------------- going straight up


def test_requests_that_need_the_last_tier_go_there_where_that_is_cheaper():
    """The middle tier costs more than half of the last one, and the lowest scores rarely meet an answer there."""
    table = cascade(3000, step=0.3, signals=False)
    dear = replace(table, costs=table.costs * np.array([1.0, 3.0, 1.0]))
    made, plain = (calibrate(dear, escalation=way, alpha=0.2) for way in ("predicted", "next"))
    first, middle, last = made.groups["*"].tiers
    assert first.straight_up is not None
    assert middle.straight_up is last.straight_up is None
    assert 0 < middle.reached < made.groups["*"].rows - first.accepted
    assert assess(made, dear)["*"].spending.cascade < 0.9 * assess(plain, dear)["*"].spending.cascade
    assert verify(made, dear) == []


def test_nobody_is_sent_straight_up_where_each_step_is_worth_its_price():
    table = cascade(step=0.3)
    cheap = replace(table, costs=np.tile([1.0, 1.0, 1000.0], (len(table), 1)))
    assert calibrate(cheap, escalation="predicted").groups["*"].tiers[0].straight_up is None


def test_predicted_need_is_refused_without_costs(table):
    with pytest.raises(ConfigError, match="costs"):
        calibrate(replace(table, costs=None), escalation="predicted")


def test_visits_follow_a_request_up_the_tiers():
    scores = np.array([[0.9, 0.9, 0.9], [0.5, 0.9, 0.9], [0.1, 0.9, 0.9], [0.5, math.nan, 0.1], [math.nan, 0.0, 0.9]])
    found = visits(scores, [0.8, 0.8, None], [0.2, 0.1, None], first=0)
    assert found.tolist() == [
        [True, False, False], [True, True, False], [True, False, True], [True, True, True], [True, True, True],
    ]  # fmt: skip
    assert visits(scores, [0.8, None], [None, None], first=1)[:, 0].sum() == 0


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_coverage_that_no_score_could_reach_is_refused_with_the_reason():
    table = taken(cascade(tiers=("small",)), np.arange(900))
    with pytest.raises(InfeasibleTarget, match=r"\(1 - mu\) / \(1 - alpha\) = 0\.\d+") as raised:
        calibrate(table, coverage=0.99)
    assert raised.value.hint
    assert calibrate(table, coverage=0.3).groups["*"].coverage > 0


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"delta": 1.0}, "delta"),
        ({"fit_share": 1.0}, "share of rows for fitting"),
        ({"coverage": 1.5}, "coverage"),
        ({"group_by": "model"}, "group requests by 'model'"),
        ({"method": "guess"}, "guess"),
        ({"task_floors": {"*": "huge"}}, "unknown tier 'huge' as floor"),
        ({"task_floors": {"*": 3}}, "floor"),
        ({"task_floors": {"law": "large"}}, "not grouped by task"),
    ],
)
def test_settings_that_make_no_sense_are_refused(table, settings, fault):
    with pytest.raises((ConfigError, InputError), match=fault):
        calibrate(table, **settings)


def test_one_request_is_not_enough(table):
    with pytest.raises(InputError, match="one request"):
        calibrate(taken(table, [0]))


# ------------------------------------------------------------------------------------------------------------ verifying


def test_a_certificate_is_what_its_data_say(table, made):
    assert verify(made, shuffled(table)) == []
    holm = calibrate(table, method="holm", alpha=0.2, delta=0.05, seed=3, fit_share=0.5, escalation="predicted")
    assert verify(holm, replace(table, costs=None, source="moved.jsonl")) == []


def test_whatever_was_changed_is_named(table, made):
    data = json.loads(json.dumps(made.to_dict()))
    data["groups"]["*"]["tiers"][1]["wrong"] += 1
    data["tiers"][0]["score"]["weights"][0] += 0.5
    lines = verify(Certificate.from_dict(data), table)
    assert [line.partition(":")[0] for line in lines] == ["tiers[0].score.weights[0]", "groups.*.tiers[1].wrong"]
    assert "in the certificate" in lines[1]
    assert "from the data" in lines[1]


def test_other_data_are_noticed(table, made):
    labels = table.correct.copy()
    labels[:40] = ~labels[:40]
    lines = verify(made, replace(table, correct=labels, digest="1" * 64))
    assert any(line.startswith("data.digest") for line in lines)
    assert any("wrong" in line for line in lines)
    renamed = replace(table, tiers=(*table.tiers[:2], replace(table.tiers[2], name="huge")))
    assert verify(made, renamed) == ["tiers: small, medium, large in the certificate, small, medium, huge in the data"]


# ------------------------------------------------------------------------------------------------------------ assessing


def test_the_assessment_counts_what_the_cascade_pays(table, made):
    found = assess(made, table)["*"]
    rows = calibrating_rows(made, table)["*"]
    scores = tier_scores(made, table)[rows]
    deciding, _ = climb(scores, [tier.threshold for tier in made.groups["*"].tiers])
    asked = [tier.threshold is not None for tier in made.groups["*"].tiers[:-1]] + [True]
    ways = [table.costs[row, : at + 1] * asked[: at + 1] for row, at in zip(rows, deciding, strict=True)]
    paid = sum(way.sum() for way in ways) / len(rows)
    assert found.spending.cascade == pytest.approx(paid)
    assert found.spending.always_last == pytest.approx(table.costs[rows, 2].mean())
    assert found.spending.saved == pytest.approx(1 - paid / found.spending.always_last)
    assert [score.tier for score in found.scores] == ["small", "medium", "large"]
    assert all(score.auroc > 0.6 for score in found.scores)
    assert assess(made, replace(table, costs=None))["*"].spending is None


def test_scores_that_are_no_probabilities_have_no_calibration_error():
    table = cascade(signals=False)
    wide = replace(table, tiers=tuple(replace(tier, given=tier.given * 5) for tier in table.tiers))
    assert [score.calibration_error for score in assess(calibrate(wide), wide)["*"].scores] == [None] * 3
    assert all(score.calibration_error is not None for score in assess(calibrate(table), table)["*"].scores)


def test_a_tier_that_accepts_nothing_is_not_paid_for(table):
    """The router does not ask it."""
    correct = table.correct.copy()
    correct[:, 0] = False
    hopeless = replace(table, correct=correct)
    made = calibrate(hopeless)
    assert made.groups["*"].tiers[0].threshold is None
    rows = calibrating_rows(made, hopeless)["*"]
    scores = tier_scores(made, hopeless)[rows]
    deciding, _ = climb(scores, [tier.threshold for tier in made.groups["*"].tiers])
    paid = sum(table.costs[row, 1 : at + 1].sum() for row, at in zip(rows, deciding, strict=True)) / len(rows)
    assert assess(made, hopeless)["*"].spending.cascade == pytest.approx(paid)
