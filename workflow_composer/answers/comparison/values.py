r"""Values: an answer taken apart into numbers, formulas, sets and tuples. Pure, linear but for nesting, which is limited.

Sets have no brackets or have braces: ``1, 2`` and ``\{2, 1\}``, also ``1 and 2`` and ``\pm 1``. Round and square brackets
keep the order of what they hold. Of equations only "one variable = value" is that value. Which formulas are equal is not
decided here; `workflow_composer.answers.equality` asks math-verify.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from workflow_composer.answers.comparison.literals import SCHEDULES, family, name
from workflow_composer.answers.comparison.quantities import BARE, Measure, measure
from workflow_composer.answers.notation import Notation, formula, is_closed, notation, words

LONGEST = 2000
"""Characters; a longer answer is neither a number nor a formula, and is compared as text only."""

Shape = Literal["text", "number", "set", "tuple", "expression", "equation", "relation", "matrix"]

FORMULAS = frozenset(("expression", "equation", "relation", "matrix"))


@dataclass(frozen=True, slots=True)
class Value:
    """What an answer says. ``text``: the name, the brackets of a tuple, or the LaTeX of a formula.

    ``parts``: the elements of a set or tuple; of an equation "variable = expression", that expression.
    """

    shape: Shape
    text: str = ""
    number: Fraction = Fraction(0)
    measure: Measure = BARE
    parts: tuple[Value, ...] = ()

    @property
    def may_be_constant(self) -> bool:
        """Whether the formula may have a numeric value."""
        return self.shape == "expression" and not _LETTERS.search(_COMMANDS.sub("", self.text))


# ------------------------------------------------------------------------------------------------------ forms of an answer

_SLASH = re.compile(r"(\d+) ?/ ?(\d+)")
_JOINED_DIGITS = re.compile(r"\d+(?: ?[:|-] ?\d+)+|\d+(?: ?/ ?\d+){2,}|0\d{4,}|[nN]/[aA]")
_COMMAND = re.compile(r"\\[A-Za-z]")
_DECIMAL = re.compile(r"(?<![\w.])\d*\.\d+(?![\w.])")
_FUNCTION = re.compile(r"(?<![A-Za-z])(?:(?:sqrt|log|ln|exp|sin|cos|tan|cot|sec|csc|arc\w{3}) ?[\d(]|pi(?![A-Za-z]))")
_BRACKET = re.compile(r"\\?[(\[{] ?[-+]?\.?\d")
_VARIABLE = re.compile(
    r"(?<![^\W_])[A-Za-z] ?(?:[-+*/^]|[<>]=?|=) ?(?:[-+.\d(]|[A-Za-z](?![^\W_]))"
    r"|\d ?(?:[-+*/^]|[<>]=?|=) ?[A-Za-z](?![^\W_])|(?<![^\W_])\d+[a-z](?![^\W_])|\d ?[+*!=]|\d[(]"
)


def is_slash_form(answer: str) -> bool:
    """Whether the answer is ``n/m`` in bare digits: a fraction, a genotype, a score.

    >>> is_slash_form("1/3"), is_slash_form("04/02/2021"), is_slash_form("-1/3")
    (True, False, False)
    """
    return _SLASH.fullmatch(written(answer)) is not None


def written(answer: str) -> str:
    """Return the answer without LaTeX's wrappers and emphasis; empty if it is too long to be more than text."""
    return notation(answer).written if len(answer) <= LONGEST else ""


def is_name(found: Notation) -> bool:
    """Whether the answer is a name that arithmetic must not touch; ``n/m`` is not decided here."""
    text = found.written
    if _SLASH.fullmatch(text):
        return False
    return found.literal or _JOINED_DIGITS.fullmatch(text) is not None or family(text)


def is_plain(answer: str) -> bool:
    """Whether the answer is a number, with or without a unit, or a list of numbers.

    >>> is_plain("$1,450"), is_plain("10 mg"), is_plain("1 and -2"), is_plain("0/1"), is_plain("x")
    (True, True, True, False, False)
    """
    if len(answer) > LONGEST:
        return False
    found = notation(answer)
    if is_name(found) or _SLASH.fullmatch(found.written):
        return False
    if found.number is not None:
        return True
    parts = _listed(found.written)
    return len(parts) > 1 and all(notation(part).number is not None for part in parts)


