"""Which answers to one question are equal: kinds, numbers, units, sets, formulas, names, and what holds for any of them."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.paths import ROOT
from workflow_composer.answers import AnswerForm, Question, kind_of, kind_of_labels, reader
from workflow_composer.execution.voting.ballot import Ballot
from workflow_composer.plan import Candidate, Member, Voting
from workflow_composer.types import Sample

NAMES = [json.loads(line) for line in (Path(__file__).parent / "name_pairs.jsonl").read_text(encoding="utf-8").splitlines()]
CORPUS = ROOT.parent / "shared" / "trial" / "answers" / "pairs.jsonl"
needs_mathematics = pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")
needs_corpus = pytest.mark.skipif(not CORPUS.is_file(), reason=f"no {CORPUS}")


def corpus():
    return [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]


async def groups(*answers, label=None, kind=None, compare="auto"):
    """The sets of equal answers."""
    found = await Question(reader(AnswerForm(compare=compare)), label, kind=kind).groups(answers)
    together = defaultdict(set)
    for answer, group in zip(answers, found, strict=True):
        together[group].add(answer)
    return {frozenset(each) for each in together.values()}


async def are_equal(a, b, compare="auto"):
    """Against a label in either order, and in a vote: whether any of the three says so."""
    one = reader(AnswerForm(compare=compare))
    votes = await Question(one).groups([a, b])
    return votes[0] == votes[1] or await Question(one, b).is_correct(a) or await Question(one, a).is_correct(b)


# ------------------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("answers", "label", "kind"),
    [
        ([], "18", "mathematics"),
        ([], r"\frac{1}{2}", "mathematics"),
        ([], "1.5", "mathematics"),
        ([], "(1, 2)", "mathematics"),
        ([], "x=5", "mathematics"),
        ([], "10 mg", "mathematics"),
        ([], "1, 2", "mathematics"),
        (["0.5"], "Paris", "text"),
        ([r"\sqrt{2}"], "V600E", "text"),
        (["5", "0.5"], "C>T", "text"),
        ([], "04/02/2021", "text"),
        ([], "10:30", "text"),
        ([], "0|1", "text"),
        ([], "2-3", "text"),
        ([], "v1.10", "text"),
        ([], "E11.9", "text"),
        ([], "A/A", "text"),
        (["1/2", "0/1"], "1/3", "text"),
        (["1/2", "0.5"], "1/3", "mathematics"),
        (["1/2", "7"], None, "mathematics"),
        (["1/2", "2/4"], None, "text"),
        (["18", "19"], None, "mathematics"),
        (["18", "Paris"], None, "text"),
        ([], "C", "choice"),
        (["A", "(B)"], None, "choice"),
        (["A", "Paris"], None, "text"),
        ([], '{"a": 1}', "json"),
        ([], '["a", 1]', "json"),
        ([], "[1, 2]", "mathematics"),
    ],
)
def test_the_kind_comes_from_the_label_or_from_all_answers(answers, label, kind):
    """A label that is no more than n/m leaves it to the answers."""
    assert kind_of(answers, label) == kind
    assert kind_of(answers[::-1], label) == kind


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["A", "D", "B"], "choice"),
        (["0/1", "1/1"], None),
        (["12", r"\frac{1}{2}", r"\text{Monday}"], "mathematics"),
        (["yes", "no"], "text"),
        ([], None),
    ],
)
def test_a_data_sets_labels_have_a_kind_together(labels, kind):
    """If they say more than n/m."""
    assert kind_of_labels(labels) == kind


async def test_who_names_the_kind_overrules_label_and_answers():
    """A data set's kind, or the form's comparison."""
    assert await groups("1/2", "2/4") == {frozenset(("1/2",)), frozenset(("2/4",))}
    assert await groups("1/2", "2/4", kind="mathematics") == {frozenset(("1/2", "2/4"))}
    assert await groups("1.10", "1.1") == {frozenset(("1.10", "1.1"))}
    assert len(await groups("1.10", "1.1", compare="text")) == 2


# ----------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("label", "right", "wrong"),
    [
        ("0.5", ["1/2", "0.50", r"\frac12", "2/4"], ["0.51", "1/3", "0/2"]),
        ("5", ["5.0", "5 km", "5 miles", "$5"], ["50", "5/1", "5/5", "0/5"]),
        ("5 km", ["5", "5000 m", "5 kilometers", "5km"], ["5 miles", "5 m"]),
        ("10 mg", ["10mg", "0.01 g", "10 milligrams", "10,000 µg"], ["10 mL", "10 µg", "100 mg"]),
        ("3 hours", ["180 min", "3 hrs", "3"], ["3 minutes"]),
        ("0.50 dollars", ["50 cents", "0.5"], ["50"]),
        ("60 km/h", ["60 kilometers per hour", "60"], ["60 mph"]),
        (r"54\text{ in}^2", [r"54\text{ square inches}", "54"], [r"54\text{ in}"]),
        ("28%", ["28", "28 percent"], ["0.28"]),
    ],
)
async def test_numbers_are_equal_exactly_and_in_their_units(label, right, wrong):
    """A number without a unit has the label's; a label without one takes any."""
    question = Question(reader(), label)
    assert [answer for answer in right if not await question.is_correct(answer)] == []
    assert [answer for answer in wrong if await question.is_correct(answer)] == []


