"""Literals, answers without a numeric value (dates, times, genotypes, mutations, versions, IDs). Pure, linear.

Arithmetic would find meaningless equalities among them: 0/1 and 0/2 are both zero, V600E and E600V are the same product. A
fraction of two different positive integers (1/2) is not a literal, because the other answer may be .5.
"""

from __future__ import annotations

import re

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
