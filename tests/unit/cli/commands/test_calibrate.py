"""``calibrate`` and ``certificate``: from a file of graded answers to a certificate, and back."""

from __future__ import annotations

import builtins
import json
import math
import random
import sys

import pytest

from workflow_composer.calibration.certify.certificate import Certificate, digest_of

TIERS = ("small", "large")
PROFILE = {
    "profile_name": "mine",
    "models": {
        "weak": {
            "backend": "openai",
            "base_url": "https://models.example/v1",
            "api_key_env": "KEY",
            "model": "org/weak",
            "input_price": 1.0,
            "output_price": 1.0,
        },
        "remote": {
            "backend": "openai",
            "base_url": "https://models.example/v1",
            "api_key_env": "KEY",
            "model": "org/strong",
            "input_price": 20.0,
            "output_price": 20.0,
        },
    },
    "tiers": {"small": {"model": "weak"}, "large": {"model": "remote"}},
    "task_routing": {"*": "weak"},
}


def recorded(rows=500, *, models=TIERS, logprobs=True, top=0, **fields):
    """Answers of a weak and a strong model; the surer, the more often right."""
    dice = random.Random(7)
    found = []
    for row in range(rows):
        difficulty = dice.random()
        for at, model in enumerate(models):
            chance = 1 / (1 + math.exp(14 * (difficulty - 0.55 - 0.4 * at)))
            value = math.log(min(max(chance + dice.gauss(0, 0.03), 0.02), 0.999))
            tokens = [{"token": "x", "logprob": value * dice.gammavariate(9, 1 / 9)} for _ in range(4)]
            for token in tokens if top else ():
                token["top"] = [["x", token["logprob"]], *(["y", token["logprob"] - rank - 1] for rank in range(top - 1))]
            line = {"question": f"q{row}", "model": model, "sample": 0, "answer": "4", "correct": dice.random() < chance}
            line |= {"tokens": 4, "prompt_tokens": 20} | ({"logprobs": tokens} if logprobs else {})
            found.append(line | {name: value(row) for name, value in fields.items()})
    return found


def write_profile(command):
    path = command.folder / "mine.yaml"
    path.write_text(json.dumps(PROFILE))
    return str(path)


@pytest.fixture
def answers(command):
    command.write("answers.jsonl", *recorded())
    return command


def test_a_recording_becomes_a_certificate_with_a_table(answers):
    done = answers("calibrate", "--replay", "answers.jsonl", "--tiers", "small", "large", "--alpha", "0.1")
    assert done.code == 0, done.err
    made = Certificate.load(answers.folder / "certificate.json")
    group = made.groups["*"]
    lines = done.out.splitlines()
    assert lines[0] == f"all requests: {group.rows} calibration rows"
    assert lines[1].split() == ["tier", "threshold", "reached", "accepted", "wrong", "coverage", "bound", "level"]
    first = group.tiers[0]
    assert lines[2].split()[:5] == [
        "small", f"{first.threshold:.4f}", str(first.reached), str(first.accepted), str(first.wrong),
    ]  # fmt: skip
    assert made.statement in done.out
    assert "AUROC" in done.out
    assert f"certificate.json ({made.digest})" in done.out
    assert "always large" not in done.out
    assert [tier.identity.temperature for tier in made.tiers] == [0.0, 0.0]


def test_as_json_the_certificate_comes_with_its_assessment(answers):
    done = answers("--json", "calibrate", "--replay", "answers.jsonl", "-o", "c.json", "--temperature", "0.5")
    assert done.code == 0, done.err
    made = Certificate.load(answers.folder / "c.json")
    assert done.json["groups"] == json.loads(json.dumps(made.to_dict()))["groups"]
    assert done.json["file"] == "c.json"
    assert done.json["assessments"]["*"]["scores"][0]["auroc"] > 0.7
    assert done.json["assessments"]["*"]["spending"] is None
    assert made.tiers[0].identity.temperature == 0.5
    assert made.tiers[0].name == "small"


def test_the_profile_names_models_and_prices(answers):
    profile = write_profile(answers)
    done = answers("-s", profile, "calibrate", "--replay", "answers.jsonl", "--system", "Be brief.", "--max-tokens", "64")
    assert done.code == 0, done.err
    assert "saved" in done.out
    assert "always large: $0.48" in done.out
    made = Certificate.load(answers.folder / "certificate.json")
    assert [(tier.identity.model, tier.identity.backend) for tier in made.tiers] == [
        ("org/weak", "openai"),
        ("org/strong", "openai"),
    ]
    assert made.request.max_tokens == 64
    assert made.request.system == digest_of("Be brief.")