async def test_a_number_without_a_unit_has_the_unit_of_the_others_if_they_agree():
    """Otherwise it is equal to none of them: one answer cannot be 5 km and 5 miles."""
    assert await groups("5", "5 km") == {frozenset(("5", "5 km"))}
    assert await groups("5", "5 km", "5 miles") == {frozenset(("5",)), frozenset(("5 km",)), frozenset(("5 miles",))}
    assert await groups("5 apples", "5 pears") == {frozenset(("5 apples",)), frozenset(("5 pears",))}
    assert await groups("5", "5 apples", "5 dollars") == {frozenset(("5", "5 apples", "5 dollars"))}


@needs_mathematics
@pytest.mark.parametrize(
    ("answers", "count"),
    [
        (["2^{-98}", "2^{-99}"], 2),
        (["2^{10}", "1024"], 1),
        ([r"\sqrt{2}", "1.41421356"], 1),
        ([r"\sqrt{2}", "1.414"], 2),
        (["1.4142135", "1.4142136"], 2),
        ([r"\sqrt{2}", "1.4142135", "1.4142136"], 1),
        ([r"\frac{1}{2006!}", r"\frac{1}{2004!}"], 2),
        (["0.333333333", "1/3"], 2),
        ([r"e^{16}-1", "-1 + exp(16)"], 1),
    ],
)
async def test_constants_are_exact_or_within_a_tolerance_that_is_closed(answers, count):
    """Two decimals that differ are equal only through a rounded value between them."""
    for order in permutations(answers):
        assert len(await groups(*order)) == count


# ---------------------------------------------------------------------------------------------------- sets and formulas


