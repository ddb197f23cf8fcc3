"""Reading graded requests: what is understood, what is left out, and what is refused with file, line and remedy."""

from __future__ import annotations

import gzip
import hashlib
import json
import math

import numpy as np
import pytest

from workflow_composer.backends.recordings import Recorded, open_recording
from workflow_composer.calibration.certify.pairs import from_pairs, from_records
from workflow_composer.errors import InputError
from workflow_composer.types import TokenLogprob


@pytest.fixture
def pairs(tmp_path):
    """Write a file and read it."""

    def read(content, *, name="pairs.jsonl", tiers=()):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return from_pairs(path, tiers)

    return read


def test_scores_and_grades_are_read(pairs):
    table = pairs([{"score": 0.9, "correct": True}, {"score": 1, "correct": False}, {"score": None, "correct": True}])
    assert len(table) == 3
    assert table.names == ("model",)
    assert table.correct[:, 0].tolist() == [True, False, True]
    np.testing.assert_array_equal(table.tiers[0].given, [0.9, 1.0, math.nan])
    assert table.groups == ("*",) * 3
    assert table.costs is None


def test_lines_that_share_an_id_are_one_request(pairs):
    rows = [
        {"id": "b", "tier": "small", "score": 0.2, "correct": False, "group": "math", "cost": 1},
        {"id": "a", "tier": "large", "score": 0.7, "correct": True, "cost": 5},
        {"id": "a", "tier": "small", "score": 0.4, "correct": True, "cost": 2},
        {"id": "b", "tier": "large", "score": 0.8, "correct": False, "cost": 6.5},
    ]
    table = pairs(rows, tiers=("small", "large"))
    assert table.ids == ("b", "a")
    assert table.names == ("small", "large")
    assert table.groups == ("math", "*")
    assert table.correct.tolist() == [[False, False], [True, True]]
    assert table.costs.tolist() == [[1.0, 6.5], [2.0, 5.0]]
    assert [tier.given.tolist() for tier in table.tiers] == [[0.2, 0.4], [0.8, 0.7]]
    assert pairs(rows).names == ("small", "large")
    assert pairs(rows, tiers=("large",)).correct.tolist() == [[False], [True]]


@pytest.mark.parametrize("packed", [False, True])
def test_csv_says_the_same_as_json_lines(pairs, packed):
    text = "score,correct,id,group\n0.9,true,7,math\n,0,8,\n0.5,False,9,law\n"
    content = gzip.compress(text.encode()) if packed else text
    table = pairs(content, name="pairs.csv.gz" if packed else "pairs.csv")
    assert table.ids == ("7", "8", "9")
    assert table.groups == ("math", "*", "law")
    assert table.correct[:, 0].tolist() == [True, False, False]
    np.testing.assert_array_equal(table.tiers[0].given, [0.9, math.nan, 0.5])
    written = content if packed else text.encode()
    assert table.digest == hashlib.sha256(written).hexdigest()


def test_ungraded_requests_are_left_out_and_counted(pairs):
    table = pairs([{"score": 0.5, "correct": None}, {"score": 0.6, "correct": True}])
    assert len(table) == 1
    assert "1 of 2 requests were left out" in table.notes[0]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([], "no requests"),
        ([{"score": 0.5, "correct": None}], "none of the 1 requests is graded"),
        (b"{broken\n", "pairs.jsonl:1: not valid JSON"),
        (b"[1]\n", "pairs.jsonl:1: expected an object, found a list"),
        (b"\xff\xff", "not UTF-8"),
        ([{"score": 0.5}], "pairs.jsonl:1: correct is missing"),
        ([{"correct": True}], "pairs.jsonl:1: score is missing"),
        ([{"score": 0.5, "correct": True, "label": 1}], "unknown key 'label'"),
        (
            [{"score": 0.5, "correct": True}, {"score": 0.5, "correct": 2}],
            "pairs.jsonl:2: correct must be true or false, not 2",
        ),
        ([{"score": "high", "correct": True}], "score must be a number, or empty if unknown, not 'high'"),
        (b'{"score": NaN, "correct": true}\n', "score must be a number, or empty if unknown, not nan"),
        ([{"score": True, "correct": True}], "score must be a number, or empty if unknown, not True"),
        ([{"score": 0.5, "correct": True, "cost": -1}], "cost must not be negative, not -1"),
        ([{"score": 0.5, "correct": True, "tier": "a"}], "id is missing"),
        ([{"score": 0.5, "correct": True, "id": 1.5}], "id must be a string, not 1.5"),
        ([{"score": 0.5, "correct": True, "id": "x"}] * 2, "pairs.jsonl:2: same id and tier as line 1"),
        (
            [{"score": 1, "correct": True, "id": "x", "tier": t, "group": g} for t, g in (("a", "p"), ("b", "q"))],
            "pairs.jsonl:2: the same id has two groups",
        ),
        (
            [{"score": 1, "correct": True, "id": i, "tier": t} for i, t in (("x", "a"), ("x", "b"), ("y", "a"))],
            "some of the 2 requests were not answered by every tier; missing: b 1",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_place_and_remedy(pairs, rows, fault):
    with pytest.raises(InputError) as raised:
        pairs(rows)
    assert fault in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("score,correct\n0.5\n", "pairs.csv:2: the number of columns differs from the header's 2"),
        ("score,correct\n0.5,true,9\n", "pairs.csv:2: the number of columns differs from the header's 2"),
        ("score,right\n0.5,true\n", "unknown key 'right'"),
        ("score,correct\n0.5,perhaps\n", "pairs.csv:2: correct must be true or false, not 'perhaps'"),
        ("", "no requests"),
    ],
)
def test_bad_csv_is_refused_with_its_line(pairs, text, fault):
    with pytest.raises(InputError) as raised:
        pairs(text, name="pairs.csv")
    assert fault in raised.value.message