@pytest.mark.parametrize("models", [("weak", "remote"), ("org/weak", "org/strong")])
def test_tiers_are_found_under_their_models_names(command, models):
    profile = write_profile(command)
    command.write("answers.jsonl", *recorded(models=models))
    done = command("-s", profile, "calibrate", "--replay", "answers.jsonl")
    assert done.code == 0, done.err
    assert [tier.name for tier in Certificate.load(command.folder / "certificate.json").tiers] == ["small", "large"]
    if models[0] == "org/weak":
        assert command("certificate", "verify", "certificate.json", "--replay", "answers.jsonl").code == 0


def test_alternatives_are_noted_as_the_data_or_the_option_say(command):
    command.write("answers.jsonl", *recorded(120, top=3))
    command("calibrate", "--replay", "answers.jsonl", "-o", "a.json")
    command("calibrate", "--replay", "answers.jsonl", "-o", "b.json", "--top-logprobs", "5")
    found = [Certificate.load(command.folder / name).tiers[0].identity.top_logprobs for name in ("a.json", "b.json")]
    assert found == [3, 5]


def test_groups_and_floors(command):
    command.write("answers.jsonl", *recorded(900, group=lambda row: ("law", "math")[row % 2]))
    options = ("--group-by", "group", "--floor", "law=large")
    done = command("calibrate", "--replay", "answers.jsonl", *options)
    assert done.code == 0, done.err
    assert "group law:" in done.out
    assert "group math:" in done.out
    made = Certificate.load(command.folder / "certificate.json")
    assert {name: group.first for name, group in made.groups.items()} == {"law": 1, "math": 0}
    assert command("calibrate", "--replay", "answers.jsonl", "--floor", "law").code == 2


def test_escalation_by_predicted_need_weighs_recorded_costs(command):
    costs = {"small": 1.0, "large": 2.0}
    lines = [line | {"cost": costs[line["model"]]} for line in recorded()]
    command.write("answers.jsonl", *lines)
    assert command("calibrate", "--replay", "answers.jsonl", "--escalation", "predicted").code == 0
    command.write("free.jsonl", *recorded())
    done = command("calibrate", "--replay", "free.jsonl", "--escalation", "predicted")
    assert done.code == 2
    assert "costs" in done.err


def test_method_share_and_seed_are_used_and_written_down(answers):
    answers(
        "calibrate", "--replay", "answers.jsonl", "--method", "holm", "--fit-share", "0.5", "--seed", "4", "--delta", "0.2"
    )
    made = Certificate.load(answers.folder / "certificate.json")
    assert (made.method, made.data.fit_share, made.data.seed, made.delta) == ("holm", 0.5, 4, 0.2)
    assert made.data.fitted == 250


def test_each_tier_is_drawn_on_the_requests_that_reached_it(answers):
    done = answers("calibrate", "--replay", "answers.jsonl", "--plots", "plots")
    assert done.code == 0, done.err
    names = sorted(path.name for path in (answers.folder / "plots").iterdir())
    kinds = ("reliability", "risk", "threshold")
    assert names == sorted(f"{tier}-{kind}.svg" for tier in TIERS for kind in kinds)
    reached = Certificate.load(answers.folder / "certificate.json").groups["*"].tiers[1].reached
    assert f"large: {reached} requests" in (answers.folder / "plots" / "large-risk.svg").read_text()


def test_scores_that_are_no_probabilities_have_one_drawing(command):
    dice = random.Random(0)
    command.write("pairs.jsonl", *({"score": dice.gauss(0, 3), "correct": True, "group": "a/b"} for _ in range(300)))
    done = command("--json", "calibrate", "--pairs", "pairs.jsonl", "--group-by", "group", "--plots", "plots")
    assert done.code == 0, done.err
    (name,) = (path.name for path in (command.folder / "plots").iterdir())
    assert name.startswith("a_b-model-")
    assert done.json["plots"] == [f"plots/{name}"]


# ----------------------------------------------------------------------------------------------------------- exit codes


def test_where_nothing_can_be_certified_it_says_how_many_more_labels_would_do(command):
    command.write("answers.jsonl", *recorded(30))
    done = command("calibrate", "--replay", "answers.jsonl")
    assert done.code == 1
    assert "nothing could be certified: about" in done.err
    assert "more graded requests" in done.err
    assert Certificate.load(command.folder / "certificate.json").groups["*"].accepted == 0


def test_where_no_number_of_labels_would_do_it_says_so(command):
    dice = random.Random(0)
    command.write("pairs.jsonl", *({"score": dice.random(), "correct": dice.random() < 0.3} for _ in range(600)))
    done = command("calibrate", "--pairs", "pairs.jsonl")
    assert done.code == 1
    assert "more labels would not help" in done.err