@needs_mathematics
@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("1, 2", "2, 1", True),
        (r"\{1, 2\}", "2, 1", True),
        ("1 and 2", "{2, 1}", True),
        (r"\pm 3", "-3, 3", True),
        (r"1 \pm \sqrt{5}", r"1-\sqrt5, 1+\sqrt5", True),
        ("x = 1 or x = -2", "-2, 1", True),
        ("1, 2", "1, 3", False),
        ("3", r"\pm 3", False),
        ("(1,2)", "(2,1)", False),
        ("[1,2]", "[2,1]", False),
        ("(0,1)", "[0,1)", False),
        ("(1,4.5)", r"(1,\frac{9}{2})", True),
        ("(1,2),(3,4)", "(3,4),(1,2)", True),
        ("apple, pear", "pear, apple", False),
        ("25", "x^2+y^2=25", False),
        ("x=5", "5", True),
        ("D = (0, 1)", "(0,1)", True),
        ("7 = 11a+c", "11a+c", False),
        ("0", "a^2+b=0", False),
        (r"y = -\frac{1}{2}x + \frac{3}{4}", "2x+4y-3=0", True),
        ("y = 2x+1", "1+2x", True),
        ("x<3", r"(-\infty,3)", True),
        (r"5 \geq x", r"x \leq 5", True),
        (r"\varnothing", r"\emptyset", True),
        ("4210_5", "4210_{5}", True),
        ("4210_5", "4210_6", False),
        ("4210_5", "4210", False),
        (r"\begin{pmatrix}1 & 2\end{pmatrix}", r"\begin{bmatrix}1 & 2\end{bmatrix}", True),
        (r"\begin{pmatrix}1 & 2\end{pmatrix}", r"\begin{pmatrix}2 & 1\end{pmatrix}", False),
    ],
)
async def test_sets_have_no_order_tuples_do_and_only_an_assignment_is_its_value(a, b, equal):
    """As votes and against a label, in both orders."""
    assert await are_equal(a, b) is equal
    assert await Question(reader(), a).is_correct(b) is equal
    assert await Question(reader(), b).is_correct(a) is equal


@needs_mathematics
@needs_corpus
async def test_recorded_pairs_of_mathematics_are_judged_as_their_sources_do():
    """Bare answers of the corpus in boxes; no two different ones are equal."""
    wrong = []
    for pair in corpus():
        if not pair["contestable"] and pair["text"].startswith("So the answer is $\\boxed{"):
            answer = reader().read(pair["text"], pair["gold"])
            if await Question(reader(), pair["gold"]).is_correct(answer) != pair["equal"]:
                wrong.append(pair["id"])
    assert wrong == []


# ------------------------------------------------------------------------------------------------- choices, JSON, names


async def test_choices_are_equal_by_letter():
    """With their brackets, points and texts."""
    question = Question(reader(), "C")
    assert [await question.is_correct(each) for each in ("C", "(C)", "c.", "(C) 5", "C: 42")] == [True] * 5
    assert [await question.is_correct(each) for each in ("A", "A and C", "Cat", None)] == [False] * 4


async def test_json_is_equal_by_value():
    """Without the order of keys; 1 is 1.0, but true is not 1, and lists keep their order."""
    one, other = '{"city": "Rome", "days": [1, 2]}', '{"days": [1.0, 2], "city": "Rome"}'
    assert len(await groups(one, other)) == 1
    assert len(await groups(one, '{"city": "Rome", "days": [2, 1]}')) == 2
    assert len(await groups('{"a": true}', '{"a": 1}')) == 2
    assert len(await groups('{"a": "1"}', '{"a": 1}')) == 2


@pytest.mark.parametrize("pair", [pair for pair in NAMES if not pair["equal"]], ids=lambda pair: f"{pair['a']}|{pair['b']}")
async def test_different_names_are_never_equal(pair):
    """The reason stands beside each."""
    assert not await are_equal(pair["a"], pair["b"], pair.get("compare", "auto")), pair["why"]


async def test_most_names_are_recognised_in_another_writing():
    """At least 200 pairs, half of them by somebody who had not read the code; of 80 equal ones, most are recognised."""
    equal = [pair for pair in NAMES if pair["equal"]]
    missed = [pair for pair in equal if not await Question(reader(), pair["b"]).is_correct(pair["a"])]
    assert len(NAMES) >= 200
    assert 2 * sum(pair["by"] == "blind" for pair in NAMES) >= len(NAMES)
    assert len(equal) >= 80
    assert len(missed) <= 7, [(pair["a"], pair["b"]) for pair in missed]


async def test_the_other_answers_tell_what_a_name_is():
    """A version among decimals, a code without its point, the order of day and month."""
    assert len(await groups("v1.10", "1.10", "1.1")) == 2
    assert len(await groups("E11.9", "E119")) == 1
    assert len(await groups("E118", "E119")) == 2
    assert len(await groups("04/02/2021", "2 April 2021")) == 2
    assert await groups("04/02/2021", "2 April 2021", "04/25/2021") == {
        frozenset(("04/02/2021", "2 April 2021")),
        frozenset(("04/25/2021",)),
    }


