"""Equality of the answers to one question: their kind is decided once, and equal answers form groups.

Pairs alone are not enough: "5 km" and "5 miles" both are "5", and whether ``1/2`` is a fraction or a genotype shows only in
the other answers. `Question` therefore looks at all answers to a question together, with the label if there is one, and
groups them; equality within a question is an equivalence, and the order of the answers does not matter.

- Numbers are equal if they are exactly equal as rationals. If either is only known as a rounded value (a root, pi), they are
  equal within a relative difference of `TOLERANCE`, and so are all that such pairs connect.
- Units convert: 0.5 g is 500 mg. A number without a unit has the label's unit; if the label is a number without a unit,
  units say nothing. Without a label it has the unit of the others if they agree; otherwise it equals none of them.
- Sets are equal if their elements are, tuples if these are in order, too, and the brackets are the same.
- Other formulas of one form (expressions, equations, relations, matrices) are compared by math-verify.
- Names (dates, genotypes, changes of proteins, versions, words) are equal if their canonical writings are
  (`workflow_composer.answers.comparison.literals`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any, Literal

from workflow_composer.answers.comparison.literals import is_version, with_order, with_point
from workflow_composer.answers.comparison.quantities import BARE, Measure
from workflow_composer.answers.comparison.values import (
    FORMULAS,
    Value,
    carries_mathematics,
    is_plain,
    is_slash_form,
    value_of,
    written,
)
from workflow_composer.answers.form import Comparison, Patience
from workflow_composer.answers.notation import words
from workflow_composer.answers.reading import Reader

Kind = Literal["text", "mathematics", "choice", "json"]
"""What the answers to a question are; it decides how they are compared."""

TOLERANCE = Fraction(1, 10**6)
"""The relative difference up to which a rounded number equals another."""

_CHOICE = re.compile(r"(?:option |choice )?\(?([A-Za-z])(?:\)?[.:]?|\)[.:]? .*|[.:] .*)")
_LABEL_CHOICE = re.compile(r"\(?[A-Z]\)?\.?")
_DECIMAL = re.compile(r"\d+(?:\.\d+)+")


class Question:
    """Compares the answers to one question.

    ``label`` is the correct answer, bare or at the end of a solution. ``kind`` is the kind of the data set's answers
    (`kind_of_labels`); without it, label and answers decide (`kind_of`). ``patience`` bounds the time of all comparisons by
    math-verify (None: only that of each is bounded). Usable from any event loop.
    """

    def __init__(
        self, reader: Reader, label: str | None = None, *, kind: Kind | None = None, patience: Patience | None = None
    ) -> None:
        self._reader = reader
        self._patience = patience
        self.label = None if label is None else reader.bare(label)
        self._kind = kind
        self._seen: dict[str, None] = {}
        self._found: dict[str, int] = {}

    async def groups(self, answers: Sequence[str]) -> list[int]:
        """Return the group number of each answer; groups are numbered in order of first appearance.

        Which answers share a group does not depend on their order. Raises `ConfigError` if math-verify is needed and does
        not work.
        """
        self._seen.update(dict.fromkeys(answers))
        if len(self._seen) == 1:
            return [0] * len(answers)
        found = await self._grouped()
        numbers: dict[int, int] = {}
        return [numbers.setdefault(found[answer], len(numbers)) for answer in answers]

    async def is_correct(self, answer: str | None) -> bool:
        """Whether the answer equals the label; None (no answer) is never correct. False without a label.

        The answers given to `groups` before are taken into account. Raises as `groups` does.
        """
        if answer is None or self.label is None:
            return False
        if answer == self.label:
            return True
        self._seen[answer] = None
        found = await self._grouped()
        return found[answer] == found[self.label]

    async def _grouped(self) -> dict[str, int]:
        """Return the group of each answer seen, and of the label."""
        answers = list(dict.fromkeys([*([] if self.label is None else [self.label]), *self._seen]))
        if len(answers) != len(self._found):
            self._found = dict(zip(answers, await self._partition(answers), strict=True))
        return self._found

    async def _partition(self, answers: list[str]) -> list[int]:
        compare = self._reader.form.compare
        if compare == "text":
            return _joined([words(answer) for answer in answers])
        if compare != "auto":
            values = [value_of(answer, algebra=compare == "math", names=False) for answer in answers]
            return await self._equality(values).groups()
        kind = self._kind or kind_of(self._seen, self.label, compare)
        if kind == "json":
            return _joined([_json_key(answer) for answer in answers])
        if kind == "choice":
            return _joined([_choice_key(answer) for answer in answers])
        values = _together(answers, [value_of(answer, algebra=kind == "mathematics") for answer in answers])
        return await self._equality(values).groups()

    def _equality(self, values: list[Value]) -> _Equality:
        return _Equality(self._reader, values, None if self.label is None else values[0], self._patience)


def kind_of(answers: Iterable[str], label: str | None = None, compare: Comparison = "auto") -> Kind:
    r"""Return the kind of a question's answers, from the label if it is clear, else from all answers and the label.

    A label is not clear if it is ``n/m`` in bare digits.

    >>> kind_of([], "18"), kind_of(["x"], r"\\sqrt{2}"), kind_of([], "Paris"), kind_of([], "C"), kind_of([], "V600E")
    ('mathematics', 'mathematics', 'text', 'choice', 'text')
    >>> kind_of(["0/1", "1/2"], "0/1"), kind_of(["0.5", "1/2"], "1/2"), kind_of(["5", "7 eggs"])
    ('text', 'mathematics', 'mathematics')
    """
    if compare != "auto":
        return "text" if compare == "text" else "mathematics"
    if label is not None and not is_slash_form(label):
        return _kind_of([label])
    given = [*answers, *([] if label is None else [label])]
    return _kind_of([answer for answer in given if not is_slash_form(answer)])


def kind_of_labels(labels: Iterable[str]) -> Kind | None:
    """Return the kind of a data set's answers, from all its labels; None if each question must decide.

    >>> kind_of_labels(["A", "C"]), kind_of_labels(["0/1", "1/1"]), kind_of_labels(["12", "x^2"]), kind_of_labels(["yes"])
    ('choice', None, 'mathematics', 'text')
    """
    clear = [label for label in labels if not is_slash_form(label)]
    return _kind_of(clear) if clear else None


def _kind_of(answers: Sequence[str]) -> Kind:
    if not answers:
        return "text"
    if all(_LABEL_CHOICE.fullmatch(written(answer)) for answer in answers):
        return "choice"
    if all(map(_is_json, answers)):
        return "json"
    if all(map(is_plain, answers)) or any(map(carries_mathematics, answers)):
        return "mathematics"
    return "text"


def _joined(keys: Sequence[Hashable]) -> list[int]:
    """Return one number per key; equal keys have the same."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


