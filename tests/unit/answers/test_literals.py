"""Names that have no value: dates, genotypes, mutations, versions, identifiers."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.answers.hostile import PIECES, anything
from workflow_composer.answers import AnswerForm, Question, reader
from workflow_composer.answers.notation import is_literal

DIFFERENT = [
    *(("0/1", "0/2"), ("0/0", "0/1"), ("1/1", "2/2"), ("0/1", "0"), ("1/1", "1"), ("0|1", "1|0"), ("0|1", "0|2")),
    *(("A/A", "C/C"), ("A/G", "G/A"), ("C>T", "T<C"), ("c.35G>A", "c.35G>T"), ("V600E", "E600V"), ("p.V600E", "p.E600V")),
    *(("04/02/2021", "08/04/2021"), ("04/02/2021", "2/2021"), ("2021-04-02", "2015"), ("10:30", "21:63")),
    *(("v1.10", "v1.1"), ("1.2.10", "1.2.1"), ("B1", "B2"), ("B1", "1B"), ("H1N1", "N1H1"), ("rs123", "rs1230")),
    *(("NM_000546.6", "NM_000546.60"), ("chr1:12345", "chr1:12346"), ("chr1:5", "5"), ("A*02:01", "A*2:1")),
    *(("genotype 0/1", "genotype 0/2"), ("Genotype: 0/1", "Genotype: 0/2"), ("0/1 (het)", "0/2 (het)"), ("0 / 1", "0 / 2")),
    *(("2/4", "1/2"), ("1/2", "2/1"), ("BRAF V600E", "BRAF E600V"), (r"\text{0/1}", r"\text{0/2}")),
]
SAME = [
    ("V600E", "**V600E**"),
    ("0/1", r"\text{0/1}"),
    ("0/1", "0 / 1"),
    ("v1.10", "V1.10."),
    ("04/02/2021", "`04/02/2021`"),
]
VALUES = [("1/2", "0.5"), ("1/2", r"\frac{1}{2}"), ("3/6", "0.5"), ("1.10", "1.1"), ("1e5", "100000")]


async def are_equal(a, b, form=AnswerForm()):  # noqa: B008  # immutable
    """In a vote and against a label, in either order."""
    asked = [await Question(reader(form), b).is_correct(a), await Question(reader(form), a).is_correct(b)]
    one, other = await Question(reader(form)).groups([a, b])
    assert {*asked, one == other} == {asked[0]}
    return asked[0]


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
async def test_names_that_differ_by_a_sign_are_different_answers(a, b):
    """Whatever arithmetic would make of them, in votes and against a label."""
    assert await are_equal(a, b) is False


@pytest.mark.parametrize(("a", "b"), SAME)
async def test_a_name_in_another_dress_is_the_same(a, b):
    """Emphasis, case and the ends of a sentence do not count here either."""
    assert await are_equal(a, b) is True


@pytest.mark.parametrize(("a", "b"), VALUES)
async def test_what_has_a_value_keeps_it(a, b):
    """A fraction beside a decimal or LaTeX is a number, and so is a decimal."""
    assert await are_equal(a, b) is True


@pytest.mark.parametrize(
    "text", ["x-1", "2x", "n - 1", "sqrt2", "x1+x2", "x<3", "A>B", "pi/2", "5km", "(1, 2)", "1e5", "-3", "5-6"]
)
def test_algebra_is_no_name(text):
    """It keeps its mathematics."""
    assert not is_literal(text)


async def test_who_asks_for_numbers_gets_them():
    """The names are a matter of `auto`."""
    assert await are_equal("0/1", "0/2", AnswerForm(compare="number")) is True


@given(text=anything | st.text("0123456789/|.-:>ACGTacgtvx ", max_size=60))
@settings(deadline=None)
def test_any_text_is_a_name_or_none(text):
    """Nothing is raised."""
    assert is_literal(text) in (True, False)


@pytest.mark.parametrize("piece", [*PIECES, "A>", "A/", "0/", "v1.", "a-", "A1:", "1a", "ab12"])
def test_a_long_text_is_looked_at_at_once(piece):
    """Well under a second for the longest that is looked at."""
    before = time.process_time()
    is_literal(piece * (400 // len(piece)) + "!")
    assert time.process_time() - before < 0.5