# -------------------------------------------------------------------------------------------------------------- properties


@given(st.dates(), st.dates(), st.sampled_from(["%m/%d/%Y", "%d.%m.%Y", "%Y-%m-%d", "%d %B %Y", "%B %d, %Y", "%b %d, %Y"]))
@settings(deadline=None)
def test_dates_score_at_least_what_comparison_as_text_scores(one, other, form):
    """What is equal as text is equal by default, in the same and in further writings; two days never are."""
    if min(one.year, other.year) < 1000:
        return
    written, different = one.strftime(form), other.strftime(form)
    label = Question(reader(), written)
    for answer in (written.upper(), f" {written}. ", written.replace("/0", "/").replace(" 0", " ")):
        assert asyncio.run(label.is_correct(answer))
    assert asyncio.run(label.is_correct(different)) == (one == other)
    if "%m/" not in form:
        assert asyncio.run(label.is_correct(one.isoformat()))


POOL = [
    "5",
    "5 km",
    "5 miles",
    "5000 m",
    "1/2",
    "2/4",
    "0.5",
    "0/1",
    "1/0",
    "A",
    "(A)",
    "B",
    "Paris",
    "paris.",
    "v1.5",
    "1.5",
]


def partition(answers, found):
    together = defaultdict(set)
    for answer, group in zip(answers, found, strict=True):
        together[group].add(answer)
    return {frozenset(each) for each in together.values()}


@given(st.lists(st.sampled_from(POOL), min_size=1, max_size=7), st.randoms())
@settings(deadline=None)
def test_groups_do_not_depend_on_the_order(answers, random):
    """And are numbered by first appearance."""
    other = random.sample(answers, len(answers))
    found = asyncio.run(Question(reader()).groups(answers))
    assert partition(answers, found) == partition(other, asyncio.run(Question(reader()).groups(other)))
    assert list(dict.fromkeys(found)) == list(range(len(set(found))))


_AT_ONCE = 60
"""Answers and labels; the number of comparisons of formulas grows with the square."""


def drawn(answers):
    """The answers and their counts after a vote over these, in this order."""
    ballot = Ballot(Voting(), [Member((Candidate("m", "m"),), samples=len(answers))])

    async def add():
        for answer in answers:
            await ballot.add(Sample(text=f"The answer is {answer}"))

    asyncio.run(add())
    verdict = ballot.verdict()
    return sorted(count for _, count in verdict.votes), verdict.confidence


@given(st.lists(st.sampled_from(POOL), min_size=2, max_size=7), st.randoms())
@settings(deadline=None)
def test_a_vote_does_not_depend_on_the_order_of_its_samples(answers, random):
    """Neither its counts nor its confidence."""
    assert drawn(answers) == drawn(random.sample(answers, len(answers)))


@needs_mathematics
@needs_corpus
async def test_equality_is_an_equivalence_over_all_pairs_of_the_corpus():
    """Each pair alike from both sides; and many answers and labels as one question form the same groups in any order."""
    answers = []
    for pair in corpus():
        found = reader().read(pair["text"], pair["gold"])
        if found is None:
            continue
        label = reader().bare(pair["gold"])
        question = Question(reader(), label)
        one, other = await question.groups([found, label])
        assert (one == other) == await question.is_correct(found)
        assert await question.groups([label, found]) == ([0, 0] if one == other else [0, 1])
        answers += [found, label]
    for start in range(0, len(answers), _AT_ONCE):
        some = answers[start : start + _AT_ONCE]
        first = partition(some, await Question(reader()).groups(some))
        assert first == partition(some[::-1], await Question(reader()).groups(some[::-1]))
        assert 1 < len(first) < len(set(some))
    assert reader().timed_out == 0