# ----------------------------------------------------------------------------------------------------- choices and JSON


def _choice_key(answer: str) -> Hashable:
    """Return the letter of a choice: B, (B), b., (B) 42."""
    found = _CHOICE.fullmatch(written(answer))
    return found[1].upper() if found else value_of(answer, algebra=False)


def _is_json(answer: str) -> bool:
    """Whether it is an object, or a list that holds anything but numbers."""
    text = answer.strip()
    if text[:1] + text[-1:] not in ("{}", "[]"):
        return False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if isinstance(found, dict):
        return True
    return any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in found)


def _json_key(answer: str) -> Hashable:
    """Return JSON by value: without the order of keys, with numbers as numbers; the text if it is not JSON."""
    try:
        return _by_value(json.loads(answer, parse_int=Fraction, parse_float=_fraction))
    except (ValueError, RecursionError):
        return ("text", words(answer))


def _fraction(text: str) -> Fraction | str:
    return Fraction(text) if len(text.lower().partition("e")[2]) <= _EXPONENT_DIGITS else text


_EXPONENT_DIGITS = 4


def _by_value(found: Any) -> Hashable:
    if isinstance(found, dict):
        return ("object", frozenset((key, _by_value(value)) for key, value in found.items()))
    if isinstance(found, list):
        return ("list", tuple(_by_value(each) for each in found))
    return (type(found).__name__, found)


# ------------------------------------------------------------------------------------------------------------- all answers


def _together(answers: list[str], values: list[Value]) -> list[Value]:
    """Return the values in the light of the other answers: versions, codes without their point, dates without a month."""
    texts = list(map(written, answers))
    if any(map(is_version, texts)):
        values = [
            Value("text", text) if value.shape == "number" and _DECIMAL.fullmatch(text) else value
            for text, value in zip(texts, values, strict=True)
        ]
    names = [value.text if value.shape == "text" else "" for value in values]
    known = with_order(with_point(names), texts)
    if known == names:
        return values
    return [value if value.shape != "text" else Value("text", each) for value, each in zip(values, known, strict=True)]


