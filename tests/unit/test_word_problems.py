"""The generator of the word problems that the embedded fleet is trained on and measured with."""

from __future__ import annotations

import itertools
import json
import operator
import re
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.paths import CHECKPOINTS, ROOT

SCRIPT = ROOT / "scripts" / "word_problems.py"
sys.path.insert(0, str(SCRIPT.parent))
from word_problems import HIGHEST, drills, is_held_out, problems  # noqa: E402  # scripts are no package

STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)\. ")
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": Fraction}
seeds = st.integers(0, 2**32)


def steps_of(answer):
    """The worked steps, once they are known to be all there is before the result."""
    steps, mark, result = answer.rpartition("#### ")
    assert mark
    assert STEP.sub("", steps) == ""
    return [(int(a), sign, int(b), int(c)) for a, sign, b, c in STEP.findall(steps)], int(result)


def few(stream, count=20):
    """The first problems of a stream."""
    return list(itertools.islice(stream, count))


@given(seed=seeds, held_out=st.booleans())
def test_the_worked_steps_are_right_and_lead_to_the_result(seed, held_out):
    """Each step is a true equation within the taught range, and the last one gives the result."""
    for problem in few(problems(seed, held_out=held_out)):
        steps, result = steps_of(problem.answer)
        assert 2 <= len(steps) <= 5
        for a, sign, b, c in steps:
            assert SIGNS[sign](a, b) == c
            assert 0 < c <= HIGHEST
        assert result == problem.result == steps[-1][3]


@given(seed=seeds)
def test_every_step_builds_on_the_story(seed):
    """A step after the first uses an earlier result, and its other number stands in the story."""
    words = {"twice": 2, "three": 3, "four": 4, "five": 5, "half": 2}
    for problem in few(problems(seed, held_out=False)):
        told = {int(number) for number in re.findall(r"\d+", problem.question)}
        told |= {number for word, number in words.items() if word in problem.question.split()}
        results = set()
        for a, _, b, c in steps_of(problem.answer)[0]:
            assert a in (results or told)
            assert b in results | told
            results |= {c} | ({a} if not results else set())


@given(seed=seeds)
def test_trained_and_held_out_templates_are_disjoint(seed):
    """What the models are measured with has shapes that they were never shown."""
    trained = {problem.template for problem in few(problems(seed, held_out=False), 100)}
    measured = {problem.template for problem in few(problems(seed, held_out=True), 30)}
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, measured))
    assert not trained & measured


def test_about_one_template_in_eight_is_held_out():
    """The hash splits templates, not problems, in the stated proportion."""
    templates = {problem.template for held_out in (True, False) for problem in few(problems(1, held_out=held_out), 4000)}
    share = sum(map(is_held_out, {f"{template} x" for template in templates})) / len(templates)
    assert len(templates) > 2000
    assert share == pytest.approx(1 / 8, abs=0.03)


@given(seed=seeds)
def test_a_seed_gives_the_same_problems_again(seed):
    """Training and measuring can be repeated."""
    assert few(problems(seed, held_out=True), 5) == few(problems(seed, held_out=True), 5)
    assert few(drills(seed), 5) == few(drills(seed), 5)


@given(seed=seeds)
def test_single_sums_are_right(seed):
    """The drills that teach the arithmetic are true equations within the taught range."""
    for problem in few(drills(seed), 50):
        ((a, sign, b, c),), result = steps_of(problem.answer)
        assert SIGNS[sign](a, b) == c == result
        assert 0 < c <= HIGHEST
        assert problem.question == f"What is {a} {sign} {b}?"


def shipped():
    """The lines of the shipped problems."""
    return (CHECKPOINTS / "problems.jsonl").read_text().splitlines(keepends=True)


def test_the_shipped_problems_can_be_made_again():
    """The documented command gives the shipped file, byte for byte."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", "1000", "--seed", "2026"], capture_output=True, check=True
    )
    assert done.stdout == (CHECKPOINTS / "problems.jsonl").read_bytes()


def test_the_shipped_problems_are_new_to_the_models():
    """A thousand different questions, all from held-out templates, all with right answers."""
    rows = [json.loads(line) for line in shipped()]
    assert len({row["question"] for row in rows}) == len(rows) == 1000
    assert all(is_held_out(row["template"]) for row in rows)
    for row in rows:
        steps, result = steps_of(row["answer"])
        assert steps[-1][3] == result