def carries_mathematics(answer: str) -> bool:
    r"""Whether the answer can only be mathematics: LaTeX, a decimal, a root, a power, a function, a variable in a formula.

    >>> carries_mathematics(r"\frac12"), carries_mathematics("1.5"), carries_mathematics("(1,2)"), carries_mathematics("2x")
    (True, True, True, True)
    >>> carries_mathematics("18"), carries_mathematics("V600E"), carries_mathematics("10:30"), carries_mathematics("A/A")
    (False, False, False, False)
    """
    if len(answer) > LONGEST:
        return False
    found = notation(answer)
    if is_name(found) or _SLASH.fullmatch(found.written):
        return "frac" in answer
    text = found.written
    if _COMMAND.search(text) or "\\frac" in answer or "^" in text or _DECIMAL.search(text) or _BRACKET.match(text):
        return True
    return bool(_FUNCTION.search(text) or _VARIABLE.search(text))


# ------------------------------------------------------------------------------------------------------------------ values


@lru_cache(maxsize=8192)
def value_of(answer: str, *, algebra: bool, names: bool = True) -> Value:  # noqa: PLR0911  # as below
    """Return the value of an answer. ``algebra``: fractions, formulas, sets and tuples count; ``names``: so do names."""
    if len(answer) > LONGEST:
        return Value("text", words(answer))
    found = notation(answer)
    if not found.text:
        return Value("text", answer)
    if names and is_name(found):
        return Value("text", name(found.written))
    slash = _SLASH.fullmatch(found.written)
    if names and slash and not (algebra and _is_fraction(slash[1], slash[2])):
        return Value("text", name(found.written))
    if names and (dose := _dose(found.written)) is not None:
        return dose
    if found.number is not None:
        return Value("number", number=found.number, measure=found.measure)
    if (value := _quantities(found.written)) is not None:
        return value
    if algebra and (found.is_mathematical or is_plain(answer)):
        return _parse(_latex(answer), 0) or Value("text", _tight(name(found.written)))
    return Value("text", name(found.written) if names else found.text)


def _is_fraction(above: str, below: str) -> bool:
    return int(above) != 0 and int(below) not in (0, 1) and int(above) != int(below)


# -------------------------------------------------------------------------------------------------------------- quantities

_LONGEST_QUANTITY = 100
_AMOUNT = r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)"
_DOSE = re.compile(rf"({_AMOUNT} ?[^\W\d_][^\s,]*),? ([^\W\d_].*)")
_RANGE = re.compile(rf"(?:(?:from|between) )?{_AMOUNT} ?([^\d+-]*?) ?(?:-|to|and) ?{_AMOUNT} ?([^\d]*)", re.IGNORECASE)
_COMPARED = re.compile(
    r"(>=|<=|\\geq?|\\leq?|>|<|at least|at most|more than|less than|over|under|up to) ?(?=[-+.\d])(.*)", re.IGNORECASE
)
_RELATIONS = {
    "\\ge": ">=",
    "\\geq": ">=",
    "at least": ">=",
    "\\le": "<=",
    "\\leq": "<=",
    "at most": "<=",
    "up to": "<=",
    "more than": ">",
    "over": ">",
    "less than": "<",
    "under": "<",
}
_COMPOUND = re.compile(r"(?:\d+(?:\.\d+)? ?[^\W\d_]+\.?(?:,? and |, ?| )?){2,4}")
_PIECE = re.compile(r"(\d+(?:\.\d+)?) ?([^\W\d_]+)")
_HALF = re.compile(r"(?:(?:one|a) )?half (?:of )?(?:an? )?([^\W\d_]+)|(?:one|a) half", re.IGNORECASE)


def _dose(text: str) -> Value | None:
    """Return a quantity with its schedule (10 mg b.i.d.)."""
    found = _DOSE.fullmatch(text) if len(text) <= _LONGEST_QUANTITY else None
    if found is None or ((schedule := name(found[3])) not in SCHEDULES and not schedule.startswith("every")):
        return None
    amount = notation(found[1])
    if amount.number is None:
        return None
    return Value("text", f"{amount.measure.base(amount.number)} {amount.measure.dimension} {schedule}")


def _quantities(text: str) -> Value | None:
    """Return a range, a bound, a half, or a sum of quantities (1 h 30 min)."""
    if len(text) > _LONGEST_QUANTITY:
        return None
    if found := _COMPARED.fullmatch(text):
        amount = notation(found[2])
        if amount.number is not None:
            sign = _RELATIONS.get(found[1].casefold(), found[1])
            return Value("text", f"{sign} {amount.measure.base(amount.number)} {amount.measure.dimension}")
    if (found := _RANGE.fullmatch(text)) and (found[4].strip() or (not found[2] and "to" in text.casefold())):
        return _range(found[1], found[2].strip() or found[4].strip(), found[3], found[4].strip())
    if found := _HALF.fullmatch(text):
        return Value("number", number=Fraction(1, 2), measure=measure(found[1] or ""))
    if _COMPOUND.fullmatch(text):
        pieces = [(Fraction(number), measure(unit)) for number, unit in _PIECE.findall(text)]
        dimensions = {own.dimension for _, own in pieces}
        if len(dimensions) == 1 and not pieces[0][1].noun and pieces[0][1] != BARE:
            total = sum((own.base(number) for number, own in pieces), Fraction(0))
            return Value("number", number=total / pieces[-1][1].factor, measure=pieces[-1][1])
    return None