def test_a_coverage_that_was_missed_is_an_error_and_one_that_is_impossible_too(answers):
    missed = answers("calibrate", "--replay", "answers.jsonl", "--tiers", "small", "--coverage", "0.6")
    assert missed.code == 1
    assert "less than the target 60.0%" in missed.err
    impossible = answers("calibrate", "--replay", "answers.jsonl", "--tiers", "small", "--coverage", "0.9")
    assert impossible.code == 2
    assert "(1 - mu) / (1 - alpha)" in impossible.err
    assert answers("calibrate", "--replay", "answers.jsonl", "--coverage", "0.2").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --pairs or --replay"),
        (("--pairs", "a", "--replay", "b"), "either --pairs or --replay"),
        (("--replay", "none.jsonl"), "cannot read the recorded answers"),
        (("--pairs", "none.jsonl"), "No such file"),
        (("--replay", "answers.jsonl", "--tiers", "huge"), "no answers of huge; recorded models: large, small"),
        (("--replay", "answers.jsonl", "--alpha", "1"), "--alpha"),
    ],
)
def test_wrong_usage_and_input_exit_with_2(answers, arguments, words):
    done = answers("calibrate", *arguments)
    assert done.code == 2
    assert words in done.err
    assert not (answers.folder / "certificate.json").exists()


def test_damaged_files_name_the_line(command):
    command.write("answers.jsonl", *recorded(3), b'{"question": 4}\n')
    assert "answers.jsonl:7: question is 4" in command("calibrate", "--replay", "answers.jsonl").err
    command.write("pairs.csv", b"score,correct\n0.4,maybe\n")
    assert "pairs.csv:2: correct must be true or false, not 'maybe'" in command("calibrate", "--pairs", "pairs.csv").err


def test_ungraded_answers_are_noted(command):
    lines = recorded(300)
    for line in lines[:20]:
        line["correct"] = None
    command.write("answers.jsonl", *lines)
    assert "note: 10 of 300 requests were left out" in command("calibrate", "--replay", "answers.jsonl").out


@pytest.mark.parametrize("missing", ["numpy", "scipy", "sklearn"])
def test_a_missing_library_is_named_with_what_installs_it(answers, monkeypatch, missing):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=name)
        return real(name, *rest, **more)

    for name in [name for name in sys.modules if name.startswith("workflow_composer.calibration")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    done = answers("calibrate", "--replay", "answers.jsonl")
    assert done.code == 2
    assert f"calibration needs {missing}" in done.err
    assert "[calibration]'" in done.err


# ---------------------------------------------------------------------------------------------------------- certificates


@pytest.fixture
def certified(answers):
    assert answers("calibrate", "--replay", "answers.jsonl").code == 0
    return answers


def test_a_certificate_is_shown(certified):
    made = Certificate.load(certified.folder / "certificate.json")
    done = certified("certificate", "show", "certificate.json")
    assert done.code == 0, done.err
    for words in (made.digest, "answers.jsonl", "fixed-sequence testing, alpha 0.1", made.statement, "learned (platt)"):
        assert words in done.out
    assert certified("--json", "certificate", "show", "certificate.json").json["digest"] == made.digest


def test_a_certificate_is_verified_from_its_data(certified):
    done = certified("certificate", "verify", "certificate.json", "--replay", "answers.jsonl")
    assert done.code == 0, done.err
    assert "every number is reproduced from answers.jsonl (500 requests)" in done.out
    assert certified("--json", "certificate", "verify", "certificate.json", "--replay", "answers.jsonl").json == {
        "verified": True,
        "differences": [],
    }


def test_a_changed_certificate_is_found_out(certified):
    path = certified.folder / "certificate.json"
    path.write_text(path.read_text().replace('"wrong": ', '"wrong": 1'))
    done = certified("certificate", "verify", "certificate.json", "--replay", "answers.jsonl")
    assert done.code == 1
    assert "groups.*.tiers[0].wrong" in done.out


def test_other_data_do_not_verify(certified):
    certified.write("other.jsonl", *recorded(400))
    done = certified("certificate", "verify", "certificate.json", "--replay", "other.jsonl")
    assert done.code == 1
    assert "data.digest" in done.out


def test_certificates_of_pairs_verify_too(command):
    dice = random.Random(0)
    scores = [dice.random() for _ in range(600)]
    command.write("pairs.jsonl", *({"score": score, "correct": dice.random() < score**0.1} for score in scores))
    assert command("calibrate", "--pairs", "pairs.jsonl", "--tiers", "only").code == 0
    assert Certificate.load(command.folder / "certificate.json").tiers[0].score is None
    assert command("certificate", "verify", "certificate.json", "--pairs", "pairs.jsonl").code == 0
    assert "the answer's own" in command("certificate", "show", "certificate.json").out


def test_what_is_no_certificate_is_refused(answers):
    assert answers("certificate", "show", "answers.jsonl").code == 2
    assert answers("certificate", "show", "none.json").code == 2
    assert answers("certificate", "verify", "none.json").code == 2
