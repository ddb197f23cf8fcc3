r"""Normalization of answers: numbers, units, LaTeX, case, space. Pure, in linear time.

A `Notation` is a normalized answer. ``text`` has no LaTeX wrappers (``$``, ``\(``, ``\text{}``, ``\left``, ``\,``,
degrees), emphasis, trailing dots, redundant space or capitals. ``number`` is the value of a plain number, which may have
thousands separators, a currency or percent sign, a fraction, a mixed number (``1\frac12``) or a power of ten; ``unit`` is
the word after it. Percent signs are ignored, as in GSM8K: 5 % is 5. ``literal`` marks a date, a time, a genotype, a
mutation, a version or an identifier, which has no numeric value (`workflow_composer.answers.notation`).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from workflow_composer.answers.comparison.quantities import BARE, Measure, measure, singular_of

# ---------------------------------------------------------------------------------------------------------------- literals
#
# Literals, answers without a numeric value (dates, times, genotypes, mutations, versions, IDs). Pure, linear.
#
# Arithmetic would find meaningless equalities among them: 0/1 and 0/2 are both zero, V600E and E600V are the same product. A
# fraction of two different positive integers (1/2) is not a literal, because the other answer may be .5.


_FORMULA = frozenset("\\^=+*<{}")
_EDGES = "\"'`()[],;:!?."
_JOINT = re.compile(r" ?([/|>]) ?")
_DNA = "[ACGTUN]"
_LITERAL = re.compile(
    r"(?:"
    r"0+/\d+|\d+/0+|(?P<allele>\d+)/(?P=allele)"  # genotypes that nobody writes as a fraction
    r"|[\d.]+(?:\|[\d.]+)+|\./\.|\*\d+[A-Z]?/\*\d+[A-Z]?"
    rf"|{_DNA}+(?:[/|]{_DNA}+)+|(?:\S*[\d.:(])?{_DNA}+>{_DNA}+"  # A/A, C>T, c.35G>A
    r"|\d+(?:/\d+){2,}|\+?\d+(?:-\d+){2,}|\d{1,2}:\d\d(?::\d\d)?(?:[ap]m)?"  # dates, times, telephone numbers
    r"|\d+(?:\.\d+){2,}(?:[-+.]?[a-z]+\.?\d*)?"  # 1.2.3, 1.2.3-rc.1
    r"|[A-Za-z]\.(?!\d+\Z)[A-Za-z\d*_]*\d[A-Za-z\d*_]*"  # p.V600E
    # V600E, v1.10, chr1:12345, NM_000546.6, COVID-19: letters with digits, but neither x-1 nor a function's name
    r"|(?!(?:sqrt|log|ln|exp|sin|cos|tan|cot|sec|csc|pi|lim|sum|max|min)\d)"
    r"(?:[A-Za-z]|[A-Za-z][A-Za-z\d]*[._:-](?=[A-Za-z])|[A-Za-z]{2,}[\d]*[._:-]|[A-Z]+\d+-)[A-Za-z]*\d[A-Za-z\d]*"
    r"(?:[._:-][A-Za-z\d]+)*"
    r"|(?!\d+[Ee]\d+\Z)\d+[A-Za-z]+\d[A-Za-z\d]*(?:[._:-][A-Za-z\d]+)*"  # 17p13.1, not 1e5
    r"|[A-Z][A-Z\d-]*\*\d+(?::\d+)+[A-Z]?"  # HLA-A*02:01
    r")"
)


def is_literal(text: str) -> bool:
    """Whether the text is a literal, or is not a formula and has a literal among its words.

    >>> is_literal("0/1"), is_literal("1/2"), is_literal("04/02/2021"), is_literal("C>T"), is_literal("v1.10")
    (True, False, True, True, True)
    >>> is_literal("x-1"), is_literal("2x"), is_literal("sqrt2"), is_literal("x1+x2"), is_literal("genotype 0/1")
    (False, False, False, False, True)
    """
    if _LITERAL.fullmatch(_JOINT.sub(r"\1", text)):
        return True
    if " " not in text or not _FORMULA.isdisjoint(text):
        return False
    return any(_LITERAL.fullmatch(word.strip(_EDGES)) for word in text.split(" "))


# ---------------------------------------------------------------------------------------------------------------- notation

_CACHED_LENGTH = 256
_LONGEST_NUMBER = 400

_SUPERSCRIPTS = dict(
    zip(map(ord, "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b"), "0123456789+-", strict=True)
)
_SUBSCRIPTS = dict(zip(range(0x2080, 0x208A), "0123456789", strict=True))
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_SUBSCRIPT = re.compile("[\u2080-\u2089]+")
_VULGAR = re.compile("(\\d ?)?([\u00bc-\u00be\u2150-\u215e])")
_TEMPERATURE = re.compile(
    r"(?:\N{DEGREE SIGN}|\^ ?\{? ?\\circ ?\}?|\\degree) ?\{?(?:\\(?:text|mathrm|rm) ?\{)? ?([CF])\b ?\}?"
)
_EMPHASIS = re.compile(r"(\*{1,3}|_{1,3}|`+)(?=[^\s*_`])(.*[^\s*_`])\1")
_STARS = re.compile(r"^\*\*|\*\*$")
_SPACES = "\u00a0\u2007\u2009\u202f\u3000~"
_NOTHING = "\u200b\u2060\ufeff\N{DEGREE SIGN}$"
_CHARACTERS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
        "\N{DIVISION SLASH}": "/",
        "\N{FRACTION SLASH}": "/",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{INFINITY}": r"\infty ",
        "\N{LESS-THAN OR EQUAL TO}": r"\le ",
        "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
        "\N{UNION}": r"\cup ",
        "\N{EMPTY SET}": r"\emptyset ",
        "\N{PLUS-MINUS SIGN}": r"\pm ",
        "\N{SQUARE ROOT}": r"\sqrt ",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{PRIME}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{HYPHEN}": "-",
        "\N{NON-BREAKING HYPHEN}": "-",
        "\N{FIGURE DASH}": "-",
        "\N{ALMOST EQUAL TO}": r"\approx ",
    }
    | dict.fromkeys(_SPACES, " ")
    | dict.fromkeys(_NOTHING, "")
)
_WRAPPER = re.compile(
    r"\\(?:boxed|fbox|mbox|text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt)|operatorname|emph)\s?\{([^{}]*)\}"
)
_SILENT = re.compile(
    r"\\! ?|\\[,;:]|\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits)(?![a-zA-Z])|(?<!\\)\\[()\[\]]"
    r"|\^\s?(?:\\circ|\{\s?\\circ\s?\})|\\degree(?![a-zA-Z])"
)
_BLANK = re.compile(r"(?<!\\)(?:\\(?:q?quad)(?![a-zA-Z])|\\ )")
_FRACTION = re.compile(r"\\[dtc]?frac\s?(?:\{([^{}]*)\}|(\d))\s?(?:\{([^{}]*)\}|(\d))")
_SCRIPT = re.compile(r"(?<=[_^])\{(\w)\}")
_ESCAPED_OR_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DEEPEST = 30
_DELIMITER = re.compile(r"(?<!\\)\\[()\[\]]")
_PI = re.compile(r"(?<![a-zA-Z])pi(?![a-zA-Z])")
_TIGHT = re.compile(r" ?([^\w\s]) ?")

_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_CURRENCY = r"(?:[\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}\N{INDIAN RUPEE SIGN}]|usd |eur |gbp |rs\.? )?"
_EUROPEAN = re.compile(
    rf"([-+]? ?{_CURRENCY} ?)(\d{{1,3}}(?: \d{{3}})+(?:[.,]\d+)?|\d{{1,3}}(?:\.\d{{3}})+,\d{{1,2}})(?![\d,./ ]*\d)", re.ASCII
)
_POWER = r"(?:e([-+]?\d{1,3})| ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{?([-+]?\d{1,3})\}?)?"
_NUMBER = re.compile(rf"([-+]?) ?{_CURRENCY} ?({_DECIMAL}){_POWER}(?![\d./^_])", re.ASCII)
_RATIO = re.compile(
    rf"([-+]?) ?{_CURRENCY} ?(?:(\d+)(?: \+ | ?(?=\())|(?<![\d)])(?:(\d+) )?)"
    rf"\(?([-+]?) ?({_DECIMAL})\)? ?/ ?\(?([-+]?) ?({_DECIMAL})\)?(?![\d./^_])",
    re.ASCII,
)
_UNIT = re.compile(r"[^\W\d_]+\.?(?:[ /-][^\W\d_]+\.?){0,5}(?: ?\^ ?\{?[23]\}?)?")
_PERCENT = re.compile(r" ?(?:\\?%|per ?cent(?:age)?\b)")
JOINED_UNITS = "am|cm|ft|g|hr|hrs|in|kg|km|km/h|kwh|lb|lbs|mg|min|mins|ml|mm|mph|ms|pm|sec"
"""Units that may follow a number without a space; a pattern."""
_JOINED_UNITS = re.compile(
    rf"(?:{JOINED_UNITS}|deg[cf]|mcg|[un\u03bc]g|[un\u03bc][ml]|dl|iu|[mun\u03bc]m|[mun\u03bc]?mol|mmhg|hz|[kmg]hz|bp|kb|mb|da|kda|rpm|bpm"
    r"|[a-z\u03bc]{1,4}/[a-z\u03bc]{1,4}(?:/[a-z\u03bc]{1,4})?|cm\^ ?\{?[23]\}?|m\^ ?\{?[23]\}?|[\u4e00-\u9fff]{1,4})"
)
_LETTERS_THAT_ARE_UNITS = frozenset("mgshlu\u00b0")
_MULTIPLES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NO_UNITS = re.compile(
    r"\b(?:and|or|to|if|for|than|not|no|of|is|mod|pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|inf|infinity|plus|minus|times"
    r"|over|divided|squared|cubed|factorial|choose|half|more|less)\b"
)
_LAYERS = 4
_CURRENCIES = {
    "\N{EURO SIGN}": "euro",
    "\N{POUND SIGN}": "pound sterling",
    "\N{YEN SIGN}": "yen",
    "\N{INDIAN RUPEE SIGN}": "rupee",
}

_SIGNS = re.compile(r"[\\^=<>{}|]")
_OPERATORS = re.compile(r"[+*/()\[\],_!]|(?:\b[a-z]|\d) ?- ?(?:[a-z]\b|\()|\b[a-z] ?- ?\d")
_OPERANDS = re.compile(r"\d|\b[a-z]\b")
_PRODUCT = re.compile(r"\d ?[a-z]\b|\b[a-z]\d|(?:\b|\d)(?:pi|sqrt)\b")


@dataclass(frozen=True, slots=True)
class Notation:
    """A normalized answer; two answers with the same ``text`` are equal.

    ``written`` is the text before its case is removed; ``measure`` the unit of ``number``.
    """

    text: str
    number: Fraction | None
    unit: str
    literal: bool = False
    written: str = field(default="", compare=False, repr=False)
    measure: Measure = field(default=BARE, compare=False, repr=False)

    @property
    def is_mathematical(self) -> bool:
        """Whether it contains LaTeX or algebra, so that equal values may have different texts."""
        text = self.text
        if self.number is not None or _SIGNS.search(text) or _PRODUCT.search(text):
            return True
        return bool(_OPERATORS.search(text) and _OPERANDS.search(text))


def notation(answer: str) -> Notation:
    r"""Normalize an answer.

    >>> notation(r"\$1,450.00 \text{ dollars}.")
    Notation(text='1,450.00 dollars', number=Fraction(1450, 1), unit='dollar', literal=False)
    >>> notation(r"$-\dfrac{1}{2}$").number, notation("1 1/2").number, notation(r"5\%").number
    (Fraction(-1, 2), Fraction(3, 2), Fraction(5, 1))
    >>> notation("0/1").literal, notation("1/2").literal, notation("V600E").literal
    (True, False, True)
    >>> notation("1 500").number, notation("1.500,50 \N{EURO SIGN}").number
    (Fraction(1500, 1), Fraction(3001, 2))
    >>> notation("two  Dogs.").text, notation("Tom").is_mathematical, notation("2x").is_mathematical
    ('two dogs', False, True)
    """
    return _cached(answer) if len(answer) <= _CACHED_LENGTH else _undress(answer)


def words(answer: str) -> str:
    """Return the answer without case, redundant space and trailing dots."""
    return " ".join(answer.casefold().split()).rstrip(". ")


def formula(answer: str) -> str:
    r"""Return the answer as one line of LaTeX without delimiters, for a math parser.

    >>> formula("$$x^2 + \\pi$$."), formula("2*pi"), formula("x**2")
    ('x^2 + \\pi', '2*\\pi', 'x^2')
    """
    text = _DELIMITER.sub("", plain_characters(answer.replace("\\$", "")))
    text = unemphasized(" ".join(text.split())).rstrip(".,;: \\").replace("**", "^")
    return text if "\\" in text else _PI.sub(r"\\pi", text)


def is_closed(text: str) -> bool:
    r"""Whether braces are balanced and not nested too deeply: a parser uses up its time limit on any other text.

    >>> is_closed(r"\frac{1}{2}"), is_closed(r"\{1, 2\}"), is_closed(r"\frac{1}{"), is_closed("}{")
    (True, True, False, False)
    """
    depth = 0
    for brace in _ESCAPED_OR_BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not 0 <= depth <= _DEEPEST:
            return False
    return depth == 0


def _undress(answer: str) -> Notation:
    text = _BLANK.sub(" ", plain_characters(_TEMPERATURE.sub(r" deg\1 ", answer.replace("\\$", ""))))
    text = _SILENT.sub("", text.replace("{,}", ","))
    text = _WRAPPER.sub(r" \1 ", text)
    text = _SCRIPT.sub(r"\1", _FRACTION.sub(_as_ratio, text))
    written = text = unemphasized(" ".join(text.split())).rstrip(".,;: ")
    literal = len(text) <= _LONGEST_NUMBER and is_literal(text)
    text = text.casefold()
    number, unit, rest = _number(text) if len(text) <= _LONGEST_NUMBER else (None, "", 0)
    own = measure(written[-rest:] if rest and len(written) == len(text) else unit)
    if number is not None and own == BARE:
        own = _currency(answer)
    text = _TIGHT.sub(r"\1", text)
    if len(text) == 3 and text[0] == "(" and text[2] == ")" and text[1].isalpha():
        text = text[1]  # a multiple-choice answer: (B)
    return Notation(text, number, unit, literal, written, own)


_cached = lru_cache(maxsize=8192)(_undress)


def _as_ratio(match: re.Match[str]) -> str:
    above, below = match[1] or match[2] or "", match[3] or match[4] or ""
    return f"({above})/({below})"


def plain_characters(text: str) -> str:
    """Return the text with one character for each of its many writings: quotes, dashes, spaces, full-width letters.

    >>> plain_characters("\uff11\uff12\u201310\u00b2\u00b3"), plain_characters("1\u00bd"), plain_characters("4210\u2085")
    ('12-10^{23}', '1 1/2', '4210_5')
    """
    if text.isascii():
        return text.translate(_CHARACTERS)
    text = _SUPERSCRIPT.sub(lambda found: "^" + _braced(found[0].translate(_SUPERSCRIPTS)), text)
    text = _SUBSCRIPT.sub(lambda found: "_" + _braced(found[0].translate(_SUBSCRIPTS)), text)
    text = _VULGAR.sub(lambda found: f"{found[1] or ''}{' ' if found[1] else ''}{found[2]}", text)
    return unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)


def _currency(answer: str) -> Measure:
    """Return the measure of a currency sign; two dollar signs are the delimiters of a formula."""
    for sign, unit in _CURRENCIES.items():
        if sign in answer:
            return measure(unit)
    return measure("dollar") if answer.count("$") == 1 or "\\$" in answer else BARE


def _braced(script: str) -> str:
    return script if len(script) == 1 else f"{{{script}}}"


def unemphasized(text: str) -> str:
    """Return the text without Markdown's emphasis and quotation marks around it.

    >>> unemphasized("**18**"), unemphasized("*BRCA1*"), unemphasized("*2/*3"), unemphasized("p.R213*")
    ('18', 'BRCA1', '*2/*3', 'p.R213*')
    """
    for _ in range(_LAYERS):
        stripped = _STARS.sub("", text.strip('`" ')).strip("'" if text[:1] == "'" else " ")
        if found := _EMPHASIS.fullmatch(stripped):
            stripped = found[2]
        if stripped == text:
            break
        text = stripped
    return text


def _number(text: str) -> tuple[Fraction | None, str, int]:
    """Return the value of a plain number, its unit, and the length of the unit as written; None for other text."""
    if european := _EUROPEAN.match(text):  # 1 500 and 1.500,50
        whole, comma, decimals = european[2].partition(",")
        text = (
            european[1]
            + whole.replace(" ", "").replace("." if comma else " ", "")
            + f".{decimals}" * bool(comma)
            + text[european.end() :]
        )
    found = _RATIO.match(text)
    if found is not None:
        value = _ratio(found)
    elif found := _NUMBER.match(text):
        value = _fraction(found[2]) * Fraction(10) ** int(found[3] or found[4] or 0)
        value = -value if found[1] == "-" else value
    else:
        return None, "", 0
    if value is None:
        return None, "", 0
    return _with_unit(value, text[found.end() :])


def _ratio(found: re.Match[str]) -> Fraction | None:
    below = _fraction(found[7])
    if not below:
        return None
    value = _fraction(found[5]) / below
    if (found[4] == "-") != (found[6] == "-"):
        value = -value
    value += int(found[2] or found[3] or 0)
    return -value if found[1] == "-" else value


def _fraction(text: str) -> Fraction:
    whole, _, decimals = text.replace(",", "").partition(".")
    return Fraction(int(f"{whole}{decimals}" or "0"), 10 ** len(decimals))


def _with_unit(value: Fraction, rest: str) -> tuple[Fraction | None, str, int]:
    """Parse the rest after a number: a percent sign, a multiple (million), a unit; None if it is anything else."""
    if percent := _PERCENT.match(rest):
        rest = rest[percent.end() :]
    joined = rest[:1] not in {"", " "}
    rest = rest.lstrip("\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN} ")
    first, _, more = rest.partition(" ")
    if first in _MULTIPLES and not joined:
        value, rest = value * _MULTIPLES[first], more
    if not rest:
        return value, "", 0
    is_unit = _JOINED_UNITS.fullmatch(rest) if joined else _UNIT.fullmatch(rest)
    if (
        not is_unit
        or _NO_UNITS.search(rest)
        or (len(first) < 2 and first.isascii() and first not in _LETTERS_THAT_ARE_UNITS)
    ):
        return None, "", 0
    return value, " ".join(map(singular_of, rest.replace(" ^", "^").split())), len(rest)
