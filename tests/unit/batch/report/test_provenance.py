"""What a report rests on: the origin of every run in the folder, and which of them are compared."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.batch.finished import failed, greedy, row, tier
from workflow_composer import StrategyConfig
from workflow_composer.batch.datasets.dataset import Row
from workflow_composer.batch.report.comparison import compare
from workflow_composer.batch.report.document import ReportTable
from workflow_composer.batch.report.provenance import ABOUT, RunAbout, about, other_runs, rests_on
from workflow_composer.batch.report.run_summary import RunSummary
from workflow_composer.batch.run.planned_run import agreement


def origin(policy="small", **changes):
    profile = StrategyConfig(profile_name="p", models={"small": {"backend": "fake", "model": "small-1"}})
    made = RunAbout.now(
        policy,
        command=["execute", "--routes", "a b"],
        profile=profile,
        data="sums",
        data_digest="d" * 64,
        settings="votes: x",
    )
    return replace(made, **changes)


@pytest.fixture
def folder(tmp_path):
    """A report's folder with one run of ten rows, ``small``."""
    make(tmp_path, "small", 10)
    return tmp_path


def make(folder, name, rows, **changes):
    place = folder / name
    place.mkdir()
    (place / "journal.jsonl").write_text("x\n" * rows)
    origin(name, **changes).save(place)
    return place


def others(folder, rows=10):
    known = {"small": folder / "small"}
    return other_runs(folder, "journal.jsonl", known=known, rows=rows, count=lambda path: path.read_text().count("x"))


def test_an_origin_is_kept_beside_its_run(folder):
    found = about(folder / "small")
    assert found == replace(origin(), date=found.date)
    assert (found.models, found.command) == ({"small": "fake:small-1"}, ("execute", "--routes", "a b"))
    assert len(found.profile_digest) == 64


def test_the_digest_is_that_of_the_profile():
    other = StrategyConfig(profile_name="p", models={"small": {"backend": "fake", "model": "small-2"}})
    made = RunAbout.now("small", command=(), profile=other, data="sums", data_digest="", settings="")
    assert made.profile_digest != origin().profile_digest
    assert not origin().is_like(origin(profile_digest=made.profile_digest))
    assert origin().is_like(origin(date="another", command=()))


@pytest.mark.parametrize("text", [None, "", "{", '{"policy": 1}'])
def test_a_folder_without_a_readable_origin_has_none(tmp_path, text):
    if text is not None:
        (tmp_path / ABOUT).write_text(text)
    assert about(tmp_path) is None


def test_all_runs_of_the_folder_over_the_same_rows_are_compared_the_earliest_first(folder):
    make(folder, "later", 10, date="2026-02-01")
    make(folder, "earlier", 12, date="2026-01-01")
    (folder / "notes").mkdir()
    found, lines = others(folder)
    assert list(found) == ["earlier", "later"]
    assert (found["later"], lines) == (folder / "later", [])


def test_a_run_with_fewer_rows_or_other_data_is_left_out_and_told_of(folder):
    make(folder, "pilot", 3)
    make(folder, "changed", 10, data_digest="e" * 64)
    found, lines = others(folder)
    assert found == {}
    assert any(line.startswith("pilot") and "3 of 10 rows" in line for line in lines)
    assert any(line.startswith("changed") and "other data" in line for line in lines)


def test_the_section_has_models_temperatures_labels_and_readers():
    rows = [replace(each, read_by="boxed" if each.row < 4 else "last_number") for each in greedy(6, "small", bool)]
    route = "mv_cascade_small_k3_t0.7_large_k1_t0.0"
    votes = [row(n, tier("small", True), route=route, correct=True if n else None) for n in range(6)]
    comparison = compare([RunSummary.of("greedy", rows), RunSummary.of("votes", votes)])
    blocks = rests_on(comparison, {"greedy": origin("greedy"), "votes": origin("votes")})
    assert isinstance(blocks[0], ReportTable)
    one, other = blocks[0].rows
    assert (one[1], one[3:]) == ("greedy", ("6", "6", "small", "0", "boxed 4, last_number 2"))
    assert (other[1], other[4], other[6]) == ("votes", "5", "0.7, 0")
    said = json.dumps(blocks[1].items)
    assert all(
        part in said for part in ("dddddddddddd", origin().profile_digest[:12], "--routes 'a b'", "small = fake:small-1")
    )


def test_grades_are_compared_with_those_of_a_recording():
    """Of single answers that both know: neither votes, failed rows, nor answers that were not graded."""
    rows = [
        row(0, tier("a", True), correct=True),
        row(1, tier("a", False), correct=False),
        row(2, tier("a", True), correct=True),
        row(3, tier("a", True), correct=None),
        row(4, tier("a", True, True), correct=True),
        failed(5),
    ]
    recorded = {"q0": True, "q1": True, "q2": None, "q3": True, "q4": True, "q5": True}
    questions = [Row(n, str(n), f"q{n}", None) for n in range(6)]
    assert agreement(rows, questions, lambda model, question, sample: recorded[question]) == (1, 2)
