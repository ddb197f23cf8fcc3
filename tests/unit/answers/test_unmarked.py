"""The answer of a text that does not mark it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings

from tests.unit.answers.hostile import PIECES, anything
from workflow_composer.answers import AnswerForm, Question, reader
from workflow_composer.answers.finding.undressing import says_something
from workflow_composer.answers.finding.unmarked import numbers, unmarked

WORKED = [
    ("Ann bakes 4 * 6 = 24 rolls. She sells each for $2, so she makes 24 * $2 = $48 every day at the market.", "48"),
    ("The order comes to $24.00.\n\nAdding the $5.00 tip, the final cost is $24.00 + $5.00 = $29.00.", "29"),
    ("Over ten years that is 10 * 145,000 = 1,450,000 rolls.", "1450000"),
    ("Omar is 11 - 2 = 9, so Ines is **18** years old.", "18"),
    ("So the share of rolls that are left is \\( 50\\% - 25\\% = 25\\% \\).", "25"),
    ("The temperature falls by 8 degrees, so it is 5 - 8 = -3 degrees.", "-3"),
    ("She needs half of it, which is \\(\\frac{1}{2}\\) of a litre.", "0.5"),
    ("1. She bakes 24 rolls.\n2. She eats 6 of them.\n\nThat leaves 18 rolls.\n", "18"),
    ("He rides 1.5 million metres in all, and this is as far as he can ride.", "1500000"),
    ("#### Each child got 5 rolls.", "5"),
    ("The answer is that Ines earns 18 dollars.", "18"),
    ("So the answer is 8, because 4 were given away.", "8"),
    ("$29.00.", "29"),
    ("1,450,000", "1450000"),
    ("18 dollars", "18"),
    ("**18**", "18"),
    ("The answer is 18.", "18"),
    ("答案\uff1a18", "18"),
]


@pytest.mark.parametrize(("text", "label"), WORKED)
async def test_a_worked_solution_ends_in_its_number(text, label):
    """As strong models write where nobody has told them how to end."""
    answer = reader().read(text, label)
    assert await Question(reader(), label).is_correct(answer) is True
    assert await Question(reader(), f"{label}1").is_correct(answer) is False


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Paris", "Paris"),
        ("**Paris.**", "paris"),
        ("George Washington Carver the younger of the two", "George Washington Carver the younger of the two"),
        ("yes", "Yes"),
        ("(B)", "B"),
        ("V600E", "V600E"),
        ("The mutation that was found is called V600E.", "V600E"),
        ("The genotype is 0/1.", "0/1"),
        ("It happened on 04/02/2021, if I am not mistaken.", "04/02/2021"),
        ("Boeing 747", "Boeing 747"),
    ],
)
async def test_where_the_label_is_in_words_a_short_text_is_the_answer(text, label):
    """Or the last name of a longer one, where the label is such a name."""
    assert await Question(reader(), label).is_correct(reader().read(text, label)) is True


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("18 or 20", "20"),
        ("04/02/2021", "2021"),
        ("10:30", "30"),
        ("0/1", "1"),
        ("SARS-CoV-2", "2"),
        ("It is not a number.", "7"),
        ("Paris or Rome", "Paris"),
        ("The capital of France has always been Paris.", "Rome"),
    ],
)
async def test_what_is_no_answer_is_not_made_right(text, label):
    """Hedges, parts of names, and texts without any."""
    assert await Question(reader(), label).is_correct(reader().read(text, label)) is False


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There are 18 apples.", "18"),
        ("So she has 24 - 6 = 18 rolls left to sell.", "18"),
        ("18 dollars", "18 dollars"),
        ("Boeing 747", "Boeing 747"),
        ("3 apples or 4", "3 apples or 4"),
        ("2x + 3", "2x + 3"),
        ("The genotype is 0/1.", "0/1"),
        ("04/02/2021", "04/02/2021"),
        ("Paris", "Paris"),
        ("I do not know.", None),
        ("Sorry, I can't say.", None),
        ("The capital of France has always been Paris.", None),
        ("", None),
    ],
)
def test_in_a_vote_the_text_itself_must_tell(text, answer):
    """A number where there is one, else a short text as it stands; never one that two different answers share."""
    assert reader().read(text) == answer


def test_only_auto_at_the_end_goes_on_to_what_is_not_marked():
    """Who names ways of their own gets these and no other."""
    text = "So she has 18 rolls left to sell at the market."
    assert reader(AnswerForm(extract=("boxed", "auto"))).read(text) == "18"
    assert reader(AnswerForm(extract=("auto", "line"))).read(text) == text
    assert reader(AnswerForm(extract=("hashes", "boxed", "phrase"))).read(text) is None


async def test_a_label_is_never_cut_down_to_a_number():
    """It is what it is, or what it marks."""
    assert await Question(reader(), "Flight 747 to Paris").is_correct("Flight 747 to Paris")
    assert not await Question(reader(), "Flight 747 to Paris").is_correct("747")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("16-7=9", ["9"]),
        ("x^2 + x_1 and 10^{5}", []),
        ("18km, 2x and 7th", ["18km"]),
        ("3,4", []),
        ("$-3 and -$4", ["$-3", "-$4"]),
        ("1 1/2 hours", ["1 1/2"]),
        ("10{,}000", ["10{,}000"]),
        ("1) Paris", []),
    ],
)
def test_a_number_stands_by_itself(text, found):
    """What is part of something longer is none; a unit that is written close to it stays out."""
    assert numbers(text) == [number.removesuffix("km") for number in found]


@given(text=anything)
@settings(deadline=None)
def test_any_text_can_be_cut_down(text):
    """The answer says something, and nothing that is not in the text, whatever label is asked for."""
    for label in (None, "18", "Paris", "0/1", "B"):
        found = unmarked(text, label)
        assert found is None or says_something(found[0])
        assert found is None or set(filter(str.isalnum, found[0])) <= set(text.upper() + text) | set(r"\infty\emptyset")


@pytest.mark.parametrize("piece", [*PIECES, "1.1,", "- ", "-1", "$", "1/1/", "1. ", "1 1", "x1"])
def test_a_quarter_of_a_megabyte_takes_no_time(piece):
    """Linear, whatever the label."""
    text = piece * (250_000 // len(piece))
    before = time.process_time()
    for label in (None, "18", "Paris", "0/1"):
        unmarked(text, label)
    assert time.process_time() - before < 5
