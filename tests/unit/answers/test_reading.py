"""The reader: which answers are the same, and which are right."""

from __future__ import annotations

import asyncio
import sys
import time
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.answers.hostile import PIECES, anything
from workflow_composer.answers import AnswerForm, Question, Reader, kind_of, reader
from workflow_composer.answers.comparison.values import LONGEST, value_of
from workflow_composer.errors import ConfigError


def together(*answers, form=AnswerForm()):  # noqa: B008  # immutable
    """Whether these answers to one question are all equal."""
    return len(set(asyncio.run(Question(reader(form)).groups(answers)))) == 1


COMPARISONS = ["auto", "number", "text", "math"]
needs_mathematics = pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")


@pytest.fixture
def no_mathematics(monkeypatch):
    """As on a machine without math-verify."""
    monkeypatch.setitem(sys.modules, "math_verify", None)


def test_there_is_one_reader_for_each_form():
    """It is made once; the usual form needs no naming."""
    assert reader() is reader(AnswerForm())
    assert reader(AnswerForm(compare="text")) is not reader()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("18", "18"),
        ("18", "18.0"),
        ("1 500", "1500"),
        ("1.500,50 \N{EURO SIGN}", "1500.5"),
        ("$1,450,000.", "1450000"),
        ("1/2", "0.5"),
        (r"\frac{1}{2}", ".5"),
        ("18 dollars", "$18"),
        ("5%", "5"),
        ("two  Dogs.", "two dogs"),
        (r"\text{Monday}", "monday"),
        ("(B)", "b"),
        ("(1, 2)", r"\left(1,2\right)"),
        ("", ""),
    ],
)
def test_cheap_rules_see_the_same_answer_in_another_dress(a, b):
    """Without mathematics."""
    assert together(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("18", "81"),
        ("5", "-5"),
        ("9007199254740993", "9007199254740992"),
        ("1/3", "0.333333"),
        ("5 km", "5 miles"),
        ("5 hours", "6 hours"),
        ("18", "eighteen"),
        ("18 or 20", "18"),
        ("Monday", "Tuesday"),
        ("on", "no"),
        ("2020-01-02", "2017"),
        ("$", "%"),
        ("", "1"),
    ],
)
def test_cheap_rules_see_that_answers_differ(a, b):
    """Numbers exactly, words as they are; an anagram is no product of the same letters."""
    assert not together(a, b)


@pytest.mark.parametrize(("a", "b"), [("2x", "x + x"), (r"\sqrt{4}", "2"), ("x=5", "5"), ("x^2", "x**2")])
@needs_mathematics
def test_only_mathematics_can_tell_about_algebra(a, b):
    """Numbers and text say that they differ."""
    assert together(a, b)
    assert not together(a, b, form=AnswerForm(compare="number"))
    assert not together(a, b, form=AnswerForm(compare="text"))


def test_as_text_only_case_and_space_do_not_count():
    """Numbers are text, too."""
    text = AnswerForm(compare="text")
    assert together("The  Answer.", "the answer", form=text)
    assert not together("18", "18.0", form=text)
    assert not together("$18", "18", form=text)


@pytest.mark.parametrize("compare", ["auto", "number", "text"])
@given(a=anything, b=anything)
@settings(deadline=None)
def test_sameness_is_symmetric_for_any_answers(compare, a, b):
    """And costs no exception, whatever the answers hold."""
    plain = Reader(AnswerForm(compare=compare))
    plain.algebra = None  # what is compared without math-verify
    found = [asyncio.run(Question(plain).groups(answers)) for answers in ([a, b], [b, a], [a, a])]
    assert found[0] == found[1]
    assert found[2] == [0, 0]


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=4),
    st.decimals(allow_nan=False, allow_infinity=False, places=4),
)
@settings(deadline=None)
def test_numbers_are_the_same_exactly_when_equal(a, b):
    """No rounding."""
    if max(abs(a), abs(b)) < 10**300:
        assert together(f"{a:f}", f"{b:f}") == (a == b)


@pytest.mark.parametrize("compare", ["auto", "math"])
def test_an_answer_of_a_megabyte_is_compared_as_text(compare):
    """At once, and never by mathematics."""
    form = AnswerForm(compare=compare)
    for piece in PIECES:
        long = piece * (1_000_000 // len(piece))
        assert not together(long, long + "1", form=form)
        assert together(long + "x", long + "X", form=form)


@pytest.mark.parametrize("piece", PIECES)
def test_the_longest_answer_that_has_a_notation_has_it_at_once(piece):
    """Well under a second."""
    long = piece * (LONGEST // len(piece) - 1)
    before = time.process_time()
    for answer in (long + "x", long + "y"):
        value_of.__wrapped__(answer, algebra=True)
        kind_of([answer])
    assert time.process_time() - before < 1


@needs_mathematics
@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("2x+1", "1 + 2*x", True),
        (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}", True),
        ("sqrt(2)/2", r"\frac{\sqrt2}{2}", True),
        ("pi/2", r"\frac{\pi}{2}", True),
        ("x=5", "5", True),
        ("x = 5", "x = 6", False),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        ("(1,2)", "(2,1)", False),
        (r"x \in [0,1)", "[0,1)", True),
        (r"0 \le x < 1", "[0,1)", True),
        (r"(-\infty,3)", "x<3", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
        ("5!", "120", True),
        ("x^2-1", "(x-1)(x+1)", True),
        ("x^2-1", "(x-1)^2", False),
        (r"\sqrt{2}", "1.42", False),
        ("x^{", "x^{}", False),
    ],
)
async def test_mathematics_decides_what_the_rules_cannot(a, b, same):
    """In either order."""
    assert await Question(reader(), b).is_correct(a) is same
    assert await Question(reader(), a).is_correct(b) is same


async def test_without_mathematics_algebra_is_text(no_mathematics):
    """The usual form still works; one that insists on mathematics says what to install."""
    plain = Reader(AnswerForm())
    assert await Question(plain).groups(["2x", "x + x"]) == [0, 1]
    assert await Question(plain, "0.5").is_correct("1/2")
    with pytest.raises(ConfigError) as raised:
        Reader(AnswerForm(compare="math"))
    assert "[batch]" in raised.value.hint


@pytest.mark.parametrize("form", [AnswerForm(compare="exact"), AnswerForm(limit=0), AnswerForm(limit=float("nan"))])
def test_a_form_that_makes_no_sense_is_an_error(form):
    """When the reader is made."""
    with pytest.raises(ConfigError):
        reader(form)


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("18", "18", True),
        ("18 dollars", "9 * 2 = 18\n#### 18", True),
        (r"\frac12", r"It is $\boxed{\frac{1}{2}}$.", True),
        ("0.5", r"\frac{1}{2}", True),
        ("18", "19", False),
        (None, "18", False),
        ("Paris", "Paris", True),
        ("yes", "The answer is yes.", True),
    ],
)
async def test_an_answer_is_graded_against_a_label_or_a_solution(answer, label, right):
    """No answer is never right."""
    assert await Question(reader(), label).is_correct(answer) is right


async def test_a_label_is_read_in_the_forms_own_way_where_it_has_no_mark():
    """A field of JSON in both, or a bare label."""
    form = reader(AnswerForm(extract=("json:result",)))
    assert await Question(form, '{"result": 3.0}').is_correct(form.read('{"result": 3}'))
    assert await Question(form, "3").is_correct(form.read('{"result": 3}'))
    last = reader(AnswerForm(extract=("line",)))
    assert await Question(last, "because\n#### 42").is_correct(last.read("so\n42"))
