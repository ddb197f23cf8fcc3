"""What is left of an answer when its dress is taken off."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.answers.hostile import anything
from workflow_composer.answers.notation import formula, is_closed, notation, words

NUMBERS = {
    "18": "18 18. 18.0 +18 $18 18$ $18.00 **18** `18` \\$18 18% 18\\% 36/2 \\frac{36}{2} 1.8e1 1.8\\times10^1 18^\\circ",
    "-5": "-5 -5.00 \u22125 $-5 -$5 -10/2 10/-2 -\\frac{10}{2} \\frac{-10}{2} \\frac{10}{-2}",
    "1450000": "1450000 1,450,000 $1,450,000. 1{,}450{,}000 1\\,450\\,000 1.45e6 1\\!,450\\!,000",
    "1/2": "1/2 0.5 .5 0.50 \\frac{1}{2} \\frac12 \\dfrac{1}{2} \\tfrac12 \\frac{1}2 $\\frac{1}{2}$ \\(\\frac{1}{2}\\) 5e-1",
}
SENTENCES = {
    "3/2": ["1 1/2", "1\\frac{1}{2}", "1\\frac12", "1 \\frac{1}{2}", "1 + 1/2", "\\frac{3}{2}"],
    "20000000": ["20 million", "20,000 thousand", "0.02 billion dollars", "$20 million"],
    "18": [
        "18 dollars",
        "18 km",
        "18 kilometers per hour",
        "18cm",
        "18\\text{ cm}",
        "18\\text{cm}^2",
        "1.5 dozen",
        "18 percent",
    ],
    "-3/2": ["-1 1/2", "- 1.5", "-1\\frac{1}{2}"],
}


@pytest.mark.parametrize(
    ("value", "written"),
    [(v, w) for v, many in NUMBERS.items() for w in many.split()] + [(v, w) for v, many in SENTENCES.items() for w in many],
)
def test_a_plain_number_has_its_exact_value(value, written):
    """However it is written."""
    assert notation(written).number == Fraction(value)


@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            ".",
            "-",
            "x",
            "5x",
            "5 x",
            "2pi",
            "5 pi",
            "5 sqrt",
            "1,2",
            "12,34",
            "1,234,5",
            "(1,2)",
            "1 2",
            "5 to 6",
            "5 or more",
        ),
        *(
            "18 or 20",
            "1/0",
            "1/2/3",
            "1.2.3",
            "2^{10}",
            "5^2",
            "5!",
            "3:45 pm",
            "2020-01-02",
            "nan",
            "inf",
            "1e9999",
            "three",
        ),
        *("9" * 500, "x = 5", "\\sqrt{4}", "4 mod 7", "\u0663", "5 and 6"),
    ],
)
def test_what_is_more_or_less_than_a_number_has_none(written):
    """Nothing is guessed: pairs, products, ranges, dates."""
    assert notation(written).number is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 hours", "5 hour."),
        ("5 inches", "5 inch"),
        ("5 miles per hour", "5 mile per hour"),
        ("5\\text{ cm}^2", "5 cm^2"),
        ("18cm", "18 cm"),
    ],
)
def test_a_unit_is_the_same_in_singular_and_plural(one, other):
    """And however it is set."""
    assert notation(one).unit == notation(other).unit != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\text{Monday}", "monday."),
        ("two  Dogs", "two dogs"),
        ("(B)", "B"),
        ("\\text{(B)}", "b."),
        ("(1, 2)", "\\left( 1,2 \\right)"),
        ("x = 5", "x=5"),
        ("\\dfrac{a}{b}", "\\frac{a}{b}"),
        ("$x^2$", "\\(x^2\\)"),
        ("x\u00b2", "x^2"),
        ("2\u03c0", "2\\pi"),
        ("\\mathrm{cm}", "cm"),
        ("\\boxed{7}", "7"),
    ],
)
def test_dress_does_not_count(one, other):
    """LaTeX's wrappers, emphasis, case, space, brackets around a choice."""
    assert notation(one).text == notation(other).text != ""


@pytest.mark.parametrize(
    "written",
    ["2x", "x^2", "\\sqrt{2}", "x=5", "(1,2)", "1,2", "x-1", "2pi", "sqrt(2)", "a/b", "{1}", "5", "1/2", "A, B"],
)
def test_mathematics_is_recognised(written):
    """By LaTeX, signs, products, and operators between numbers or letters."""
    assert notation(written).is_mathematical


@pytest.mark.parametrize(
    "written",
    ["Monday", "north-west", "foo_bar", "Tom (senior)", "yes!", "2020-01-02", "18 or 20", "yes/no", "T-shirt", "A"],
)
def test_words_are_not_mathematics(written):
    """A parser would take them for products of letters, or a date for a difference."""
    assert not notation(written).is_mathematical


@given(st.integers())
@settings(deadline=None)
def test_every_whole_number_is_read_back(number):
    """With and without separators of thousands."""
    for written in (str(number), f"{number:,}", f"${number:,}$", f"{number:,} apples"):
        assert notation(written).number == number


@given(st.fractions(max_denominator=10**6))
@settings(deadline=None)
def test_every_fraction_is_read_back(number):
    """Plain and in LaTeX."""
    sign = "-" if number < 0 else ""
    above, below = abs(number.numerator), number.denominator
    for written in (
        f"{number.numerator}/{below}",
        rf"{sign}\frac{{{above}}}{{{below}}}",
        rf"\dfrac{{{sign}{above}}}{{{below}}}",
    ):
        assert notation(written).number == number


@given(anything)
@settings(deadline=None)
def test_any_answer_has_a_notation(text):
    """And a formula in one line, and words; taking off the dress twice changes no plain number."""
    found = notation(text)
    assert "\n" not in found.text
    assert "\n" not in formula(text)
    assert words(words(text)) == words(text)
    if found.number is not None:
        assert notation(found.text).number == found.number


@given(anything)
@settings(deadline=None)
def test_braces_are_counted_as_a_parser_does(text):
    """Escaped ones are not braces."""
    assert is_closed("{" + text + "}") or not is_closed(text) or text.count("{") >= 29 or text.endswith("\\")
    assert not is_closed("{" * 40 + "}" * 40)