def test_a_missing_file_and_an_unknown_tier_are_refused(pairs, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        from_pairs(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="has no tier 'huge'"):
        pairs([{"score": 1, "correct": True, "id": "x", "tier": "small"}], tiers=("huge",))


def test_a_single_nameless_tier_gets_the_name_that_is_asked_for(pairs):
    assert pairs([{"score": 0.5, "correct": True}], tiers=("small",)).names == ("small",)


# ------------------------------------------------------------------------------------------------------------ recordings


def answer(question, model, correct=True, *, sample=0, values=(-0.1, -0.4), top=0, **fields):
    tokens = values and tuple(
        TokenLogprob("x", value, tuple((str(rank), value - rank) for rank in range(top))) for value in values
    )
    return Recorded(question, model, sample, "4", correct, len(values or "abc"), 10, tokens, **fields)


def read(records, tiers=("small", "large"), *, tmp_path, **options):
    path = tmp_path / "rec.jsonl"
    path.write_text("the file's bytes")
    return from_records(records, {tier: tier for tier in tiers}, path=path, **options)


def test_a_recording_gives_signals_costs_and_groups(tmp_path):
    records = [
        answer("one", "large", cost=0.5, group="math"),
        answer("one ", "small", False, values=(-0.2,)),
        answer("two", "small", values=(-0.3, -0.3, -0.3)),
        answer("two", "large"),
        answer("two", "unused"),
    ]
    table = read(records, tmp_path=tmp_path, prices={"small": (1.0, 2.0), "large": (10.0, 20.0)})
    assert len(table) == 2
    assert table.groups == ("math", "*")
    assert table.correct.tolist() == [[False, True], [True, True]]
    np.testing.assert_allclose(table.costs, [[12e-6, 0.5], [16e-6, 140e-6]])
    assert table.tiers[0].signals["token_count"].tolist() == [1, 3]
    assert table.tiers[0].top_logprobs is None
    assert read(records, tmp_path=tmp_path, prices={"small": (1.0, 2.0)}).costs is None


@pytest.mark.parametrize("samples", [(2, 1, 3), (1, 2, 3), (3, 2, 1)])
def test_the_first_sample_of_a_question_counts_wherever_it_stands(tmp_path, samples):
    records = [answer("one", "small", sample == 1, sample=sample) for sample in samples]
    assert read(records, ["small"], tmp_path=tmp_path).correct.tolist() == [[True]]


def test_alternatives_are_counted(tmp_path):
    table = read([answer("one", "small", top=4), answer("two", "small", top=3)], ["small"], tmp_path=tmp_path)
    assert table.tiers[0].top_logprobs == 3
    assert table.tiers[0].signals.distribution.all()


def test_recorded_scores_stand_in_where_there_are_no_log_probabilities(tmp_path):
    records = [answer("one", "small", values=None, score=4.5), answer("two", "small", values=None)]
    tier = read(records, ["small"], tmp_path=tmp_path).tiers[0]
    assert tier.signals is None
    np.testing.assert_array_equal(tier.given, [4.5, math.nan])


def test_a_tier_without_any_signal_is_unknown_throughout(tmp_path):
    tier = read([answer("one", "small", values=None)], ["small"], tmp_path=tmp_path).tiers[0]
    assert not tier.signals.known.any()


def test_ungraded_answers_take_the_whole_request_out(tmp_path):
    records = [answer("one", "small"), answer("one", "large", None), answer("two", "small"), answer("two", "large")]
    table = read(records, tmp_path=tmp_path)
    assert len(table) == 1
    assert "1 of 2 requests" in table.notes[0]
    with pytest.raises(InputError, match="none of the 1 requests is graded"):
        read(records[:2], tmp_path=tmp_path)


def test_requests_that_only_some_tiers_have_answered_are_refused(tmp_path):
    with pytest.raises(InputError, match="missing: large 1") as raised:
        read([answer("one", "small"), answer("one", "large"), answer("two", "small")], tmp_path=tmp_path)
    assert "bias" in raised.value.hint


def test_a_model_that_was_not_recorded_is_named(tmp_path):
    with pytest.raises(InputError, match="no answers of large; recorded models: small"):
        read([answer("one", "small")], tmp_path=tmp_path)


def test_recordings_may_name_a_group(tmp_path):
    path = tmp_path / "answers.jsonl"
    line = {"question": "q", "model": "m", "sample": 0, "answer": "4", "correct": True, "tokens": 1, "group": "math"}
    path.write_text(json.dumps(line) + "\n")
    assert [record.group for record in open_recording(path).records()] == ["math"]
    with pytest.raises(ValueError, match="group is 3"):
        Recorded.parse(json.dumps(line | {"group": 3}).encode())