def _range(low: str, low_unit: str, high: str, high_unit: str) -> Value | None:
    if not low_unit and not high_unit:
        return Value("text", f"{low}-{high}")
    one, other = measure(low_unit), measure(high_unit or low_unit)
    if one.dimension != other.dimension:
        return None
    ends = [own.base(Fraction(end.replace(",", ""))) for own, end in ((one, low), (other, high))]
    return Value("text", f"from {ends[0]} to {ends[1]} {one.dimension}")


# ---------------------------------------------------------------------------------------------------------------- formulas

_DEEPEST = 6
_SPACING = re.compile(
    r"(?<!\\)(?:\\! ?|\\[,;: ]|\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits|q?quad)(?![a-zA-Z]))"
    r"|\^\s?\{?\s?\\circ\s?\}?"
)
_JOINING = re.compile(r"\\(?:text|mathrm|textrm|mbox) ?\{ ?,? ?(and|or) ?\}")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textnormal|mathbf|mathrm|boxed|operatorname) ?\{([^{}]*)\}")
_ROOT = re.compile(r"\\?(?<![A-Za-z])sqrt ?(?:\(([^()]*)\)|(\d+))")
_BARE_FUNCTION = re.compile(r"(?<![\\A-Za-z])(exp|sinh?|cosh?|tanh?|cot|sec|csc|log|ln|arcsin|arccos|arctan)(?=[ ^(\d\\])")
_SCRIPT = re.compile(r"(?<=[_^])\{(\w)\}")
_EMPTY = re.compile(r"\\(?:varnothing|emptyset)|\\\{ ?\\\}|\{ ?\}")
_ABOUT = re.compile(r"\\approx(?![a-zA-Z])|\\simeq(?![a-zA-Z])")
_NAMED = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w\}?|'|\([a-z](?:,[a-z])?\))? ?(?:=|\\in(?![a-z])) ?(.+)", re.DOTALL)
_SUBJECT = re.compile(r"[A-Za-z]|\\[a-z]+")
_AND = re.compile(r",? ?\b(?:and|or)\b ?|(?<=\d) ?\\(?:lor|vee|land|wedge)(?![a-z]) ?")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z]) ?")
_RELATION = re.compile(r"[<>]|\\(?:[lg]eq?|[lg]t|neq?|cup|cap|setminus|in|subset\w*|mathbb|infty)(?![a-zA-Z])")
_BASE_N = re.compile(r"\d+_\{?\d+\}?")
_COMMANDS = re.compile(r"\\[a-zA-Z]+|\{ ?[a-z ]+ ?\}")
_LETTERS = re.compile(r"(?![ei](?![a-zA-Z]))[a-zA-Z]")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?!(?:pi|sqrt|log|exp|sin|cos|tan|cot|sec|csc|frac|and|mod|lim|max|min)(?![a-z]))[A-Za-z]{3,}"
)
_TRAILING_UNIT = re.compile(r"(?<=[\d})]) ?([A-Za-z]{2,}(?:\^\{?[23]\}?)?)\.?$")
_OPEN, _CLOSE = "([{", ")]}"


def _latex(answer: str) -> str:
    """Return the formula without spacing commands, with functions and roots as LaTeX writes them."""
    text = _SPACING.sub("", _JOINING.sub(r" \1 ", formula(answer).replace("{,}", ",")))
    text = _ROOT.sub(lambda root: f"\\sqrt{{{root[1] or root[2]}}}", text)
    text = _BARE_FUNCTION.sub(r"\\\1", text).replace("\\lt", "<").replace("\\gt", ">")
    if (unit := _TRAILING_UNIT.search(text)) and unit[1] not in ("pi", "ln") and not measure(unit[1]).noun:
        text = text[: unit.start()]
    return " ".join(text.split())


def _parse(text: str, depth: int) -> Value | None:  # noqa: PLR0911  # one form of an answer after the other
    """Return the value of a formula or of a part of one; None if it is not one."""
    text = text.strip(" .,;")
    if not text or depth > _DEEPEST:
        return None
    if _EMPTY.fullmatch(text):
        return Value("set")
    if (about := _ABOUT.search(text)) and about.start():
        return _parse(text[: about.start()], depth + 1)
    if (value := _plain_number(text)) is not None:
        return value
    if (inner := _inside(text, "\\{", "\\}")) is not None or (inner := _inside(text, "{", "}")) is not None:
        return _set(_split(inner), depth)
    if (parts := _tuple_parts(text)) is not None:
        return _tuple(text, parts, depth)
    if len(parts := _listed(text)) > 1:
        return _set(parts, depth)
    if (value := _assigned(text, depth)) is not None:
        return value
    if len(signs := _PLUS_MINUS.split(text)) == 2:
        return _set([f"{signs[0]}+{signs[1]}" if signs[0] else signs[1], f"{signs[0]}-{signs[1]}"], depth)
    return _formula(text)


