"""Certificates: what they say, that files keep it, and what is refused as no certificate."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest

from tests.unit.calibration.scores.test_scores import MODEL
from workflow_composer.calibration.certify.certificate import (
    CalibrationData,
    Certificate,
    CertifiedTier,
    Group,
    ModelIdentity,
    RequestForm,
    TierGuarantee,
    digest_of,
)
from workflow_composer.errors import InputError

FIRST = TierGuarantee(0.8, 500, 200, 10, 0.09, 0.03, 0.4, "10 of 200")
LAST = TierGuarantee(-math.inf, 300, 300, 12, 0.07, 0.01, 0.04, "12 of 300")
NOTHING = TierGuarantee(None, 40, 0, 0, 1.0, 0.02, 0.3, "too few labels", labels_needed=120)


def certificate(**changes):
    made = Certificate(
        alpha=0.1,
        delta=0.05,
        method="fixed_sequence",
        tiers=(
            CertifiedTier("small", ModelIdentity("small", "m", "vllm", "raw", 5, 0.0), MODEL),
            CertifiedTier("large", ModelIdentity("large"), None),
        ),
        groups={"*": Group(0, 500, (FIRST, LAST), 22, 0.08, 0.001, 0.06), "law": Group(1, 40, (NOTHING,), 12, 0.5, 0.001)},
        data=CalibrationData("answers.jsonl", "ab" * 32, 770, 230, 540, 0, "group"),
        request=RequestForm(system=digest_of("Be brief."), stop=("\n", "###")),
        created="2026-01-02T03:04:05+00:00",
        version="0.1.0",
        notes=("2 left out",),
    )
    return replace(made, **changes)


def test_a_file_keeps_everything(tmp_path):
    made = certificate()
    made.save(tmp_path / "c.json")
    again = Certificate.load(tmp_path / "c.json")
    assert again == made
    assert again.digest == made.digest
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_the_file_is_json_that_every_reader_takes(tmp_path):
    certificate().save(tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    data = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert data["format"] == "workflow-composer/certificate/1"
    assert data["statement"] == certificate().statement
    assert data["groups"]["*"]["tiers"][1]["threshold"] == "-inf"
    assert "Be brief." not in text


def test_the_statement_names_assumption_share_and_confidence():
    statement = certificate().statement
    for words in ("exchangeable", "540 calibration rows", "probability at least 0.95", "at most 0.1 are wrong"):
        assert words in statement


def test_the_digest_changes_with_any_number():
    made = certificate()
    assert len({made.digest, replace(made, alpha=0.2).digest, replace(made, notes=()).digest}) == 3


def test_a_task_has_its_own_group_or_the_one_for_any():
    made = certificate()
    assert made.group("law") is made.groups["law"]
    assert made.group("math") is made.groups["*"]
    assert replace(made, groups={"law": made.groups["law"]}).group("math") is None


def test_a_group_adds_up_its_tiers():
    group = certificate().groups["*"]
    assert (group.accepted, group.wrong, group.coverage) == (500, 22, 1.0)
    assert FIRST.coverage == 0.4
    assert replace(NOTHING, reached=0).coverage == 0.0
    assert Group(0, 0, (NOTHING,), 0, 1.0, 0.1).coverage == 0.0


def test_prompts_are_digested():
    assert digest_of(None) is None
    assert digest_of("a") != digest_of("b")
    assert len(digest_of("\ud800")) == 64


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["format"], "other/1", "not a certificate in format"),
        (["alpha"], 1.5, "alpha must be between 0 and 1, not 1.5"),
        (["alpha"], True, "alpha must be between 0 and 1, not True"),
        (["delta"], "0.1", "delta must be between 0 and 1, not '0.1'"),
        (["tiers"], [], "a group has 2 tiers from index 0 on, but the certificate has 0"),
        (["groups"], {}, "no tiers or no groups"),
        (["groups"], [], "damaged certificate"),
        (["groups", "*", "first"], 1, "a group has 2 tiers from index 1 on"),
        (["groups", "*", "first"], 2, "a group has 2 tiers"),
        (["groups", "*", "tiers", 0, "threshold"], "high", "TierGuarantee.threshold must be float | None, not 'high'"),
        (["groups", "*", "tiers", 0, "threshold"], math.nan, "TierGuarantee.threshold must be float | None, not nan"),
        (["groups", "*", "tiers", 0, "straight_up"], [1], "TierGuarantee.straight_up must be float | None, not (1,)"),
        (["groups", "*", "tiers", 0, "accepted"], 1.5, "TierGuarantee.accepted must be int, not 1.5"),
        (["groups", "*", "last_wrong"], True, "Group.last_wrong must be float, not True"),
        (["request", "stop"], "end", "RequestForm.stop must be tuple[str, ...] | None, not 'end'"),
        (["groups", "*", "tiers", 0, "mood"], 1, "unknown key 'mood' in TierGuarantee"),
        (["tiers", 0, "identity", "size"], 7, "unknown key 'size' in ModelIdentity"),
        (["tiers", 0, "score", "scale"], [0.0, 1.0], "scales of a score model must be positive"),
        (["data", "author"], "me", "unknown key 'author' in CalibrationData"),
    ],
)
def test_damaged_certificates_are_refused_with_the_place(tmp_path, path, value, fault):
    data = copy.deepcopy(certificate().to_dict())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = tmp_path / "c.json"
    file.write_text(json.dumps(data))
    with pytest.raises(InputError) as raised:
        Certificate.load(file)
    assert fault in raised.value.message
    assert str(file) in raised.value.message


@pytest.mark.parametrize("key", ["alpha", "delta", "method", "tiers", "groups", "data", "request", "created", "version"])
def test_what_is_missing_is_named(key):
    data = certificate().to_dict()
    del data[key]
    with pytest.raises(InputError, match=f"lacks '{key}'"):
        Certificate.from_dict(data)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_other_files_are_no_certificates(tmp_path, content):
    file = tmp_path / "c.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match="not a certificate"):
        Certificate.load(file)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="cannot read the certificate") as raised:
        Certificate.load(tmp_path / "none.json")
    assert "calibrate" in raised.value.hint


def test_a_certificate_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        certificate().save(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