class _Equality:
    """Groups the values of a question. ``label`` is the first value, or None."""

    def __init__(self, reader: Reader, values: Sequence[Value], label: Value | None, patience: Patience | None) -> None:
        self._reader = reader
        self._patience = patience
        self._values = values
        self._label = label
        self._classes: dict[Hashable, int] = {}
        self._root: list[int] = []

    async def groups(self) -> list[int]:
        """Return one number per value; equal values, directly or through others, have the same."""
        amounts = _amounts(self._values, self._label)
        leaves = {leaf: None for value in self._values for leaf in _leaves(value)}
        numbers = {leaf: (BARE.dimension, leaf.number, True) for leaf in leaves if leaf.shape == "number"}
        of_leaf: dict[Value, Hashable] = {}
        for leaf in leaves:
            constant = await self._constant(leaf) if leaf.may_be_constant else True
            if constant is False:
                of_leaf[leaf] = ("text", leaf.text)
            elif constant is not True:
                numbers[leaf] = (BARE.dimension, constant.number, constant.exact)
        every = list({*numbers.values(), *[amount for amount in amounts if amount is not None]})
        of_number = dict(zip(every, _close(every), strict=True))
        of_leaf |= {leaf: ("number", of_number[number]) for leaf, number in numbers.items()}
        formulas = [leaf for leaf in leaves if leaf.shape in FORMULAS and leaf not in of_leaf]
        of_leaf |= {leaf: ("formula", at) for leaf, at in zip(formulas, await self._formulas(formulas), strict=True)}
        keys = [
            ("number", of_number[amount]) if amount is not None else _key(value, of_leaf)
            for value, amount in zip(self._values, amounts, strict=True)
        ]
        return await self._structures(_joined(keys))

    async def _constant(self, leaf: Value) -> Any:
        algebra = self._reader.algebra
        return False if algebra is None else await algebra.value(leaf.text, self._patience)

    async def _formulas(self, formulas: list[Value]) -> list[int]:
        roots = _joined([leaf.text for leaf in formulas])
        for one, other in combinations(range(len(formulas)), 2):
            if roots[one] != roots[other] and await self._same(formulas[one], formulas[other]):
                _unite(roots, one, other)
        return roots

    async def _same(self, one: Value, other: Value) -> bool:
        """Whether two formulas are equal: of one form, or an expression and "variable = expression"."""
        if one.shape != other.shape:
            named, expression = (one, other) if one.parts else (other, one)
            if not named.parts or expression.shape != "expression":
                return False
            one, other = named.parts[0], expression
        algebra = self._reader.algebra
        return one.text == other.text or (algebra is not None and await algebra.same(one.text, other.text, self._patience))

    async def _structures(self, roots: list[int]) -> list[int]:
        """Join relations and matrices with the tuples that they equal: x<3 is an interval."""
        algebra = self._reader.algebra
        if algebra is None:
            return roots
        relations = [at for at, value in enumerate(self._values) if value.shape in ("relation", "matrix")]
        tuples = [at for at, value in enumerate(self._values) if value.shape == "tuple"]
        for one in relations:
            for other in tuples:
                a, b = self._values[one].text, self._values[other].text[2:]
                if roots[one] != roots[other] and await algebra.same(a, b, self._patience):
                    _unite(roots, one, other)
        return roots


def _leaves(value: Value) -> Iterable[Value]:
    if value.shape not in ("set", "tuple"):
        yield value
    else:
        for part in value.parts:
            yield from _leaves(part)


def _key(value: Value, of_leaf: dict[Value, Hashable]) -> Hashable:
    if value.shape == "set":
        return ("set", frozenset(_key(part, of_leaf) for part in value.parts))
    if value.shape == "tuple":
        return ("tuple", value.text[:2], tuple(_key(part, of_leaf) for part in value.parts))
    return of_leaf.get(value, ("text", value.text))


def _unite(roots: list[int], one: int, other: int) -> None:
    old, new = roots[one], roots[other]
    roots[:] = [new if root == old else root for root in roots]


# ----------------------------------------------------------------------------------------------------------------- numbers

Amount = tuple[Any, Fraction, bool]
"""Dimension, value in its base units, and whether that is exact."""


def _amounts(values: Sequence[Value], label: Value | None) -> list[Amount | None]:
    """Return the amounts of those values that are numbers, each with its unit or the one that the others give it."""
    if label is not None and label.shape == "number" and label.measure == BARE:
        return [(BARE.dimension, value.number, True) if value.shape == "number" else None for value in values]
    bare, nouns_count = _measure_of_bare(values, label)
    found: list[Amount | None] = []
    for value in values:
        own = value.measure
        if own == BARE or (own.noun and not nouns_count):
            own = bare
        found.append((own.dimension, own.base(value.number), True) if value.shape == "number" else None)
    return found


def _measure_of_bare(values: Sequence[Value], label: Value | None) -> tuple[Measure, bool]:
    """Return the unit of a number without one, and whether nouns are units (5 apples are not 5 pears)."""
    if label is not None and label.shape == "number":
        return label.measure, True
    measures = {value.measure for value in values if value.shape == "number"}
    others = measures - {BARE}
    if BARE in measures and len(others) > 1:
        others = {each for each in others if not each.noun}
        return (next(iter(others)) if len(others) == 1 else BARE), False
    return (next(iter(others)) if len(others) == 1 else BARE), True


def _close(amounts: Sequence[Amount]) -> list[int]:
    """Return one number per amount: equal ones have the same, as have those within the tolerance of a rounded one."""
    roots = _joined([amount[:2] for amount in amounts])
    for at, (dimension, value, exact) in enumerate(amounts):
        if exact:
            continue
        for other, (its, number, _) in enumerate(amounts):
            if its == dimension and abs(value - number) <= TOLERANCE * max(abs(value), abs(number)):
                _unite(roots, at, other)
    return roots