def _plain_number(text: str) -> Value | None:
    found = notation(text)
    if found.number is None or _COMPARED.match(text):
        return None
    return Value("number", number=found.number, measure=found.measure)


def _formula(text: str) -> Value | None:
    unwrapped = _WRAPPED.sub(r" \1 ", text)
    if _BASE_N.fullmatch(text):
        return Value("text", _tight(text))
    if _WORD.search(unwrapped) and not _COMMAND.search(unwrapped):
        return None
    if not is_closed(text):
        return Value("text", _tight(text))
    shape: Shape = "expression"
    if "\\begin" in text:
        shape = "matrix"
    elif _RELATION.search(text):
        shape = "relation"
    elif "=" in text:
        shape = "equation"
    return Value(shape, _tight(text))


def _assigned(text: str, depth: int) -> Value | None:
    """Return the value in "variable = value"; an equation "variable = expression" keeps both sides."""
    found = _NAMED.fullmatch(text)
    if found is None or text.count("=") > 1:
        return None
    inner = _parse(found[1], depth + 1)
    if inner is None or inner.shape not in FORMULAS or inner.shape == "matrix" or inner.may_be_constant:
        return inner
    if inner.shape == "relation" and "=" not in text[: found.start(1)]:
        return inner
    subject = _SUBJECT.match(text)
    own = subject is not None and re.search(rf"(?<![\\A-Za-z]){re.escape(subject[0])}(?![A-Za-z])", found[1]) is None
    return Value("equation", _tight(text), parts=(inner,) if own and inner.shape == "expression" else ())


def _set(parts: list[str], depth: int) -> Value | None:
    values = [_parse(part, depth + 1) for part in parts]
    kept = [value for value in values if value is not None]
    if not kept or len(kept) != len(values):
        return None
    flat = [each for value in kept for each in (value.parts if value.shape == "set" else (value,))]
    return flat[0] if len(flat) == 1 else Value("set", parts=tuple(flat))


def _tuple(text: str, parts: list[str], depth: int) -> Value | None:
    values = [_parse(part, depth + 1) for part in parts]
    kept = tuple([value for value in values if value is not None])
    if len(kept) != len(values):
        return None
    if len(kept) == 1 and text[0] == "(":
        return kept[0]
    return Value("tuple", text[0] + text[-1] + _tight(text), parts=kept)


def _inside(text: str, left: str, right: str) -> str | None:
    """Return what the outermost pair of these brackets holds; None if they do not surround the whole text."""
    if not (text.startswith(left) and text.endswith(right)) or len(text) < len(left) + len(right):
        return None
    inner, depth = text[len(left) : -len(right)], 0
    for character in inner:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return None
    return inner if depth == 0 and not inner.endswith("\\") else None


def _tuple_parts(text: str) -> list[str] | None:
    if text[0] not in "([" or text[-1] not in ")]" or len(text) < 3:
        return None
    inner, depth = text[1:-1], 0
    for character in inner:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return None
    if depth:
        return None
    parts = _split(inner)
    return parts if len(parts) > 1 or text[0] + text[-1] in ("()", "[]") else None


def _split(text: str) -> list[str]:
    """Return the parts between commas and semicolons outside brackets."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if character in ",;" and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part for part in [*parts, text[start:]] if part.strip()]


def _listed(text: str) -> list[str]:
    """Return the elements of a list of numbers or formulas without brackets; the text itself if it is no such list."""
    text = _JOINING.sub(r" \1 ", text)
    if ", " in text:
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    parts = [part for piece in _split(text) for part in _AND.split(piece) if part.strip()]
    if len(parts) < 2 or _WORD.search(_WRAPPED.sub("", _COMMAND_NAMES.sub("", " ".join(parts)))):
        return [text]
    return parts if any(any(map(str.isdigit, part)) or "\\" in part for part in parts) else [text]


_COMMAND_NAMES = re.compile(r"\\[A-Za-z]+")
_BETWEEN = re.compile(r" ?([^\w\s\\]) ?|(?<=[\d}]) (?=[\\\d])")


def _tight(text: str) -> str:
    return _SCRIPT.sub(r"\1", _BETWEEN.sub(r"\1", text))
